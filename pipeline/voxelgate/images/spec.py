"""What an image consists of, one file or one for each channel, and how it is read as one array on one grid."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid
from voxelgate.images.file_facts import NO_FACTS, FileFacts
from voxelgate.images.pictures import RGB, is_picture, read_picture_header
from voxelgate.images.volumes import Reading, Voxels, is_nifti, is_volume, read_volume_header, read_with_findings

PICTURE_NAMES = "PNG, TIFF or JPEG"

Paths = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]


@dataclass(frozen=True)
class ImageSpec:
    """What the images of a data set or a bundle are.

    Args:
        channels: what each channel is, in the order in which the network gets them.
        is_picture: PNG, TIFF or JPEG pictures instead of volumes and DICOM.

    >>> vg.ImageSpec(channels=("T1", "FLAIR")).files
    2
    """

    channels: tuple[str, ...] = ("image",)
    is_picture: bool = False

    def __str__(self) -> str:
        """Return in words what images these are.

        >>> str(ImageSpec(("T1", "T2")))
        'images of 2 (T1, T2)'
        """
        return f"{'pictures' if self.is_picture else 'images'} of {len(self.channels)} ({', '.join(self.channels)})"

    @property
    def files(self) -> int:
        """Return how many files an image has: one for each channel, but one for a picture in colours.

        A NIfTI file of several volumes, as the Decathlon stores channels, may stand in their place.
        """
        return 1 if self.is_picture and self.channels == RGB else len(self.channels)

    @property
    def may_be_one_file(self) -> bool:
        """Return whether a file may hold several channels."""
        return len(self.channels) > 1 and (not self.is_picture or self.channels == RGB)

    def channels_per_file(self, files: int) -> int:
        """Return how many channels each file of an image holds that has so many files."""
        return len(self.channels) if files == 1 and self.may_be_one_file else len(self.channels) // self.files

    def admits(self, path: Path) -> bool:
        """Return whether a file is named like those of an image; it is not touched."""
        return is_picture(path) if self.is_picture else is_volume(path)

    def problem(self, path: Path, found: int, files: int | None = None) -> str | None:
        """Say what is wrong with a file of an image, or return None.

        Args:
            path: of the file.
            found: channels that were read of it.
            files: how many the image has; by default as many as usual.
        """
        wanted = self.channels_per_file(self.files if files is None else files)
        if found != wanted and self.is_picture:
            kinds = ["in colours (RGB)" if channels > 1 else "grey" for channels in (found, wanted)]
            return f"is {kinds[0]}, but the images are {kinds[1]}; convert it."
        if found != wanted:
            return f"holds {found} volume{'' if found == 1 else 's'}, expected {wanted}, one for each channel."
        if is_picture(path) and read_picture_header(path).has_palette:
            return "holds numbers of colours (a palette), expected brightness; save it as RGB or grey values."
        return None


ONE_VOLUME = ImageSpec()


class ImageOnGrid(NamedTuple):
    """An image that was read.

    Args:
        voxels: (C, i, j, k), any real type.
        grid: of every channel, RAS+ mm.

    >>> voxels, grid = vg.read_image("scan.nii.gz")
    >>> voxels.shape[1:] == grid.shape
    True
    """

    voxels: Voxels
    grid: Grid


def read_image(paths: Paths, spec: ImageSpec = ONE_VOLUME) -> ImageOnGrid:
    """Read the files of an image as its channels, in the order they are given.

    Args:
        paths: of its files, or of its only one: NIfTI, NRRD or MetaImage, or for a spec of pictures PNG, TIFF or JPEG.
        spec: what they must be; by default one volume.

    Returns:
        Voxels (C, I, J, K) of the type that the files store, scaled as their headers say, and their grid.

    Raises:
        InputError: files are missing or too many, of another kind, unreadable, on different grids, or two hold the same
            voxels, so that one channel stands for another.

    >>> image = vg.read_image("scan.nii.gz")
    >>> image.voxels.shape
    (1, 32, 36, 28)
    """
    voxels, grid, *_ = read_image_with_findings(paths, spec)
    return ImageOnGrid(voxels, grid)


def read_image_with_findings(paths: Paths, spec: ImageSpec = ONE_VOLUME) -> Reading:
    """Read the files of an image as `read_image` does, and say what is worth knowing of them.

    Raises:
        InputError: as for `read_image`.
    """
    files = as_paths(paths)
    _refuse_other_files(files, spec)
    found = [read_with_findings(path, several=spec.may_be_one_file) for path in files]
    for path, one in zip(files, found, strict=True):
        if (problem := spec.problem(path, len(one.voxels), len(files))) is not None:
            raise InputError(f"{path.name}: {problem}")
    for (first, one), (second, other) in combinations(zip(files, found, strict=True), 2):
        if np.array_equal(one.voxels, other.voxels):
            raise InputError(f"{second.name}: holds the same voxels as {first.name}; give each channel its own image.")
    image = joined(files, [(one.voxels, one.grid) for one in found])
    problems = [
        f"{path.name}: {one.sides_problem}" for path, one in zip(files, found, strict=True) if one.sides_problem
    ]
    findings = tuple(finding for one in found for finding in one.findings)
    return Reading(*image, findings, next(iter(problems), ""), found[0].facts)


def joined(paths: Sequence[Path], volumes: Sequence[tuple[Voxels, Grid]]) -> ImageOnGrid:
    """Return volumes that lie on one grid as the channels of one image.

    Args:
        paths: of the files, for messages.
        volumes: (C, i, j, k) and grid of each.

    Raises:
        InputError: they lie on different grids.
    """
    grid = volumes[0][1]
    for path, (_, other) in zip(paths, volumes, strict=True):
        if (difference := grid.difference(other)) is not None:
            raise InputError(
                f"{path.name}: on another grid than {paths[0].name}: {difference}; resample them to one grid."
            )
    return ImageOnGrid(volumes[0][0] if len(volumes) == 1 else np.concatenate([voxels for voxels, _ in volumes]), grid)


def _refuse_other_files(paths: Sequence[Path], rule: ImageSpec) -> None:
    if len(paths) != rule.files and not _holds_all_channels(paths, rule):
        raise InputError(_wrong_count(paths, rule))
    for number, path in enumerate(paths):
        if not rule.admits(path):
            wanted = f"picture ({PICTURE_NAMES})" if rule.is_picture else "volume"
            found = "is a folder, expected a file" if path.is_dir() else f"is no {wanted}, as was expected"
            raise InputError(f"{path.name}: {found}; name a {wanted}, or convert it to one.")
        if len(paths) > 1 and not path.is_file():
            name = rule.channels[number]
            raise InputError(f"{path.name}: is missing, and with it channel {number} ({name}) of the image; add it.")


def _holds_all_channels(paths: Sequence[Path], rule: ImageSpec) -> bool:
    """Return whether the only file of an image is one of volumes for all its channels."""
    if len(paths) != 1 or not rule.may_be_one_file or not is_nifti(paths[0]):
        return False
    return read_volume_header(paths[0], several=True).channels == len(rule.channels)


def _wrong_count(paths: Sequence[Path], rule: ImageSpec) -> str:
    found = f"{len(paths)} file{'' if len(paths) == 1 else 's'} ({', '.join(path.name for path in paths)})"
    if rule.files == 1:
        return f"{found}, expected one; give each image as a case of its own."
    names = ", ".join(f"CASE_{number:04d} {name}" for number, name in enumerate(rule.channels))
    return f"{found}, expected one for each of {rule.files} channels; name them {names}, or give a manifest."


def meta_of(grid: Grid, facts: FileFacts = NO_FACTS) -> dict[str, Any]:
    """Return the metadata that a MONAI reader gives with the voxels (i, j, k) of one volume.

    Beside MONAI's own keys these are `spacing`, the voxel sizes along i, j and k as the header states them, `is_dicom`,
    and `is_3d`, whether a series says that its slices were acquired all at once.
    """
    return {
        "spacing": np.array(facts.spacing_mm or grid.spacing_mm),
        "is_dicom": facts.is_dicom,
        "is_3d": facts.is_3d,
        "affine": grid.affine.copy(),
        "original_affine": grid.affine.copy(),
        "spatial_shape": np.array(grid.shape),
        "space": "RAS",
        "original_channel_dim": float("nan"),
    }


def as_paths(names: Paths) -> tuple[Path, ...]:
    """Return what MONAI hands to a reader, one name or several, as paths."""
    return (Path(names),) if isinstance(names, str | os.PathLike) else tuple(Path(name) for name in names)


SMALLEST_HU_RANGE = 20.0
"""Smallest span in HU from the darkest to the brightest voxel of a CT volume.

Noise of 3 HU, the least of a diagnostic scan, spans more than this over the voxels of a volume; an image windowed to
0..1 spans 1 and a z-scored one about 10.
"""


HIGHEST_AIR_HU = -500.0
"""The darkest voxel of a CT in HU lies below this: every scan shows air, around the body or in its airways."""

PERCENTILE_LIMITS = (0.5, 99.5)
"""Between which MRI is normalised unless a config says otherwise."""


def contrast_limits(values: npt.NDArray[Any], percentiles: tuple[float, float], channel: int) -> tuple[float, float]:
    """Return the percentiles between which an image is normalised.

    Args:
        values: of one channel, those that count.
        percentiles: low and high.
        channel: its number, for messages.

    Raises:
        InputError: there are none, some are not finite, or both percentiles are equal: nothing to see.
    """
    if not values.size:
        raise InputError(f"channel {channel} of the image holds nothing but zeros; leave the case out.")
    if not np.isfinite(values).all():
        raise InputError(f"channel {channel} of the image holds values that are not finite; repair the file.")
    low, high = (float(limit) for limit in np.percentile(values, percentiles))
    if not low < high:
        raise InputError(
            f"channel {channel} of the image has no contrast: percentiles {percentiles[0]:g} and {percentiles[1]:g} "
            f"are both {low:g}; leave the case out."
        )
    return low, high
