"""Compare what becomes of five folds: the best one, the mean of their weights, all together, a last training on all.

    python benchmarks/endings.py FOLDS MANIFEST [--data-root DATA]

FOLDS is what `voxelgate train --folds` made, MANIFEST lists cases that none of its networks has seen. For each way to
end the table says the mean Dice over structures and how far the mean volume of each structure is off, with the offsets
of the classes that the folds chose, and without.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from voxelgate.bundle.checksums import WEIGHTS
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.datasets.manifest import Manifest, load_manifest
from voxelgate.evaluation.pairs import read_reference
from voxelgate.evaluation.scores import LabelScores, score
from voxelgate.images.spec import read_image_with_findings
from voxelgate.training.planning import Plan
from voxelgate.transforms.io import as_image

Weights = dict[str, torch.Tensor]


def weights_of(path: Path) -> Weights:
    """Return weights as they lie in a file."""
    found: Weights = torch.load(path, map_location="cpu", weights_only=True)
    return found


def loaded(bundle: Bundle, weights: Weights) -> nn.Module:
    """Return the network of a bundle with other weights."""
    network = copy.deepcopy(bundle.network)
    network.load_state_dict(weights)
    return network.eval()


def mean_weights(folds: Sequence[Weights]) -> Weights:
    """Return the mean of several weights, number by number."""
    return {
        name: torch.stack([one[name].double() for one in folds]).mean(0).to(value) for name, value in folds[0].items()
    }


def endings(root: Path, bundle: Bundle) -> Iterator[tuple[str, nn.Module | nn.ModuleList]]:
    """Yield each way to end, and its network or networks."""
    ways = {
        "with": ([weights_of(path) for path in sorted(root.glob("models/fold_*.pt"))], root / WEIGHTS),
        "without": (
            [weights_of(path / WEIGHTS) for path in sorted(root.glob("training/fold_*"))],
            root / "training" / "final" / WEIGHTS,
        ),
    }
    for offsets, (folds, final) in ways.items():
        for number, fold in enumerate(folds):
            yield f"fold {number}, {offsets} offsets", loaded(bundle, fold)
        yield f"mean of the folds' weights, {offsets} offsets", loaded(bundle, mean_weights(folds))
        yield f"folds together, {offsets} offsets", nn.ModuleList(loaded(bundle, fold) for fold in folds)
        yield f"trained on all cases, {offsets} offsets", loaded(bundle, weights_of(final))


def scores_of(bundle: Bundle, network: nn.Module | nn.ModuleList, manifest: Manifest) -> list[LabelScores]:
    """Return the scores of one way to end on every case."""
    found = []
    for case in manifest.cases:
        voxels, grid, *_ = read_image_with_findings(case.channels, bundle.image_spec)
        prepared = bundle.prepare(as_image(voxels, grid))
        labels = bundle.cleaning(bundle.inferer(prepared[None], network)).as_tensor()[0, 0].numpy()
        truth, _ = read_reference(manifest.reference_of(case), manifest.values)
        found += score(labels, truth, grid, manifest.labels, case.case_id)
    return found


def row(name: str, scores: Sequence[LabelScores]) -> str:
    """Return a row of the table."""
    structures = list(dict.fromkeys(one.label for one in scores))
    dice = [np.nanmean([one.dice for one in scores if one.label == label]) for label in structures]
    off = []
    for label in structures:
        both = [one for one in scores if one.label == label and one.reference_ml > 0]
        off.append(sum(one.volume_ml for one in both) / sum(one.reference_ml for one in both) - 1)
    told = ", ".join(f"{label} {part:+.1%}" for label, part in zip(structures, off, strict=True))
    return f"| {name} | {np.mean(dice):.4f} | {told} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--data-root", type=Path)
    asked = parser.parse_args()
    manifest = load_manifest(asked.manifest, asked.data_root)
    bundle = open_bundle(asked.folds, "cpu")
    print(f"offsets {Plan.from_json(asked.folds / 'plan.json').class_offsets}, {len(manifest.cases)} cases")
    print("| ending | mean Dice | mean volume off by |\n|---|---|---|")
    with torch.no_grad():
        for name, network in endings(asked.folds, bundle):
            print(row(name, scores_of(bundle, network, manifest)), flush=True)


if __name__ == "__main__":
    main()
