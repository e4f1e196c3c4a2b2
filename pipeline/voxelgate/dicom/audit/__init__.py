"""Say what is wrong with a series, from its headers alone; a series without a refusal makes one volume.

The rules stand in `kind` (whose images, of what kind), `planes`, `volumes` and `stack` (which
geometry) and `values` (what the numbers mean), each a function of `SeriesFacts`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from voxelgate.core.findings import Allow, Finding, refusals
from voxelgate.dicom.audit import kind, planes, values
from voxelgate.dicom.audit import several_volumes as volumes
from voxelgate.dicom.audit import stack_rules as stack
from voxelgate.dicom.audit.facts import SeriesFacts
from voxelgate.dicom.read.headers import Header

Rule = Callable[[SeriesFacts], Iterator[Finding]]
Stage = tuple[Rule, ...]

KIND: tuple[Stage, ...] = (
    (
        kind.several_patients,
        kind.several_studies,
        kind.several_frames_of_reference,
        kind.not_an_image,
    ),
    (kind.secondary_capture,),
    (kind.modality,),
    (kind.localizer,),
    (kind.colour, kind.mosaic, kind.multi_frame, kind.concatenation, kind.several_stacks, kind.derived),
)

GEOMETRY: tuple[Stage, ...] = (
    (
        planes.bad_geometry_values,
        planes.impossible_geometry,
        planes.no_size,
        planes.no_position,
        planes.no_orientation,
        planes.no_pixel_spacing,
        planes.bad_orientation,
    ),
    (
        planes.mixed_orientations,
        planes.mixed_sizes,
        planes.mixed_pixel_spacings,
        planes.non_square_pixels,
    ),
    (volumes.shared_positions, volumes.single_slice),
    (volumes.mixed_acquisitions,),
    (
        stack.shifted_slices,
        stack.gantry_tilt,
        stack.tilt_without_shear,
        stack.missing_slice,
        stack.non_uniform_spacing,
        stack.rounded_positions,
        stack.spacing_between_slices,
        stack.sparse_slices,
    ),
)

VALUES: tuple[Stage, ...] = (
    (
        kind.several_series,
        values.bad_uid,
        values.duplicate_uid,
        values.bad_values,
        values.character_set,
        values.mixed_pixel_formats,
        values.lossy,
        values.modality_lut,
        values.bad_rescale,
        values.no_rescale,
        values.no_hounsfield_units,
        values.padding_value,
        values.bad_format,
        values.float_pixels,
        values.unknown_encoding,
        values.no_pixels,
    ),
    (values.slope_per_slice, values.truncated, values.unpacks_too_far),
)

RULES: tuple[Rule, ...] = tuple(rule for chain in (KIND, GEOMETRY, VALUES) for stage in chain for rule in stage)
"""Every rule; a stage's may rely on what the stages before it in its chain have ruled out."""


def audit(headers: Sequence[Header], *, allow: Iterable[Allow] = ()) -> tuple[Finding, ...]:
    """Return what is found out about a series, whatever the order of its headers.

    A refused kind of image ends the audit: what the geometry of a screenshot is does not matter.

    Args:
        headers: of one series, without copies.
        allow: faults that become warnings, because they are mended when the series is read.
    """
    if not headers:
        return ()
    facts = SeriesFacts(tuple(headers), frozenset(allow))
    found = _until_refused(KIND, facts)
    if refusals(found):
        return found
    return found + _until_refused(GEOMETRY, facts) + _until_refused(VALUES, facts)


def _until_refused(stages: Sequence[Stage], facts: SeriesFacts) -> tuple[Finding, ...]:
    found: list[Finding] = []
    for stage in stages:
        found += [finding for rule in stage for finding in rule(facts)]
        if refusals(found):
            break
    return tuple(found)
