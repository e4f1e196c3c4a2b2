"""How far streaming and windows give what one pass over the whole volume gives, and how far each agrees with the truth.

python -m benchmarks.agreement bundles/head_neck_ct_segmentation data_manifests/head_neck_ct.json DATA

Runs the validation cases of a fold; mirrorings are left out, so that all ways see the image alike.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from torch import nn
from tqdm import tqdm

from voxelgate.bundle.opened import open_bundle
from voxelgate.core.dice import dice_of_masks
from voxelgate.core.geometry import Grid
from voxelgate.datasets.manifest import load_manifest
from voxelgate.images.volumes import read_volume
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.inference.restoring.restorer import Restorer, restore
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.read import read_case
from voxelgate.transforms.io import as_image

Labels = npt.NDArray[Any]
Way = Callable[[MetaTensor, nn.Module, Grid], Labels]

OVERLAP = 0.25


def ours(inferer: RestoringSlidingWindowInferer, **changes: object) -> Way:
    """Return our inferer with other settings."""
    changed = copy.copy(inferer)
    for name, value in ({"flip_axes": ()} | changes).items():
        setattr(changed, name, value)
    return lambda image, network, _: changed(image, network).as_tensor()[0, 0].numpy()


def monai_windows(roi_size: tuple[int, ...]) -> Way:
    """Return MONAI's sliding window, restored as ours."""

    def run(image: MetaTensor, network: nn.Module, source: Grid) -> Labels:
        logits = sliding_window_inference(image.as_tensor(), roi_size, 1, network, OVERLAP, "gaussian")
        return restored(logits, image, source)

    return run


def whole(image: MetaTensor, network: nn.Module, source: Grid) -> Labels:
    """Run the network over everything at once."""
    return restored(network(image.as_tensor()), image, source)


def restored(logits: torch.Tensor, image: MetaTensor, source: Grid) -> Labels:
    """Return the labels of logits (1, classes, i, j, k) on the source grid."""
    grid = Grid(tuple(image.shape[2:]), image.affine.reshape(4, 4).numpy())
    return restore([(0, logits[0])], Restorer(grid, source, 2)).labels


def dice(labels: Labels, truth: Labels, highest: int) -> float:
    """Return the mean over the structures that the truth holds."""
    values = [value for value in range(1, highest + 1) if (truth == value).any()]
    return float(np.mean([dice_of_masks(labels == value, truth == value) for value in values]))


def main() -> None:
    """Run all cases in all ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    asked = parser.parse_args()
    keep_large_buffers()
    bundle = open_bundle(asked.bundle, "cpu")
    if not isinstance(bundle.inferer, RestoringSlidingWindowInferer) or not isinstance(bundle.network, nn.Module):
        raise SystemExit("the bundle infers with something else than RestoringSlidingWindowInferer.")
    ways: dict[str, Way] = {
        "whole volume at once": whole,
        "voxelgate, streaming": ours(bundle.inferer),
        "voxelgate, streaming, air included": ours(bundle.inferer, skip_below=None),
        "voxelgate, windows": ours(bundle.inferer, streaming=False),
        "MONAI's windows": monai_windows(bundle.inferer.roi_size),
    }
    cases = [case for case in load_manifest(asked.manifest, asked.data_root).cases if case.fold == asked.fold]
    equal: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, list[float]] = {name: [] for name in ways}
    for case in tqdm(cases):
        source = read_case(Case(case.case_id, Path(case.image)), bundle.labels)
        truth, _ = read_volume(Path(case.label))
        image = bundle.prepare(as_image(source.voxels, source.grid))[None]
        with torch.inference_mode():
            results = {name: way(image, bundle.network, source.grid) for name, way in ways.items()}
        for name, labels in results.items():
            equal[name].append(float((labels == results["whole volume at once"]).mean()))
            scores[name].append(dice(labels, truth, len(bundle.labels.names) - 1))
    print("| way | voxels equal to the whole volume at once: mean, worst case | mean Dice with the truth |")
    print("|---|---|---|")
    for name in ways:
        shares = f"{100 * np.mean(equal[name]):.5f} %, {100 * min(equal[name]):.5f} %"
        print(f"| {name} | {shares} | {np.mean(scores[name]):.4f} |")


if __name__ == "__main__":
    main()
