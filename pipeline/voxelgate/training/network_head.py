"""Find where a network adds a number to each logit, and add to it."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.workflow import read_configs
from voxelgate.training.distributed import save_atomically

TOLERANCE = 1e-3
"""Largest difference of logits in float32 between what is added to a bias and what comes out."""


def head_bias(network: nn.Module, image: torch.Tensor, classes: int) -> str | None:
    """Return the name of the parameter that is added to the logits, and to nothing else; None if there is none.

    Each bias of as many numbers as there are classes is changed on trial; the logits must change by just that.

    Args:
        network: in evaluation mode; not changed.
        image: (1, C, i, j, k) that it takes.
        classes: that it tells apart.
    """
    tried = copy.deepcopy(network)
    steps = torch.linspace(-1.0, 1.0, classes)
    names = [name for name, value in tried.named_parameters() if name.endswith("bias") and value.shape == (classes,)]
    with torch.no_grad():
        before = tried(image)
        for name in reversed(names):
            bias = tried.get_parameter(name)
            bias.add_(steps)
            change = tried(image) - before
            if change.shape[1] == classes and (change.movedim(1, -1) - steps).abs().max() < TOLERANCE:
                return name
            bias.sub_(steps)
    return None


def head_of_bundle(root: Path, weights: Path) -> str | None:
    """Return the same of the network that a bundle trains, with some weights."""
    metadata = Metadata.read(root)
    network: nn.Module = read_configs(root, ["train"], {}).get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    size = (1, len(metadata.image_spec.channels), *metadata.spatial_shape_vox)
    image = torch.rand(size, generator=torch.Generator().manual_seed(0))
    return head_bias(network.eval(), image, len(metadata.labels.names))


def write_shifted(weights: Path, to: Path, head: str, offsets: Sequence[float]) -> None:
    """Write weights whose logits are larger by an offset for each class; what is at `to` is replaced at once.

    Args:
        weights: of a network, as `KeepBest` writes them.
        to: the new file.
        head: name of the parameter that is added to the logits.
        offsets: one for each class.
    """
    before: Mapping[str, torch.Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    save_atomically({**before, head: before[head] + torch.tensor(offsets, dtype=before[head].dtype)}, to)
