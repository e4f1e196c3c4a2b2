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


LOGGED = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    np.array(True),
    np.zeros((0, 4), np.uint8),
    np.arange(8.0)[::3],
    np.float16(1.5),
    np.uint64(2**63),
    np.bool_(True),
]


@pytest.mark.parametrize("value", LOGGED, ids=str)
def test_arrays_of_numbers_beside_the_weights_are_read(tmp_path: Path, value: Any) -> None:
    torch.save({"network_weights": {"a": torch.zeros(1)}, "logged": [value], "again": value}, tmp_path / "x.pt")

    document = read_checkpoint(ImportSource(tmp_path, Kind.NNUNET_CONFIGURATION, "folder", ("x.pt",)), "x.pt")

    found = document["logged"][0]
    if isinstance(value, np.ndarray):
        assert (found.values.dtype, found.values.shape) == (value.dtype, value.shape)
        assert np.array_equal(found.values, value)
    else:
        assert found == value


ARRAYS_OF_NO_NUMBERS = {
    "objects": (np.array([[1], "a"], object), "it holds NumPy's type 'O8'"),
    "texts": (np.array(["a"]), "NumPy's type 'U1'"),
    "times": (np.array([0], "M8[s]"), "NumPy's type 'M8'"),
    "records": (np.zeros(1, [("a", "f4"), ("b", "O")]), "NumPy's type 'V12'"),
    "complex": (np.ones(1, complex), "NumPy's type 'c16'"),
    "masked": (np.ma.zeros(2), r"it names numpy\.ma\.\w+\._mareconstruct"),
    "matrix": (np.matrix([1]), "it names numpy.matrix|numpy.matrixlib"),
}


@pytest.mark.parametrize(("value", "reason"), ARRAYS_OF_NO_NUMBERS.values(), ids=ARRAYS_OF_NO_NUMBERS)
def test_other_arrays_are_refused_with_what_they_hold(read: Read, value: object, reason: str) -> None:
    with pytest.raises(InputError, match=f"more than tensors and numbers .*{reason}"):
        read({"network_weights": {"a": torch.zeros(1)}, "logged": value})


class HasState:
    """Pickles as what a call returns, with a state that is given to it then."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], state: Any) -> None:
        self.reduced = function, arguments, state

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        return self.reduced


MAKE = np.zeros(0).__reduce__()[0]
NUMBERS, OBJECTS = np.dtype("f8"), np.dtype("O")
FLAGGED = HasState(np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 63))


def array_with(*state: Any) -> HasState:
    return HasState(MAKE, (np.ndarray, (0,), b"b"), state)


HOSTILE_ARRAYS = {
    "longer than its list": array_with(1, (10**5,), OBJECTS, False, []),
    "longer than its bytes": array_with(1, (10**5,), NUMBERS, False, b"A" * 8),
    "of negative length": array_with(1, (-1,), NUMBERS, False, b""),
    "of too many axes": array_with(1, (1,) * 65, NUMBERS, False, b"A" * 8),
    "of endless axes": array_with(1, (10**300,) * 60, NUMBERS, False, b"A" * 8),
    "of a shape that is none": array_with(1, 3, NUMBERS, False, b"A" * 24),
    "without state": array_with(),
    "of a type that is a number": array_with(1, (1,), 3, False, b"A" * 8),
    "of objects in bytes": Calls(np.ndarray, (2,), "O", b"A" * 16),
    "of a type with parts": array_with(
        1,
        (1,),
        HasState(np.dtype, ("f8", False, True), (3, "<", None, ("a",), {"a": (OBJECTS, 0)}, 8, 8, 63)),
        False,
        b"A" * 8,
    ),
    "as large as no memory": Calls(np.ndarray, (10**13,), "u1"),
    "as a number of objects": Calls(np.float64(0).__reduce__()[0], OBJECTS, "text"),
    "as many bytes": Calls(bytes, 10**12),
}


@pytest.mark.parametrize("hostile", HOSTILE_ARRAYS.values(), ids=HOSTILE_ARRAYS)
def test_arrays_that_would_make_numpy_read_from_anywhere_are_refused(read: Read, hostile: object) -> None:
    with pytest.raises(InputError, match="more than tensors and numbers"):
        read({"network_weights": {"a": torch.zeros(1)}, "logged": hostile})


def test_flags_of_a_type_that_make_its_numbers_pointers_count_for_nothing(read: Read) -> None:
    hostile = array_with(1, (3,), FLAGGED, False, b"A" * 24)

    assert read({"network_weights": {"a": torch.zeros(1)}, "logged": hostile})["a"].shape == (1,)


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
