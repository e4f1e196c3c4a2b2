"""The grid that was read, beside that of the network: what an inferer is given, and where its result lies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.data.utils import collate_meta_tensor

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid, triple
from voxelgate.images.spec import meta_of

Facts = Mapping[str, torch.Tensor | bool]
"""What an inferer tells of its result, in the metadata."""


def grids_of(image: MetaTensor) -> tuple[Grid, Grid]:
    """Return the grid of the file that was read, from metadata as they are or collated to a batch of one; and its own.

    Raises:
        InputError: it is not one volume, or its metadata do not name the two.
    """
    if image.ndim != 5 or image.shape[0] != 1 or image.numel() == 0:
        raise InputError(f"an image of shape {tuple(image.shape)}, expected one volume (1, C, i, j, k) at a time.")
    meta = image.meta if isinstance(image, MetaTensor) else {}
    missing = [key for key in ("original_affine", "spatial_shape") if key not in meta]
    if missing:
        raise InputError(f"an image without {' and '.join(missing)} in its metadata; load it with MONAI's LoadImage.")
    shape = np.asarray(meta["spatial_shape"]).reshape(-1)[:3]
    affine = np.asarray(meta["original_affine"], dtype=np.float64).reshape(4, 4)
    try:
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine), Grid.of(image)
    except ValueError as error:
        raise InputError(f"the metadata of the image describe no grid: {error}.") from error


def on_source(channels: torch.Tensor, inputs: MetaTensor, source: Grid, facts: Facts) -> MetaTensor:
    """Return (c, I, J, K) as (1, c, I, J, K) with the source grid as its only grid; a batch if `inputs` is one."""
    affine = torch.as_tensor(source.affine.copy())
    meta: dict[str, Any] = {
        "original_affine": affine.clone(),
        "spatial_shape": torch.tensor(source.shape),
        "affine": affine,
        **facts,
    }
    name = inputs.meta.get("filename_or_obj")
    if name is not None:
        meta["filename_or_obj"] = name if isinstance(name, str) else name[0]
    image = MetaTensor(channels.to(inputs.device), meta=meta)
    return collate_meta_tensor([image]) if inputs.is_batch else image[None]


def part_around(image: MetaTensor, centre_mm: npt.NDArray[np.float64], size_vox: Sequence[int]) -> MetaTensor:
    """Return a part of an image (1, C, i, j, k) as an image of its own: its grid counts as that which was read.

    Args:
        image: of which the part is.
        centre_mm: of the part, RAS+ mm; moved so that the part lies within the image.
        size_vox: most voxels along each axis.
    """
    grid = Grid.of(image)
    centre = np.linalg.solve(grid.affine[:3, :3], centre_mm - grid.affine[:3, 3])
    spans = []
    for middle, size, most in zip(centre, grid.shape, size_vox, strict=True):
        length = min(size, most)
        first = min(max(0, round(float(middle)) - length // 2), size - length)
        spans.append(slice(first, first + length))
    own = grid.cropped(triple(spans))
    meta = meta_of(own) | {"original_channel_dim": 0}
    voxels = image.as_tensor()[(slice(None), slice(None), *spans)]
    return MetaTensor(voxels[0], affine=torch.from_numpy(meta.pop("affine")), meta=meta)[None]
