"""What the network costs, and how fast this machine convolves."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inference_phantom import network

Clock = Callable[[], float]

PROBE = (128, 128, (32, 32, 32))
"""Channels in and out, and voxels, of the convolution that is timed before each run."""

LAYERS = (
    (1, 16, (18, 272, 272)),
    (16, 16, (18, 272, 272)),
    (32, 16, (18, 272, 272)),
    (32, 32, (10, 136, 136)),
    (64, 32, (10, 136, 136)),
    (64, 64, (64, 68, 68)),
    (128, 64, (64, 68, 68)),
    (128, 128, (34, 34, 34)),
    (256, 128, (34, 34, 34)),
    (256, 256, (17, 17, 17)),
    PROBE,
)
"""Convolutions of kernel 3 that occur in the network, in sizes that occur while streaming and in windows."""

REPEATS = 5

SUSTAINED_S = 4.0
"""Seconds over which a lasting speed is taken, about what the network runs for."""


def probe_gflops(now_s: Clock) -> float:
    """Return the speed of a convolution that never changes, GFLOP/s."""
    return _rate(*PROBE, torch.channels_last_3d, now_s)


@dataclass(frozen=True)
class Convolution:
    """The layer of the network that this machine runs fastest.

    Args:
        layer: channels in and out, and voxels.
        layout: of memory, as PyTorch calls it.
        gflops: its speed, the highest of a few runs.
    """

    layer: tuple[int, int, tuple[int, int, int]]
    layout: torch.memory_format
    gflops: float

    def __str__(self) -> str:
        return f"{self.layer[0]} to {self.layer[1]} channels, {self.layer[2]} voxels, {self.layout}"

    def lasting_gflops(self, now_s: Clock) -> float:
        """Return its mean speed over some seconds, which no burst of a shared machine lifts."""
        return _rate(*self.layer, self.layout, now_s, SUSTAINED_S)


def fastest(now_s: Clock) -> Convolution:
    """Return the fastest layer of the network in any memory layout."""
    layouts = torch.channels_last_3d, torch.contiguous_format
    every = (Convolution(layer, layout, _rate(*layer, layout, now_s)) for layer in LAYERS for layout in layouts)
    return max(every, key=lambda one: one.gflops)


def network_gflop(size_vox: tuple[int, int, int], classes: int) -> float:
    """Return the operations of one pass over all voxels; a multiply-add counts as two, nothing is computed."""
    net = network("ours", classes).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 1, *size_vox, device="meta"))
    return float(counter.get_total_flops()) / 1e9


def _rate(
    channels_in: int,
    channels_out: int,
    size_vox: tuple[int, int, int],
    layout: torch.memory_format,
    now_s: Clock,
    lasting_s: float = 0.0,
) -> float:
    """Return the speed of a convolution: of the fastest of a few runs, or the mean over some seconds."""
    weight = torch.randn(channels_out, channels_in, 3, 3, 3).to(memory_format=layout)
    image = torch.randn(1, channels_in, *size_vox).to(memory_format=layout)
    with torch.inference_mode():
        times_s = _times_s(lambda: F.conv3d(image, weight, padding=1), now_s, lasting_s)
    taken_s = sum(times_s) / len(times_s) if lasting_s else min(times_s)
    return 2 * weight.numel() * image[0, 0].numel() / taken_s / 1e9


def _times_s(run: Callable[[], object], now_s: Clock, lasting_s: float) -> list[float]:
    run()
    times_s: list[float] = []
    while len(times_s) < REPEATS or sum(times_s) < lasting_s:
        start_s = now_s()
        run()
        times_s.append(now_s() - start_s)
    return times_s
