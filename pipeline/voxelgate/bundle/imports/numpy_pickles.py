"""NumPy's numbers and arrays in a pickle of others, decoded here: they reach none of NumPy's own unpickling.

That trusts a pickle: an array of objects "in a buffer", or one longer than its list, reads pointers from anywhere.
"""

import codecs
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_AXES = 64
"""Of an array of NumPy."""

_NUMBERS = re.compile("f[248]|[iu][1248]|b1")
"""How NumPy writes types of plain numbers: kind and bytes."""


class NumPyType:
    """A type of plain numbers, in place of `numpy.dtype`.

    Raises:
        ValueError: it is another, such as that of objects.
    """

    def __init__(self, code: object, *_is_aligned_and_copied: object) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise ValueError(f"it holds NumPy's type {code!a:.40}, which is none of plain numbers")
        self.type = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        """Take the order of bytes; fields, parts and flags are those of no plain number."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise ValueError("it holds a type of NumPy with parts, which is none of plain numbers")
        self.type = self.type.newbyteorder(state[1])


class NumPyArray:
    """An array of plain numbers, in place of `numpy.ndarray`; `values` are read-only."""

    def __init__(self) -> None:
        self.values: npt.NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: object) -> None:
        """Take shape, type, order and bytes.

        Raises:
            ValueError: they do not fit each other.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("it holds an array of NumPy whose state is none")
        _, shape, kind, is_fortran, raw = state
        self.values = _decoded(raw, kind, shape).reshape(shape, order="F" if is_fortran else "C")


def _decoded(raw: object, kind: object, shape: object) -> npt.NDArray[Any]:
    """Return as many numbers as a shape has, without a copy."""
    if not isinstance(kind, NumPyType) or not isinstance(raw, bytes):
        raise TypeError("it holds an array of NumPy that is none of plain numbers")
    if not isinstance(shape, tuple) or len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("it holds an array of NumPy whose shape is none")
    if len(raw) != math.prod(shape) * kind.type.itemsize:
        raise ValueError(f"it holds an array of NumPy of shape {shape} with {len(raw)} bytes")
    return np.frombuffer(raw, kind.type)


def _scalar(kind: object, raw: object) -> Any:
    """Return a number, in place of `numpy.core.multiarray.scalar`."""
    return _decoded(raw, kind, (1,))[0].item()


def _reconstruct(kind: object, *_shape_and_code: object) -> NumPyArray:
    """Return an array that gets its state next, in place of `numpy.core.multiarray._reconstruct`."""
    if kind is not NumPyArray:
        raise ValueError("it holds an array of another kind than numpy.ndarray")
    return NumPyArray()


def _no_bytes() -> bytes:
    """Return what pickles of protocol 2 write where there are no bytes."""
    return b""


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (NumPyType, "numpy.dtype"),
    (NumPyArray, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (codecs.encode, "_codecs.encode"),
    (_no_bytes, "builtins.bytes"),
]
"""What takes the place of each name for `torch.serialization.safe_globals`; bytes are texts that are encoded."""
