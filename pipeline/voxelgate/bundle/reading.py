"""Read an image for a bundle, and refuse what cannot be segmented."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError
from voxelgate.core.findings import Allow, Finding, refusals
from voxelgate.core.geometry import Affine, Grid, counts_pixels
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.choose import SeriesRule, choose
from voxelgate.dicom.plausibility import check_values
from voxelgate.dicom.read.dicom_files import list_files
from voxelgate.dicom.read.series import Series, scan_files
from voxelgate.dicom.read.volume import read_series
from voxelgate.evaluation.expectations import Expected, check_against
from voxelgate.images.file_facts import NO_FACTS, FileFacts
from voxelgate.images.pictures import RGB
from voxelgate.images.spec import ONE_VOLUME, ImageSpec, read_image_with_findings
from voxelgate.images.volumes import Voxels


class Image(NamedTuple):
    """What was read of a case.

    Args:
        voxels: (C, I, J, K), any real type.
        grid: of each channel, RAS+ mm.
        findings: each thing worth knowing.
        facts: what else is known of its file.
    """

    voxels: npt.NDArray[Any]
    grid: Grid
    findings: tuple[Finding, ...]
    facts: FileFacts = NO_FACTS

    @property
    def shown(self) -> npt.NDArray[Any]:
        """Return the voxels (I, J, K) by which a person knows the image: its first channel, of colours their mean."""
        is_colour = len(self.voxels) == len(RGB) and counts_pixels(self.grid)
        shown: npt.NDArray[Any] = self.voxels.mean(axis=0, dtype=np.float32) if is_colour else self.voxels[0]
        return shown


def read_source(  # each is one rule of what can be segmented
    source: Sequence[Path] | Series,
    name: str,
    labels: LabelTable,
    *,
    expected: Expected | None = None,
    allow: Iterable[Allow] = (),
    images: ImageSpec = ONE_VOLUME,
) -> Image:
    """Read an image and refuse what cannot be segmented.

    Args:
        source: the files of its channels in their order, or a DICOM series.
        name: what to call it in messages.
        labels: of the bundle; if they tell sides apart, an image without a known left and right is refused.
        expected: what the bundle was trained on; what differs is reported.
        allow: faults of a DICOM series to mend, as given to `scan_dicom`.
        images: what the images of the bundle consist of.

    Raises:
        InputError: it cannot be read, it is not what the bundle takes, its channels lie on different grids or are one
            and the same, or one holds NaN, infinite or all equal voxels.
    """
    if not isinstance(source, Series):
        image = _read_files(source, labels, images)
        further: tuple[Finding, ...] = ()
    else:
        if images != ImageSpec(images.channels[:1]):
            raise InputError(f"{name}: a DICOM series has one channel, the bundle takes {images}; give such files.")
        volume = read_series(source, allow=allow)
        image = Image(volume.voxels[None], volume.grid, volume.findings, volume.facts)
        further = check_values(volume.voxels, volume.grid, source.modality)
    _refuse_unusable(image, name, images)
    if refused := refusals(further):
        raise InputError(f"{name}: {refused[0]}")
    if expected is not None:
        further += check_against(image.grid, expected)
    return image._replace(findings=image.findings + further)


def take_array(voxels: Voxels, affine: Affine, *, expected: Expected | None, images: ImageSpec) -> Image:
    """Take an image that was read already, and refuse what cannot be segmented.

    Args:
        voxels: (I, J, K), or (C, I, J, K) with the channels of the bundle, any real type.
        affine: voxel index to RAS+ mm, (4, 4).
        expected: what the bundle was trained on; what differs is reported.
        images: what the images of the bundle consist of.

    Raises:
        InputError: it is not what the bundle takes, or a channel holds NaN, infinite or all equal voxels.
    """
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"the image holds values of type {voxels.dtype}, expected integers or real numbers.")
    channels = voxels[None] if voxels.ndim == 3 else voxels  # spatial axes
    if channels.ndim != 4 or len(channels) != len(images.channels):  # and one of channels
        raise InputError(f"the image has the shape {voxels.shape}, but the bundle takes {images}; give such an array.")
    try:
        grid = Grid((channels.shape[1], channels.shape[2], channels.shape[3]), affine)
    except ValueError as error:
        raise InputError(f"the image has no usable grid: {error}; give its affine.") from error
    image = Image(channels, grid, ())
    _refuse_unusable(image, "the image", images)
    found = () if expected is None else check_against(grid, expected)
    return image._replace(findings=found)


def series_in(paths: Sequence[Path], rule: SeriesRule, allow: Iterable[Allow] = ()) -> Series:
    """Return the series of one study that a bundle wants.

    Args:
        paths: folders, zips or files of the study.
        rule: which series to take; of several that fit, the one with the thinnest slices.
        allow: faults of DICOM series to mend instead of refusing them.

    Raises:
        InputError: there is no DICOM, no series that fits, or there are several studies.
    """
    files = dict.fromkeys(file for path in paths for file in list_files(path))
    found = scan_files(list(files), allow=allow)
    if len({series.study_id for series in found}) > 1:
        raise InputError(f"{paths[0].name}: holds several studies, expected one; choose a series of `scan_dicom`.")
    taken, reasons = choose(found, rule)
    if taken is None:
        why = "; ".join(f"{name} {reason}" for name, reason in reasons.items()) or "there is no DICOM image"
        raise InputError(f"{paths[0].name}: holds no series that the bundle can use: {why}.")
    return taken


def _read_files(paths: Sequence[Path], labels: LabelTable, images: ImageSpec) -> Image:
    voxels, grid, found, problem, facts = read_image_with_findings(paths, images)
    if problem and labels.side_pairs:
        raise InputError(f"{problem}, but the bundle tells sides apart; convert the image again with its orientation.")
    return Image(voxels, grid, found, facts)


def _refuse_unusable(image: Image, name: str, images: ImageSpec) -> None:
    voxels = image.voxels
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        unusable = 0 if voxels.dtype.kind != "f" else int((~np.isfinite(voxels.astype(np.float32, copy=False))).sum())
    if unusable:
        raise InputError(
            f"{name}: {unusable} voxels are NaN or infinite as float32, expected numbers; replace them first."
        )
    for file in voxels.reshape(images.files, -1, *voxels.shape[1:]):  # of colours one may be empty
        if file.min() == file.max():
            raise InputError(f"{name}: all voxels are {file.flat[0]}, expected an image; export it again.")
