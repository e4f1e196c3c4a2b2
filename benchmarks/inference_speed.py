"""What the network costs, and how fast this machine convolves."""

from collections.abc import Callable

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


def probe_gflops(now_s: Clock) -> float:
    """Return the speed of a convolution that never changes, GFLOP/s."""
    return _rate(*PROBE, torch.channels_last_3d, now_s)


def fastest_rate(now_s: Clock) -> tuple[float, str]:
    """Return the highest speed of any layer of the network in any memory layout, GFLOP/s, and which it was."""
    layouts = {"channels-last": torch.channels_last_3d, "contiguous": torch.contiguous_format}
    rates = [
        (_rate(*layer, layout, now_s), f"{layer[0]} to {layer[1]} channels, {layer[2]} voxels, {name}")
        for layer in LAYERS
        for name, layout in layouts.items()
    ]
    return max(rates)


def network_gflop(size_vox: tuple[int, int, int], classes: int) -> float:
    """Return the operations of one pass over all voxels; a multiply-add counts as two, nothing is computed."""
    net = network("ours", classes).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 1, *size_vox, device="meta"))
    return float(counter.get_total_flops()) / 1e9


def _rate(
    channels_in: int, channels_out: int, size_vox: tuple[int, int, int], layout: torch.memory_format, now_s: Clock
) -> float:
    weight = torch.randn(channels_out, channels_in, 3, 3, 3).to(memory_format=layout)
    image = torch.randn(1, channels_in, *size_vox).to(memory_format=layout)
    with torch.inference_mode():
        fastest_s = _fastest_s(lambda: F.conv3d(image, weight, padding=1), now_s)
    return 2 * weight.numel() * image[0, 0].numel() / fastest_s / 1e9


def _fastest_s(run: Callable[[], object], now_s: Clock) -> float:
    run()
    times_s = []
    for _ in range(REPEATS):
        start_s = now_s()
        run()
        times_s.append(now_s() - start_s)
    return min(times_s)
