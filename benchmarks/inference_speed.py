"""What the network costs, and how fast this machine convolves."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inference_phantom import network
from voxelgate.inference.streaming.stream import StreamingNetwork, streamed_axis

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

CANDIDATES = 4
"""The fastest layers; which of them is it changes with the machine's mood."""


class Convolution:
    """A layer of the network, to be timed.

    Args:
        layer: channels in and out, and voxels.
        layout: of memory, as PyTorch calls it.
        now_s: the clock.
    """

    def __init__(self, layer: tuple[int, int, tuple[int, int, int]], layout: torch.memory_format, now_s: Clock) -> None:
        channels_in, channels_out, size_vox = layer
        self.name = f"{channels_in} to {channels_out} channels, {size_vox} voxels, {layout}"
        self._weight = torch.randn(channels_out, channels_in, 3, 3, 3).to(memory_format=layout)
        self._image = torch.randn(1, channels_in, *size_vox).to(memory_format=layout)
        self._now_s = now_s
        self.gflop = 2 * self._weight.numel() * self._image[0, 0].numel() / 1e9

    def run_s(self) -> float:
        """Return how long it takes once."""
        start_s = self._now_s()
        with torch.inference_mode():
            F.conv3d(self._image, self._weight, padding=1)
        return self._now_s() - start_s

    def best_gflops(self) -> float:
        """Return its speed in the fastest of a few runs."""
        return self.gflop / min(self.run_s() for _ in range(REPEATS + 1))


@dataclass(frozen=True)
class Roofline:
    """The network in streaming, against its operations at the speed of the fastest convolution at the same time.

    Args:
        gflop: of one pass.
        ratios: of the time taken to that of the operations, one for each repetition.
        convolution: which was the fastest last.
        gflops: its mean speed then.
    """

    gflop: float
    ratios: tuple[float, ...]
    convolution: str
    gflops: float


def probe_gflops(now_s: Clock) -> float:
    """Return the speed of a convolution that never changes, GFLOP/s."""
    return Convolution(PROBE, torch.channels_last_3d, now_s).best_gflops()


def roofline(size_vox: tuple[int, int, int], classes: int, repeats: int, now_s: Clock) -> Roofline:
    """Stream, and convolve after every second slab, so that both see the same machine, however its speed changes."""
    layouts = torch.channels_last_3d, torch.contiguous_format
    every = [Convolution(layer, layout, now_s) for layer in LAYERS for layout in layouts]
    fastest = sorted(every, key=Convolution.best_gflops)[-CANDIDATES:]
    gflop = network_gflop(size_vox, classes)
    streaming = StreamingNetwork(network("ours", classes).eval(), axis=streamed_axis(size_vox, range(3)))
    image = torch.rand(1, 1, *size_vox)
    ratios = []
    for _ in range(repeats):
        streamed_s, rates = _in_turns(streaming.stream(image), fastest, now_s)
        ratios.append(streamed_s * max(rates) / gflop)
    return Roofline(gflop, tuple(ratios), fastest[rates.index(max(rates))].name, max(rates))


def _in_turns(slabs: Iterator[object], convolutions: Sequence[Convolution], now_s: Clock) -> tuple[float, list[float]]:
    """Return the seconds that all slabs take, and the mean GFLOP/s of each convolution meanwhile."""
    streamed_s, taken_s, count, start_s = 0.0, [0.0] * len(convolutions), 0, now_s()
    for count, _ in enumerate(slabs, start=1):
        streamed_s += now_s() - start_s
        if count % 2 == 0:
            taken_s = [each_s + one.run_s() for one, each_s in zip(convolutions, taken_s, strict=True)]
        start_s = now_s()
    streamed_s += now_s() - start_s
    return streamed_s, [count // 2 * one.gflop / each_s for one, each_s in zip(convolutions, taken_s, strict=True)]


def network_gflop(size_vox: tuple[int, int, int], classes: int) -> float:
    """Return the operations of one pass over all voxels; a multiply-add counts as two, nothing is computed."""
    net = network("ours", classes).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 1, *size_vox, device="meta"))
    return float(counter.get_total_flops()) / 1e9
