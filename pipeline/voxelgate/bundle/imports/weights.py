"""Weights from elsewhere: no file of them can run code here, and what comes out are plain tensors or a sentence."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from voxelgate.bundle.imports.numpy_pickles import STAND_INS, NumPyArray
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.unpacking import DAMAGED_ZIP
from voxelgate.bundle.opened import UNREADABLE_WEIGHTS
from voxelgate.core.errors import InputError, reason_of

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and `torch.compile` put before the names of what they wrap."""

STATE_KEYS = ("network_weights", "state_dict", "model", "net")
"""Under which checkpoints hold a state dict beside other things: nnU-Net, Lightning, MONAI and ignite, AutoRunner."""

MOST_PICKLE_BYTES = 2**28
"""Of a checkpoint without its tensors: names, shapes, plans, the log of a training."""

_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool}
)


def read_checkpoint(source: ImportSource, name: str) -> Mapping[str, Any]:
    """Read a checkpoint of torch 1.6 or later without running anything in it; its tensors stay on the disk till used.

    Beyond what `weights_only=True` admits, numbers and arrays of NumPy are: trainers keep their best score and what
    they logged so.

    Raises:
        InputError: it is damaged, no such file, or names anything else, such as a function to call.
    """
    path = source.path(name)
    _refuse_other_archive(path, f"{source.name}: {name}")
    try:
        with torch.serialization.safe_globals(STAND_INS):
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (*UNREADABLE_WEIGHTS, RecursionError, MemoryError) as error:
        raise InputError(
            f"{source.name}: {name} is damaged, or more than tensors and numbers is in it, which is never opened "
            f"({_in_short(error)})."
        ) from error
    if not isinstance(document, Mapping):
        raise InputError(f"{source.name}: {name} holds a {type(document).__name__}, expected named weights.")
    return document


def read_arrays(source: ImportSource, name: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of numbers of a small file, such as the searched code of a DiNTS; what is none is left out.

    Raises:
        InputError: as for `read_checkpoint`.
    """
    arrays = {key: _array_of(value) for key, value in read_checkpoint(source, name).items() if isinstance(key, str)}
    return {key: value for key, value in arrays.items() if value is not None}


def state_in(document: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, or that under one of `STATE_KEYS`, without the names of wrappers.

    Args:
        document: from `read_checkpoint`.
        where: file of it, for messages.

    Raises:
        InputError: it holds something else than named dense tensors of whole or real numbers, each with its own values.
    """
    found: Any = next((document[key] for key in STATE_KEYS if isinstance(document.get(key), Mapping)), document)
    if not found:
        raise InputError(f"{where}: holds no weights; choose another checkpoint.")
    for name, value in found.items():
        if fault := _fault_of_entry(name, value):
            raise InputError(
                f"{where}: {name!a} {fault}, expected a plain tensor of numbers; choose another checkpoint."
            )
    return {_unwrapped(name): _own(value) for name, value in found.items()}


def without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the second and third names of nnU-Net's parameters.

    A block of dynamic_network_architectures knows its layers also as `all_modules`, and a decoder knows its encoder.

    >>> list(without_aliases({"encoder.a.conv.weight": 1, "encoder.a.all_modules.0.weight": 1}))
    ['encoder.a.conv.weight']
    """
    return {
        name: value
        for name, value in state.items()
        if ".all_modules." not in name and not name.startswith("decoder.encoder.")
    }


def _refuse_other_archive(path: Path, where: str) -> None:
    """Refuse a file that is no zip as torch writes them: nothing packed, so that nothing can be larger than the file.

    Raises:
        InputError: it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, *DAMAGED_ZIP) as error:
        raise InputError(f"{where} is no whole file of weights of torch 1.6 or later; copy it again.") from error
    if any(one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size for one in members):
        raise InputError(f"{where} is packed, which torch never does; it is not opened.")
    if any(one.filename.endswith("data.pkl") and one.file_size > MOST_PICKLE_BYTES for one in members):
        raise InputError(f"{where} holds more than {MOST_PICKLE_BYTES >> 20} MiB beside its tensors; it is not opened.")


def _fault_of_entry(name: object, value: object) -> str | None:
    """Say what makes an entry none of a state dict, or return None."""
    if not isinstance(name, str):
        return "is no text as a name"
    if type(value) not in (Tensor, nn.Parameter):
        return f"is a {type(value).__name__}"
    return _fault_of_tensor(value)


def _fault_of_tensor(value: Any) -> str | None:
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        return "is sparse, quantised or without values"
    if value.dtype not in _DTYPES:
        return f"is of the type {value.dtype}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"claims {value.numel()} numbers, of which the file holds fewer"
    return None if bool(torch.isfinite(value).all()) else "holds values that are not finite"


def _array_of(value: object) -> npt.NDArray[Any] | None:
    """Return the numbers of an array or of a plain tensor that NumPy can hold; None if there are none."""
    if isinstance(value, NumPyArray):
        return value.values
    if type(value) is not Tensor or _fault_of_tensor(value) or value.dtype is torch.bfloat16:
        return None
    numbers: npt.NDArray[Any] = value.detach().numpy()
    return numbers


def _unwrapped(name: str) -> str:
    while prefix := next((one for one in WRAPPERS if name.startswith(one)), None):
        name = name.removeprefix(prefix)
    return name


def _own(value: Tensor) -> Tensor:
    """Return a tensor without gradient that shares its memory with nothing larger."""
    plain = value.detach().contiguous()
    is_whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
    return plain if is_whole else plain.clone()


def _in_short(error: BaseException) -> str:
    """Return what the file names that is not admitted, or the beginning of what PyTorch says."""
    named = re.search(r"(?:GLOBAL|function|global) ([A-Za-z_][\w.]*\.[\w.]+\w)", str(error))
    return f"it names {named[1]}" if named else reason_of(error).split(". ")[0][:200]
