"""Ensembles of nnU-Net configurations: which one a folder asks for, and how it is averaged."""

from collections.abc import Sequence

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.members import Member, parts_of
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.trained import TrainedConfiguration
from voxelgate.core.errors import BundleError

INFORMATION = "inference_information.json"
"""Where `nnUNetv2_find_best_configuration` states what predicted best."""


def stated_best(source: ImportSource) -> tuple[str, ...]:
    """Return the folders that predicted best, as the data set says; none if it does not, or lacks one of them."""
    if not source.has(INFORMATION):
        return ()
    best = source.json(INFORMATION).get("best_model_or_ensemble")
    stated = best.get("selected_model_or_models") if isinstance(best, dict) else None
    models = [one for one in stated if isinstance(one, dict)] if isinstance(stated, list) else []
    folders = [
        "__".join(str(one.get(key)) for key in ("trainer", "plans_identifier", "configuration")) for one in models
    ]
    return tuple(folders) if all(source.has(f"{folder}/plans.json") for folder in folders) else ()


def average_of(members: Sequence[Member]) -> Config:
    """Return the inferer that averages the probabilities of members.

    Raises:
        BundleError: they find other structures, in other channels, or see images in another order.
    """
    first = members[0].last
    for other in (one.last for one in members[1:]):
        if _common(other) != _common(first):
            raise BundleError(
                f"{other.folder}: labels, channels or reader are others than those of {first.folder}; only models of "
                "the same can be averaged."
            )
    regions = first.data_set.regions
    return {
        "_target_": "voxelgate.EnsembleInferer",
        "members": parts_of(members),
        "regions": None if regions is None else list(regions),
    }


def _common(trained: TrainedConfiguration) -> tuple[object, ...]:
    stated = trained.data_set
    return stated.labels, stated.channels, stated.regions, stated.heads, trained.plans.reader.reorients
