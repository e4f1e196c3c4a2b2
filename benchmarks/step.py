"""Time one training step and one forward pass of our attention U-Net against MONAI's, interleaved, in one process.

Run: `python benchmarks/step.py --help`.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import monai
import torch
from monai.networks.nets import AttentionUnet
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from voxelgate.networks import AttentionUNet

CLASSES = 2
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Pass = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """A network, and the memory format of its weights and input."""

    name: str
    network: nn.Module
    image: torch.Tensor
    labels: torch.Tensor

    def forward_pass(self) -> Pass:
        """Return one forward pass as it is run to segment."""

        def run() -> None:
            self.network.eval()
            with torch.inference_mode():
                self.network(self.image)

        return run

    def training_step(self) -> Pass:
        """Return one step: forward, cross entropy, backward, AdamW."""
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-4)

        def run() -> None:
            self.network.train()
            optimiser.zero_grad()
            F.cross_entropy(self.network(self.image), self.labels).backward()
            optimiser.step()

        return run

    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(p.numel() for p in self.network.parameters())

    def flops(self) -> int:
        """Return the floating point operations of a forward pass; a multiply-add counts as two."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.network.eval()(self.image)
        return int(counter.get_total_flops())


def contenders(channels: list[int], side_vox: int, batch: int, device: torch.device) -> list[Contender]:
    """Return MONAI's network, and ours in both memory formats, with the same input."""
    torch.manual_seed(0)
    strides = [2] * (len(channels) - 1)
    size = (side_vox,) * 3
    image = torch.randn(batch, 1, *size, device=device)
    labels = torch.randint(CLASSES, (batch, *size), device=device)
    theirs = AttentionUnet(spatial_dims=3, in_channels=1, out_channels=CLASSES, channels=channels, strides=strides)
    ours = [AttentionUNet(in_channels=1, out_channels=CLASSES, channels=channels, strides=strides) for _ in range(2)]
    last = torch.channels_last_3d
    return [
        Contender("MONAI AttentionUnet", theirs.to(device), image, labels),
        Contender("voxelgate AttentionUNet", ours[0].to(device), image, labels),
        Contender(
            "the same, channels-last", ours[1].to(device, memory_format=last), image.to(memory_format=last), labels
        ),
    ]


def medians_s(passes: list[Pass], repeats: int, clock: str, device: torch.device) -> list[float]:
    """Run all in turn, `repeats` times after one round that does not count; return the median time of each."""
    now_s = CLOCKS[clock]
    times_s: list[list[float]] = [[] for _ in passes]
    for _ in range(repeats + 1):
        for run, taken_s in zip(passes, times_s, strict=True):
            start_s = now_s()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken_s.append(now_s() - start_s)
    return [statistics.median(taken_s[1:]) for taken_s in times_s]


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--side", type=int, default=96, help="voxels of the cubic patch along each axis")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, on a machine that is busy"
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print a table in Markdown."""
    asked = arguments()
    device = torch.device(asked.device)
    nets = contenders(asked.channels, asked.side, asked.batch, device)
    steps_s = medians_s([net.training_step() for net in nets], asked.repeats, asked.clock, device)
    forwards_s = medians_s([net.forward_pass() for net in nets], asked.repeats, asked.clock, device)
    where = platform.processor() or platform.machine() if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(
        f"PyTorch {torch.__version__}, MONAI {monai.__version__}, {where}, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores, float32, patch {asked.side}^3, batch {asked.batch}, channels {asked.channels}, "
        f"median of {asked.repeats}, {asked.clock} time\n"
    )
    print("| network | parameters | forward GFLOP | training step | ratio | forward pass | ratio |")
    print("|---|---|---|---|---|---|---|")
    for net, step_s, forward_s in zip(nets, steps_s, forwards_s, strict=True):
        print(
            f"| {net.name} | {net.parameters() / 1e6:.2f} M | {net.flops() / 1e9:.1f} "
            f"| {step_s:.2f} s | {step_s / steps_s[0]:.2f} | {forward_s:.2f} s | {forward_s / forwards_s[0]:.2f} |"
        )


if __name__ == "__main__":
    main()
