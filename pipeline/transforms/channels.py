"""Read an image whose channels are files of their own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader

from pipeline.dicom.reader import as_paths, meta_of
from pipeline.errors import InputError
from pipeline.volumes import Voxels, is_volume, read_volume


class ChannelsReader(ImageReader):  # type: ignore[misc]  # MONAI ships no stubs
    """Let MONAI's `LoadImage` read several volume files as the channels of one image, in the order they are given.

    >>> from monai.transforms import LoadImaged
    >>> load = LoadImaged(keys="image", reader="pipeline.transforms.ChannelsReader")
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Return whether all names end like a readable volume."""
        return all(is_volume(path) for path in as_paths(filename))

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **_: Any) -> tuple[Path, ...]:
        """Return the paths; `get_data` opens them, for `LoadImage` tries other readers if `read` fails."""
        return as_paths(data)

    def get_data(self, img: tuple[Path, ...]) -> tuple[Voxels, dict[str, Any]]:
        """Return voxels (C, i, j, k) float32 and the metadata that MONAI needs.

        Raises:
            InputError: as for `read_volume`, and for files on different grids.
        """
        volumes = [read_volume(path) for path in img]
        grid = volumes[0][1]
        for path, (_, other) in zip(img, volumes, strict=True):
            if (difference := grid.difference(other)) is not None:
                raise InputError(
                    f"{path.name}: on another grid than {img[0].name}: {difference}; resample them to one grid."
                )
        voxels = np.stack([voxels.astype(np.float32) for voxels, _ in volumes])
        return voxels, meta_of(grid) | {"original_channel_dim": 0}
