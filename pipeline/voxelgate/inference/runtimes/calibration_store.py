"""Where calibrations are kept: a file for each network, shape of patch and machine."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from voxelgate.core.files import write_atomically
from voxelgate.inference.runtimes.calibration import Calibration
from voxelgate.inference.runtimes.runtimes import BUILT, Runtime

LIBRARIES = ("voxelgate", "torch", "openvino", "onnxruntime")
"""Those whose version decides how fast a runtime is, or whether what it stored can be read."""

CPU_FACTS = ("model name", "flags", "Features")
"""Lines of `/proc/cpuinfo`; ARM calls its flags features."""


def cache_folder() -> Path:
    """Return the folder for what can be made again: as the XDG base directory specification says, else `~/.cache`."""
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (asked if asked.is_absolute() else Path.home() / ".cache") / "voxelgate"


@dataclass(frozen=True)
class Place:
    """Where the calibration of one network, shape and machine belongs.

    Args:
        folder: may be missing.
        circumstances: everything on which the calibration depends, name and value.
    """

    folder: Path
    circumstances: Mapping[str, str]

    @property
    def name(self) -> str:
        """Return the name of its files, without their ending."""
        return hashlib.sha256(json.dumps(dict(self.circumstances), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def calibration(self) -> Path:
        """Return the file of the calibration."""
        return self.folder / f"{self.name}.json"

    @property
    def stored(self) -> Mapping[Runtime, Path]:
        """Return the files of the models that other libraries build for these circumstances."""
        return {runtime: self.folder / f"{self.name}.{runtime}" for runtime in BUILT}

    def load(self) -> Calibration | None:
        """Return the calibration that was kept; None if there is none, or it is damaged or belongs elsewhere."""
        try:
            record = json.loads(self.calibration.read_text(encoding="utf-8"))
            if record["circumstances"] != dict(self.circumstances):
                return None
            return Calibration.from_mapping(record["calibration"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, calibration: Calibration) -> None:
        """Keep a calibration.

        Raises:
            OSError: the folder cannot be made or written.
        """
        record = {"circumstances": dict(self.circumstances), "calibration": calibration.to_mapping()}
        write_atomically(self.calibration, (json.dumps(record, allow_nan=False, indent=2) + "\n").encode())


def place_of(fingerprint: str, shape: Sequence[int], device: torch.device, *, way: str, folder: Path) -> Place:
    """Return where the calibration of a network belongs on this machine, as it is now.

    Args:
        fingerprint: of network and weights, as `Bundle.fingerprint`.
        shape: of the patches.
        device: where the network runs.
        way: "windows" or "streaming", and what else sets measurements apart.
        folder: `cache_folder()`.
    """
    circumstances = {
        "fingerprint": fingerprint,
        "shape": "x".join(map(str, shape)),
        "way": way,
        "device": _gpu(device) if device.type == "cuda" else f"{device.type} {_cpu(Path('/proc/cpuinfo'))}",
        "threads": str(torch.get_num_threads()),
        **{name: _version(name) for name in LIBRARIES},
    }
    return Place(folder, circumstances)


def _gpu(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def _cpu(table: Path) -> str:
    """Return what tells one kind of processor from another."""
    if not table.is_file():
        return f"{platform.machine()} {platform.processor()}"
    first_core = table.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    facts = [line for line in first_core.splitlines() if line.partition("\t")[0].strip() in CPU_FACTS]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"
