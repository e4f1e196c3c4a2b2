"""How well label maps match their references: overlap, surface distances and volumes, per case and structure.

Nothing is left out in silence. A structure that only one of the two label maps holds scores Dice 0 and has no
distances, and a summary counts it beside the mean; a structure that neither holds has no Dice, and is counted too.
"""

import csv
import logging
import math
import os
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, Events
from scipy import ndimage

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.evaluation.surfaces import surface_distances
from voxelgate.images.pictures import PICTURE_SUFFIXES, PIXELS_PER_ML, counts_pixels, is_picture
from voxelgate.images.spec import ONE_STRUCTURE, binary_as_one, mask_problem
from voxelgate.images.volumes import SUFFIXES, is_volume, read_channels, read_grid, volume_stem
from voxelgate.segmentation.outputs import is_attention_map

logger = logging.getLogger(__name__)

LabelArray = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, ...]
Pair = tuple[str, Path, Path]

MEAN_OVER_LABELS = "mean over labels"
"""Name of the last line of a summary, in which every label weighs the same."""


IN_PIXELS: Mapping[str, tuple[str, int]] = {
    "hd95_mm": ("hd95_px", 1),
    "assd_mm": ("assd_px", 1),
    "mssd_mm": ("mssd_px", 1),
    "volume_ml": ("area_px", PIXELS_PER_ML),
    "reference_ml": ("reference_px", PIXELS_PER_ML),
    "difference_ml": ("difference_px", PIXELS_PER_ML),
}
"""What a measure is called where pixels are counted, and how many of them are one of its unit."""


class Measure(StrEnum):
    """The measures of `LabelScores`; each value is the name of its field and of its column."""

    DICE = "dice"
    IOU = "iou"
    HD95 = "hd95_mm"
    ASSD = "assd_mm"
    MSSD = "mssd_mm"
    RAVD = "ravd_percent"
    VOLUME = "volume_ml"
    REFERENCE_VOLUME = "reference_ml"
    VOLUME_DIFFERENCE = "difference_ml"


@dataclass(frozen=True)
class LabelScores:
    """Measures of one structure in one case, the prediction P against the reference R.

    |P| and |R| are numbers of voxels. NaN means undefined, never zero and never perfect:

    | P | R | dice, iou | distances | ravd_percent | counted as |
    |---|---|---|---|---|---|
    | holds it | holds it | defined | defined | defined | - |
    | empty | holds it | 0 | NaN | 100 | missed |
    | holds it | empty | 0 | NaN | NaN | invented |
    | empty | empty | NaN | NaN | NaN | absent |

    Args:
        case_id: the case.
        label: name of the structure.
        dice: 2 |P and R| / (|P| + |R|); Dice 1945, doi:10.2307/1932409.
        iou: |P and R| / |P or R|; Jaccard 1912, doi:10.1111/j.1469-8137.1912.tb05611.x.
        hd95_mm: the larger of the two directed 95th percentiles of the surface distances, percentiles interpolated
            linearly; Maier-Hein 2024, doi:10.1038/s41592-023-02151-z, and `monai/metrics/hausdorff_distance.py`.
        assd_mm: mean of the surface distances of both directions taken together, so that the larger surface weighs
            more; Heimann 2009, doi:10.1109/TMI.2009.2013851.
        mssd_mm: largest of all surface distances, the Hausdorff distance; same source.
        ravd_percent: 100 | |P| - |R| | / |R|; Kavur 2021, doi:10.1016/j.media.2020.101950.
        volume_ml: volume of P.
        reference_ml: volume of R.
        difference_ml: `volume_ml - reference_ml`; negative if the prediction is too small.
        counts_pixels: whether it is a picture, whose pixels are cubes of 1 mm: sizes are to be told as in `IN_PIXELS`.
    """

    case_id: str
    label: str
    dice: float
    iou: float
    hd95_mm: float
    assd_mm: float
    mssd_mm: float
    ravd_percent: float
    volume_ml: float
    reference_ml: float
    difference_ml: float
    counts_pixels: bool = False

    @property
    def is_missed(self) -> bool:
        """Return whether the reference holds the structure and the prediction does not."""
        return self.volume_ml == 0 and self.reference_ml > 0

    @property
    def is_invented(self) -> bool:
        """Return whether the prediction holds the structure and the reference does not."""
        return self.volume_ml > 0 and self.reference_ml == 0

    @property
    def is_absent(self) -> bool:
        """Return whether neither holds the structure."""
        return self.volume_ml == 0 and self.reference_ml == 0


@dataclass(frozen=True)
class Statistic:
    """Mean, sample standard deviation (NaN below two values), median and number of the defined values."""

    mean: float
    sd: float
    median: float
    n: int


@dataclass(frozen=True)
class LabelSummary:
    """Statistics of one structure over all cases, or over all subjects.

    Args:
        label: name of the structure, or `MEAN_OVER_LABELS`.
        statistics: of each measure, over the values that are defined; its `n` says over how many.
        missed: cases whose reference holds the structure and whose prediction does not: Dice 0, no distances.
        invented: cases whose prediction holds the structure and whose reference does not: Dice 0, no distances.
        absent: cases in which neither holds it; they enter no overlap and no distance.
    """

    label: str
    statistics: Mapping[Measure, Statistic]
    missed: int
    invented: int
    absent: int


def score(
    prediction: npt.NDArray[Any], reference: npt.NDArray[Any], grid: Grid, labels: LabelTable, case_id: str
) -> list[LabelScores]:
    """Measure every structure of a label table in one case.

    A surface is the set of voxels of a structure with one of their six neighbours outside it; beyond the edge of the
    volume the structure counts as going on, so that the cut of the field of view is no surface (as in the evaluation
    of CHAOS, github.com/emrekavur/CHAOS-evaluation, `CHAOSmetrics.py`). Distances go from each voxel centre of one
    surface to the nearest of the other, in mm by the grid's affine, right for oblique and sheared grids too. A
    structure that fills the whole volume has no surface and therefore no distances (NaN).

    Args:
        prediction: label values, (I, J, K), whole numbers of any dtype.
        reference: label values, (I, J, K), whole numbers of any dtype.
        grid: where both lie.
        labels: the structures to measure.
        case_id: stands in the scores and in messages.

    Returns:
        One entry for each structure, in the order of the table.

    Raises:
        InputError: shapes that are not the grid's, values that are no whole numbers or that the table does not name.
    """
    return _score(prediction, reference, grid, labels.foreground, case_id)


def pair_files(prediction: Path, reference: Path) -> list[Pair]:
    """Pair label maps with their references: one file with one file, or two folders by relative path and name.

    Folders are searched to any depth; `volume_stem` makes `a/case.nii` and `a/case.nii.gz` partners; names that begin
    with a dot are passed over.

    Args:
        prediction: label map, or folder of them.
        reference: label map, or folder of them.

    Returns:
        Case id, prediction and reference of each pair, ordered by case id; the id is the path without suffix,
        relative to the folder.

    Raises:
        InputError: something does not exist, a file meets a folder, a folder holds no volumes or two of one name, or
            files on either side have no partner; all of them are listed, for a case left out would change the result.
    """
    for path in (prediction, reference):
        if not path.exists():
            raise InputError(f"{path} does not exist; name a label map or a folder of label maps.")
    if prediction.is_dir() != reference.is_dir():
        file, folder = (reference, prediction) if prediction.is_dir() else (prediction, reference)
        raise InputError(f"{file} is a file and {folder} a folder; name two files or two folders.")
    if not prediction.is_dir():
        return [(volume_stem(reference), prediction, reference)]
    predictions, references = label_maps_in(prediction), label_maps_in(reference)
    lonely = [
        *(f"{predictions[case_id]} has no reference" for case_id in sorted(predictions.keys() - references.keys())),
        *(f"{references[case_id]} has no prediction" for case_id in sorted(references.keys() - predictions.keys())),
    ]
    if lonely:
        raise InputError(f"cases without a partner: {'; '.join(lonely)}. Add what is missing, or move the others away.")
    return [(case_id, predictions[case_id], references[case_id]) for case_id in sorted(references)]


def label_maps_in(folder: Path) -> dict[str, Path]:
    """Return all label maps in a folder by their case id, which is the path without suffix, relative to the folder.

    Raises:
        InputError: there are none, or two of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not (is_volume(path) or is_picture(path)) or not path.is_file():
            continue
        if is_attention_map(path):
            continue
        case_id = (path.relative_to(folder).parent / volume_stem(path)).as_posix()
        if case_id in found:
            raise InputError(f"{found[case_id]} and {path} have one name; keep only one of them.")
        found[case_id] = path
    if not found:
        endings = ", ".join((*SUFFIXES, *PICTURE_SUFFIXES))
        raise InputError(f"{folder} holds no volumes or pictures ({endings}); name a folder of label maps.")
    return found


def read_label_map(path: Path, highest: int) -> tuple[npt.NDArray[Any], Grid]:
    """Read a label map (I, J, K); in a picture of black and white, white is the only structure if there is but one.

    Args:
        path: of a volume or picture.
        highest: largest label value.

    Raises:
        InputError: it cannot be read, or holds colours.
    """
    channels, grid = read_channels(path)
    if (problem := mask_problem(path, len(channels))) is not None:
        raise InputError(f"{path.name}: {problem}")
    return binary_as_one(channels[0], highest) if is_picture(path) else channels[0], grid


def evaluate_pairs(
    pairs: Sequence[Pair],
    labels: LabelTable | None,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[LabelScores]]:
    """Measure many cases, at most `workers` of them in memory at a time.

    The grids of all pairs are compared before the first voxel is read.

    Args:
        pairs: case id, prediction and reference, as `pair_files` gives them.
        labels: the structures to measure; without it, the values found in the references are named `label_1`, ...
        workers: threads; reading, erosion and the search for neighbours leave Python's lock.
        progress: called with the number of cases done and the number of all.

    Returns:
        The scores of each case, in the order of `pairs`.

    Raises:
        InputError: at once if grids differ (every such case is listed) or no reference holds a structure; on the way
            if a file cannot be read or holds other values than the names allow.
        ValueError: `workers` is less than one.
    """
    if workers < 1:
        raise ValueError(f"at least one worker is needed, found {workers}")
    differences = [text for pair in pairs if (text := _grid_difference(pair)) is not None]
    if differences:
        raise InputError("; ".join(differences) + ". Resample the predictions onto the grids of their references.")
    names = labels.foreground if labels is not None else _names_found(pairs, workers)
    return _score_all(pairs, names, workers, progress)


def summarise(scores: Sequence[LabelScores], subject_of: Mapping[str, str] | None = None) -> list[LabelSummary]:
    """Summarise scores by structure, and over all structures in a last line.

    The last line is the mean of the labels' means, each label weighing the same; its `sd`, `median` and `n` are over
    the labels, and its counts are sums.

    Args:
        scores: of all cases.
        subject_of: subject of each case id. Defined values are first averaged within each subject, so that a person
            with many scans weighs no more than one with a single scan; the counts stay counts of cases.

    Returns:
        One entry for each structure, in the order of first appearance, and one named `MEAN_OVER_LABELS`.

    Raises:
        InputError: cases without a subject, or no scores at all.
    """
    if not scores:
        raise InputError("there are no scores to summarise; evaluate at least one case.")
    strangers = sorted({item.case_id for item in scores} - subject_of.keys()) if subject_of is not None else []
    if strangers:
        raise InputError(f"cases without a subject: {', '.join(strangers)}. Name the subject of every case.")
    of_label: dict[str, list[LabelScores]] = {}
    for item in scores:
        of_label.setdefault(item.label, []).append(item)
    summaries = [_summary(label, items, subject_of) for label, items in of_label.items()]
    return [*summaries, _mean_over_labels(summaries)]


def write_csv(scores: Sequence[LabelScores], path: Path, *, overwrite: bool = False) -> None:
    """Write one line for each case and structure, of pictures in pixels; what is undefined is an empty cell.

    Args:
        scores: of all cases.
        path: the file; it appears complete or not at all.
        overwrite: replace a file that is there.

    Raises:
        OutputError: the file exists and `overwrite` is not given, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; name another file, or allow it to be overwritten.")
    columns = _columns(in_pixels=all(item.counts_pixels for item in scores))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(name for name, _ in columns.values())
            lines.writerows([_cell(getattr(item, name), columns[name][1]) for name in columns] for item in scores)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); name a file in a writable folder.") from error
    finally:
        partial.unlink(missing_ok=True)


def _columns(*, in_pixels: bool) -> dict[str, tuple[str, int]]:
    """Return for each field of a score the name of its column, and by what its values are multiplied there."""
    names = [field.name for field in fields(LabelScores) if field.name != "counts_pixels"]
    return {name: IN_PIXELS.get(name, (name, 1)) if in_pixels else (name, 1) for name in names}


def _cell(value: str | float, factor: int) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value * factor:.6g}"


def _grid_difference(pair: Pair) -> str | None:
    case_id, prediction, reference = pair
    difference = read_grid(reference).difference(read_grid(prediction))
    return None if difference is None else f"{case_id}: the prediction lies on another grid ({difference})"


def _names_found(pairs: Sequence[Pair], workers: int) -> dict[int, str]:
    def values_in(pair: Pair) -> set[int]:
        case_id, _, reference = pair
        voxels, _ = read_label_map(reference, ONE_STRUCTURE)
        return set(_boxes(_as_labels(voxels, f"{case_id}: the reference")))

    with ThreadPoolExecutor(workers) as pool:
        found = set[int]().union(*pool.map(values_in, pairs))
    if not found:
        raise InputError("no reference holds a structure, all voxels are 0; check that the references are label maps.")
    return {value: f"label_{value}" for value in sorted(found)}


def _score_all(
    pairs: Sequence[Pair], names: Mapping[int, str], workers: int, progress: Callable[[int, int], None] | None
) -> Iterator[list[LabelScores]]:
    def score_pair(pair: Pair) -> list[LabelScores]:
        case_id, prediction_path, reference_path = pair
        prediction, _ = read_label_map(prediction_path, max(names))
        reference, grid = read_label_map(reference_path, max(names))
        return _score(prediction, reference, grid, names, case_id)

    pool = ThreadPoolExecutor(workers)
    try:
        for done, scores in enumerate(pool.map(score_pair, pairs), start=1):
            logger.debug("measured %d of %d cases", done, len(pairs))
            if progress is not None:
                progress(done, len(pairs))
            yield scores
    finally:
        pool.shutdown(cancel_futures=True)


def _score(
    prediction: npt.NDArray[Any], reference: npt.NDArray[Any], grid: Grid, names: Mapping[int, str], case_id: str
) -> list[LabelScores]:
    maps, boxes = [], []
    for array, name in ((prediction, "prediction"), (reference, "reference")):
        what = f"{case_id}: the {name}"
        if array.shape != grid.shape:
            raise InputError(f"{what} has the shape {array.shape}, but its grid {grid.shape}; give both on one grid.")
        maps.append(_as_labels(array, what))
        boxes.append(_boxes(maps[-1]))
        _refuse_unnamed(boxes[-1].keys(), names, what)
    scores = []
    for value, name in names.items():
        box = _union([found[value] for found in boxes if value in found], grid.shape)
        masks = [labels[box] == value for labels in maps]
        scores.append(_score_masks(masks[0], masks[1], grid, case_id, name))
    return scores


def _as_labels(array: npt.NDArray[Any], what: str) -> LabelArray:
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{what} holds {array.dtype} values; a label map holds whole numbers from 0.")
    low, high = array.min(), array.max()
    limit = np.iinfo(np.uint16).max
    if not (low >= 0 and high <= limit):
        raise InputError(f"{what} holds values from {low:g} to {high:g}; a label map holds whole numbers to {limit}.")
    labels = array if array.dtype.kind in "iu" else array.astype(np.uint16)
    if array.dtype.kind == "f" and not np.array_equal(labels, array):
        example = array[labels != array][0]
        raise InputError(f"{what} holds {example:g}, which is no whole number; give label maps, not probabilities.")
    return labels


def _boxes(labels: LabelArray) -> dict[int, Box]:
    """Return the bounding box of every value but 0, in one pass and without a copy."""
    return {value: box for value, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None}


def _refuse_unnamed(used: Collection[int], names: Mapping[int, str], what: str) -> None:
    unnamed = sorted(set(used) - names.keys())
    if unnamed:
        values = ", ".join(str(value) for value in unnamed)
        first, last = min(names), max(names)
        known = f"{first} {names[first]} to {last} {names[last]}"
        raise InputError(
            f"{what} holds the value {values}, which has no name (labels: {known}); use a table that fits."
        )


def _union(boxes: Sequence[Box], shape: tuple[int, int, int]) -> Box:
    """Return the box around all boxes and one voxel of margin, or an empty one; one voxel shows where a surface is."""
    if not boxes:
        return (slice(0, 0),) * 3
    return tuple(
        slice(max(min(box[axis].start for box in boxes) - 1, 0), min(max(box[axis].stop for box in boxes) + 1, size))
        for axis, size in enumerate(shape)
    )


def _score_masks(prediction: Mask, reference: Mask, grid: Grid, case_id: str, label: str) -> LabelScores:
    size, reference_size = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    common = int(np.count_nonzero(prediction & reference))
    distances = surface_distances(prediction, reference, grid)
    return LabelScores(
        case_id=case_id,
        label=label,
        dice=_ratio(2 * common, size + reference_size),
        iou=_ratio(common, size + reference_size - common),
        **distances._asdict(),
        ravd_percent=100 * _ratio(abs(size - reference_size), reference_size),
        volume_ml=size * grid.voxel_ml,
        reference_ml=reference_size * grid.voxel_ml,
        difference_ml=(size - reference_size) * grid.voxel_ml,
        counts_pixels=counts_pixels(grid),
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _summary(label: str, items: Sequence[LabelScores], subject_of: Mapping[str, str] | None) -> LabelSummary:
    by_subject: dict[str, list[LabelScores]] = {}
    for item in items:
        subject = item.case_id if subject_of is None else subject_of[item.case_id]
        by_subject.setdefault(subject, []).append(item)
    return LabelSummary(
        label=label,
        statistics={
            measure: _statistic([_mean([getattr(item, measure) for item in cases]) for cases in by_subject.values()])
            for measure in Measure
        },
        missed=sum(item.is_missed for item in items),
        invented=sum(item.is_invented for item in items),
        absent=sum(item.is_absent for item in items),
    )


def _mean_over_labels(summaries: Sequence[LabelSummary]) -> LabelSummary:
    return LabelSummary(
        label=MEAN_OVER_LABELS,
        statistics={
            measure: _statistic([summary.statistics[measure].mean for summary in summaries]) for measure in Measure
        },
        missed=sum(summary.missed for summary in summaries),
        invented=sum(summary.invented for summary in summaries),
        absent=sum(summary.absent for summary in summaries),
    )


def _mean(values: Sequence[float]) -> float:
    return _statistic(values).mean


def _statistic(values: Sequence[float]) -> Statistic:
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return Statistic(math.nan, math.nan, math.nan, 0)
    sd = statistics.stdev(defined) if len(defined) > 1 else math.nan
    return Statistic(statistics.fmean(defined), sd, statistics.median(defined), len(defined))


class ScoreCases:
    """Handler of a MONAI evaluator: score every case on the grid of its prediction, and write the table at the end.

    Args:
        path: CSV to write; one that is there is replaced.
        names: `{"0": "background", "1": ...}`.
        pred_key: key of the prediction in the evaluator's output, one-hot (classes, I, J, K) with its affine.
        label_key: key of the reference, likewise.
    """

    def __init__(
        self, *, path: str | Path, names: Mapping[str, str], pred_key: str = "pred", label_key: str = "label"
    ) -> None:
        self.path = Path(path)
        self.labels = LabelTable.from_mapping(names)
        self.pred_key = pred_key
        self.label_key = label_key
        self.scores: list[LabelScores] = []

    def attach(self, engine: Engine) -> None:
        """Listen to each case and to the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _score(self, engine: Engine) -> None:
        for row, case in zip(engine.state.output, engine.state.batch, strict=True):
            prediction, reference = row[self.pred_key], row[self.label_key]
            shape = tuple(prediction.shape[1:])
            grid = Grid((shape[0], shape[1], shape[2]), prediction.affine.cpu().numpy())
            self.scores += score(
                prediction.argmax(0).cpu().numpy().astype(np.uint16),
                reference.argmax(0).cpu().numpy().astype(np.uint16),
                grid,
                self.labels,
                str(case["case_id"]),
            )

    def _write(self, engine: Engine) -> None:  # noqa: ARG002  # ignite's interface
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(self.scores, self.path, overwrite=True)
