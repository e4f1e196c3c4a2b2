"""Time exact streaming against one forward pass over the whole volume, interleaved, and measure the peak of memory.

Run: `python benchmarks/streaming.py --help`.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from voxelgate.inference.precision import keep_large_buffers
from voxelgate.inference.streaming.stream import StreamingNetwork, streaming_cost
from voxelgate.networks import AttentionUNet

CLASSES = 4
PROBE_CHANNELS = 128
PROBE_SIDE = 32
WAYS = ("streaming", "whole volume")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Pass = Callable[[], object]


def network(channels: list[int]) -> AttentionUNet:
    """Return an untrained network in evaluation mode."""
    torch.manual_seed(0)
    return AttentionUNet(in_channels=1, out_channels=CLASSES, channels=channels).eval()


def passes(asked: argparse.Namespace) -> dict[str, Pass]:
    """Return one run of each way, on the same image; both leave their logits to nobody."""
    image = torch.randn(1, 1, asked.slices, *asked.plane)
    prepared = StreamingNetwork(network(asked.channels), dtype=getattr(torch, asked.dtype))
    last = network(asked.channels).to(memory_format=torch.channels_last_3d, dtype=getattr(torch, asked.dtype))
    image_last = image.to(memory_format=torch.channels_last_3d, dtype=getattr(torch, asked.dtype))

    def streamed() -> None:
        for _ in prepared.stream(image, chunk=asked.chunk):
            pass

    def whole() -> None:
        with torch.inference_mode():
            last(image_last)

    return dict(zip(WAYS, (streamed, whole), strict=True))


def convolution() -> tuple[Pass, int]:
    """Return a convolution that this machine runs as fast as any, and its floating point operations."""
    side = (PROBE_SIDE,) * 3
    weight = torch.randn(PROBE_CHANNELS, PROBE_CHANNELS, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    image = torch.randn(1, PROBE_CHANNELS, *side).to(memory_format=torch.channels_last_3d)
    return lambda: F.conv3d(image, weight, padding=1), 2 * weight.numel() * PROBE_SIDE**3


def fastest_and_median_s(runs: list[Pass], repeats: int, clock: str) -> list[tuple[float, float]]:
    """Run all in turn, `repeats` times after one round that does not count."""
    now_s = CLOCKS[clock]
    times_s: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, taken_s in zip(runs, times_s, strict=True):
            start_s = now_s()
            run()
            taken_s.append(now_s() - start_s)
    return [(min(taken_s[1:]), statistics.median(taken_s[1:])) for taken_s in times_s]


def resident_mib(field: str) -> float:
    """Return the memory of this process now (`VmRSS`) or at its peak (`VmHWM`); Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(field))


def peak_mib_of(way: str) -> float:
    """Return by how much one run raises the memory of a process of its own."""
    command = [sys.executable, *sys.argv, "--peak-of", way]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--plane", type=int, nargs=2, default=[240, 176], help="voxels of a slice")
    parser.add_argument("--slices", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=16, help="slices to take in at a time")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, on a machine that is busy"
    )
    parser.add_argument("--peak-of", choices=WAYS, help="print only how many MiB one run of this way takes")
    return parser.parse_args()


def main() -> None:
    """Measure and print a table in Markdown."""
    asked = arguments()
    keep_large_buffers()
    runs = passes(asked)
    if asked.peak_of is not None:
        before_mib = resident_mib("VmRSS")
        runs[asked.peak_of]()
        print(resident_mib("VmHWM") - before_mib)
        return
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(asked.channels).to("meta")(torch.empty(1, 1, asked.slices, *asked.plane, device="meta"))
    probe, probe_flops = convolution()
    *taken_s, (probe_s, _) = fastest_and_median_s([*runs.values(), probe], asked.repeats, asked.clock)
    foreseen = streaming_cost(network(asked.channels), tuple(asked.plane), chunk=asked.chunk)
    print(
        f"PyTorch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} "
        f"cores, {asked.dtype}, {asked.slices} slices of {asked.plane}, channels {asked.channels}, chunks of "
        f"{asked.chunk}, {asked.repeats} runs, {asked.clock} time. One float32 convolution: "
        f"{probe_flops / probe_s / 1e9:.0f} GFLOP/s. Streaming in float32 holds back {foreseen.lag_slices} slices and "
        f"should take {foreseen.peak_bytes / 2**20:.0f} MiB.\n"
    )
    print("| way | fastest | median | GFLOP/s | memory of one run |")
    print("|---|---|---|---|---|")
    for way, (fastest_s, median_s) in zip(WAYS, taken_s, strict=True):
        rate = counter.get_total_flops() / fastest_s / 1e9
        print(f"| {way} | {fastest_s:.2f} s | {median_s:.2f} s | {rate:.0f} | {peak_mib_of(way):.0f} MiB |")


if __name__ == "__main__":
    main()
