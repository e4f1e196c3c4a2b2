"""Where work can be done, by name: in this process, in processes beside it, or on the workers of a Dask cluster."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import get_context
from typing import Any, TypeVar

from voxelgate.core.errors import UsageError
from voxelgate.core.process import installed_only

Result = TypeVar("Result")

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
        raise UsageError("Dask is not installed; pip install distributed.") from error
    try:
        return Client(scheduler_file=address) if address.endswith(".json") else Client(address)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address}; start one, or correct the address.") from error


class ProcessPool(ProcessPoolExecutor):
    """Processes for folds and for decoding, none of which imports the script of the caller, or what lies beside it.

    Spawned, since the caller may have threads, which forking breaks. Batches have `WorkerProcess`, which can be killed
    but may have no children, such as the loaders of a training.

    Args:
        count: of processes; each is started when there is work for it.
    """

    def __init__(self, count: int) -> None:
        with installed_only():  # its queues start a process too, which looks after them
            super().__init__(count, mp_context=get_context("spawn"))

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Start a call, and a process for it if all are busy."""
        with installed_only():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def executor_named(name: str) -> Iterator[Executor | None]:
    """Open what trains folds side by side, and close it at the end; None for training them here, one by one.

    Batches have `engine_of` instead: whoever is to end a case that hangs must know its worker, not only a pool.

    Args:
        name: as for `engine_named`; the workers of a Dask cluster see the same files.

    Raises:
        UsageError: as for `engine_named` and `dask_client`.
    """
    found = engine_named(name)
    if found.kind is EngineKind.PROCESSES:
        with ProcessPool(found.count) as pool:
            yield pool
    elif found.kind is EngineKind.DASK:
        with dask_client(found.address) as client:
            yield client.get_executor()
    else:
        yield None
