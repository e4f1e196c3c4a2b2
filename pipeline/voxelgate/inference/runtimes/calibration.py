"""Which way of running a network is fastest on this machine and says the same: measured, and checked at each use."""

import hashlib
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import nn

from voxelgate.core.errors import UsageError, VoxelgateError, reason_of
from voxelgate.core.files import write_text
from voxelgate.inference.runtimes.agreement import Agreement, Evidence
from voxelgate.inference.runtimes.kinds import FLOAT32_RUNTIMES, Runtime
from voxelgate.inference.runtimes.runtimes import BUILT, Network, prepare_runtime, runtimes_of
from voxelgate.inference.streaming.stream import StreamingNetwork

logger = logging.getLogger(__name__)

MUST_GAIN = 1.15
"""A runtime is taken only where it is faster than eager by this factor; less is noise, or not worth a check."""

ROUNDS = 5
"""Times that all runtimes are timed, in turns: a machine that slows down slows all of them."""

UNRUNNABLE = (RuntimeError, OSError, ValueError, TypeError, AttributeError, LookupError, VoxelgateError)
"""What compilers and converters raise on networks they cannot take; those of PyTorch and OpenVINO are RuntimeErrors."""

Ways = Mapping[Runtime, Callable[[], Network]]
"""What prepares a network for each runtime, `eager` first."""


LIBRARIES = ("voxelgate", "torch", "openvino", "onnxruntime")
"""Those whose version decides how fast a runtime is, or whether what it stored can be read."""

CPU_FACTS = ("model name", "flags", "Features")
"""Lines of `/proc/cpuinfo`; ARM calls its flags features."""


@dataclass(frozen=True)
class RuntimeTrial:
    """What was found out about one runtime.

    Args:
        runtime: which.
        setup_s: to prepare it, compiling included; what a process pays before its first window.
        pass_s: for one patch, median.
        gain: how many times faster than eager, median of the rounds.
        agreement: with float32 eager.
        objection: why it is refused; empty if it may be used.
    """

    runtime: Runtime
    setup_s: float
    pass_s: float
    gain: float
    agreement: Agreement
    objection: str


@dataclass(frozen=True)
class Calibration:
    """What was measured of one network, one shape of patch and one machine; plain enough for JSON.

    Args:
        shape: of the patches, (1, C, i, j, k).
        trials: runtimes that ran, `eager` first.
        unavailable: those that did not, and why.

    Raises:
        ValueError: `eager` does not come first.
    """

    shape: tuple[int, ...]
    trials: tuple[RuntimeTrial, ...]
    unavailable: Mapping[Runtime, str]

    def __post_init__(self) -> None:
        if not self.trials or self.trials[0].runtime is not Runtime.EAGER:
            raise ValueError("a calibration begins with eager")

    def best(self) -> RuntimeTrial:
        """Return the fastest of those that agree and gain enough, however long they take to set up; else `eager`."""
        return max(self._usable(), key=lambda trial: trial.gain, default=self.trials[0])

    def best_for(self, passes: int) -> RuntimeTrial:
        """Return what ends first when so many windows are to come; `eager` unless another one pays for itself.

        Args:
            passes: windows of all volumes that one process will see.
        """
        eager = self.trials[0]

        def saved_s(trial: RuntimeTrial) -> float:
            """Return what is saved, less what setting up and a pass of both for the check cost."""
            pass_s = eager.pass_s / trial.gain
            return passes * (eager.pass_s - pass_s) - (trial.setup_s + eager.pass_s + pass_s)

        return max((one for one in self._usable() if saved_s(one) > 0), key=saved_s, default=eager)

    def _usable(self) -> list[RuntimeTrial]:
        return [trial for trial in self.trials[1:] if not trial.objection and trial.gain >= MUST_GAIN]

    def __str__(self) -> str:
        """Return a table in Markdown."""
        best = self.best()
        rows = [
            "| runtime | set up | a patch | gain | logits differ | lowest Dice | |",
            "|---|---|---|---|---|---|---|",
        ]
        rows += [
            f"| {one.runtime} | {one.setup_s:.1f} s | {one.pass_s:.3f} s | {one.gain:.2f} | "
            f"{one.agreement.difference:.0e} | {min(one.agreement.dice):.4f} | "
            f"{one.objection or ('best' if one is best else '')} |"
            for one in self.trials
        ]
        return "\n".join(rows + [f"| {name} | - | - | - | - | - | {why} |" for name, why in self.unavailable.items()])


@dataclass(frozen=True)
class CalibrationPlace:
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
            return TypeAdapter(Calibration).validate_python(record["calibration"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, calibration: Calibration) -> None:
        """Keep a calibration.

        Raises:
            OSError: the folder cannot be made or written.
        """
        record = {"circumstances": dict(self.circumstances), "calibration": asdict(calibration)}
        self.calibration.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.calibration, json.dumps(record, allow_nan=False, indent=2) + "\n")


def window_ways(
    network: nn.Module,
    patch: torch.Tensor,
    *,
    candidates: Iterable[Runtime] | None = None,
    stored: Mapping[Runtime, Path] | None = None,
) -> Ways:
    """Return the ways to run a network on windows of the shape of a patch.

    Args:
        network: in evaluation mode, float32.
        patch: (1, C, i, j, k) float32 on the device of the network.
        candidates: beside `eager`; by default all that the device may know.
        stored: files in which models are kept that take long to build, `CalibrationPlace.stored`.
    """
    asked = runtimes_of(patch.device) if candidates is None else candidates
    return {
        runtime: partial(prepare_runtime, network, runtime, patch, stored=(stored or {}).get(runtime))
        for runtime in dict.fromkeys((Runtime.EAGER, *asked))
    }


def streaming_ways(network: nn.Module, axis: int) -> Ways:
    """Return the ways to stream a network: `eager` stands for float32, the other is `bfloat16`."""

    def streamed(dtype: torch.dtype) -> Network:
        streaming = StreamingNetwork(network, axis=axis, dtype=dtype)
        return lambda patch: torch.cat([logits for _, logits in streaming.stream(patch)], dim=1 + axis)[None]

    return {
        Runtime.EAGER: partial(streamed, torch.float32),
        Runtime.BFLOAT16: partial(streamed, torch.bfloat16),
    }


def calibrate(ways: Ways, evidence: Evidence) -> Calibration:
    """Compare all ways with float32 eager on all patches, and time them in turns on the first one.

    Takes half a dozen passes for each way and what it takes to set them up, of which compiling is the longest.

    Args:
        ways: from `window_ways` or `streaming_ways`.
        evidence: the same network, and real patches.
    """
    attempts: list[_Attempt] = []
    unavailable: dict[Runtime, str] = {}
    for runtime, make in ways.items():
        started_s = time.perf_counter()
        try:
            run = make()
            setup_s = time.perf_counter() - started_s
            agreement = evidence.compare(run)
        except UNRUNNABLE as error:
            if runtime is Runtime.EAGER:
                raise
            unavailable[runtime] = reason_of(error).rstrip(".")
        else:
            objection = agreement.objection(evidence.min_dice, is_float32=runtime in FLOAT32_RUNTIMES)
            attempts.append(_Attempt(runtime, run, setup_s, agreement, objection))
    times_s = _times_s([attempt.run for attempt in attempts], evidence.patches[0])
    trials = [attempt.timed(times, times_s[0]) for attempt, times in zip(attempts, times_s, strict=True)]
    return Calibration(tuple(evidence.patches[0].shape), tuple(trials), unavailable)


def checked(ways: Ways, runtime: Runtime, evidence: Evidence) -> Network:
    """Prepare one runtime and compare it once with float32 eager; `eager` is the reference and costs no pass.

    Raises:
        UsageError: it cannot run here, or its labels are not those of eager; the message says what was found.
    """
    if runtime not in ways:
        raise UsageError(f"runtime {runtime} is not for this; choose of {', '.join(ways)}.")
    if runtime is Runtime.EAGER:
        return ways[runtime]()
    try:
        run = ways[runtime]()
        agreement = evidence.compare(run)
    except UNRUNNABLE as error:
        raise UsageError(
            f"runtime {runtime} cannot be used here ({reason_of(error).rstrip('.')}); use eager."
        ) from error
    if objection := agreement.objection(evidence.min_dice, is_float32=runtime in FLOAT32_RUNTIMES):
        raise UsageError(f"runtime {runtime} is refused: {objection}; use eager.")
    return run


def fastest(ways: Ways, evidence: Evidence, calibration: Calibration | None, passes: int) -> tuple[Runtime, Network]:
    """Return what ends first for so many windows, checked.

    Where no calibration promises more, that is `folded`: it is ready at once, and since it is the same arithmetic, a
    small patch is enough of a check. What does not hold its promise is replaced by `eager`.

    Args:
        ways: those that were calibrated.
        evidence: of the first volume to run.
        calibration: from `CalibrationPlace.load`; None if this machine has none.
        passes: windows of all volumes to come.
    """
    runtime = Runtime.EAGER if calibration is None else calibration.best_for(passes).runtime
    if runtime is Runtime.EAGER and Runtime.FOLDED in ways:
        runtime, evidence = Runtime.FOLDED, evidence.small()
    try:
        return runtime, checked(ways, runtime, evidence)
    except UsageError as error:
        logger.warning("eager is used: %s", error)
        return Runtime.EAGER, ways[Runtime.EAGER]()


@dataclass(frozen=True)
class _Attempt:
    """A runtime that works, not yet timed."""

    runtime: Runtime
    run: Network
    setup_s: float
    agreement: Agreement
    objection: str

    def timed(self, times_s: Sequence[float], eager_s: Sequence[float]) -> RuntimeTrial:
        """Return what was found out, given the seconds of each round."""
        gain = statistics.median(eager / own for eager, own in zip(eager_s, times_s, strict=True))
        pass_s = statistics.median(times_s)
        return RuntimeTrial(self.runtime, self.setup_s, pass_s, gain, self.agreement, self.objection)


def _times_s(runs: Sequence[Network], patch: torch.Tensor) -> list[list[float]]:
    """Run all in turn; the passes that compared them have warmed them up."""
    times_s: list[list[float]] = [[] for _ in runs]
    with torch.no_grad():
        for _ in range(ROUNDS):
            for run, taken_s in zip(runs, times_s, strict=True):
                taken_s.append(_pass_s(run, patch))
    return times_s


def _pass_s(run: Network, patch: torch.Tensor) -> float:
    started_s = time.perf_counter()
    logits = run(patch)
    if logits.device.type == "cuda":
        torch.cuda.synchronize(logits.device)
    return time.perf_counter() - started_s


def cache_folder() -> Path:
    """Return the folder for what can be made again: as the XDG base directory specification says, else `~/.cache`."""
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (asked if asked.is_absolute() else Path.home() / ".cache") / "voxelgate"


def place_of(
    fingerprint: str, shape: Sequence[int], device: torch.device, *, way: str, folder: Path
) -> CalibrationPlace:
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
    return CalibrationPlace(folder, circumstances)


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
