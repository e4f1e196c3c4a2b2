"""Channels that a network takes and no file holds."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform

from voxelgate.core.errors import UsageError


class AppendZerosd(MapTransform):  # type: ignore[misc]  # MONAI ships no stubs
    """Append channels of zeros to an image, such as the clicks of a network where nobody clicked.

    Args:
        keys: images (C, i, j, k).
        channels: how many to append, 1 or more.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        UsageError: fewer than one channel.

    >>> vg.AppendZerosd("image", channels=2)({"image": torch.ones(1, 4, 4, 4)})["image"].sum(dim=(1, 2, 3))
    tensor([64.,  0.,  0.])
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], channels: int, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if channels < 1:
            raise UsageError(f"{channels} channels of zeros, expected 1 or more.")
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with images of more channels; what an image knows of its grid stays."""
        out = dict(data)
        for key in self.key_iterator(out):
            image: torch.Tensor = out[key]
            out[key] = torch.cat([image, image.new_zeros((self.channels, *image.shape[1:]))])
        return out
