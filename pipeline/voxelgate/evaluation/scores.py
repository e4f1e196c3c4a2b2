"""How well label maps match their references: overlap, surface distances and volumes, per case and structure.

Nothing is left out in silence. A structure that only one of the two label maps holds scores Dice 0 and has no
distances, and a summary counts it beside the mean; a structure that neither holds has no Dice, and is counted too.
"""

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from voxelgate.core.dice import Mask, dice_of_sizes
from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid, counts_pixels
from voxelgate.core.labels import IGNORED, LabelTable
from voxelgate.core.progress import Progress
from voxelgate.evaluation.pairs import LabelMapPair, grid_of_reference, pair_files, read_reference
from voxelgate.evaluation.surfaces import surface_distances
from voxelgate.images.label_maps import LabelValues, read_label_map, whole_labels
from voxelgate.images.pictures import PIXELS_PER_ML
from voxelgate.images.volumes import read_grid

logger = logging.getLogger(__name__)

LabelArray = npt.NDArray[np.integer[Any]]
Box = tuple[slice, ...]


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
        dice: 2 |P and R| / (|P| + |R|), see `core/dice`.
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

    >>> (scores,) = vg.evaluate("labels.nii.gz", "labels.nii.gz")
    >>> scores.dice, scores.hd95_mm
    (1.0, 0.0)
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


def score(
    prediction: npt.NDArray[Any], reference: npt.NDArray[Any], grid: Grid, labels: LabelTable, case_id: str
) -> list[LabelScores]:
    """Measure every structure of a label table in one case; voxels of the reference with `IGNORED` count in neither.

    A surface is the set of voxels of a structure with one of their six neighbours outside it; beyond the edge of the
    volume the structure counts as going on, so that the cut of the field of view is no surface (as in the evaluation
    of CHAOS, github.com/emrekavur/CHAOS-evaluation, `CHAOSmetrics.py`). Distances go from each voxel centre of one
    surface to the nearest of the other, in mm by the grid's affine, right for oblique and sheared grids too. A
    structure that fills the whole volume has no surface and therefore no distances (NaN). The border of what is ignored
    is no surface either.

    Args:
        prediction: label values, (I, J, K), whole numbers of any dtype.
        reference: label values, (I, J, K), whole numbers of any dtype, or `IGNORED`.
        grid: where both lie.
        labels: the structures to measure.
        case_id: stands in the scores and in messages.

    Returns:
        One entry for each structure, in the order of the table.

    Raises:
        InputError: shapes that are not the grid's, values that are no whole numbers or that the table does not name.
    """
    return _score(prediction, reference, grid, labels.foreground, case_id)


def evaluate(
    predictions: Path | str, references: Path | str, labels: LabelTable | None = None, *, workers: int = 1
) -> list[LabelScores]:
    """Measure label maps against references: Dice, IoU, HD95, ASSD, MSSD in mm, RAVD in %, volumes in ml.

    Args:
        predictions: label map, or folder of them, searched to any depth.
        references: label map, or folder of them with the same names.
        labels: the structures to measure; without it, the values found in the references are named `label_1`, ...
        workers: threads.

    Returns:
        The scores of each structure of each case, ordered by case id.

    Raises:
        InputError: files have no partner, lie on different grids, cannot be read, or hold other values than the names
            allow.

    >>> scores = vg.evaluate("labels.nii.gz", "labels.nii.gz")
    >>> [(score.label, score.dice) for score in scores]
    [('label_1', 1.0)]
    """
    pairs = pair_files(Path(predictions), Path(references))
    return [scores for case in evaluate_pairs(pairs, labels, workers=workers) for scores in case]


def evaluate_pairs(
    pairs: Sequence[LabelMapPair],
    labels: LabelTable | None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    values: LabelValues | None = None,
) -> Iterator[list[LabelScores]]:
    """Measure many cases, at most `workers` of them in memory at a time.

    The grids of all pairs are compared before the first voxel is read.

    Args:
        pairs: case id, prediction and reference, as `pair_files` gives them.
        labels: the structures to measure; without it, the values found in the references are named `label_1`, ...
        workers: threads; reading, erosion and the search for neighbours leave Python's lock.
        progress: called with the number of cases done and the number of all.
        values: what the values of the references stand for; without it, they are those of the predictions.

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
    return _score_all(pairs, names, values or max(names), workers, progress)


def _grid_difference(pair: LabelMapPair) -> str | None:
    case_id, prediction, reference = pair
    difference = grid_of_reference(reference).difference(read_grid(prediction))
    return None if difference is None else f"{case_id}: the prediction lies on another grid ({difference})"


def _names_found(pairs: Sequence[LabelMapPair], workers: int) -> dict[int, str]:
    def values_in(pair: LabelMapPair) -> set[int]:
        case_id, _, reference = pair
        voxels, _ = read_reference(reference, 1)
        return set(_boxes(_as_labels(voxels, f"{case_id}: the reference")))

    with ThreadPoolExecutor(workers) as pool:
        found = set[int]().union(*pool.map(values_in, pairs))
    if not found:
        raise InputError("no reference holds a structure, all voxels are 0; check that the references are label maps.")
    return {value: f"label_{value}" for value in sorted(found)}


def _score_all(
    pairs: Sequence[LabelMapPair],
    names: Mapping[int, str],
    values: LabelValues | int,
    workers: int,
    progress: Progress | None,
) -> Iterator[list[LabelScores]]:
    def score_pair(pair: LabelMapPair) -> list[LabelScores]:
        case_id, prediction_path, reference_path = pair
        prediction, _ = read_label_map(prediction_path, max(names))
        reference, grid = read_reference(reference_path, values)
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
    ignored = reference == IGNORED
    maps, boxes = [], []
    for array, name in ((prediction, "prediction"), (reference, "reference")):
        what = f"{case_id}: the {name}"
        if array.shape != grid.shape:
            raise InputError(f"{what} has the shape {array.shape}, but its grid {grid.shape}; give both on one grid.")
        maps.append(_as_labels(np.where(ignored, 0, array) if ignored.any() else array, what))
        boxes.append(_boxes(maps[-1]))
        _refuse_unnamed(boxes[-1].keys(), names, what)
    scores = []
    for value, label in names.items():
        box = _union([found[value] for found in boxes if value in found], grid.shape)
        masks = [labels[box] == value for labels in maps]
        scores.append(_score_masks(masks[0], masks[1], ignored[box], grid, (case_id, label)))
    return scores


def _as_labels(array: npt.NDArray[Any], what: str) -> LabelArray:
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what} holds {array.dtype} values; a label map holds whole numbers from 0.")
    try:
        labels = whole_labels(array)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    low, high = labels.min(), labels.max()
    limit = np.iinfo(np.uint16).max
    if not (low >= 0 and high <= limit):
        raise InputError(f"{what} holds values from {low:g} to {high:g}; a label map holds whole numbers to {limit}.")
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


def _score_masks(prediction: Mask, reference: Mask, ignored: Mask, grid: Grid, names: tuple[str, str]) -> LabelScores:
    size, reference_size = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    common = int(np.count_nonzero(prediction & reference))
    distances = surface_distances(prediction, reference, grid, ignored)
    return LabelScores(
        case_id=names[0],
        label=names[1],
        dice=dice_of_sizes(common, size, reference_size),
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
