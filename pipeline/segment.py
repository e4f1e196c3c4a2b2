"""Segment one volume after the other: read, check, infer, write, and report what became of each."""

import hashlib
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor

from pipeline.errors import BundleError, InputError, OutputError, VoxelgateError
from pipeline.geometry import Grid
from pipeline.labels import LabelTable
from pipeline.volumes import SUFFIXES, has_orientation, is_volume, read_volume, volume_stem, write_label_map

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.jsonl"
"""File in the output folder with one line of JSON for each case, in the order in which they ended."""

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Endings by which DICOM files are recognised, to say what to do about them."""

HASH_DIGITS = 8
"""Hex digits that tell files of one name apart; two of 1000 such files share them once in 8000 runs."""


class LoadedBundle(Protocol):
    """What `segment` needs of a bundle; `pipeline.bundle.Bundle` has it."""

    @property
    def name(self) -> str:
        """Return the bundle's name."""

    @property
    def version(self) -> str:
        """Return the bundle's version."""

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the bundle, in hex."""

    @property
    def labels(self) -> LabelTable:
        """Return what the label values mean."""

    @property
    def preprocessing(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return what turns `{"image": path}` into `{"image": MetaTensor (C, i, j, k)}` on the network grid."""

    @property
    def inferer(self) -> Callable[[MetaTensor, torch.nn.Module], MetaTensor]:
        """Return what gives labels (1, 1, I, J, K) on the source grid, e.g. `RestoringSlidingWindowInferer`."""

    @property
    def network(self) -> torch.nn.Module:
        """Return the network, in eval mode."""

    @property
    def device(self) -> torch.device:
        """Return where the network's weights are."""


class CaseStatus(StrEnum):
    """What became of a case."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Case:
    """One volume to segment.

    Args:
        case_id: its name in reports and logs.
        image: file to read.
    """

    case_id: str
    image: Path


@dataclass(frozen=True)
class CaseReport:
    """What became of one case.

    Args:
        case_id: as in `Case`.
        status: done, refused (the user can mend it) or failed (a fault of ours, or of the machine).
        bundle_sha256: fingerprint of the bundle that ran.
        versions: of the bundle and of the software.
        findings: a sentence for each thing worth knowing; if not done, the reason.
        output: the label map, if done.
        volumes_ml: volume of each structure, if done.
        seconds: for reading and preprocessing ("read"), network and restoring ("network"), and "write", if done.
    """

    case_id: str
    status: CaseStatus
    bundle_sha256: str
    versions: Mapping[str, str]
    findings: tuple[str, ...] = ()
    output: Path | None = None
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the report as one line of JSON, without a line end."""
        record = {
            "case_id": self.case_id,
            "status": self.status,
            "findings": list(self.findings),
            "output": None if self.output is None else str(self.output),
            "volumes_ml": dict(self.volumes_ml),
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "bundle_sha256": self.bundle_sha256,
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False)


def segment(case: Case, bundle: LoadedBundle, out_path: Path, *, overwrite: bool = False) -> CaseReport:
    """Segment one volume and write its label map on the grid of the volume; never raise on a bad case.

    Refused are images that `read_volume` refuses, with NaN or infinite voxels or a single value throughout, without a
    known left and right where the bundle tells sides apart, and an output that exists. Every other error makes the case
    failed; its traceback goes to the log at DEBUG.

    Args:
        case: the volume.
        bundle: the opened bundle.
        out_path: label map to write, ending in `.nii.gz`; its folder is made.
        overwrite: replace a label map that is there.
    """
    try:
        return _segment_or_raise(case, bundle, out_path, overwrite=overwrite)
    except Exception as error:  # one bad case must not end a batch; the only broad except of the package
        logger.debug("case %s ended with an error", case.case_id, exc_info=True)
        ours = _first_of_ours(error)
        status = CaseStatus.FAILED if ours is None else CaseStatus.REFUSED
        first_line = str(error).strip().partition("\n")[0]
        sentence = f"{type(error).__name__}: {first_line}" if ours is None else str(ours)
        return CaseReport(case.case_id, status, bundle.fingerprint, _versions(bundle), (sentence,))


def segment_all(
    volumes: Iterable[tuple[Path, Path]], bundle: LoadedBundle, out_dir: Path, *, overwrite: bool = False
) -> Iterator[CaseReport]:
    """Segment volumes one by one, yield each report when its case ends, and add it to `results.jsonl`.

    A line is added after its label map is in place; lines of earlier runs stay.

    Args:
        volumes: image and output path relative to `out_dir`, from `find_volumes`.
        bundle: the opened bundle.
        out_dir: folder of the label maps; made if missing.
        overwrite: replace label maps that are there.

    Raises:
        OutputError: `out_dir` or `results.jsonl` cannot be written.
    """
    _make_folder(out_dir)
    for image, relative in volumes:
        case = Case((relative.parent / volume_stem(relative)).as_posix(), image)
        report = segment(case, bundle, out_dir / relative, overwrite=overwrite)
        _append_line(out_dir / RESULTS_NAME, report.to_json())
        yield report


def find_volumes(inputs: Sequence[Path], *, out_dir: Path | None = None) -> list[tuple[Path, Path]]:
    """List the volumes in files and folders, each with a relative output path that no other volume has.

    A folder is searched with all its sub-folders, which the output paths keep; hidden files and other types are passed
    over, and a volume that is named twice counts once. Volumes that would share an output path all get a hash of
    their resolved path, so that two patients' `ct.nii.gz` never overwrite each other.

    Args:
        inputs: files and folders.
        out_dir: folder that is passed over, so that results are not taken for images.

    Returns:
        Pairs of image and output path (`sub/ct.nii.gz`), in the order of `inputs`, sorted within a folder.

    Raises:
        InputError: an input does not exist, a file is no readable volume, or a folder holds none.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for given in inputs:
        pairs = _in_folder(given, out_dir) if given.is_dir() else [(_as_volume(given), Path(given.name))]
        for image, relative in pairs:
            found.setdefault(image.resolve(), (image, relative.parent / f"{volume_stem(relative)}.nii.gz"))
    uses = Counter(_name_key(relative) for _, relative in found.values())
    return [
        (image, relative if uses[_name_key(relative)] == 1 else _with_hash(relative, resolved))
        for resolved, (image, relative) in found.items()
    ]


def check_image(image: Path, labels: LabelTable) -> tuple[Grid, tuple[str, ...]]:
    """Return the grid of an image that can be segmented, and a sentence for each thing worth knowing about it.

    Raises:
        InputError: the image cannot be read, holds NaN, infinite or all equal voxels, or its header does not say where
            left is although `labels` tells sides apart.
    """
    voxels, grid = read_volume(image)
    unusable = 0 if voxels.dtype.kind != "f" else voxels.size - int(np.isfinite(voxels).sum())
    if unusable:
        raise InputError(f"{image.name}: {unusable} voxels are NaN or infinite, expected numbers; replace them first.")
    if voxels.min() == voxels.max():
        raise InputError(f"{image.name}: all voxels are {voxels.flat[0]}, expected an image; export it again.")
    if has_orientation(image):
        return grid, ()
    sentence = f"{image.name}: the header does not say where left and right are"
    if labels.side_pairs:
        raise InputError(f"{sentence}, but the bundle tells sides apart; convert the image again with its orientation.")
    return grid, (f"{sentence}; the default of its format was assumed, check the result against the image.",)


def _segment_or_raise(case: Case, bundle: LoadedBundle, out_path: Path, *, overwrite: bool) -> CaseReport:
    if out_path.exists() and not overwrite:
        raise OutputError(f"{out_path.name}: exists already; pass --overwrite, or choose another output folder.")
    started = time.perf_counter()
    grid, findings = check_image(case.image, bundle.labels)
    image = bundle.preprocessing({"image": str(case.image)})["image"]
    read = time.perf_counter()
    labels = _labels_on(grid, bundle.inferer(image[None].to(bundle.device), bundle.network), case.image)
    volumes_ml = _volumes_ml(labels, grid, bundle.labels)
    inferred = time.perf_counter()
    _make_folder(out_path.parent)
    write_label_map(out_path, labels, grid, like=case.image)
    written = time.perf_counter()
    if not any(volumes_ml.values()):
        findings += (f"{case.image.name}: no structure was found; check that it shows what the bundle segments.",)
    seconds = {"read": read - started, "network": inferred - read, "write": written - inferred}
    return CaseReport(
        case.case_id,
        CaseStatus.DONE,
        bundle.fingerprint,
        _versions(bundle),
        findings,
        out_path,
        volumes_ml,
        {stage: round(elapsed_s, 3) for stage, elapsed_s in seconds.items()},
    )


def _labels_on(grid: Grid, labels: MetaTensor, image: Path) -> npt.NDArray[Any]:
    """Return labels (I, J, K), provided that they lie on the grid of the file."""
    found = Grid(tuple(labels.shape[2:]), labels.affine.reshape(4, 4).cpu().numpy())
    if (difference := grid.difference(found)) is not None:
        raise BundleError(
            f"{image.name}: the bundle's result does not lie on the image's grid: {difference}; let the bundle load "
            "with pipeline.monai_io.VolumeReader and infer with RestoringSlidingWindowInferer."
        )
    array: npt.NDArray[Any] = labels.as_tensor()[0, 0].cpu().numpy()
    return array


def _volumes_ml(labels: npt.NDArray[Any], grid: Grid, table: LabelTable) -> dict[str, float]:
    counts = np.bincount(labels.reshape(-1), minlength=len(table.names))
    if len(counts) > len(table.names):
        raise BundleError(f"the network gives label {len(counts) - 1}, but the bundle names only {len(table.names)}.")
    return {name: round(float(counts[value]) * grid.voxel_ml, 4) for value, name in table.foreground.items()}


def _versions(bundle: LoadedBundle) -> dict[str, str]:
    software = {name: version(name) for name in ("voxelgate", "monai", "torch")}
    return {"bundle": f"{bundle.name} {bundle.version}", **software, "python": platform.python_version()}


def _first_of_ours(error: BaseException) -> VoxelgateError | None:
    """Return the error that a library wrapped in its own, as MONAI's `apply_transform` does, if it is one of ours."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, VoxelgateError):
        cause = cause.__cause__
    return cause


def _in_folder(folder: Path, out_dir: Path | None) -> list[tuple[Path, Path]]:
    files = [path for path in sorted(folder.rglob("*")) if not _is_hidden(path.relative_to(folder)) and path.is_file()]
    skipped = None if out_dir is None else out_dir.resolve()
    volumes = [path for path in files if is_volume(path) and (skipped is None or skipped not in path.resolve().parents)]
    if not volumes and any(_is_dicom(path) for path in files):
        raise InputError(
            f"{folder.name}: holds DICOM files, which are not read yet; convert the series to NIfTI first."
        )
    if not volumes:
        raise InputError(f"{folder.name}: holds no volume ({', '.join(SUFFIXES)}); check the folder.")
    return [(path, path.relative_to(folder)) for path in volumes]


def _as_volume(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path.name}: does not exist, expected a volume or a folder of volumes; check the path.")
    if _is_dicom(path):
        raise InputError(f"{path.name}: DICOM is not read yet; convert the series to NIfTI first.")
    if not is_volume(path):
        raise InputError(f"{path.name}: not a volume file, expected a name ending in {', '.join(SUFFIXES)}.")
    return path


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in DICOM_SUFFIXES


def _name_key(relative: Path) -> str:
    """Return what two paths share that are one file where the file system ignores case."""
    return relative.as_posix().casefold()


def _with_hash(relative: Path, resolved: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:HASH_DIGITS]
    return relative.with_name(f"{volume_stem(relative)}-{digest}.nii.gz")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another output folder.") from error


def _append_line(path: Path, line: str) -> None:
    """Add a line; one that an earlier run left without an end stays a line of its own."""
    try:
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size and file.seek(size - 1) is not None and file.read(1) != b"\n":
                line = f"\n{line}"
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free the disk or its rights.") from error
