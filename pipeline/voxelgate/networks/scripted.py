"""A network that is a TorchScript file, whatever Python it was written in."""

import os

import torch
from torch import Tensor, nn


class ScriptedNetwork(nn.Module):
    """A TorchScript program as a network.

    A program runs no Python, but it can write files. `voxelgate import` looks for that before it makes a bundle of one;
    load no other file that you do not trust.

    Args:
        path: of the file; it is loaded to the CPU, with its own weights.

    Raises:
        RuntimeError: the file is none that this PyTorch reads.
        ValueError: there is no such file.

    >>> import torch
    >>> torch.jit.script(torch.nn.ReLU()).save("network.ts")
    >>> vg.ScriptedNetwork(path="network.ts")(torch.tensor([-1.0, 1.0]))
    tensor([0., 1.])
    """

    def __init__(self, *, path: str | os.PathLike[str]) -> None:
        super().__init__()
        program = torch.jit.load(os.fspath(path), map_location="cpu")  # type: ignore[no-untyped-call]  # PyTorch's
        self.program = program.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return what the program gives for an image."""
        logits: Tensor = self.program(image)
        return logits
