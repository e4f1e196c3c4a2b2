"""Compare a manifest with the files it names, and list every defect at once, one line each."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError, ManifestError, reading_problem
from voxelgate.core.files import file_sha256
from voxelgate.core.geometry import Grid
from voxelgate.core.progress import Progress
from voxelgate.datasets.manifest import Manifest, ManifestCase, Modality
from voxelgate.dicom.labels.label_voxels import labels_on
from voxelgate.dicom.read.series_paths import is_series_path, series_at
from voxelgate.dicom.read.volume import read_plausible
from voxelgate.images.label_maps import single_channel, values_of
from voxelgate.images.pictures import is_picture
from voxelgate.images.spec import PERCENTILE_LIMITS, SMALLEST_HU_RANGE, contrast_limits
from voxelgate.images.volumes import read_channels, read_volume_header

Volume = tuple[npt.NDArray[Any], Grid]
"""Voxels in the file's dtype, and where they lie."""

MOST_READERS = 4
"""Threads that read; each holds one image and its label, and more do not decompress faster."""


@dataclass(frozen=True, eq=False)
class InspectedCase:
    """One case after its files were read.

    Args:
        case: the case.
        problems: one line for each defect of its files.
        channels: the image, one volume for each channel that could be read.
        label: the label map with the values 0, 1, 2, ... and `IGNORED`, or None if there is none or it cannot be read.
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
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class CheckedManifest:
    """What a pass over all files found.

    Args:
        problems: one line for each defect; empty if the data set is sound.
        cases_with: number of cases that hold each label.
        content: hash of the decoded image of each case that could be read.
    """

    problems: tuple[str, ...]
    cases_with: Mapping[int, int]
    content: Mapping[str, str]


def check_manifest(manifest: Manifest, *, progress: Progress | None = None) -> CheckedManifest:
    """Read every file of a manifest, and refuse the data set if any is wrong; return what was found.

    Looked for are: missing and unreadable files, checksums that differ, an image and a label on different grids (corner
    by corner in mm), label values that are not whole numbers or not declared, voxels of an image that are not finite,
    images without contrast, and one image under two names or as two channels.

    Args:
        manifest: what to check.
        progress: told how many cases are done.

    Raises:
        ManifestError: one line for each defect, each naming its file, in the order of the manifest.
    """
    found = checked_manifest(manifest, progress=progress)
    if found.problems:
        raise ManifestError(found.problems)
    return found


def checked_manifest(manifest: Manifest, *, progress: Progress | None = None) -> CheckedManifest:
    """Return what `check_manifest` finds, with what it refuses."""
    cases = manifest.all_cases
    files = [path for case in cases for path in case.files]
    if not any(path.is_file() or is_series_path(path) for path in files):
        nowhere = (
            f"{manifest.data_root}: holds none of the {len(files)} files, such as {manifest.relative(files[0])}; name "
            "the folder that the paths start from (--data-root)."
        )
        return CheckedManifest((nowhere,), {}, {})
    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(_checked_case, case, manifest) for case in cases]
        for done, _ in enumerate(as_completed(futures), start=1):
            if progress is not None:
                progress(done, len(cases))
    checked = [future.result() for future in futures]
    problems = [problem for one in checked for problem in one.problems]
    cases_with = Counter(number for one in checked for number in one.numbers)
    content = {one.case.case_id: one.content for one in checked if one.content}
    return CheckedManifest((*problems, *_twins(checked, manifest)), cases_with, content)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror}); check its permissions.") from error


def image_content(case: ManifestCase) -> str:
    """Return the hash of the decoded image of a case, which neither name nor packing of its files changes.

    Raises:
        InputError: a file cannot be read.
    """
    return _content_hash([voxels for path in case.channels for voxels in _voxels_at(path, several=True)[0]])


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
        checksum_of = case.image_sha256 if path == case.image else None
        file, found = _read(path, checksum_of, name, several=manifest.images.may_be_one_file)
        problems += found
        if file is not None:
            problems += _image_problems(file[0], name) + _apart(file, channels, name, manifest.relative(case.image))
            problems += _side_problems(path, name, manifest)
            if (problem := manifest.images.problem(path, len(file[0]), len(case.channels))) is not None:
                problems.append(f"{name}: {problem}")
            channels += [(voxels, file[1]) for voxels in file[0]]
    if manifest.images.files > 1:
        problems += _doubled(channels, case, manifest)
    if not problems and (flat := _flatness([voxels for voxels, _ in channels], manifest.modality)) is not None:
        problems.append(f"{manifest.relative(case.image)}: {flat}")
    label: Volume | None = None
    if case.label is not None:
        label, found = _inspect_label(case, case.label, channels, manifest)
        problems += found
    return InspectedCase(case, tuple(problems), tuple(channels), label)


def _checked_case(case: ManifestCase, manifest: Manifest) -> _Checked:
    found = inspect_case(case, manifest)
    numbers = () if found.label is None else values_of(found.label[0])
    return _Checked(case, found.problems, found.content, numbers)


def _side_problems(path: Path, name: str, manifest: Manifest) -> list[str]:
    """Say whether left and right are open in an image whose labels tell them apart, as inference would refuse it."""
    if is_picture(path) or is_series_path(path) or not manifest.labels.side_pairs:
        return []
    if not (problem := read_volume_header(path, several=True).sides_problem):
        return []
    return [f"{name}: {problem}, but the labels tell sides apart; convert the image again with its orientation."]


def _apart(volume: Volume, channels: Sequence[Volume], name: str, first: str) -> list[str]:
    difference = channels[0][1].difference(volume[1]) if channels else None
    if difference is None:
        return []
    return [f"{name}: on another grid than {first}: {difference}; resample the channels of a case to one grid."]


def _read(path: Path, sha256: str | None, name: str, *, several: bool = False) -> tuple[Volume | None, list[str]]:
    """Return all channels of a file, (C, i, j, k), and what is wrong with it."""
    if not path.is_file() and not is_series_path(path):
        return None, [_not_there(name)]
    problems: list[str] = []
    try:
        problems += _altered(path, sha256, name)
        return _voxels_at(path, several=several), problems
    except InputError as error:
        return None, [*problems, f"{name}: {reading_problem(error, path)}"]


def _voxels_at(path: Path, *, several: bool) -> Volume:
    """Return the channels (C, i, j, k) of a file, or the one of a DICOM series."""
    if not is_series_path(path):
        return read_channels(path, several=several)
    volume = read_plausible(series_at(path))
    return volume.voxels[None], volume.grid


def _inspect_label(
    case: ManifestCase, path: Path, channels: Sequence[Volume], manifest: Manifest
) -> tuple[Volume | None, list[str]]:
    name = manifest.relative(path)
    if case.segments:
        return _inspect_dicom_label(case, path, channels, manifest)
    file, problems = _read(path, case.label_sha256, name)
    if file is None:
        return None, problems
    difference = channels[0][1].difference(file[1]) if channels else None
    if difference is not None:
        image_name = manifest.relative(case.image)
        problems.append(f"{name}: on another grid than {image_name}: {difference}; use the label drawn on this image.")
    try:
        return (manifest.values.numbered(single_channel(path, file[0])), file[1]), problems
    except InputError as error:
        return None, [*problems, f"{name}: {error}"]


def _inspect_dicom_label(
    case: ManifestCase, path: Path, channels: Sequence[Volume], manifest: Manifest
) -> tuple[Volume | None, list[str]]:
    name = manifest.relative(path)
    if not path.is_file():
        return None, [_not_there(name)]
    problems = _altered(path, case.label_sha256, name)
    if not channels:
        return None, problems
    grid = channels[0][1]
    try:
        return (labels_on(grid, path, manifest.numbers_of_segments(case)), grid), problems
    except InputError as error:
        return None, [*problems, f"{name}: {reading_problem(error, path)}"]


def _not_there(name: str) -> str:
    return f"{name}: there is no such file; restore it or take its case out of the manifest."


def _altered(path: Path, sha256: str | None, name: str) -> list[str]:
    if sha256 is None or checksum(path) == sha256:
        return []
    return [f"{name}: SHA-256 differs from the manifest's; restore the file or write the manifest anew."]


def _image_problems(voxels: npt.NDArray[Any], name: str) -> list[str]:
    count = voxels.size - int(np.isfinite(voxels).sum())
    return [f"{name}: {count} voxels are NaN or infinite; write the image anew without them."] if count else []


def _doubled(channels: Sequence[Volume], case: ManifestCase, manifest: Manifest) -> Iterator[str]:
    if len(case.channels) == 1:
        names = [f"{manifest.relative(case.image)}: channel {name}" for name in manifest.channel_names]
    else:
        names = [f"{manifest.relative(path)}:" for path in case.channels]
    for (first, (voxels, _)), (second, (others, _)) in combinations(zip(names, channels, strict=False), 2):
        if np.array_equal(voxels, others):
            yield f"{second} holds the same voxels as {first.rstrip(':')}; give each channel its own image."


def _flatness(channels: Sequence[npt.NDArray[Any]], modality: Modality) -> str | None:
    """Say why no network could see anything in an image, which training would refuse; None if it could.

    MRI is scaled channel by channel by its values that are not 0, pictures so with all channels together, CT by HU.
    """
    if modality is Modality.CT:
        span = max(float(part.max()) for part in channels) - min(float(part.min()) for part in channels)
        is_flat = span < SMALLEST_HU_RANGE
        return f"its values span {span:g}, less than {SMALLEST_HU_RANGE:g}, so they are no HU." if is_flat else None
    is_picture = modality is Modality.PICTURE
    try:
        for number, part in enumerate([np.stack(channels)] if is_picture else channels):
            contrast_limits(part[part != 0], (0.0, 100.0) if is_picture else PERCENTILE_LIMITS, number)
    except InputError as error:
        return str(error)
    return None


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
