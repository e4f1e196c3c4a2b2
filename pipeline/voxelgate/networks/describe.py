"""What a network costs: parameters, floating point operations and memory, measured without computing anything."""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

FUSED_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001  # the only name it has
"""What a CPU runs for `scaled_dot_product_attention`; the meta device would lay out the whole matrix of weights."""

Shape = tuple[int, ...]

OPTIMISER_COPIES = 4
"""Float32 copies of the parameters while training with Adam: weights, gradients, first and second moment."""


@dataclass(frozen=True)
class NetworkDescription:
    """Cost of one pass of one image through a network.

    Args:
        output_sizes: name of each top level block and the shape of its output, in the order they run.
        parameters: trainable numbers.
        flops: floating point operations of one forward pass (a multiply-add counts as two).
        inference_bytes: peak of weights and activations, without gradients, float32.
        training_bytes: the same with activations kept for the backward pass, gradients and Adam's moments.
    """

    output_sizes: tuple[tuple[str, tuple[int, ...]], ...]
    parameters: int
    flops: int
    inference_bytes: int
    training_bytes: int

    def __str__(self) -> str:
        rows = [f"{name:<12} {' x '.join(map(str, size))}" for name, size in self.output_sizes]
        return "\n".join(
            (
                *rows,
                f"parameters   {self.parameters / 1e6:.2f} million",
                f"forward      {self.flops / 1e9:.1f} GFLOP",
                f"inference    {self.inference_bytes / 2**20:.0f} MiB, float32, estimated",
                f"training     {self.training_bytes / 2**20:.0f} MiB, float32 with Adam, estimated",
            )
        )


def describe(model: nn.Module, shape: Sequence[int]) -> NetworkDescription:
    """Measure `model` on an image of `shape` with PyTorch's meta device: nothing is computed, nothing changed.

    Args:
        model: a network that takes one tensor.
        shape: (B, C, i, j[, k]) of its input.

    Raises:
        ValueError: the network cannot take an image of this shape, or is TorchScript, into which nobody can look so.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("the network is a TorchScript program, whose layers tell neither sizes nor operations")
    model = copy.deepcopy(model).to("meta")
    parameters = sum(p.numel() for p in model.parameters())
    sizes: list[tuple[str, tuple[int, ...]]] = []
    hooks = [block.register_forward_hook(_recorder(sizes, name)) for name, block in _blocks_of(model)]
    try:
        image = torch.empty(tuple(shape), device="meta")
        with torch.no_grad(), _Fused(), FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
            model.eval()(image)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the network takes no image of shape {tuple(shape)}: {error}") from error
    for hook in hooks:
        hook.remove()
    with torch.no_grad(), _Fused(), LiveMemory() as inference:
        model.eval()(image)
    with _Fused(), LiveMemory() as training:
        outputs = model.train()(image)
        sum(output.sum() for output in tree_iter(outputs)).backward()
    weight_bytes = 4 * parameters
    return NetworkDescription(
        output_sizes=tuple(sizes),
        parameters=parameters,
        flops=counter.get_total_flops(),
        inference_bytes=inference.peak_bytes + weight_bytes,
        training_bytes=training.peak_bytes + OPTIMISER_COPIES * weight_bytes,
    )


def _blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the members of the lists a network is made of, or its children where it has no lists."""
    blocks = []
    for name, child in model.named_children():
        members = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        blocks += [(f"{name} {member}".strip(), block) for member, block in members]
    return blocks


def _recorder(sizes: list[tuple[str, tuple[int, ...]]], name: str) -> Callable[..., None]:
    def record(_module: nn.Module, _inputs: object, output: object) -> None:
        sizes.append((name, tuple(next(tensor for tensor in tree_iter(output) if tensor is not None).shape)))

    return record


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped


_FLOPS = {FUSED_ATTENTION: _attention_flops}


class _Fused(TorchFunctionMode):
    """Send attention to the kernel whose memory grows with the positions, not with their square."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # PyTorch's interface
        if func is F.scaled_dot_product_attention:
            return FUSED_ATTENTION(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    """Follow the bytes of all tensor storages alive at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        self.peak_bytes = 0
        self._live_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # PyTorch's interface
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # noqa: SLF001  # the only identity a storage has on the meta device
        if key in self._seen:
            return
        self._seen.add(key)
        self._live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._live_bytes -= size
