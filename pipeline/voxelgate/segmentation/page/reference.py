"""What true labels say of the cases of a run: how well they were found, and where the gates looked."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.progress import Progress
from voxelgate.core.verdict import Doubt, Quality, Verdict
from voxelgate.datasets.manifest import is_manifest, load_manifest
from voxelgate.evaluation.pairs import Reference, label_maps_in, read_reference
from voxelgate.evaluation.review import LOW_DICE, listed
from voxelgate.evaluation.scores import LabelScores, score
from voxelgate.images.label_maps import read_label_map
from voxelgate.images.volumes import read_channels, volume_stem
from voxelgate.inference.attention.gate_report import GateReport
from voxelgate.inference.attention.maps import GateMap, diagnose
from voxelgate.segmentation.cases import CHANNEL_ENDING
from voxelgate.segmentation.output_names import Output, is_no_label_map, map_kind
from voxelgate.segmentation.preview import labels_as_shown, read_preview
from voxelgate.segmentation.report import CaseReport


@dataclass(frozen=True)
class Truth:
    """What the true labels of one case say.

    Args:
        labels: of the pixels of its preview, as `Preview.labels`; None if it has none.
        scores: of each structure.
        gates: what each gate does, told by the true labels instead of those that were found; finest first.
    """

    labels: bytes | None
    scores: Sequence[LabelScores]
    gates: Sequence[GateReport]


def references_of(
    cases: Sequence[CaseReport],
    out_dir: Path,
    reference: Path,
    data_root: Path | None = None,
    inputs: Mapping[str, Path] | None = None,
) -> dict[str, Reference]:
    """Return the true label map of each case that has one.

    Args:
        cases: of the run; those that have a label map among their outputs count.
        out_dir: folder of the outputs.
        reference: manifest, whose case ids are those of the cases; or folder, in which label maps lie and are called as
            the outputs in theirs, as `voxelgate.evaluation.pairs.pair_files` pairs them.
        data_root: as in `voxelgate.datasets.manifest.load_manifest`.
        inputs: first file of each case. Cases that are not called so, for their names are hashed, have the true label
            map of this image in the manifest, or that in the folder which is called like it and like no other.

    Raises:
        UsageError: no case has one.
        InputError: the folder holds none, or two of one name.
        ManifestError: the manifest cannot be used.
    """
    found = {case.case_id: case.outputs[Output.NIFTI] for case in cases if Output.NIFTI in case.outputs}
    images = {case_id: path for case_id, path in (inputs or {}).items() if case_id in found}
    if is_manifest(reference):
        manifest = load_manifest(reference, data_root)
        listed = manifest.all_cases
        known = {case.case_id: manifest.reference_of(case) for case in listed}
        names = {case_id: case_id for case_id in found}
        name_of = {case.image.resolve(): case.case_id for case in listed}
        others = {case_id: name_of.get(path.resolve()) for case_id, path in images.items()}
    else:
        if data_root is not None:
            raise UsageError("--data-root is for a manifest; leave it out for a folder of label maps.")
        known = {**label_maps_in(reference, is_no_label_map)}
        names = {
            case_id: (path.relative_to(out_dir).parent / volume_stem(path)).as_posix()
            for case_id, path in found.items()
        }
        others = {case_id: _called_like(path, known) for case_id, path in images.items()}
    shared = Counter(name for name in others.values() if name is not None)
    names |= {
        case_id: name
        for case_id, name in others.items()
        if names[case_id] not in known and name is not None and shared[name] == 1
    }
    paired = {case_id: path for case_id, name in names.items() if (path := known.get(name)) is not None}
    if not paired:
        raise UsageError(
            f"{reference}: holds the true labels of none of the {len(found)} cases with a label map; name the folder "
            "whose label maps are called as those of the output, or the manifest that was segmented."
        )
    return paired


def _called_like(image: Path, known: Container[str]) -> str | None:
    """Return the name that an image has in a folder, with as many of its own folders as that has."""
    folders = image.parent.parts
    stems = dict.fromkeys((volume_stem(image), CHANNEL_ENDING.sub("", volume_stem(image))))
    names = ("/".join((*folders[start:], stem)) for stem in stems for start in range(len(folders) + 1))
    return next((name for name in names if name in known), None)


def compared(
    cases: Sequence[CaseReport], references: Mapping[str, Reference], progress: Progress | None = None
) -> dict[str, Truth]:
    """Compare cases with their true labels; one case is in memory at a time.

    Args:
        cases: of the run.
        references: true label map by case id; cases without are passed over.
        progress: called with the number of cases done and the number of all.

    Returns:
        By case id.

    Raises:
        InputError: a file cannot be read, lies on another grid than the result, or holds values that the bundle has no
            name for.
    """
    waiting = [case for case in cases if case.case_id in references]
    truths = {}
    for done, case in enumerate(waiting, start=1):
        truths[case.case_id] = _truth(case, references[case.case_id])
        if progress is not None:
            progress(done, len(waiting))
    return truths


def judged_by(case: CaseReport, truth: Truth | None) -> CaseReport:
    """Return a case whose result is at least for review if a structure of it agrees badly with the true labels."""
    scores = () if truth is None else truth.scores
    low = [f"{one.label} ({one.dice:.2f})" for one in scores if one.dice < LOW_DICE]  # NaN, in neither, is not
    if case.quality is None or not low:
        return case
    doubt = Doubt(Verdict.REVIEW, f"true labels: Dice below {LOW_DICE} of {listed(low)}.")
    known = [Doubt(case.quality.verdict, reason) for reason in case.quality.reasons]
    return replace(case, quality=Quality.of([doubt, *known]))


def _truth(case: CaseReport, reference: Reference) -> Truth:
    table = LabelTable(("background", *case.volumes_ml))
    found, grid = read_label_map(case.outputs[Output.NIFTI], len(case.volumes_ml))
    labels, true_grid = read_reference(reference, len(case.volumes_ml))
    if (difference := grid.difference(true_grid)) is not None:
        raise InputError(
            f"{case.case_id}: the true labels lie on another grid ({difference}); give them on that of the image."
        )
    scores = score(found, labels, grid, table, case.case_id)
    labels = labels.astype(np.uint16)
    return Truth(_shown_picture(case, labels, grid), scores, list(_gates(case, labels, grid)))


def _shown_picture(case: CaseReport, labels: npt.NDArray[Any], grid: Grid) -> bytes | None:
    path = case.outputs.get(Output.PREVIEW)
    if path is None:
        return None
    try:
        preview = read_preview(path)
    except InputError:
        return None  # the page says of a case without one that it cannot be shown
    return labels_as_shown(preview.layout, labels, grid)


def _gates(case: CaseReport, labels: npt.NDArray[Any], grid: Grid) -> Iterator[GateReport]:
    """Yield what the maps that were written, on the grid of the image, have to do with the labels; the rest stays."""
    for gate in case.attention:
        channels, _ = read_channels(case.outputs[map_kind(gate.level)])
        (told,) = diagnose([GateMap(gate.level, channels[0].astype(np.float32), grid)], labels, grid)
        yield replace(told, low=gate.low, high=gate.high, entropy=gate.entropy)
