"""Where work can be done, by name: in this process, in processes beside it, or on the workers of a Dask cluster."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from voxelgate.core.errors import UsageError

PROCESSES = re.compile(r"processes:([1-9][0-9]{0,3})")


class EngineKind(StrEnum):
    """Where work is done."""

    SERIAL = "serial"
    PROCESSES = "processes"
    DASK = "dask"


@dataclass(frozen=True)
class EngineName:
    """What the name of an engine says.

    Args:
        kind: where.
        count: of processes; 1 for one after the other.
        address: of a Dask scheduler, such as `tcp://host:8786`, or a scheduler file.
    """

    kind: EngineKind
    count: int = 1
    address: str = ""


def engine_named(name: str) -> EngineName:
    """Return what a name means: `serial`, `processes:N` or `dask:ADDRESS`.

    >>> engine_named("processes:4").count
    4

    Raises:
        UsageError: no such engine.
    """
    kind, _, address = name.partition(":")
    if name == EngineKind.SERIAL:
        return EngineName(EngineKind.SERIAL)
    if found := PROCESSES.fullmatch(name):
        return EngineName(EngineKind.PROCESSES, int(found[1]))
    if kind == EngineKind.DASK and address:
        return EngineName(EngineKind.DASK, address=address)
    raise UsageError(f"engine {name!r}: expected serial, processes:N or dask:ADDRESS.")


def dask_client(address: str) -> Any:  # distributed is an optional extra
    """Return a `distributed.Client` of a scheduler, which the caller closes.

    Raises:
        UsageError: the extra is not installed, or nobody answers.
    """
    try:
        from distributed import Client  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise UsageError("dask needs the extra: pip install 'voxelgate[dask]'.") from error
    try:
        return Client(scheduler_file=address) if address.endswith(".json") else Client(address)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address}; start one, or correct the address.") from error
