"""The facts of one case: sizes, intensities of its structures, pieces, sides, and what is wrong with its files."""

from dataclasses import dataclass
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from voxelgate.core.geometry import Grid, triple
from voxelgate.core.structures import Structure, measure_structures, structure_boxes
from voxelgate.datasets.ceilings import measure_ceilings, measure_width_mm
from voxelgate.datasets.check_manifest import inspect_case
from voxelgate.datasets.manifest import Manifest, ManifestCase

Labels = npt.NDArray[Any]

PERCENTILES = (1.0, 25.0, 50.0, 75.0, 99.0)
"""Of the intensities inside a structure."""

BIN_WIDTH = 5.0
"""Stored units of a CT; the commonest one inside the body is known to half of it."""

WHOLE = np.ones((3, 3, 3))
"""Voxels that touch by a corner belong to one piece."""

STORED_OFFSETS_HU = (1000.0, 1024.0)
"""What is added to HU to store them without a sign: by OpenKBP and others, and by most scanners (PS3.3 C.11.1.1.2)."""

TISSUE_HU = 40.0
"""Muscle and brain, the commonest tissue of a body part without lungs."""

STRIPE_SHARE = 0.1
"""Part of a structure that must be missing between its slices before it counts as striped."""


@dataclass(frozen=True)
class StructureOfCase:
    """One structure in one case.

    Args:
        value: of its label.
        voxels: how many.
        volume_ml: how much.
        components: pieces, by contact of faces, edges or corners.
        outside_main: part of its volume outside its largest piece.
        away_mm: largest distance of a piece from the largest one.
        cut_at: sides of the image that cut it.
        right_mm: its centre of mass along the axis to the patient's right.
        gap_share: voxels missing between two slices that both hold it, as a part of its voxels, along the worst axis.
        intensity: `PERCENTILES` for each channel.
        extent_mm: size of the box around it, along right-left, back-front and foot-head.
        width_mm: diameter of the largest ball inside it.
        ceilings: Dice that a network without errors reaches on coarser voxels, for each of `COARSER`.
    """

    value: int
    voxels: int
    volume_ml: float
    components: int
    outside_main: float
    away_mm: float
    cut_at: tuple[str, ...]
    right_mm: float
    gap_share: float
    intensity: tuple[tuple[float, ...], ...]
    extent_mm: tuple[float, float, float]
    width_mm: float
    ceilings: tuple[float, ...]


@dataclass(frozen=True)
class CaseFacts:
    """One case.

    Args:
        case_id: its name in the manifest.
        problems: why its files cannot be used; empty if they can, else all numbers are 0.
        content: hash of the voxels of its image.
        shape_vox: along right-left, back-front and foot-head.
        spacing_mm: along the same axes.
        foreground_vox: size of the box around all structures, along the same axes.
        body_share: part of the volume inside the box of what is brighter than its darkest values.
        darkest: least value of the first channel.
        tissue: commonest value among the brighter half of the first channel.
        structures: those that are there, in the order of their values.
    """

    VERSION: ClassVar[int] = 5

    case_id: str
    problems: tuple[str, ...] = ()
    content: str = ""
    shape_vox: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    foreground_vox: tuple[int, int, int] = (0, 0, 0)
    body_share: float = 0.0
    darkest: float = 0.0
    tissue: float = 0.0
    structures: tuple[StructureOfCase, ...] = ()

    def voxels_of(self, value: int) -> int:
        """Return the voxels of a structure, 0 if it is not there."""
        return sum(one.voxels for one in self.structures if one.value == value)

    @property
    def nearest_offset_hu(self) -> float:
        """Return what must have been added to HU if the commonest tissue is the usual one: 0, or a stored offset."""
        return min((0.0, *STORED_OFFSETS_HU), key=lambda offset: abs(self.tissue - offset - TISSUE_HU))

    @property
    def is_stored_with_offset(self) -> bool:
        """Return whether something was added to the HU of a CT: nothing is negative, and its tissue lies higher."""
        return self.darkest >= 0 and self.nearest_offset_hu > 0


def measure_case(case: ManifestCase, manifest: Manifest) -> CaseFacts:
    """Read and check one case, and measure it if it is sound.

    Args:
        case: with a label.
        manifest: to which it belongs.
    """
    found = inspect_case(case, manifest)
    if found.problems or found.label is None or not found.channels:
        return CaseFacts(case.case_id, found.problems, found.content)
    grid = found.channels[0][1]
    channels = np.stack([_in_ras(voxels, grid) for voxels, _ in found.channels])
    numbers = np.maximum(found.label[0], 0).astype(np.int32)  # what is ignored belongs to no structure
    labels = _in_ras(numbers, grid)
    order = nib.io_orientation(grid.affine)[:, 0].astype(int)
    spacing_mm = np.empty(3)
    spacing_mm[order] = grid.spacing_mm
    boxes = structure_boxes(labels, len(manifest.labels.names) - 1)
    looks = measure_structures(numbers, grid, manifest.labels)
    darkest = float(channels[0].min())
    return CaseFacts(
        case_id=case.case_id,
        content=found.content,
        shape_vox=triple(labels.shape),
        spacing_mm=triple(map(float, spacing_mm)),
        foreground_vox=_extent(labels > 0),
        body_share=_body_share(channels[0]),
        darkest=darkest,
        tissue=_tissue(channels[0]),
        structures=tuple(
            _structure_of_case(
                value,
                labels[box] == value,
                channels[(slice(None), *box)],
                looks[manifest.labels.names[value]],
                triple(span.start for span in box),
                triple(map(float, spacing_mm)),
            )
            for value, box in boxes.items()
        ),
    )


def _structure_of_case(  # where a box lies, and what is in it
    value: int,
    mask: Labels,
    channels: npt.NDArray[Any],
    look: Structure,
    first_vox: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
) -> StructureOfCase:
    voxels = int(mask.sum())
    right_vox = first_vox[0] + float(np.argwhere(mask)[:, 0].mean())
    return StructureOfCase(
        value=value,
        voxels=voxels,
        volume_ml=round(look.volume_ml, 4),
        components=int(ndimage.label(mask, WHOLE)[1]),
        outside_main=round(look.outside_main, 4),
        away_mm=round(look.away_mm, 2),
        cut_at=look.cut_at,
        right_mm=round(spacing_mm[0] * right_vox, 2),
        gap_share=round(max(_gaps(mask, axis) for axis in range(3)) / voxels, 4),
        intensity=tuple(tuple(np.percentile(channel[mask], PERCENTILES).round(3).tolist()) for channel in channels),
        extent_mm=triple(round(n * mm, 2) for n, mm in zip(mask.shape, spacing_mm, strict=True)),
        width_mm=measure_width_mm(mask, spacing_mm),
        ceilings=measure_ceilings(mask, first_vox, spacing_mm),
    )


def _gaps(mask: Labels, axis: int) -> int:
    """Return the voxels that are empty although both neighbours along an axis are not."""
    swept = np.moveaxis(mask, axis, 0)
    return int((swept[:-2] & swept[2:] & ~swept[1:-1]).sum())


def _in_ras(voxels: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    turned: npt.NDArray[Any] = nib.apply_orientation(voxels, nib.io_orientation(grid.affine))
    return turned


def _extent(mask: Labels) -> tuple[int, int, int]:
    if not mask.any():
        return (0, 0, 0)
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return triple(span.stop - span.start for span in box)


def _body_share(image: npt.NDArray[Any]) -> float:
    """Return the part of a volume in the box around what lies above a tenth of the way to its bright values."""
    low, high = np.percentile(image, (0.5, 99.5))
    box = _extent(image > low + 0.1 * (high - low))
    return round(float(np.prod(box) / image.size), 4)


def _tissue(image: npt.NDArray[Any]) -> float:
    """Return the commonest value above the mean, where bodies are brighter than what surrounds them."""
    values = image[image > image.mean()]
    if not values.size or np.ptp(values) < BIN_WIDTH:
        return float(image.max())
    counts, edges = np.histogram(values, bins=np.arange(values.min(), values.max() + BIN_WIDTH, BIN_WIDTH))
    return float(edges[counts.argmax()] + BIN_WIDTH / 2)
