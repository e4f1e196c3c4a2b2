"""What a plan needs to know of a data set, found in one pass that holds one case for each worker."""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as record

from voxelgate.core.documents import read_json
from voxelgate.core.errors import InputError, ManifestError, OutputError, UsageError
from voxelgate.core.files import write_text
from voxelgate.core.geometry import triple
from voxelgate.core.labels import LabelTable
from voxelgate.core.progress import Progress
from voxelgate.core.records import record_problem
from voxelgate.core.structures import Structure, structure_ranges
from voxelgate.datasets.case_facts import STORED_OFFSETS_HU, TISSUE_HU, CaseFacts, measure_case
from voxelgate.datasets.check_manifest import MOST_READERS, checksum
from voxelgate.datasets.defects import Defect, defects_between
from voxelgate.datasets.manifest import Manifest, ManifestCase, Modality
from voxelgate.images.volumes import read_grid

Limits = tuple[float, float]
Three = tuple[float, float, float]

MOST_VOXELS_AT_ONCE = 2**27
"""Of all cases that are measured at a time; a NIfTI whose values are scaled took 21 bytes a voxel."""


def _as_table(names: Any) -> Any:  # a table, or the list of names that stands for it in JSON
    return LabelTable(tuple(names)) if isinstance(names, list) else names


@dataclass(frozen=True)
class StructureFacts:
    """One structure in a whole data set.

    Args:
        name: of the label value.
        cases: that hold it.
        volume_ml: least, median and largest volume where it is.
        foreground_share: its part of all labelled voxels.
        components: median number of separate pieces.
        intensity: for each channel the medians over cases of its percentiles 1, 25, 50, 75 and 99.
        extent_mm: median size of the box around it, along right-left, back-front and foot-head.
        width_mm: median diameter of the largest ball inside it.
        ceilings: median Dice that a network without errors reaches on coarser voxels, for each of
            `voxelgate.datasets.ceilings.COARSER`; empty if it is never there.
    """

    name: str
    cases: int
    volume_ml: Three
    foreground_share: float
    components: float
    intensity: tuple[tuple[float, ...], ...]
    extent_mm: Three = (0.0, 0.0, 0.0)
    width_mm: float = 0.0
    ceilings: tuple[float, ...] = ()


@record(frozen=True, config=ConfigDict(extra="forbid"))
class Fingerprint:
    """A data set as a plan sees it: numbers of the whole, nothing of a single case.

    Args:
        name: of the data set.
        modality: CT or MRI.
        labels: names of the label values.
        cases: sound ones, on which all numbers rest.
        subjects: whose cases they are.
        channel_names: what each channel of an image is.
        shape_vox: median size along right-left, back-front and foot-head.
        spacing_mm: median voxel size along the same axes.
        spacing_range_mm: least and largest, for each axis.
        extent_range_mm: least and largest field of view, for each axis.
        fewest_slices: least size along any axis; 1 for flat images.
        foreground_vox: median size of the box around all structures, at the median spacing.
        body_share: median part of a volume inside the box of what is brighter than its background.
        hu_offset: what was added to the HU of those CT images that hold no negative value; 0 if nothing was.
        structures: facts of each structure, in the order of the labels.
        ranges: of each structure what is usual, as `voxelgate.core.structures.StructureRange` reads it.
        licence: of the data.
        reference: publications to cite.

    >>> vg.survey(vg.load_manifest("data/manifest.json")).fingerprint.cases
    4
    """

    name: str
    modality: Modality
    labels: Annotated[LabelTable, BeforeValidator(_as_table)]
    cases: int
    subjects: int
    channel_names: tuple[str, ...]
    shape_vox: Three
    spacing_mm: Three
    spacing_range_mm: tuple[Limits, ...]
    extent_range_mm: tuple[Limits, ...]
    fewest_slices: int
    foreground_vox: Three
    body_share: float
    hu_offset: float
    structures: tuple[StructureFacts, ...]
    ranges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    licence: str = ""
    reference: str = ""

    @property
    def imbalance(self) -> float:
        """Return how many labelled voxels the largest structure has for one of the smallest."""
        shares = [structure.foreground_share for structure in self.structures if structure.foreground_share > 0]
        return max(shares) / min(shares)

    def to_json(self) -> str:
        """Return the facts as a readable JSON document."""
        return json.dumps(asdict(self) | {"labels": self.labels.names}, indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read facts that `to_json` wrote.

        Raises:
            UsageError: no such file, or another content.
        """
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError) as error:
            reason = record_problem(error) if isinstance(error, ValidationError) else error
            raise UsageError(f"{path.name} holds no fingerprint ({reason}); `voxelgate plan` writes one") from error


@dataclass(frozen=True)
class Survey:
    """A data set after the pass over its files.

    Args:
        manifest: the sound cases alone.
        facts: of each sound case, in their order.
        fingerprint: of them all.
        defects: what was found wrong, and what was done about it.

    >>> vg.survey(vg.load_manifest("data/manifest.json")).fingerprint.spacing_mm
    (1.0, 1.0, 1.0)
    """

    manifest: Manifest
    facts: tuple[CaseFacts, ...]
    fingerprint: Fingerprint
    defects: tuple[Defect, ...]


def survey(
    manifest: Manifest, *, cache: Path | None = None, executor: Executor | None = None, progress: Progress | None = None
) -> Survey:
    """Read every labelled case once, measure the sound ones, and leave out those with defects.

    Args:
        manifest: the data set.
        cache: folder that keeps what was measured, by the content of the files; None measures anew.
        executor: where cases are measured, in threads if None, at most `MOST_READERS` at a time and fewer large ones.
        progress: told how many cases are done.

    Raises:
        ManifestError: no case is sound, which lists all defects, or none holds a structure, or sides are wrong in most.

    >>> facts = vg.survey(vg.load_manifest("data/manifest.json"))
    >>> facts.fingerprint.cases, facts.defects
    (4, ())
    """
    if executor is None:
        with ThreadPoolExecutor(_readers(manifest)) as threads:
            return survey(manifest, cache=cache, executor=threads, progress=progress)
    measured = []
    for done, facts in enumerate(executor.map(partial(_measured_case, manifest, cache), range(len(manifest.cases))), 1):
        measured.append(facts)
        if progress is not None:
            progress(done, len(manifest.cases))
    defects = defects_between(measured, manifest.labels, manifest.modality)
    left_out = {defect.case_id for defect in defects if defect.is_left_out}
    sound = tuple(facts for facts in measured if facts.case_id not in left_out)
    if not sound:
        raise ManifestError([f"{defect.case_id}: {defect.found}" for defect in defects])
    if not any(facts.structures for facts in sound):
        raise ManifestError([f"{manifest.name}: no case holds any structure; give label maps that were drawn."])
    rest = manifest.without(left_out)
    return Survey(rest, sound, _fingerprint_of(rest, sound), defects)


def _readers(manifest: Manifest) -> int:
    """Return how many cases are measured at a time, so that even the largest of them fit into memory."""
    largest = max((_voxels(case) for case in manifest.cases), default=0)
    return max(1, min(MOST_READERS, MOST_VOXELS_AT_ONCE // max(1, largest)))


def _voxels(case: ManifestCase) -> int:
    """Return the voxels of all channels as the first header says; 0 if it cannot be read."""
    try:
        return len(case.channels) * math.prod(read_grid(case.image).shape)
    except (InputError, OSError):
        return 0


def _measured_case(manifest: Manifest, cache: Path | None, index: int) -> CaseFacts:
    """Measure a case, or take what was measured of the same files before."""
    case = manifest.cases[index]
    if cache is None or case.is_dicom:  # what its images hold would have to be read to know that they are the same
        return measure_case(case, manifest)
    path = cache / f"{_content_key(manifest, index)}.json"
    try:
        known = TypeAdapter(CaseFacts).validate_json(path.read_bytes())
        return dataclasses.replace(known, case_id=case.case_id)
    except (OSError, ValueError):
        facts = measure_case(case, manifest)
        if not facts.problems:  # they name files, and may be gone the next time
            _keep(path, asdict(facts))
        return facts


def _content_key(manifest: Manifest, index: int) -> str:
    """Hash everything that the facts of a case follow from: bytes of its files, label values, version of the rules."""
    case = manifest.cases[index]
    rules = (CaseFacts.VERSION, manifest.values, manifest.modality, manifest.channel_names)
    digest = hashlib.sha256(f"{rules} {case.image_sha256} {case.label_sha256}".encode())
    for path in case.files:
        try:
            digest.update(bytes.fromhex(checksum(path)))
        except InputError:
            digest.update(b"/")
    return digest.hexdigest()


def _keep(path: Path, record: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record))
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be written ({error.strerror}); name another cache") from error


def _fingerprint_of(manifest: Manifest, facts: Sequence[CaseFacts]) -> Fingerprint:
    shapes, spacings = np.array([one.shape_vox for one in facts]), np.array([one.spacing_mm for one in facts])
    spacing_mm = np.median(spacings, axis=0)
    boxes_mm = np.array([one.foreground_vox for one in facts]) * spacings
    offset_hu = _hu_offset(facts) if manifest.modality is Modality.CT else 0.0
    labelled = Counter({value: sum(one.voxels_of(value) for one in facts) for value in manifest.labels.foreground})
    return Fingerprint(
        name=manifest.name,
        modality=manifest.modality,
        labels=manifest.labels,
        cases=len(facts),
        subjects=len({case.subject for case in manifest.cases}),
        channel_names=manifest.channel_names,
        shape_vox=_rounded(np.median(shapes, axis=0), 1),
        spacing_mm=_rounded(spacing_mm, 3),
        spacing_range_mm=_ranges(spacings, 3),
        extent_range_mm=_ranges(shapes * spacings, 1),
        fewest_slices=int(shapes.min()),
        foreground_vox=_rounded(np.median(boxes_mm[boxes_mm.any(axis=1)], axis=0) / spacing_mm, 1),
        body_share=round(float(np.median([one.body_share for one in facts])), 3),
        hu_offset=offset_hu,
        structures=tuple(
            _structure_facts(value, manifest.labels, facts, labelled, offset_hu) for value in manifest.labels.foreground
        ),
        ranges={
            name: one.to_mapping() for name, one in structure_ranges(_looks_of_cases(facts, manifest.labels)).items()
        },
        licence=manifest.licence,
        reference=manifest.reference,
    )


def _looks_of_cases(facts: Sequence[CaseFacts], labels: LabelTable) -> list[dict[str, Structure]]:
    return [
        {
            labels.names[s.value]: Structure(s.volume_ml, 0.0, s.cut_at, s.outside_main, s.away_mm)
            for s in one.structures
        }
        for one in facts
    ]


def _structure_facts(
    value: int, labels: LabelTable, facts: Sequence[CaseFacts], labelled: Counter[int], offset_hu: float
) -> StructureFacts:
    """Return the facts of one structure; its values with what was added to HU, if that was added in any image."""
    where = [(facts_of, one) for facts_of in facts for one in facts_of.structures if one.value == value]
    found = [one for _, one in where]
    volumes = sorted(one.volume_ml for one in found) or [0.0]
    lacking_hu = [0.0 if facts_of.is_stored_with_offset else offset_hu for facts_of, _ in where]
    intensity = np.array([np.add(one.intensity, hu) for one, hu in zip(found, lacking_hu, strict=True)])
    return StructureFacts(
        name=labels.names[value],
        cases=len(found),
        volume_ml=_rounded((volumes[0], float(np.median(volumes)), volumes[-1]), 3),
        foreground_share=round(labelled[value] / max(1, labelled.total()), 4),
        components=float(np.median([one.components for one in found])) if found else 0.0,
        intensity=tuple(tuple(row) for row in np.median(intensity, axis=0).round(2).tolist()) if found else (),
        extent_mm=_rounded(np.median([one.extent_mm for one in found], axis=0), 1) if found else (0.0, 0.0, 0.0),
        width_mm=round(float(np.median([one.width_mm for one in found])), 1) if found else 0.0,
        ceilings=tuple(np.median([one.ceilings for one in found], axis=0).round(3).tolist()) if found else (),
    )


def _hu_offset(facts: Sequence[CaseFacts]) -> float:
    """Return what was added to the HU of some images: what puts their tissue in its place; 0 if nothing was to any."""
    stored = [one.tissue for one in facts if one.is_stored_with_offset]
    if not stored:
        return 0.0
    tissue = float(np.median(stored))
    return min(STORED_OFFSETS_HU, key=lambda offset: abs(tissue - offset - TISSUE_HU))


def _ranges(values: np.typing.NDArray[np.float64], digits: int) -> tuple[Limits, ...]:
    return tuple((round(float(column.min()), digits), round(float(column.max()), digits)) for column in values.T)


def _rounded(values: Any, digits: int) -> Three:  # list, tuple or array
    return triple(round(float(value), digits) for value in values)
