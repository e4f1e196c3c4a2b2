"""How a network runs on this machine: number format and memory allocator."""

import ctypes
import ctypes.util
import time
from enum import StrEnum
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import nn
from torch.utils._pytree import tree_map

from voxelgate.networks.bfloat16 import SoundGradients

PROBE_CHANNELS = 32
PROBE_SIDE = 32
PROBE_REPEATS = 5
BFLOAT16_MUST_GAIN = 1.15
"""On a CPU bfloat16 is taken only where its convolution is faster by this factor: some processors emulate it."""

AMPERE = 8
"""Major compute capability from which NVIDIA GPUs have bfloat16 units."""


M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""Parameter numbers of glibc's `mallopt` (malloc.h)."""

KEPT_BYTES = 2**30
"""Buffers up to this size come from the heap and stay there."""


class Precision(StrEnum):
    """Number format of the convolutions; weights and losses are always float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def choose_precision(device: torch.device, asked: str = "auto") -> Precision:
    """Return the format to train in: bfloat16 where the hardware has it, float16 on older GPUs, else float32.

    A CPU is asked by timing one convolution in both formats, in processor time, since instruction flags do not tell
    whether it gains.

    >>> vg.choose_precision(torch.device("cpu"), "float32")
    <Precision.FLOAT32: 'float32'>
    """
    precision = Precision(asked)
    if precision is not Precision.AUTO:
        return precision
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device)[0] >= AMPERE
        return Precision.BFLOAT16 if has_bfloat16 else Precision.FLOAT16
    if device.type != "cpu":
        return Precision.FLOAT32
    gain = _convolution_s(torch.float32) / _convolution_s(torch.bfloat16)
    return Precision.BFLOAT16 if gain >= BFLOAT16_MUST_GAIN else Precision.FLOAT32


def needs_scaler(precision: Precision) -> bool:
    """Return whether gradients would vanish in this format without a loss scaler (MONAI's `amp`).

    >>> vg.needs_scaler(vg.choose_precision(torch.device("cpu"), "float32"))
    False
    """
    return precision is Precision.FLOAT16


class MixedPrecisionInferer(SimpleInferer):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Run a network under autocast on any device, and return float32.

    MONAI's own `amp` knows CUDA only (`torch.autocast("cuda")` in monai/engines/trainer.py). What has no sound gradient
    in bfloat16 on a CPU is computed in float32.

    Args:
        precision: `float32`, `bfloat16` or `float16`.

    >>> network = torch.nn.Conv3d(1, 2, 1)
    >>> vg.MixedPrecisionInferer("float32")(torch.zeros(1, 1, 4, 4, 4), network).dtype
    torch.float32
    """

    def __init__(self, precision: str = "bfloat16") -> None:
        super().__init__()
        self.precision = Precision(precision)
        if self.precision is Precision.AUTO:
            raise ValueError("MixedPrecisionInferer takes a decided precision; call choose_precision for 'auto'")

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output, a tensor or any nesting of them, as float32."""
        is_reduced = self.precision is not Precision.FLOAT32
        dtype = getattr(torch, self.precision.value) if is_reduced else None
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=is_reduced), SoundGradients():
            output = network(inputs, *args, **kwargs)
        return tree_map(torch.Tensor.float, output)


def _convolution_s(dtype: torch.dtype) -> float:
    layer = nn.Conv3d(PROBE_CHANNELS, PROBE_CHANNELS, 3, padding=1, dtype=dtype)
    layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # PyTorch's stubs know 4D only
    image = torch.ones(1, PROBE_CHANNELS, *(PROBE_SIDE,) * 3, dtype=dtype).to(memory_format=torch.channels_last_3d)
    fastest_s = float("inf")
    with torch.no_grad():
        for _ in range(PROBE_REPEATS + 1):
            start = time.thread_time()  # not the clock's, in which other processes have their part
            layer(image)
            fastest_s = min(fastest_s, time.thread_time() - start)
    return fastest_s


def keep_large_buffers() -> None:
    """Tell glibc to keep freed buffers instead of returning them to the system after every layer.

    The page faults of taking them back make a CPU forward pass up to 1.8 times slower. Does nothing elsewhere.

    >>> vg.keep_large_buffers()
    """
    library = ctypes.util.find_library("c")
    if library is None or not hasattr(ctypes.CDLL(library), "mallopt"):
        return
    mallopt = ctypes.CDLL(library).mallopt
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_ARENA_MAX, 1)  # a thread with an arena of its own keeps what others could use, and returns large buffers
