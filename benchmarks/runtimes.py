"""Calibrate the ways of running a network: a bundle on real volumes, or MONAI's AttentionUnet on noise.

Run: `python benchmarks/runtimes.py --help`.
"""

import argparse
import time
from pathlib import Path

import torch
from monai.networks.nets import AttentionUnet
from torch import nn

from voxelgate.bundle.opened import open_bundle
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.inference.runtimes.agreement import Evidence, central_patch
from voxelgate.inference.runtimes.calibration import calibrate, streaming_ways, window_ways
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.networks import AttentionUNet
from voxelgate.segmentation.cases import find_cases
from voxelgate.segmentation.read import read_case
from voxelgate.transforms.io import as_image


def untrained(asked: argparse.Namespace) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return a network with random weights, and noise."""
    torch.manual_seed(0)
    if asked.network == "monai":
        network: nn.Module = AttentionUnet(3, 1, 5, asked.channels, [2] * (len(asked.channels) - 1))
    else:
        network = AttentionUNet(in_channels=1, out_channels=5, channels=asked.channels)
    return network.eval(), [torch.randn(1, 1, *asked.window)]


def of_bundle(asked: argparse.Namespace) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return a bundle's network, and the middle of each volume."""
    bundle = open_bundle(asked.bundle)
    patches = []
    for case in find_cases(asked.images):
        scan = read_case(case, bundle.labels, bundle.expected)
        image = bundle.prepare(as_image(scan.voxels, scan.grid)).as_tensor()[None]
        patches.append(central_patch(image.float(), asked.window))
    return bundle.network, patches


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle; without one, a network with random weights")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="volumes for the bundle")
    parser.add_argument("--network", choices=["monai", "ours"], default="monai")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--window", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--runtimes", nargs="+", choices=list(Runtime), help="by default all")
    parser.add_argument("--streaming", action="store_true", help="of streaming along the first axis instead")
    return parser.parse_args()


def main() -> None:
    """Measure and print a table in Markdown."""
    asked = arguments()
    keep_large_buffers()
    network, patches = untrained(asked) if asked.bundle is None else of_bundle(asked)
    chosen = None if asked.runtimes is None else [Runtime(name) for name in asked.runtimes]
    ways = streaming_ways(network, 0) if asked.streaming else window_ways(network, patches[0], candidates=chosen)
    started_s = time.perf_counter()
    print(calibrate(ways, Evidence(network, tuple(patches))))
    print(f"\n{torch.get_num_threads()} threads, {time.perf_counter() - started_s:.0f} s")


if __name__ == "__main__":
    main()
