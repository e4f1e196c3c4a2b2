"""Read a label map that an annotator sends: on the image's grid, whole numbers, and values that mean what is said."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import AGREEMENT_TOLERANCE_MM, Grid
from voxelgate.core.labels import LabelTable
from voxelgate.images.volumes import MOST_LABEL_VALUE, is_volume, read_grid, read_volume

RAW_SUFFIX = ".bin"
"""What OHIF sends: one byte a voxel and no header, first index fastest (monailabel/datastore/utils/convert.py)."""

Segments = Sequence[Mapping[str, Any]]
"""`label_info` of a client: a name and perhaps an `idx` for each segment."""


def segments_of(label_info: object) -> Segments:
    """Return what a client says of its values, checked for form.

    Raises:
        InputError: it is no list of objects.
    """
    if label_info is None:
        return ()
    if not isinstance(label_info, list) or not all(isinstance(segment, dict) for segment in label_info):
        raise InputError('label_info is no list of segments; send [{"name": ..., "idx": ...}, ...], or leave it out.')
    return label_info


def read_submitted(path: Path, image: Grid, table: LabelTable, segments: Segments = ()) -> npt.NDArray[Any]:
    """Read the label map of an image and give its values the meaning that they have in the bundle.

    3D Slicer numbers the segments that it has, in their order; so a label map without the first structure would count
    as another one. Where the client names its segments, the names decide.

    Args:
        path: volume file, or a raw one that ends in `RAW_SUFFIX`.
        image: grid of the image; the header is compared with it before a voxel is read.
        table: what values mean in the bundle.
        segments: what the client says of its values; without, they are those of the bundle.

    Returns:
        (I, J, K) on `image`, uint8; uint16 where the bundle has more than 256 labels.

    Raises:
        InputError: another grid, no whole numbers, or a value or name that the bundle does not know.
    """
    voxels = _raw(path, image) if path.name.endswith(RAW_SUFFIX) else _submitted_volume(path, image)
    with np.errstate(invalid="ignore"):
        labels = voxels.astype(np.uint16)
    if not np.array_equal(labels, voxels):
        raise InputError("the label map holds values that are no whole numbers from 0 to 65535; send a label map.")
    meaning = _meaning_of_values(segments, table)
    unknown = sorted(set(np.unique(labels).tolist()) - meaning.keys())
    if unknown:
        raise InputError(
            f"the label map holds {', '.join(map(str, unknown))}, expected {_as_words(meaning, table)}; rename the "
            "segments as the model calls them."
        )
    translation: npt.NDArray[Any] = np.zeros(max(meaning) + 1, np.uint8 if len(table.names) <= 256 else np.uint16)
    for value, meant in meaning.items():
        translation[value] = meant
    mapped: npt.NDArray[Any] = translation[labels]
    return mapped


def _submitted_volume(path: Path, image: Grid) -> npt.NDArray[Any]:
    if not is_volume(path):
        raise InputError("the label map has no known file format; send .nii.gz, .nrrd or .mha.")
    grid = read_grid(path)
    if (difference := image.difference(grid, AGREEMENT_TOLERANCE_MM)) is not None:
        raise InputError(f"the label map does not lie on the grid of its image: {difference}; export it again.")
    return read_volume(path)[0]


def _raw(path: Path, image: Grid) -> npt.NDArray[Any]:
    expected = int(np.prod(image.shape))
    if (found := path.stat().st_size) != expected:
        raise InputError(f"the label map has {found} bytes, expected one for each of {expected} voxels; send it whole.")
    return np.fromfile(path, dtype=np.uint8).reshape(image.shape, order="F")


def _meaning_of_values(segments: Segments, table: LabelTable) -> dict[int, int]:
    """Return what each value of the file is called in the bundle."""
    if not segments:
        return {int(value): int(value) for value in table.to_mapping()}
    known = {name.lower(): int(value) for value, name in table.to_mapping().items()}
    meaning = {0: 0}
    for place, segment in enumerate(segments, start=1):
        name = str(segment.get("name", "")).strip().lower()
        value = segment.get("idx", place)
        if name not in known or type(value) is not int or value in meaning or not 0 < value <= MOST_LABEL_VALUE:
            raise InputError(
                f"segment {place} of the label map has no name that the model knows, or a number of its own; expected "
                f"{', '.join(table.foreground.values())}."
            )
        meaning[value] = known[name]
    return meaning


def _as_words(meaning: Mapping[int, int], table: LabelTable) -> str:
    return ", ".join(f"{value} ({table.names[meant]})" for value, meant in sorted(meaning.items()))
