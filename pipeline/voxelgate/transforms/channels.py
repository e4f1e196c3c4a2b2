"""Read an image whose channels are files of their own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader

from voxelgate.dicom.read.reader import as_paths, meta_of
from voxelgate.images.pictures import is_picture
from voxelgate.images.spec import joined
from voxelgate.images.volumes import Voxels, is_volume, read_channels


class ChannelsReader(ImageReader):  # type: ignore[misc]  # MONAI ships no stubs
    """Let MONAI's `LoadImage` read several files as the channels of one image, in the order they are given.

    A picture in colours gives three channels: red, green, blue.

    >>> from monai.transforms import LoadImaged
    >>> load = LoadImaged(keys="image", reader="voxelgate.transforms.ChannelsReader")
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Return whether all names end like a readable volume or picture."""
        return all(is_volume(path) or is_picture(path) for path in as_paths(filename))

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **_: Any) -> tuple[Path, ...]:
        """Return the paths; `get_data` opens them, for `LoadImage` tries other readers if `read` fails."""
        return as_paths(data)

    def get_data(self, img: tuple[Path, ...]) -> tuple[Voxels, dict[str, Any]]:
        """Return voxels (C, i, j, k) float32 and the metadata that MONAI needs.

        Raises:
            InputError: as for `read_volume`, and for files on different grids.
        """
        image = joined(img, [read_channels(path) for path in img])
        return image.voxels.astype(np.float32), meta_of(image.grid) | {"original_channel_dim": 0}
