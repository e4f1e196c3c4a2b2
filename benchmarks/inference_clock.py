"""Seconds and memory of the stages that a contender of `inference.py` goes through."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Stopwatch:
    """Seconds and peak memory of stages, one after the other.

    Args:
        now_s: the clock.
        seconds: by stage.
        peaks_mib: resident memory at its highest, by stage; Linux.
        running: stages that have begun, outermost first.
    """

    now_s: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=dict)
    peaks_mib: dict[str, float] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside; a stage inside another one takes its seconds from it, but counts for its peak."""
        self._note_peak()
        self.running.append(name)
        start_s, before_s = self.now_s(), sum(self.seconds.values())
        yield
        inner_s = sum(self.seconds.values()) - before_s
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now_s() - start_s - inner_s
        self._note_peak()
        self.running.pop()

    def _note_peak(self) -> None:
        """Give the peak since the last call to all stages that are running, and begin anew."""
        peak_mib = resident_mib("VmHWM")
        for name in self.running:
            self.peaks_mib[name] = max(self.peaks_mib.get(name, 0.0), peak_mib)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose every call is such a stage."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return run


def resident_mib(name: str) -> float:
    """Return the memory of this process now (`VmRSS`) or at its peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(name))
