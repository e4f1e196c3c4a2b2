"""MONAI's `LoadImage` and `SaveImage` on top of `voxelgate.images.volumes`: as strict, as exact, and as safe."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, ImageWriter, MetaTensor
from monai.networks import one_hot
from monai.transforms import MapTransform

from voxelgate.core.errors import InputError, OutputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.dicom.labels.label_voxels import DicomLabels
from voxelgate.dicom.read.reader import CheckedDicomReader
from voxelgate.images.file_facts import NO_FACTS, FileFacts
from voxelgate.images.label_maps import VALUES_KEY, LabelValues, read_label_map
from voxelgate.images.pictures import is_picture
from voxelgate.images.spec import as_paths, joined, meta_of
from voxelgate.images.volumes import Voxels, is_volume, read_one_channel, read_with_findings, write_label_map
from voxelgate.transforms.nnunet.source_layout import header_spacing


def as_image(voxels: Voxels, grid: Grid, facts: FileFacts = NO_FACTS) -> MetaTensor:
    """Return what `LoadImaged` and `EnsureChannelFirstd` would make of an image.

    float32, but integers of 8 or 16 bits as they are: a whole CT then takes half of the memory until it is resampled.

    Args:
        voxels: (C, I, J, K).
        grid: of each channel.
        facts: what else is known of the file.
    """
    meta = meta_of(grid, facts) | {"original_channel_dim": 0}
    dtype = voxels.dtype.newbyteorder("=") if voxels.dtype.name in {"uint8", "int8", "int16"} else np.float32
    array = np.require(voxels, dtype=dtype, requirements="W")
    if any(stride < 0 for stride in array.strides):  # a flipped view, which PyTorch does not take
        array = array.copy()
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(meta.pop("affine")), meta=meta)


def file_facts_of(image: MetaTensor) -> FileFacts:
    """Return what the metadata of an image (C, i, j, k) tell of its file."""
    told = image.meta
    return FileFacts(header_spacing(image), is_dicom=bool(told.get("is_dicom")), is_3d=bool(told.get("is_3d")))


def plain_tensor(image: torch.Tensor) -> torch.Tensor:
    """Return the voxels of a `MetaTensor` without its geometry, or a tensor as it is; nothing is copied."""
    plain: torch.Tensor = image.as_tensor() if isinstance(image, MetaTensor) else image
    return plain


class VolumeReader(ImageReader):  # type: ignore[misc]  # MONAI ships no stubs
    """Let MONAI's `LoadImage` read volume files and DICOM series, and refuse what `read_volume` and the audit refuse.

    What is not named like a volume or picture is read as DICOM by `CheckedDicomReader`. `LoadImage` tries other readers
    if `read` fails, even its own ones, but not if `get_data` does; hence `read` only passes the paths on.

    >>> from monai.transforms import LoadImaged
    >>> load = LoadImaged(keys="image", reader="voxelgate.VolumeReader")
    """

    def __init__(self) -> None:
        super().__init__()
        self._dicom = CheckedDicomReader()

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Return whether all names end like a readable volume or picture, or may be DICOM."""
        return all(_is_file(path) for path in as_paths(filename)) or self._dicom.verify_suffix(filename)

    def read(
        self,
        data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
        **_: Any,
    ) -> tuple[Path, ...]:
        """Return the paths; `get_data` opens them."""
        return as_paths(data)

    def get_data(self, img: tuple[Path, ...]) -> tuple[Voxels, dict[str, Any]]:
        """Return voxels (i, j, k) and the metadata that MONAI needs: the affine in RAS+ mm and the shape.

        Raises:
            InputError: as for `read_volume` and `CheckedDicomReader`, and for more than one volume file.
        """
        if not any(_is_file(path) for path in img):
            return self._dicom.get_data(self._dicom.read(img))
        if len(img) != 1:
            raise InputError(f"{len(img)} files for one image, expected one; give each volume as a case of its own.")
        image = read_one_channel(img[0])
        return image.voxels[0], meta_of(image.grid, image.facts)


class LoadLabeld(MapTransform):  # type: ignore[misc]  # MONAI ships no stubs
    """Read label maps as (1, I, J, K) float32 with the values 0, 1, 2, ..., and `IGNORED` where nobody labelled.

    What the values of a file stand for a row of `datalist` tells under "label_values"; without, they are those of the
    network, or black and white where there is one structure. A DICOM SEG or RTSTRUCT is named together with the series
    that it was drawn on, whose grid the labels have; its values are the numbers of its segments.

    Args:
        keys: paths of label maps, or two paths: of a SEG or RTSTRUCT, and of its series as a manifest names it.
        highest: largest label value of the network.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        InputError: at call, as for `VolumeReader`, and for values that nothing is said of.

    >>> loaded = vg.LoadLabeld("label", highest=1)({"label": "labels.nii.gz"})["label"]
    >>> loaded.shape, int(loaded.max())
    (torch.Size([1, 32, 36, 28]), 1)
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], highest: int, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.highest = highest

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with label maps instead of their paths, and without "label_values"."""
        out = dict(data)
        told = out.pop(VALUES_KEY, None)
        for key in self.key_iterator(out):
            path, *series = as_paths(data[key])
            voxels, grid = self._drawn_on(series[0], path, told) if series else self._labels_of_file(path, told)
            out[key] = as_image(voxels.astype(np.float32)[None], grid)
            out[key].meta["filename_or_obj"] = str(path)
        return out

    def _drawn_on(self, series: Path, path: Path, told: Mapping[str, int] | None) -> tuple[Voxels, Grid]:
        numbers = {n: n for n in range(1, self.highest + 1)} if told is None else told
        return DicomLabels(path, series, {int(segment): number for segment, number in numbers.items()}).read()

    def _labels_of_file(self, path: Path, told: Mapping[str, int] | None) -> tuple[Voxels, Grid]:
        values = LabelValues.up_to(self.highest) if told is None else LabelValues.from_mapping(told)
        if _is_file(path):
            return read_label_map(path, values)
        voxels, meta = VolumeReader().get_data((path,))
        return values.numbered(voxels), Grid(voxels.shape, meta["affine"])


class OneHotLabelsd(MapTransform):  # type: ignore[misc]  # MONAI ships no stubs
    """Make one channel for each label value, all of them empty where the label map says that nobody labelled.

    So neither metric counts these voxels, in the prediction or in the label.

    Args:
        keys: label maps (1, I, J, K) of one shape, such as prediction and label.
        label_key: the one that knows what is ignored.
        classes: label values, background included.

    >>> label = torch.tensor([[[[0.0, 1.0, -1.0]]]])
    >>> vg.OneHotLabelsd("label", label_key="label", classes=2)({"label": label})["label"][:, 0, 0].tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], label_key: Hashable, classes: int) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the channels."""
        out, counts = dict(data), data[self.label_key] >= 0
        for key in self.key_iterator(out):
            out[key] = one_hot(data[key].clamp(min=0), self.classes, dim=0) * counts
        return out


def _is_file(path: Path) -> bool:
    return is_volume(path) or is_picture(path)


class LabelMapWriter(ImageWriter):  # type: ignore[misc]  # MONAI ships no stubs
    """Let MONAI's `SaveImage` write label maps as `write_label_map` does; an existing file is refused, not replaced.

    Two cases of one file name in a run of `monai.bundle` thus end in an error instead of one overwritten result.

    Args:
        output_dtype: given by `SaveImage`; the type follows from the labels.

    >>> from monai.transforms import SaveImage
    >>> save = SaveImage("saved", writer="voxelgate.LabelMapWriter", separate_folder=False, print_log=False)
    >>> _ = save(LoadImaged("label", reader="voxelgate.VolumeReader")({"label": "labels.nii.gz"})["label"][None])
    >>> [path.name for path in Path("saved").iterdir()]
    ['labels_trans.nii.gz']
    """

    def __init__(self, output_dtype: object = np.uint8, **kwargs: Any) -> None:
        super().__init__(output_dtype=output_dtype, **kwargs)

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **_: Any) -> None:
        """Take the label map, (1, I, J, K) or (I, J, K)."""
        given = np.asarray(data_array)
        labels = given.astype(np.int32) if given.dtype.kind == "f" else given  # MONAI hands everything on as float
        if not np.array_equal(labels, given):
            raise OutputError("a label map holds whole numbers; give LabelMapWriter labels, not probabilities.")
        self.data_obj = labels if channel_dim is None else np.squeeze(labels, axis=channel_dim)

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, **options: Any) -> None:
        """Take place and source of the label map.

        Raises:
            UsageError: resampling is asked for; the inferer has brought the labels back already.
        """
        if options.get("resample", False):
            raise UsageError("LabelMapWriter writes labels on the grid they have; give SaveImage resample=False.")
        self.metadata = dict(meta_dict or {})

    def write(self, filename: str | os.PathLike[str], **_: Any) -> None:
        """Write, re-read and compare.

        Raises:
            OutputError: the file exists.
        """
        path = Path(filename)
        if path.exists():
            raise OutputError(f"{path.name}: exists already; choose another output folder, or remove it.")
        grid = Grid(self.data_obj.shape, np.asarray(self.metadata["affine"], dtype=np.float64))
        source = self.metadata.get("filename_or_obj")
        write_label_map(
            path, self.data_obj, grid, like=Path(str(source)) if source is not None else None, overwrite=True
        )


class ChannelsReader(ImageReader):  # type: ignore[misc]  # MONAI ships no stubs
    """Let MONAI's `LoadImage` read several files as the channels of one image, in the order they are given.

    A picture in colours gives three channels: red, green, blue; a NIfTI file of several volumes one for each.

    >>> from monai.transforms import LoadImaged
    >>> load = LoadImaged(keys="image", reader="voxelgate.ChannelsReader")
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
        found = [read_with_findings(path, several=True) for path in img]
        image = joined(img, [(one.voxels, one.grid) for one in found])
        return image.voxels.astype(np.float32), meta_of(image.grid, found[0].facts) | {"original_channel_dim": 0}
