"""How unsure a bundle is of an image, from 0 to 1: what differs in a mirror, or from the version before."""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from voxelgate.bundle.predict import Bundle
from voxelgate.core.dice import dice_of_labels
from voxelgate.core.errors import UsageError
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.read import read_case
from voxelgate.transforms.io import as_image

Labels = npt.NDArray[np.integer]


def uncertainty(case: Case, bundle: Bundle) -> float:
    """Return 1 minus the agreement of a result with that of the mirrored image, mean Dice over the structures.

    An image in which nothing is found has a doubt of 1: a model that knows nothing of it would else be sure of it. An
    inferer that averages over mirrorings would agree with itself, so it is asked without them.

    Args:
        case: the image.
        bundle: the model.

    Raises:
        InputError: the image cannot be segmented.
        UsageError: a structure has a side but no partner to change places with.
    """
    scan = read_case(case, bundle.labels)
    return _doubt(bundle.flip_dice(bundle.prepare(as_image(scan.voxels, scan.grid, scan.facts))).values())


def disagreement(case: Case, bundle: Bundle, other: Bundle) -> float:
    """Return 1 minus the agreement of two versions of a model on an image, mean Dice over the structures.

    An image in which neither finds anything has a doubt of 1.

    Args:
        case: the image.
        bundle: the model.
        other: another version of it, with the same labels.

    Raises:
        InputError: the image cannot be segmented.
        UsageError: the versions have different labels.
    """
    if bundle.labels != other.labels:
        raise UsageError(f"two versions of {bundle.name} have different labels, so nothing can be compared.")
    return _doubt(dice_of_labels(label_map(case, bundle), label_map(case, other), bundle.labels).values())


def label_map(case: Case, bundle: Bundle) -> Labels:
    """Return what a bundle makes of an image: labels (I, J, K) on the grid of the file.

    Raises:
        InputError: the image cannot be segmented.
    """
    scan = read_case(case, bundle.labels)
    return bundle.predict(bundle.prepare(as_image(scan.voxels, scan.grid, scan.facts)), scan.grid).labels


def mean_dice(dices: Iterable[float]) -> float:
    """Return the mean of those that are defined; 1 if none is, for two empty label maps are equal."""
    defined = [dice for dice in dices if not math.isnan(dice)]
    return sum(defined) / len(defined) if defined else 1.0


def _doubt(dices: Iterable[float]) -> float:
    found = [dice for dice in dices if not math.isnan(dice)]
    return round(1.0 - mean_dice(found), 6) if found else 1.0
