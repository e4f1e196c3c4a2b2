"""Weights are read without running anything in their file; whatever is more than plain tensors is refused."""

import contextlib
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from voxelgate.bundle.imports.source import ImportSource, Kind
from voxelgate.bundle.imports.weights import read_checkpoint, state_in, without_aliases
from voxelgate.core.errors import InputError

NAME = "fold_0/checkpoint_final.pth"


class Calls:
    """Pickles as a call, which a plain `torch.load` would make."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.called


class Claims:
    """Pickles as a tensor that says to be larger than what is stored of it."""

    def __init__(self, size: int, stride: int) -> None:
        self.size, self.stride = size, stride

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        stored = torch.zeros(4)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (stored, 0, (self.size,), (self.stride,), False, OrderedDict())


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    (tmp_path / "fold_0").mkdir()
    source = ImportSource(tmp_path, Kind.NNUNET_CONFIGURATION, "folder", (NAME,))

    def read(document: object, change: Callable[[bytes], bytes] = bytes) -> dict[str, Tensor]:
        torch.save(document, tmp_path / NAME)
        (tmp_path / NAME).write_bytes(change((tmp_path / NAME).read_bytes()))
        return state_in(read_checkpoint(source, NAME), NAME)

    return read


Read = Callable[..., dict[str, Tensor]]


def test_a_checkpoint_of_nnunet_is_read_with_the_numbers_of_its_log(read: Read) -> None:
    weights = {"module._orig_mod.a": torch.arange(3.0), "b": nn.Parameter(torch.ones(2, 2))}
    logged = {"_best_ema": np.float32(0.5), "logging": {"dice": [np.float64(0.25)]}, "optimizer_state": {}}

    found = read({"network_weights": weights, "trainer_name": "nnUNetTrainer", **logged})

    assert list(found) == ["a", "b"]
    assert found["a"].tolist() == [0, 1, 2]
    assert not found["b"].requires_grad


@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_weights_are_found_under_the_usual_names_or_alone(read: Read, key: str | None) -> None:
    weights = {"a": torch.ones(3)}
    assert read(weights if key is None else {key: weights, "epoch": 3})["a"].tolist() == [1, 1, 1]


def test_a_part_of_a_larger_tensor_takes_its_own_memory_only(read: Read) -> None:
    found = read({"a": torch.zeros(1000, 4)[:2], "b": torch.zeros(2, 3).T})

    assert found["a"].untyped_storage().nbytes() == 32
    assert found["b"].is_contiguous()


@pytest.mark.parametrize("place", ["among the weights", "beside them", "instead"])
def test_a_pickle_that_runs_a_program_is_refused_and_does_not_run(read: Read, tmp_path: Path, place: str) -> None:
    hostile = Calls(os.system, f"touch {tmp_path / 'canary'}")
    documents = {"among the weights": {"a": hostile}, "beside them": {"network_weights": {}, "x": hostile}}

    with pytest.raises(InputError, match=r"more than tensors and numbers .*\(it names (posix|nt)\.system\)"):
        read(documents.get(place, hostile))

    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("function", [eval, getattr, torch.load, np.load, Path], ids=lambda function: function.__name__)
def test_nothing_else_is_called_either(read: Read, function: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="more than tensors and numbers"):
        read({"a": Calls(function, "1")})


@pytest.mark.parametrize("size", [10**9, 10**13])
@pytest.mark.parametrize("stride", [0, 1])
def test_a_tensor_that_claims_more_numbers_than_are_stored_is_refused(read: Read, size: int, stride: int) -> None:
    with pytest.raises(InputError, match=r"claims 10+ numbers|is damaged"):
        read({"a": Claims(size, stride)})


ODD = {
    "sparse": (torch.eye(3).to_sparse(), "is sparse, quantised or without values"),
    "not finite": (torch.tensor([1.0, float("nan")]), "holds values that are not finite"),
    "without values": (torch.zeros(3, device="meta"), "is sparse, quantised or without values"),
    "complex": (torch.zeros(3, dtype=torch.complex64), "is of the type torch.complex64"),
    "a number": (3.0, "is a float"),
    "a list": ([1], "is a list"),
}


@pytest.mark.parametrize(("value", "reason"), ODD.values(), ids=ODD)
def test_what_is_no_plain_tensor_is_refused_by_its_name(read: Read, value: object, reason: str) -> None:
    with pytest.raises(InputError, match=f"checkpoint_final.pth: 'a' {reason}"):
        read({"a": value})


def test_a_file_that_is_cut_empty_or_of_old_torch_is_refused(read: Read, tmp_path: Path) -> None:
    for change in (lambda content: content[:300], lambda _: b"", lambda _: b"not a zip"):
        with pytest.raises(InputError, match=r"is no whole file of weights"):
            read({"a": torch.zeros(300)}, change)
    old = tmp_path / "old.pt"
    torch.save({"a": torch.zeros(3)}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"is no whole file of weights of torch 1\.6 or later"):
        read({}, lambda _: old.read_bytes())


def test_whatever_bytes_are_changed_there_are_plain_tensors_or_a_sentence(read: Read) -> None:
    rng = np.random.default_rng(0)

    def changed(content: bytes) -> bytes:
        found = bytearray(content)
        for _ in range(int(rng.choice((1, 2, 30)))):
            found[rng.integers(len(found))] = rng.integers(256)
        return bytes(found)

    for _ in range(150):
        with contextlib.suppress(InputError):
            found = read({"model": {"a": torch.zeros(3)}, "log": [1, {"b": np.float64(2)}]}, changed)
            assert all(type(value) is Tensor for value in found.values())


def test_a_packed_file_that_would_grow_is_refused(read: Read, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))

    with pytest.raises(InputError, match="is packed, which torch never does"):
        read({}, lambda _: (tmp_path / "packed.pt").read_bytes())


def test_a_checkpoint_without_weights_or_of_another_kind_is_refused(read: Read) -> None:
    with pytest.raises(InputError, match="holds no weights"):
        read({"network_weights": {}})
    with pytest.raises(InputError, match="holds a list, expected named weights"):
        read([torch.zeros(3)])


def test_the_second_names_of_parameters_are_left_out() -> None:
    names = ["encoder.conv.weight", "encoder.all_modules.0.weight", "decoder.encoder.conv.weight", "decoder.up.weight"]
    assert list(without_aliases(dict.fromkeys(names, torch.zeros(1)))) == ["encoder.conv.weight", "decoder.up.weight"]
