"""Try a TorchScript program in a process of its own: it may never end, or end the process, before it is known."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from voxelgate.core.apart import Bounds, each_apart
from voxelgate.core.errors import reason_of
from voxelgate.networks.scripted import ScriptedNetwork

MOST_TRIAL_S = 600.0
"""Longest time for one window; large networks take a minute of two processors."""


_INNER = re.compile(r"^\w*Error: (.{1,200})", re.MULTILINE)


@dataclass(frozen=True)
class Trial:
    """What a program gave for zeros.

    Args:
        shape: of the tensor that it gave; empty if it gave none.
        said: what it gave instead, or why it gave nothing.
    """

    shape: tuple[int, ...] = ()
    said: str = ""


def tried_apart(path: Path, shape: tuple[int, ...], memory_bytes: int) -> Trial:
    """Return what a program gives for zeros of a shape, in a process that has limits of time and memory."""
    (found,) = each_apart(try_program, [(path, shape)], Bounds(MOST_TRIAL_S, memory_bytes))
    if found is None:
        return Trial(said=f"crashed, or did not end within {MOST_TRIAL_S:g} s")
    return found


def try_program(asked: tuple[Path, tuple[int, ...]]) -> Trial:
    """Load a program, and run it on zeros of a shape."""
    path, shape = asked
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            found: object = ScriptedNetwork(path=path)(torch.zeros(shape))
    except (RuntimeError, ValueError) as error:
        inner = _INNER.findall(str(error))  # behind the lines of the program in which it happened
        return Trial(said=f"fails ({inner[-1] if inner else reason_of(error)})")
    return Trial(tuple(found.shape)) if isinstance(found, Tensor) else Trial(said=f"gives a {type(found).__name__}")
