"""The ways in which one network can be executed, each a drop-in for the network itself."""

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self, cast

import torch
from torch import nn

from voxelgate.core.errors import UsageError
from voxelgate.inference.runtimes import onnx_model, openvino_model
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.inference.streaming.folding import fold_batch_norm

Network = Callable[[torch.Tensor], torch.Tensor]
"""Logits (B, classes, i, j, k) for windows (B, C, i, j, k)."""

CPP_COMPILERS = ("g++", "clang++")
"""What `torch.compile` looks for on a CPU (torch/_inductor/cpp_builder.py)."""


_BUILT = {Runtime.OPENVINO: openvino_model.build_openvino, Runtime.ONNX: onnx_model.build_onnx}
"""Those whose models another library builds, and which are kept."""

BUILT = tuple(_BUILT)


def runtimes_of(device: torch.device) -> tuple[Runtime, ...]:
    """Return what is worth trying on a device, `eager` first; whether it works there is found out by trying."""
    on_cpu = () if device.type == "cuda" else BUILT
    return Runtime.EAGER, Runtime.FOLDED, Runtime.COMPILED, *on_cpu, Runtime.BFLOAT16


def prepare_runtime(
    network: nn.Module, runtime: Runtime, patch: torch.Tensor, *, stored: Path | None = None
) -> nn.Module:
    """Return a network that runs in another way; the given one stays as it is.

    Args:
        network: in evaluation mode, float32, on the device of `patch`; one tensor in, one out.
        runtime: the way.
        patch: (B, C, i, j, k) float32, of the shape of the windows to come.
        stored: file of what takes long to build (`BUILT`), read if it is there and intact, else written.

    Returns:
        A copy in evaluation mode for use under `torch.no_grad`, channels-last, that returns float32 logits.

    Raises:
        UsageError: this runtime lacks something here, or cannot run this network or device; the message says what.
    """
    if runtime is Runtime.EAGER:
        return _channels_last(copy.deepcopy(network))
    plain = folded(network)
    if runtime is Runtime.COMPILED:
        return _compiled(plain, patch)
    if runtime in _BUILT:
        run = _BUILT[runtime](plain, patch, stored)
        return _OneShape(run, patch.shape, _by_onednn(plain)).eval()
    return _by_onednn(plain) if runtime is Runtime.FOLDED else _Bfloat16(plain).eval()


def folded(network: nn.Module) -> nn.Module:
    """Return a copy whose batch norms are folded into the convolutions right before them; their places hold identities.

    Found are pairs that follow each other in an `nn.Sequential`, also across nested ones (as in MONAI's blocks); what
    stands elsewhere stays. Folded in float64. The copy is in evaluation mode and channels-last.
    """
    copied = copy.deepcopy(network).eval()
    uses = Counter(id(module) for _, module in copied.named_modules(remove_duplicate=False))
    chains = [module for module in copied.modules() if _is_chain(module)]
    for chain in chains:
        for (parent, name), (norm_parent, norm_name) in pairwise(_places(chain)):
            conv, norm = getattr(parent, name), getattr(norm_parent, norm_name)
            if _can_fold(conv, norm) and uses[id(conv)] == uses[id(norm)] == 1:
                fused = fold_batch_norm(conv, norm).float()
                setattr(parent, name, fused)
                setattr(norm_parent, norm_name, nn.Identity())
                uses[id(fused)] = 1
    return _channels_last(copied)


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _places(chain: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield parent and name of the layers of a chain in the order in which they run."""
    for name, child in chain.named_children():
        if _is_chain(child):
            yield from _places(child)
        else:
            yield chain, name


def _can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    is_conv = type(conv) is nn.Conv3d or (type(conv) is nn.ConvTranspose3d and conv.groups == 1)
    return is_conv and type(norm) is nn.BatchNorm3d and norm.running_mean is not None


def _channels_last(network: nn.Module) -> nn.Module:
    moved = network.eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # PyTorch's stubs know 4D only
    return cast("nn.Module", moved)


def _by_onednn(plain: nn.Module) -> nn.Module:
    """Let oneDNN compute every convolution on a CPU, in place.

    For one image of fewer than 20480 values in batch, channels and the first two axes together, PyTorch takes a kernel
    of its own (`use_mkldnn` in aten/src/ATen/native/Convolution.cpp), which is several times slower in 3D.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        return plain
    for parent in list(plain.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv3d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
                setattr(parent, name, _OneDnnConv.of(child))
    return plain.eval()


def _compiled(plain: nn.Module, patch: torch.Tensor) -> nn.Module:
    is_cuda = patch.device.type == "cuda"
    if not is_cuda and not any(map(shutil.which, CPP_COMPILERS)):
        raise UsageError(f"runtime compiled needs a C++ compiler, found none of {', '.join(CPP_COMPILERS)}.")
    compiled = torch.compile(plain, options={"freezing": True, "triton.cudagraphs": is_cuda}, dynamic=False)

    def run(windows: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = compiled(windows)
        return logits.clone() if is_cuda else logits  # a CUDA graph writes its next result to the same place

    network = _OneShape(run, patch.shape, _by_onednn(copy.deepcopy(plain))).eval()
    with torch.no_grad():
        network(patch)  # compiles
    return network


class _OneDnnConv(nn.Conv3d):
    """A convolution by oneDNN where it is float32 on the CPU, else by whatever PyTorch takes."""

    @classmethod
    def of(cls, conv: nn.Conv3d) -> Self:
        """Return one that shares the weights of a convolution without padding mode."""
        made = cls.__new__(cls)
        made.__dict__.update(conv.__dict__)
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels, i', j', k')."""
        if x.device.type != "cpu" or x.dtype is not torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        padding = list(cast("tuple[int, ...]", self.padding))
        options = padding, list(self.stride), list(self.dilation), self.groups
        return torch.mkldnn_convolution(x, self.weight, self.bias, *options)


class _Bfloat16(nn.Module):
    """Run a network under autocast whatever the caller does, and return float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return logits as float32."""
        with torch.autocast(windows.device.type, dtype=torch.bfloat16):
            return cast("torch.Tensor", self.network(windows)).float()


class _OneShape(nn.Module):
    """Run windows of one shape in a special way, all others as usual."""

    def __init__(self, run: Network, shape: torch.Size, otherwise: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.shape = shape
        self.otherwise = otherwise

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return logits; `run` sees C order, with the strides of it along axes of one voxel too."""
        if windows.shape != self.shape:
            return cast("torch.Tensor", self.otherwise(windows))
        return self.run(windows.reshape(-1).view(self.shape))
