"""Compare a manifest with the files it names, and list every defect at once, one line each."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError, ManifestError, reading_problem
from voxelgate.core.files import file_sha256
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.progress import Progress
from voxelgate.datasets.manifest import Manifest, ManifestCase
from voxelgate.images.spec import binary_as_one, mask_problem
from voxelgate.images.volumes import read_channels

Volume = tuple[npt.NDArray[Any], Grid]
"""Voxels in the file's dtype, and where they lie."""

MOST_READERS = 4
"""Threads that read; each holds one image and its label, and more do not decompress faster."""

MOST_VALUES_SHOWN = 5
"""Undeclared label values that a line names."""


@dataclass(frozen=True, eq=False)
class InspectedCase:
    """One case after its files were read.

    Args:
        case: the case.
        problems: one line for each defect of its files.
        channels: the image, one volume for each channel that could be read.
        label: the label map, or None if there is none or it cannot be read.
    """

    case: ManifestCase
    problems: tuple[str, ...]
    channels: tuple[Volume, ...]
    label: Volume | None

    @property
    def content(self) -> str:
        """Return the hash of the decoded image, empty if it could not be read."""
        return _content_hash([voxels for voxels, _ in self.channels]) if self.channels else ""


@dataclass(frozen=True)
class _Checked:
    """What remains of an inspected case: a few lines instead of its voxels."""

    case: ManifestCase
    problems: tuple[str, ...]
    content: str


def check_manifest(manifest: Manifest, *, progress: Progress | None = None) -> None:
    """Read every file of a manifest and refuse the data set if any is wrong.

    Looked for are: missing and unreadable files, checksums that differ, an image and a label on different grids (corner
    by corner in mm), label values that are not whole numbers or not declared, voxels of an image that are not finite,
    and one image under two names.

    Args:
        manifest: what to check.
        progress: told how many cases are done.

    Raises:
        ManifestError: one line for each defect, each naming its file, in the order of the manifest.
    """
    problems = manifest_defects(manifest, progress=progress)
    if problems:
        raise ManifestError(problems)


def manifest_defects(manifest: Manifest, *, progress: Progress | None = None) -> list[str]:
    """Return what `check_manifest` refuses, one line for each defect; empty if the data set is sound."""
    cases = manifest.all_cases
    files = [path for case in cases for path in case.files]
    if not any(map(Path.is_file, files)):
        return [
            f"{manifest.data_root}: holds none of the {len(files)} files, such as {manifest.relative(files[0])}; name "
            "the folder that the paths start from (--data-root)."
        ]
    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(_checked_case, case, manifest) for case in cases]
        for done, _ in enumerate(as_completed(futures), start=1):
            if progress is not None:
                progress(done, len(cases))
    checked = [future.result() for future in futures]
    return [problem for one in checked for problem in one.problems] + list(_twins(checked, manifest))


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror}); check its permissions.") from error


def inspect_case(case: ManifestCase, manifest: Manifest) -> InspectedCase:
    """Read the files of one case and say what is wrong with them.

    Args:
        case: of the manifest.
        manifest: says where files lie and what label values mean.
    """
    problems: list[str] = []
    channels: list[Volume] = []
    for path in case.channels:
        name = manifest.relative(path)
        file, found = _read(path, case.image_sha256 if path == case.image else None, name)
        problems += found
        if file is not None:
            problems += _image_problems(file[0], name) + _apart(file, channels, name, manifest.relative(case.image))
            if (problem := manifest.images.problem(path, len(file[0]))) is not None:
                problems.append(f"{name}: {problem}")
            channels += [(voxels, file[1]) for voxels in file[0]]
    label: Volume | None = None
    if case.label is not None:
        label, found = _inspect_label(case, case.label, channels, manifest)
        problems += found
    return InspectedCase(case, tuple(problems), tuple(channels), label)


def _checked_case(case: ManifestCase, manifest: Manifest) -> _Checked:
    found = inspect_case(case, manifest)
    return _Checked(case, found.problems, found.content)


def _apart(volume: Volume, channels: Sequence[Volume], name: str, first: str) -> list[str]:
    difference = channels[0][1].difference(volume[1]) if channels else None
    if difference is None:
        return []
    return [f"{name}: on another grid than {first}: {difference}; resample the channels of a case to one grid."]


def _read(path: Path, sha256: str | None, name: str) -> tuple[Volume | None, list[str]]:
    """Return all channels of a file, (C, i, j, k), and what is wrong with it."""
    if not path.is_file():
        return None, [f"{name}: there is no such file; restore it or take its case out of the manifest."]
    problems = []
    try:
        if sha256 is not None and checksum(path) != sha256:
            problems.append(
                f"{name}: SHA-256 differs from the manifest's; restore the file or write the manifest anew."
            )
        return read_channels(path), problems
    except InputError as error:
        return None, [*problems, f"{name}: {reading_problem(error, path)}"]


def _inspect_label(
    case: ManifestCase, path: Path, channels: Sequence[Volume], manifest: Manifest
) -> tuple[Volume | None, list[str]]:
    name = manifest.relative(path)
    file, problems = _read(path, case.label_sha256, name)
    if file is None:
        return None, problems
    if (problem := mask_problem(path, len(file[0]))) is not None:
        return None, [*problems, f"{name}: {problem}"]
    voxels = file[0][0]
    if manifest.images.is_picture:
        voxels = binary_as_one(voxels, len(manifest.labels.names) - 1)
    label = voxels, file[1]
    difference = channels[0][1].difference(label[1]) if channels else None
    if difference is not None:
        image_name = manifest.relative(case.image)
        problems.append(f"{name}: on another grid than {image_name}: {difference}; use the label drawn on this image.")
    return label, problems + _value_problems(label[0], manifest.labels, name)


def _image_problems(voxels: npt.NDArray[Any], name: str) -> list[str]:
    count = voxels.size - int(np.isfinite(voxels).sum())
    return [f"{name}: {count} voxels are NaN or infinite; write the image anew without them."] if count else []


def _value_problems(voxels: npt.NDArray[Any], table: LabelTable, name: str) -> list[str]:
    broken = voxels[voxels != np.rint(voxels)] if voxels.dtype.kind == "f" else voxels[:0]
    if broken.size:
        return [
            f"{name}: {broken.size} voxels are no whole number, such as {broken[0]:g}; a label map holds only those."
        ]
    highest = len(table.names) - 1
    if voxels.min() >= 0 and voxels.max() <= highest:
        return []
    found = np.unique(voxels[(voxels < 0) | (voxels > highest)])
    shown = ", ".join(f"{value:g}" for value in found[:MOST_VALUES_SHOWN])
    more = f" and {found.size - MOST_VALUES_SHOWN} more" if found.size > MOST_VALUES_SHOWN else ""
    return [f"{name}: values {shown}{more} are not declared; the manifest declares 0 to {highest}."]


def _content_hash(channels: Sequence[npt.NDArray[Any]]) -> str:
    """Hash shape and values slice by slice as float32, so that neither the file's dtype nor its packing counts."""
    digest = hashlib.sha256()
    for voxels in channels:
        digest.update(str(voxels.shape).encode())
        for k in range(voxels.shape[-1]):
            digest.update(np.ascontiguousarray(voxels[..., k], dtype=np.float32).tobytes())
    return digest.hexdigest()


def _twins(checked: Sequence[_Checked], manifest: Manifest) -> Iterator[str]:
    first: dict[str, str] = {}
    for one in checked:
        if not one.content:
            continue
        name = manifest.relative(one.case.image)
        original = first.setdefault(one.content, name)
        if original != name:
            yield f"{name}: holds the same voxels as {original}; keep one of them."
