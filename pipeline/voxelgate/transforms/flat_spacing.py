"""MONAI's `Spacingd` with the same bits, in memory that follows from the image and not from the grid's positions."""

import math
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.transforms import Spacingd, SpatialResample, TraceableTransform
from monai.utils import LazyAttr, TraceKeys

from voxelgate.core.geometry import triple
from voxelgate.core.machine import refuse_too_fine
from voxelgate.transforms.affine_slabs import AffineSampling

SAMPLED_MODES = ("bilinear", "nearest")

IMAGES = 3
"""Images of the new grid that are alive at a time: this one, and what the steps behind it make of it."""


class FlatSpacingd(Spacingd):  # type: ignore[misc]  # MONAI ships no stubs
    """Resample as MONAI's `Spacingd` does, with its arguments, to the same bits; a part of the new grid at a time.

    `Spacingd` holds 56 bytes for each new voxel while it computes where they lie, and the image twice as float64; at
    0.5 mm a CT of the trunk then takes 30 GB and ends the process. What was done is recorded as by `Spacingd`, so that
    `Invertd` takes it back. Splines (modes that are numbers) are left to MONAI.

    >>> image = {"image": MetaTensor(torch.rand(1, 8, 8, 8), affine=torch.eye(4, dtype=torch.float64))}
    >>> vg.FlatSpacingd("image", pixdim=(2.0, 2.0, 2.0))(image)["image"].shape
    torch.Size([1, 4, 4, 4])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spacing_transform.sp_resample = _SlabResample(lazy=self.lazy)


class _SlabResample(SpatialResample):  # type: ignore[misc]  # MONAI ships no stubs
    """`SpatialResample` that fills its result slab by slab."""

    def __call__(self, img: torch.Tensor, *args: Any, lazy: bool | None = None, **kwargs: Any) -> torch.Tensor:
        """Return the image (C, i, j, k) on its new grid; see `SpatialResample`."""
        is_lazy = self.lazy if lazy is None else lazy
        if is_lazy or not isinstance(img, MetaTensor) or img.ndim != 4:
            plain: torch.Tensor = super().__call__(img, *args, lazy=lazy, **kwargs)
            return plain
        planned = super().__call__(img, *args, lazy=True, **kwargs)
        step = planned.pending_operations[-1]
        if step[TraceKeys.EXTRA_INFO]["mode"] not in SAMPLED_MODES or _changes_nothing(img, step):
            same: torch.Tensor = super().__call__(img, *args, lazy=False, **kwargs)
            return same
        extra = dict(step[TraceKeys.EXTRA_INFO])
        told = TraceableTransform.track_transform_meta(
            img,
            sp_size=step[LazyAttr.SHAPE],
            affine=step[LazyAttr.AFFINE],
            extra_info=dict(extra),
            orig_size=step[TraceKeys.ORIG_SIZE],
            transform_info=self.get_transform_info(),
        )
        out = MetaTensor(_resampled(img.as_tensor(), step, extra))
        out.copy_meta_from(told)
        return cast("torch.Tensor", out)


def _changes_nothing(img: MetaTensor, step: dict[str, Any]) -> bool:
    """Return whether MONAI would give the image back as it is (`spatial_resample` in monai/transforms/spatial)."""
    to_old = step[LazyAttr.AFFINE].numpy()
    affine = img.affine.numpy()
    is_near = np.allclose(to_old, np.eye(4), atol=AFFINE_TOL) or np.allclose(affine, affine @ to_old, atol=AFFINE_TOL)
    return bool(is_near) and tuple(step[LazyAttr.SHAPE]) == tuple(img.shape[1:])


def _resampled(voxels: torch.Tensor, step: dict[str, Any], extra: dict[str, Any]) -> torch.Tensor:
    dtype = getattr(torch, extra["dtype"])
    new_size = triple(map(int, step[LazyAttr.SHAPE]))
    refuse_too_fine(voxels.shape[1:], new_size, IMAGES * 4 * len(voxels) * math.prod(new_size))
    sampling = AffineSampling.of(
        step[LazyAttr.AFFINE].to(dtype),
        triple(voxels.shape[1:]),
        new_size,
        is_corner_aligned=extra["align_corners"] is True,
    )
    out = torch.empty((len(voxels), *new_size), dtype=torch.float32, device=voxels.device)
    for channel, values in zip(out, voxels, strict=True):
        for span, part in sampling.sampled(values[None].to(dtype), extra["mode"], extra["padding_mode"]):
            channel[span] = part[0]
    return out
