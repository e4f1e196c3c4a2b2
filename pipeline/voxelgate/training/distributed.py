"""What several processes of one training agree on: ranks, first weights, folders, and what is trained."""

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from voxelgate.bundle.checksums import WEIGHTS
from voxelgate.bundle.shipped import find_bundle
from voxelgate.core.errors import UsageError, reason_of
from voxelgate.core.files import copy_file, whole_file

UNREADABLE_STATE = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError)
"""What `torch.load` and `load_state_dict` raise on files that hold no state."""


logger = logging.getLogger(__name__)

STATE = "state.pt"
"""File in the folder of a training from which it can go on."""


def rank() -> int:
    """Return the number of this process among those that train together; 0 alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together.

    >>> vg.world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first_says(number: int) -> int:
    """Return what the first of the processes that train together says; all of them call this at the same step."""
    if world_size() == 1:
        return number
    said = [number]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def start_process_group() -> torch.device:
    """Join the processes that torchrun started, NCCL on GPUs and gloo on CPUs; return this process's device.

    >>> device = vg.start_process_group()  # doctest: +SKIP
    """
    has_gpu = torch.cuda.is_available()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if has_gpu else "gloo")
    if not has_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


LEAST_SHARE = 0.5
"""Part of a network's numbers that weights must bring to be of such a network."""

FIRST_NETWORK = "0."
"""What the names of the first network's weights begin with where there are several."""


def start_from(network: nn.Module, weights: str | None) -> nn.Module:
    """Load a plain state dict into `network` before a training, to go on from weights instead of random numbers.

    Of a network with other classes or channels those layers are loaded whose shapes fit, and the others are named in a
    warning. Of several networks (folds) the first is taken.

    Args:
        network: that will be trained.
        weights: file of weights, or a bundle that has them, by its name or folder; None for none.

    Raises:
        UsageError: no such file, or weights of another network: less than half of the network's numbers are among them.
        BundleError: no such bundle.

    >>> network = vg.AttentionUNet(in_channels=1, out_channels=2, channels=(8, 16))
    >>> vg.start_from(network, None) is network
    True
    """
    if weights is None:
        return network
    own = network.state_dict()
    try:
        fitting = _fitting(torch.load(first_weights(weights), map_location="cpu", weights_only=True), own)
        network.load_state_dict(fitting, strict=False)
    except (OSError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{weights} cannot start this network ({reason_of(error)}); name the model.pt of an equal one"
        ) from error
    loaded, all_numbers = (sum(value.numel() for value in state.values()) for state in (fitting, own))
    if loaded < LEAST_SHARE * all_numbers:
        raise UsageError(
            f"{weights} cannot start this network, for {loaded} of its {all_numbers} numbers fit; name the model.pt of "
            "one that differs in its classes or channels at most"
        )
    if anew := list(dict.fromkeys(name.rpartition(".")[0] or name for name in own if name not in fitting)):
        logger.warning("layers that begin anew, since the weights have none of their shape: %s", ", ".join(anew))
    return network


def first_weights(given: str) -> Path:
    """Return the file of weights from which a training begins: a bundle, by name or folder, stands for its own.

    Raises:
        UsageError: several bundles have this name.
        BundleError: nothing has this name.
    """
    path = Path(given)
    return path if path.suffix == ".pt" else find_bundle(given) / WEIGHTS


def _fitting(stated: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights that a network can take; those of the first of several networks if there are some."""
    if not stated.keys() & own.keys():
        first = [name for name in stated if name.startswith(FIRST_NETWORK)]
        stated = {name.removeprefix(FIRST_NETWORK): stated[name] for name in first}
    return {name: value for name, value in stated.items() if name in own and own[name].shape == value.shape}


def set_aside(folder: str | Path, weights: str | Path, *, resume: bool = False) -> None:
    """Keep what an earlier training left before a new one begins, so that none is ever lost.

    Its folder `training` becomes `training_1`, or the next number that is free, and gets a copy of the weights that the
    new training will replace. Nothing happens where there is nothing to keep, or where the earlier training goes on. Of
    processes that train together the first does it, and the others wait.

    Args:
        folder: with state and events of the earlier training.
        weights: that the new training will replace.
        resume: whether a training whose state lies in `folder` goes on.

    >>> vg.set_aside("new_training", "new_training/model.pt")
    """
    if rank() == 0:
        _set_aside(Path(folder), Path(weights), is_wanted=resume)
    if world_size() > 1:
        dist.barrier()


def _set_aside(folder: Path, weights: Path, *, is_wanted: bool) -> None:
    has_state = (folder / STATE).is_file()
    if (has_state and is_wanted) or not (has_state or weights.is_file()):
        return
    number = 1
    while (kept := folder.with_name(f"{folder.name}_{number}")).exists():
        number += 1
    if folder.exists():
        folder.rename(kept)
    if weights.is_file():
        kept.mkdir(parents=True, exist_ok=True)
        copy_file(weights, kept / weights.name)
    logger.info("what an earlier training left is kept in %s", kept)


def identify(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many cases these are, and a hash that tells whether others are the same in the same order.

    Args:
        rows: of a datalist; cases are told by "case_id", by the names of the files of the "image" where there is none.

    >>> len(vg.identify(vg.datalist("data/manifest.json", fold=0)))
    20
    """
    names = [row.get("case_id") or _file_names(row["image"]) for row in rows]
    return f"{len(rows)} cases {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]}"


def _file_names(files: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    return [Path(file).name for file in ([files] if isinstance(files, str | os.PathLike) else files)]


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write with `torch.save`; a crash leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(content, file)
