"""Whether a result can be taken as it is: what is odd about a label map, and about how it was made."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from scipy import ndimage

from voxelgate.core.errors import UsageError
from voxelgate.core.findings import Code
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import Box, StructureRange, structure_boxes
from voxelgate.dicom.plausibility import Expected
from voxelgate.images.pictures import counts_pixels
from voxelgate.segmentation.report import Quality, Verdict

PIECE_CELLS = 500_000
"""Cells in which pieces are told apart; a larger box is pooled, and gaps of less than a cell then count as closed."""

LEAST_PIECE = 0.005
"""Share of its structure's volume below which a piece is a speck that nobody needs to look at."""

FRAGMENTED = 0.1
"""Share of a volume outside the largest piece that is told; 1 of 410 hand-drawn structures has more."""

FAR_MM = 20.0
"""Distance from the largest piece at which a piece is told: more than a gap in one organ, such as a missed slice."""

CUT_PLANE = 0.25
"""Part of a structure's mean cross-section that must lie in the outermost plane of the image; less only grazes it."""

RARELY_CUT = 0.05
ALWAYS_PRESENT = 0.95
"""Shares of the training label maps: what one in twenty shows is no reason to look again."""

LEAST_PLANES = 3
"""Planes along an axis below which every structure touches its ends."""

VOLUME_SLACK = 1.2
"""Least factor beyond the outer percentiles that is told; they are rough where few label maps were there."""

ABSURD_FACTOR = 5.0
"""Times the 99th percentile above which a volume is surely wrong: no organ grows so much and keeps its place."""

FULL = 0.95
"""Share of the image that no structure fills: there is always air or other tissue around it."""

LOW_CONFIDENCE = 0.7
"""Mean probability of a class where it won, below which it is told.

0.5 is a coin toss between two classes; the hippocampus bundle has 0.93 or more on 25 images of its kind.
"""

LOW_FLIP_DICE = 0.8
"""Agreement with the mirrored image below which it is told.

The hippocampus bundle, asked without its own mirroring, has 0.95 or more on 25 images of its kind.
"""

NAMED = 4
"""Structures that a sentence names before it counts the others."""

UNKNOWN = StructureRange((1.0, 1.0, 1.0))
"""Of a structure of which the bundle says nothing; its volume is then not judged."""

_CODED = re.compile(r"([A-Z0-9_]+): ")
_PICTURE_SIDES = [("left", "right"), ("top", "bottom"), ("front", "back")]
"""Of a picture as everybody sees it, whoever is in it."""

_SIDES = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "feet", "S": "head"}


@dataclass(frozen=True)
class Structure:
    """What was measured of a structure in a label map.

    Args:
        volume_ml: above 0.
        fills: its share of all voxels.
        cut_at: sides of the image whose outermost plane cuts through it, as words.
        outside_main: share of its volume outside its largest piece.
        away_mm: largest distance of a piece, specks aside, from the largest one.
    """

    volume_ml: float
    fills: float
    cut_at: tuple[str, ...] = ()
    outside_main: float = 0.0
    away_mm: float = 0.0


class Doubt(NamedTuple):
    """Something odd in a sentence, and what follows from it."""

    verdict: Verdict
    reason: str


def assess(
    measured: Mapping[str, Structure],
    table: LabelTable,
    expected: Expected | None,
    *,
    findings: Sequence[str] = (),
    confidence: Sequence[float] | None = None,
    flip_dice: Mapping[str, float] | None = None,
) -> Quality:
    """Say whether a result can be taken as it is, and why not.

    Refused is what is surely wrong: a structure that fills the image or is absurdly large, and nothing at all where
    every training image had something. Whatever else is odd is to be reviewed by a person. Where the bundle does not
    say what its training label maps looked like, volumes are not judged, a missing structure is told, and one is cut by
    the border if it goes on through it.

    Args:
        measured: the structures of the result, from `measure`.
        table: what the labels mean.
        expected: what the bundle was trained on, if it says so.
        findings: sentences about the image; those that start with a code count (`Finding`; notes have none).
        confidence: mean probability of each class where it won, background first; NaN where it never did.
        flip_dice: from `flip_dice`, by name of the structure.
    """
    ranges: Mapping[str, StructureRange] = {} if expected is None else dict(expected.structures)
    doubts = [
        *doubts_about(measured, table, ranges),
        *_doubts_about_network(table, confidence, flip_dice or {}),
        *(Doubt(Verdict.REVIEW, f"image: {sentence}") for sentence in findings if _is_warning(sentence)),
    ]
    worst = max((doubt.verdict for doubt in doubts), key=list(Verdict).index, default=Verdict.ACCEPT)
    return Quality(worst, tuple(doubt.reason for doubt in doubts))


def measure(labels: npt.NDArray[Any], grid: Grid, table: LabelTable) -> dict[str, Structure]:
    """Return what can be measured of each structure that a label map holds, by name.

    Args:
        labels: (I, J, K) integers.
        grid: where they lie, RAS+ mm.
        table: what they mean; other values are passed over.
    """
    ends = zip(nib.aff2axcodes(-grid.affine), nib.aff2axcodes(grid.affine), strict=True)
    sides = _PICTURE_SIDES if counts_pixels(grid) else [(_SIDES[low], _SIDES[high]) for low, high in ends]
    found = {}
    for value, box in structure_boxes(labels, len(table.names) - 1).items():
        mask = labels[box] == value
        voxels = int(np.count_nonzero(mask))
        outside_main, away_mm = _pieces(mask, np.array(grid.spacing_mm))
        cut_at = tuple(_cuts(mask, box, labels.shape, sides))
        found[table.names[value]] = Structure(
            voxels * grid.voxel_ml, voxels / labels.size, cut_at, outside_main, away_mm
        )
    return found


def structure_ranges(label_maps: Iterable[Mapping[str, Structure]]) -> dict[str, StructureRange]:
    """Return how structures looked in the label maps of a data set, by name; those that none holds are absent.

    Args:
        label_maps: from `measure`, one for each label map.
    """
    maps = list(label_maps)
    ranges = {}
    for name in dict.fromkeys(name for found in maps for name in found):
        seen = [found[name] for found in maps if name in found]
        low, middle, high = np.percentile([one.volume_ml for one in seen], (1, 50, 99)).tolist()
        ranges[name] = StructureRange(
            (round(low, 4), round(middle, 4), round(high, 4)),
            present=round(len(seen) / len(maps), 4),
            cut=round(sum(bool(one.cut_at) for one in seen) / len(seen), 4),
            outside_main=round(float(np.percentile([one.outside_main for one in seen], 99)), 4),
            away_mm=round(float(np.percentile([one.away_mm for one in seen], 99)), 1),
        )
    return ranges


def flip_dice(
    image: MetaTensor,
    network: torch.nn.Module,
    inferer: Callable[[MetaTensor, torch.nn.Module], MetaTensor],
    labels: npt.NDArray[Any],
    table: LabelTable,
) -> dict[str, float]:
    """Return how well a result agrees with that of the mirrored image: Dice of each structure, NaN if in neither.

    The network sees left and right exchanged, and the two sides of paired structures are exchanged in what it says. An
    inferer that averages over this mirroring agrees with itself and should be asked without.

    Args:
        image: (1, C, i, j, k) on the network grid, as `inferer` takes it.
        network: as `inferer` takes it.
        inferer: gives labels (1, 1, I, J, K) on the source grid.
        labels: (I, J, K), what it gave for `image`.
        table: what the labels mean.

    Raises:
        UsageError: a structure has a side but no partner, so that nobody knows what its mirror image should be called.
    """
    if table.unpaired_sides:
        raise UsageError(
            f"{', '.join(table.unpaired_sides)}: has no structure of the other side to be compared with in a mirrored "
            "image; leave out --check-flips."
        )
    mirror_of = np.arange(len(table.names))
    for low, high in table.side_pairs:
        mirror_of[[low, high]] = high, low
    mirrored = inferer(_mirrored(image), network).as_tensor()[0, 0].cpu().numpy()
    sizes = np.zeros((3, len(table.names)))
    for plane, other in zip(labels, mirrored, strict=True):  # one at a time: bincount makes int64 of them
        renamed = mirror_of[other]
        for row, values in enumerate((plane, renamed, plane[plane == renamed])):
            sizes[row] += np.bincount(values.ravel(), minlength=len(table.names))
    with np.errstate(invalid="ignore"):
        dice = 2 * sizes[2] / (sizes[0] + sizes[1])
    return {name: float(dice[value]) for value, name in table.foreground.items()}


def doubts_about(
    found: Mapping[str, Structure], table: LabelTable, ranges: Mapping[str, StructureRange]
) -> Iterator[Doubt]:
    """Yield what is odd about the structures of a label map, worst first.

    Args:
        found: from `measure`.
        table: which structures there could be.
        ranges: how they looked in the training; those without are judged by themselves.
    """
    if not found:
        is_wrong = any(known.present >= ALWAYS_PRESENT for known in ranges.values())
        yield Doubt(Verdict.REFUSE if is_wrong else Verdict.REVIEW, "missing: no structure was found at all.")
        return
    yield from _doubts_about_presence(found, table, ranges)
    yield from _doubts_about_volume(found, ranges)
    yield from _doubts_about_shape(found, ranges)


def _doubts_about_presence(
    found: Mapping[str, Structure], table: LabelTable, ranges: Mapping[str, StructureRange]
) -> Iterator[Doubt]:
    missing = [
        name
        for name in table.foreground.values()
        if name not in found and (name not in ranges or ranges[name].present >= ALWAYS_PRESENT)
    ]
    if missing:
        yield Doubt(Verdict.REVIEW, f"missing: {_listed(missing)}.")
    full = [f"{name} ({one.fills:.0%})" for name, one in found.items() if one.fills > FULL]
    if full:
        yield Doubt(Verdict.REFUSE, f"volume: {_listed(full)} fills the image.")


def _doubts_about_volume(found: Mapping[str, Structure], ranges: Mapping[str, StructureRange]) -> Iterator[Doubt]:
    for name, known in ranges.items():
        if name not in found:
            continue
        low, middle, high = known.volume_ml
        volume_ml = found[name].volume_ml
        usual = f"training had {_ml(low)} to {_ml(high)}"
        if volume_ml > ABSURD_FACTOR * high:
            yield Doubt(Verdict.REFUSE, f"volume: {name} {_ml(volume_ml)}, absurdly large; {usual}.")
        elif volume_ml > high * max(VOLUME_SLACK, (high / middle) ** 0.5):
            yield Doubt(Verdict.REVIEW, f"volume: {name} {_ml(volume_ml)}, large; {usual}.")
        elif volume_ml * max(VOLUME_SLACK, (middle / low) ** 0.5) < low:
            yield Doubt(Verdict.REVIEW, f"volume: {name} {_ml(volume_ml)}, small; {usual}.")


def _doubts_about_shape(found: Mapping[str, Structure], ranges: Mapping[str, StructureRange]) -> Iterator[Doubt]:
    both = {name: (one, ranges.get(name, UNKNOWN)) for name, one in found.items()}
    cut = [
        f"{name} ({', '.join(one.cut_at)})"
        for name, (one, known) in both.items()
        if one.cut_at and known.cut < RARELY_CUT
    ]
    broken = [
        f"{name} ({one.outside_main:.0%})"
        for name, (one, known) in both.items()
        if one.outside_main > max(FRAGMENTED, VOLUME_SLACK * known.outside_main)
    ]
    far = [
        f"{name} ({one.away_mm:.0f} mm)"
        for name, (one, known) in both.items()
        if one.away_mm > max(FAR_MM, VOLUME_SLACK * known.away_mm)
    ]
    if cut:
        yield Doubt(Verdict.REVIEW, f"border: the image ends within {_listed(cut)}.")
    if broken:
        yield Doubt(Verdict.REVIEW, f"fragments: in pieces, with the share outside the largest: {_listed(broken)}.")
    if far:
        yield Doubt(Verdict.REVIEW, f"fragments: a piece lies far from the rest of {_listed(far)}.")


def _doubts_about_network(
    table: LabelTable, confidence: Sequence[float] | None, dice_of: Mapping[str, float]
) -> Iterator[Doubt]:
    stated = {} if confidence is None else dict(zip(table.names, confidence, strict=True))
    unsure = [f"{name} ({stated[name]:.2f})" for name in table.names[1:] if stated.get(name, 1.0) < LOW_CONFIDENCE]
    if unsure:
        yield Doubt(Verdict.REVIEW, f"confidence: the network is unsure of {_listed(unsure)}.")
    unlike = [f"{name} (Dice {dice:.2f})" for name, dice in dice_of.items() if dice < LOW_FLIP_DICE]
    if unlike:
        yield Doubt(Verdict.REVIEW, f"mirror: the mirrored image gives another result for {_listed(unlike)}.")


def _is_warning(finding: str) -> bool:
    coded = _CODED.match(finding)
    return coded is not None and coded[1] in list(Code)


def _cuts(
    mask: npt.NDArray[np.bool_], box: Box, shape: tuple[int, ...], sides: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """Yield the sides of the image whose outermost plane holds a fair cross-section of a structure."""
    for axis, (span, planes) in enumerate(zip(box, shape, strict=True)):
        fair = CUT_PLANE * np.count_nonzero(mask) / mask.shape[axis]
        for side, is_there, end in zip(sides[axis], (span.start == 0, span.stop == planes), (0, -1), strict=True):
            if planes >= LEAST_PLANES and is_there and np.count_nonzero(np.moveaxis(mask, axis, 0)[end]) >= fair:
                yield side


def _pieces(mask: npt.NDArray[np.bool_], spacing_mm: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the share of a mask outside its largest piece, and how far pieces lie from that one in mm."""
    cells, cell_mm = _pooled(mask, spacing_mm)
    pieces, count = ndimage.label(cells, structure=np.ones((3, 3, 3)))
    if count == 1:
        return 0.0, 0.0
    voxels = np.bincount(pieces.ravel(), weights=cells.ravel())
    main = int(voxels.argmax())
    others = [piece for piece in range(1, count + 1) if piece != main and voxels[piece] >= LEAST_PIECE * voxels.sum()]
    if not others:
        return 1 - float(voxels[main] / voxels.sum()), 0.0
    distance_mm = ndimage.distance_transform_edt(pieces != main, sampling=cell_mm)
    away_mm = float(max(ndimage.minimum(distance_mm, pieces, others)))
    return 1 - float(voxels[main] / voxels.sum()), away_mm


def _pooled(
    mask: npt.NDArray[np.bool_], spacing_mm: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]:
    """Count the voxels of a mask in at most about `PIECE_CELLS` nearly cubic cells; also return the cells' sides."""
    side_mm = np.cbrt(np.prod(mask.shape * spacing_mm) / PIECE_CELLS)
    steps = np.ones(3, int) if mask.size <= PIECE_CELLS else np.clip(np.ceil(side_mm / spacing_mm), 1, 255).astype(int)
    order = np.argsort([-abs(stride) for stride in mask.strides], kind="stable").tolist()
    cells: npt.NDArray[Any] = mask.view(np.uint8)
    for axis in order:  # first along memory, where passing over the whole mask is quick
        planes, step = np.moveaxis(cells, axis, 0), int(steps[axis])
        sums: npt.NDArray[Any] = planes[::step].astype(np.uint8 if axis == order[0] else np.uint32)
        for offset in range(1, step):
            later = planes[offset::step]
            sums[: len(later)] += later
        cells = np.moveaxis(sums, 0, axis)
    return cells, steps * spacing_mm


def _mirrored(image: MetaTensor) -> MetaTensor:
    """Return the image as a network sees it in a mirror; the affine tells that its voxels run the other way."""
    affine = image.affine.reshape(4, 4).clone()
    axis = int((affine[0, :3].abs() / affine[:3, :3].norm(dim=0)).argmax())  # the one that runs from left to right
    affine[:3, 3] += affine[:3, axis] * (image.shape[2 + axis] - 1)
    affine[:3, axis] *= -1
    return MetaTensor(image.as_tensor().flip(2 + axis), meta={**image.meta, "affine": affine})


def _listed(texts: Sequence[str]) -> str:
    named = ", ".join(texts[:NAMED])
    return named if len(texts) <= NAMED else f"{named} and {len(texts) - NAMED} more"


def _ml(volume_ml: float) -> str:
    return f"{volume_ml:.0f} ml" if volume_ml >= 100 else f"{volume_ml:.2g} ml"
