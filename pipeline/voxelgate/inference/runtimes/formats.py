"""A network as a file that other systems run: the formats, the sizes that each can take, and how it is read back."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from monai.data import save_net_with_metadata
from torch import nn

from voxelgate.core.errors import UsageError
from voxelgate.inference.runtimes import onnx_model, openvino_model
from voxelgate.inference.runtimes.kinds import Format
from voxelgate.inference.runtimes.runtimes import Network
from voxelgate.inference.runtimes.torch_programs import FEWEST_STEPS, Sizes, of_many_sizes, quiet
from voxelgate.networks import AttentionUNet, FlatNetwork

METADATA = "metadata.json"
"""Name under which MONAI's `ckpt_export` keeps the metadata of a bundle in a TorchScript file."""

Texts = Mapping[str, str]
"""Documents that a file carries: JSON by name."""


def write_format(network: nn.Module, form: Format, sizes: Sizes, path: Path, texts: Texts) -> Network:
    """Write a network in a format and return what its file computes.

    Args:
        network: in evaluation mode, float32, on the CPU; one tensor in, one out.
        form: the format.
        sizes: of windows, from `sizes_of`.
        path: file to write.
        texts: kept in the file, JSON by name.

    Raises:
        UsageError: a package is not installed.
        RuntimeError: the network cannot be exported to this format; other errors of converters are possible.
    """
    save, load = _WAYS[form]
    save(network, sizes, path, texts)
    return load(path)


def sizes_of(network: nn.Module, window: torch.Tensor, form: Format) -> Sizes:
    """Return the sizes that a file of a network can take.

    Any window in TorchScript and multiples of its strides in the other formats if it is an `AttentionUNet`, for these
    skip what an odd size needs; of any other network the given window alone, since what it does with other ones could
    not be seen.

    Args:
        network: that is exported.
        window: (B, C, i, j, k) or (B, C, i, j).
        form: the format.
    """
    size = tuple(window.shape[2:])
    axes = list(zip(size, _strides(network, len(size)), strict=True))
    if form is Format.TORCHSCRIPT:
        multiples = [None if stride is None else 1 for _, stride in axes]
        smallest = [n if stride is None else min(n, stride + 1) for n, stride in axes]
    else:
        multiples = [
            None if stride is None or n % stride or n < FEWEST_STEPS * stride else stride for n, stride in axes
        ]
        smallest = [n if step is None else FEWEST_STEPS * step for n, step in zip(size, multiples, strict=True)]
    return Sizes(window.shape[1], size, tuple(multiples), tuple(smallest))


def is_installed(form: Format) -> bool:
    """Return whether the packages of a format are there."""
    try:
        require_format(form)
    except UsageError:
        return False
    return True


def require_format(form: Format) -> None:
    """Look for the packages of a format.

    Raises:
        UsageError: one is not installed.
    """
    if form is Format.ONNX:
        onnx_model.require_onnx()
    if form is Format.OPENVINO:
        openvino_model.library()


def _strides(network: nn.Module, dims: int) -> list[int | None]:
    """Return for each axis how many voxels become one at the deepest level; None where that is not known."""
    if isinstance(network, FlatNetwork):
        inner = _strides(network.network, dims - 1)
        return [*inner[: network.axis], None, *inner[network.axis :]]
    if isinstance(network, AttentionUNet):
        return [math.prod(steps) for steps in zip(*network.strides, strict=True)]
    return [None] * dims


class _Sized(nn.Module):
    """A traced network that refuses other sizes than it was traced for; compiled by TorchScript.

    Args:
        network: traced.
        size: along each axis, 0 where any will do.
    """

    size: list[int]

    def __init__(self, network: nn.Module, size: list[int]) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for axis, size in enumerate(self.size):
            if size > 0 and image.shape[axis + 2] != size:
                raise ValueError("the network takes windows of one size only, which export.json states")
        result: torch.Tensor = self.network(image)
        return result


def _save_torchscript(network: nn.Module, sizes: Sizes, path: Path, texts: Texts) -> None:
    """Trace and save as MONAI's `ckpt_export` does.

    A trace keeps what one image needs. One voxel more than a multiple of the strides is odd at every level, and so
    needs all that any size may need.
    """
    strides = _strides(network, len(sizes.window_vox))
    size = [fixed or FEWEST_STEPS * (step or 1) + 1 for fixed, step in zip(sizes.fixed_vox, strides, strict=True)]
    others = {name: text.encode() for name, text in texts.items() if name != METADATA}
    with torch.no_grad(), quiet():
        example = torch.zeros(1, sizes.channels, *size)
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]  # torch
        save_net_with_metadata(
            torch.jit.script(_Sized(traced, list(sizes.fixed_vox))) if any(sizes.fixed_vox) else traced,
            str(path),
            include_config_vals=False,
            meta_values=json.loads(texts.get(METADATA, "{}")),
            more_extra_files=others,
        )


def _load_torchscript(path: Path) -> Network:
    with quiet():  # it says that TorchScript will end
        loaded: Network = torch.jit.load(path)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loaded


def _save_program(network: nn.Module, sizes: Sizes, path: Path, texts: Texts) -> None:
    torch.export.save(of_many_sizes(network, sizes), path, extra_files=dict(texts))


def _load_program(path: Path) -> Network:
    return torch.export.load(path).module()


_WAYS: Mapping[Format, tuple[Callable[[nn.Module, Sizes, Path, Texts], None], Callable[[Path], Network]]] = {
    Format.TORCH_EXPORT: (_save_program, _load_program),
    Format.ONNX: (onnx_model.save_onnx, onnx_model.load_onnx),
    Format.TORCHSCRIPT: (_save_torchscript, _load_torchscript),
    Format.OPENVINO: (openvino_model.save_openvino, openvino_model.load_openvino),
}
