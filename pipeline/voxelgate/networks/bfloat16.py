"""What PyTorch gets wrong in bfloat16 on CPUs, and how a training stays away from it."""

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

UNSOUND_DEPTH = 2
"""Voxels along the first axis for which the weight gradient of a 3x3x3 convolution of stride 1 is partly what memory
held before; seen with PyTorch 2.13 on a CPU with AVX512-BF16, for any size of the other axes."""


class SoundGradients(TorchFunctionMode):
    """Compute in float32 those 3D convolutions under autocast whose gradient in bfloat16 would be wrong on a CPU.

    The result keeps the type that autocast gives it. Convolutions in other formats, of other sizes or on other devices,
    and those that need no gradient, are left alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # PyTorch's interface
        options = dict(kwargs or {})
        if func is not F.conv3d or not _is_unsound(args[0] if args else options["input"]):
            return func(*args, **options)
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            wide = {name: _widened(value) for name, value in options.items()}
            return func(*map(_widened, args), **wide).to(dtype)


def _is_unsound(image: torch.Tensor) -> bool:
    return (
        image.device.type == "cpu"
        and image.shape[-3] == UNSOUND_DEPTH
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
    )


def _widened(value: Any) -> Any:  # a tensor, or another argument of a convolution
    return value.float() if isinstance(value, torch.Tensor) else value
