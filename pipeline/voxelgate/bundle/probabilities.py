"""The probability of each structure in each voxel, by a pass of its own over the image."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor

from voxelgate.core.errors import UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.core.machine import GIB
from voxelgate.inference.memory import available_bytes
from voxelgate.inference.source_grid import grids_of

BYTES_PER_VOX = 4
"""Of a probability."""


def probabilities_of(
    inferer: Callable[..., Any], image: MetaTensor, network: object, labels: LabelTable
) -> dict[str, npt.NDArray[np.float32]]:
    """Return (I, J, K) float32 on the source grid for each structure of a table.

    Args:
        inferer: with `probabilities_of`, whose channels are those of the table, or of its regions.
        image: (1, C, i, j, k), prepared.
        network: as the inferer takes it.
        labels: the structures that are looked for.

    Raises:
        UsageError: the inferer tells none, or no memory holds them.
    """
    refuse_without_probabilities(inferer)
    source, _ = grids_of(image)
    voxels, structures = int(np.prod(source.shape)), labels.foreground
    needed, there = BYTES_PER_VOX * voxels * len(structures), available_bytes(image.device)
    if needed > there:
        raise UsageError(
            f"probabilities of {len(structures)} structures need {needed / GIB:.1f} GiB, and {there / GIB:.1f} GiB are "
            "there; look for fewer (--roi-subset)."
        )
    asked: Any = copy.copy(inferer)
    asked.probabilities_of = tuple(_channel_of(value, inferer) for value in structures)
    found = asked(image, network).as_tensor()[0].cpu().numpy()
    return dict(zip(structures.values(), found, strict=True))


def refuse_without_probabilities(inferer: Callable[..., Any]) -> None:
    """Refuse an inferer that tells labels only.

    Raises:
        UsageError: it does.
    """
    if not hasattr(inferer, "probabilities_of"):
        raise UsageError(
            "probabilities: this model joins several networks or steps, and tells labels only; leave probabilities out "
            "of the outputs."
        )


def _channel_of(value: int, inferer: Callable[..., Any]) -> int:
    """Return the channel of a network that is a structure's: its value, or the place of its region."""
    regions = getattr(inferer, "regions", None)
    return value if regions is None else list(regions).index(value)
