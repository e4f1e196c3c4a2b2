"""A network as a program of `torch.export`, from which ONNX and OpenVINO make their own."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

FEWEST_STEPS = 2
"""Steps along an axis that may vary; `torch.export` takes sizes of 0 and 1 for constants."""

IMAGE = "image"
"""Name of a program's only input, as in the metadata of bundles."""

PRED = "pred"
"""Name of its only output, the logits."""

TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")
"""Loggers that tell of every step of a conversion."""


@dataclass(frozen=True)
class Sizes:
    """Which windows a file takes, in batches of any size.

    Args:
        channels: of a window.
        window_vox: size of a window.
        multiples_vox: along each axis what other sizes are a multiple of; None where there are no others.
        smallest_vox: the smallest size along each axis.

    Raises:
        ValueError: the window is not among the sizes itself.
    """

    channels: int
    window_vox: tuple[int, ...]
    multiples_vox: tuple[int | None, ...]
    smallest_vox: tuple[int, ...]

    def __post_init__(self) -> None:
        for size, step, smallest in zip(self.window_vox, self.multiples_vox, self.smallest_vox, strict=True):
            if size % (step or size) or size < smallest:
                raise ValueError(f"a window of {size} voxels is no multiple of {step} from {smallest} on")

    @property
    def fixed_vox(self) -> tuple[int, ...]:
        """Return the size along each axis where it is the only one, 0 along the others."""
        return tuple(n if step is None else 0 for n, step in zip(self.window_vox, self.multiples_vox, strict=True))

    def __str__(self) -> str:
        """Return them as in `8n x 8n x 1 voxels`."""
        axes = [
            f"{fixed or ('' if step == 1 else step)}{'' if fixed else 'n'}"
            for fixed, step in zip(self.fixed_vox, self.multiples_vox, strict=True)
        ]
        return f"{' x '.join(axes)} voxels"


def of_one_shape(network: nn.Module, patch: torch.Tensor) -> ExportedProgram:
    """Return a program for windows of the shape of a patch, batch included."""
    with torch.no_grad(), quiet():
        return torch.export.export(network, (patch,))


def of_many_sizes(network: nn.Module, sizes: Sizes) -> ExportedProgram:
    """Return a program for batches of any size and windows of many.

    Args:
        network: in evaluation mode, on the CPU; one tensor in, one out.
        sizes: of windows.

    Raises:
        RuntimeError: `torch.export` cannot follow the network, or not for all these sizes.
    """
    dims: dict[int, Any] = {0: Dim("batch")}
    for axis, (step, smallest) in enumerate(zip(sizes.multiples_vox, sizes.smallest_vox, strict=True)):
        if step is not None:
            steps = Dim(f"steps_{axis}", min=smallest // step)
            dims[axis + 2] = step * steps if step > 1 else steps
    size = (n + (step or 0) for n, step in zip(sizes.smallest_vox, sizes.multiples_vox, strict=True))
    example = torch.zeros(2, sizes.channels, *size)  # is kept in the file, so a small one
    with torch.no_grad(), quiet():
        return torch.export.export(network, (example,), dynamic_shapes=(dims,))


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings of conversions, which tell of operators that no network here has."""
    root = logging.getLogger()
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in TALKATIVE}
    for logger in levels:
        logger.setLevel(logging.ERROR)

    def is_grave(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    root.addFilter(is_grave)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(is_grave)
        for logger, level in levels.items():
            logger.setLevel(level)
