"""Take back, on labels, what was done to an image: turns and crops by MONAI's inverses, sampling slab by slab."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.transforms import Crop, CropForeground, Flip, Orientation, Pad, Rotate90
from monai.transforms.utils import reset_ops_id
from monai.utils import TraceKeys

from voxelgate.core.errors import BundleError
from voxelgate.core.geometry import triple
from voxelgate.inference.mirroring import Mirror
from voxelgate.transforms.affine_slabs import SLAB_POSITIONS, AffineSampling, sample_points

Operation = Mapping[str, Any]
"""What MONAI records of a step, with its class, the size before, and what its inverse needs."""

TURNS: Mapping[str, Callable[[], Any]] = {
    "Orientation": lambda: Orientation("RAS", labels=None),
    "Flip": Flip,
    "Mirror": Mirror,
    "Rotate90": Rotate90,
    "CropForeground": CropForeground,
    **dict.fromkeys(("Crop", "SpatialCrop", "CenterSpatialCrop", "CenterScaleCrop"), Crop),
    **dict.fromkeys(("Pad", "SpatialPad", "BorderPad", "DivisiblePad"), Pad),
}
"""Steps that move voxels and change none, by the name of their class."""

SAMPLED = ("bilinear", "nearest")
RESIZED = ("area", "nearest", "nearest-exact", "linear", "bilinear", "trilinear")


@dataclass(frozen=True, eq=False)
class Sampling:
    """The one step that made voxels anew.

    Args:
        mode: how MONAI would take it back: "bilinear", "area", "nearest" or "nearest-exact".
        places: where the voxels before it lie among those after it.
        affine: of the voxels before it, index to RAS+ mm.
        is_affine: they were resampled by an affine, not resized.
    """

    mode: str
    places: AffineSampling
    affine: torch.Tensor
    is_affine: bool = True


def last_operation(image: MetaTensor) -> Operation | None:
    """Return what was done to an image last; None if all was taken back."""
    operations = image.applied_operations
    return operations[-1] if operations else None


def is_sampling(operation: Operation) -> bool:
    """Return whether an operation made voxels anew."""
    return "src_affine" in operation.get(TraceKeys.EXTRA_INFO, {}) or operation[TraceKeys.CLASS_NAME] == "Resize"


def check_way_back(image: MetaTensor) -> None:
    """Refuse an image whose operations cannot be taken back slab by slab.

    Raises:
        BundleError: names the operation.
    """
    sampled = 0
    for operation in image.applied_operations:
        name, extra = operation[TraceKeys.CLASS_NAME], operation.get(TraceKeys.EXTRA_INFO, {})
        if not is_sampling(operation):
            problem = None if name in TURNS else "is not known here"
        else:
            sampled += 1
            problem = _sampling_problem(name, extra, sampled)
        if problem is not None:
            raise BundleError(f"preprocessing step {name} {problem}; import the bundle with --faithful.")


def _sampling_problem(name: str, extra: Mapping[str, Any], sampled: int) -> str | None:
    if sampled > 1:
        return "resamples what was resampled before"
    modes = RESIZED if name == "Resize" else SAMPLED
    if extra["mode"] not in modes:
        return f"has mode {extra['mode']!r}, expected one of {', '.join(modes)}"
    if extra.get("padding_mode", "border") != "border" or extra.get("new_dim", 0):
        return "fills what lies outside with other than the border, or adds an axis"
    return None


def placed_like(labels: torch.Tensor, image: MetaTensor) -> MetaTensor:
    """Return labels (i, j, k) as (1, i, j, k) with the affine of an image (C, i, j, k) and operations of their own."""
    placed: MetaTensor = MetaTensor(labels[None]).copy_meta_from(image)
    placed.applied_operations = reset_ops_id(deepcopy(image.applied_operations))  # any object may take them back
    return placed


def turned_back(labels: MetaTensor, outside: int = 0) -> MetaTensor:
    """Return labels (1, i, j, k) without the turns and crops that were done last.

    Args:
        labels: with their operations.
        outside: what lies outside of a crop.
    """
    if outside:
        return _exchanged(turned_back(_exchanged(labels, outside)), outside)  # MONAI pads with 0
    while (operation := last_operation(labels)) is not None and not is_sampling(operation):
        labels = TURNS[operation[TraceKeys.CLASS_NAME]]().inverse(labels)
    return labels


def _exchanged(labels: MetaTensor, other: int) -> MetaTensor:
    """Return labels with 0 in place of another one, and that one in place of 0."""
    voxels = labels.as_tensor()
    exchanged = torch.where(voxels == 0, other, torch.where(voxels == other, 0, voxels)).to(voxels.dtype)
    result: MetaTensor = MetaTensor(exchanged).copy_meta_from(labels)
    result.applied_operations = list(labels.applied_operations)
    return result


def sampling_of(labels: MetaTensor) -> Sampling | None:
    """Return the sampling that was done last to labels (1, i, j, k); None if there is none that changes anything."""
    operation = last_operation(labels)
    if operation is None:
        return None
    extra, new_size = operation[TraceKeys.EXTRA_INFO], triple(map(int, operation[TraceKeys.ORIG_SIZE]))
    is_aligned = extra["align_corners"] is True
    old_size = triple(labels.shape[1:])
    if "src_affine" not in extra:
        mode = "bilinear" if extra["mode"].endswith("linear") else extra["mode"]
        scale = np.diag([*(old / new for old, new in zip(old_size, new_size, strict=True)), 1.0])
        scale[:3, 3] = (np.diag(scale)[:3] - 1) / 2
        affine = labels.affine @ torch.from_numpy(scale)
        places = AffineSampling(torch.eye(4, dtype=torch.float64)[None, :3], old_size, new_size, is_aligned)
        return None if old_size == new_size else Sampling(mode, places, affine, is_affine=False)
    now, wanted = labels.affine.numpy().astype(np.float64), np.asarray(extra["src_affine"], np.float64)
    to_now = np.linalg.solve(now, wanted)
    if old_size == new_size and (_is_near(now, wanted) or _is_near(to_now, np.eye(4))):
        return None
    dtype = getattr(torch, str(extra["dtype"]))
    places = AffineSampling.of(torch.from_numpy(to_now).to(dtype), old_size, new_size, is_corner_aligned=is_aligned)
    return Sampling(extra["mode"], places, torch.from_numpy(now @ to_now))


def nearest_back(labels: MetaTensor, outside: int = 0) -> MetaTensor:
    """Return labels (1, i, j, k) with all taken back, each that of the nearest voxel; see `turned_back`."""
    labels = turned_back(labels, outside)
    operation = last_operation(labels)
    return labels if operation is None else turned_back(_unsampled_nearest(labels, sampling_of(labels)), outside)


def _unsampled_nearest(labels: MetaTensor, sampling: Sampling | None) -> MetaTensor:
    if sampling is None:
        return unsampled(labels, labels.as_tensor(), labels.affine)
    if not sampling.is_affine:
        resized = F.interpolate(labels.as_tensor()[None].float(), sampling.places.new_size, mode=sampling.mode)[0]
        return unsampled(labels, resized.to(labels.dtype), sampling.affine)
    voxels = labels.as_tensor().reshape(-1)
    out = torch.empty((1, *sampling.places.new_size), dtype=labels.dtype)
    for span, indices in _nearest_voxels(sampling.places):
        out[0, span] = voxels[indices]
    return unsampled(labels, out, sampling.affine)


def unsampled(labels: MetaTensor, voxels: torch.Tensor, affine: torch.Tensor) -> MetaTensor:
    """Return voxels (1, i, j, k) in place of labels, at a place of their own, the last operation being taken back."""
    result: MetaTensor = MetaTensor(voxels).copy_meta_from(labels)
    result.affine = affine
    result.applied_operations = list(labels.applied_operations[:-1])
    return result


def _nearest_voxels(places: AffineSampling) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of the new grid and the flat index of the nearest old voxel, as `grid_sample` rounds it.

    What it picks is asked of numbers that count along one axis and are copied along the others, which takes no memory.
    """
    count, height, width = places.new_size
    lines = [torch.arange(n, dtype=places.theta.dtype) for n in places.old_size]
    shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
    counted = [line.view(shape).expand(places.old_size)[None] for line, shape in zip(lines, shapes, strict=True)]
    step = max(1, SLAB_POSITIONS // (height * width))
    for start in range(0, count, step):
        span = slice(start, min(start + step, count))
        grid = places.grid((span, slice(0, height), slice(0, width)))
        i, j, k = (
            sample_points(one, grid, "nearest", "border", is_corner_aligned=places.is_corner_aligned)[0].long()
            for one in counted
        )
        yield span, (i * places.old_size[1] + j) * places.old_size[2] + k


def _is_near(one: Any, other: Any) -> bool:
    return bool(np.allclose(one, other, atol=AFFINE_TOL))
