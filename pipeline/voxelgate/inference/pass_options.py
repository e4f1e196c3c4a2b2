"""What a run asks of the pass of a network over an image, in a module that asks nothing of PyTorch."""

from dataclasses import dataclass
from typing import Any

from voxelgate.core.errors import UsageError


@dataclass(frozen=True)
class PassOptions:
    """What is asked of the pass of a network over an image; by default what the bundle does.

    Args:
        fast: leave exactness to the last voxel for speed.
        step_size: at which part of a window the next one begins; None for the bundle's.
        mirroring: average over mirrored images, if the bundle does.
        roi_subset: names of the structures that are looked for; empty for all.

    Raises:
        UsageError: a step that is none, or a structure that is named twice.
    """

    fast: bool = False
    step_size: float | None = None
    mirroring: bool = True
    roi_subset: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.step_size is not None and not 0 < self.step_size <= 1:
            raise UsageError(f"--step-size {self.step_size:g}: expected a part of the window, above 0 and up to 1.")
        if len(set(self.roi_subset)) != len(self.roi_subset) or not all(self.roi_subset):
            raise UsageError("--roi-subset names a structure twice or not at all; name each once, as in liver,spleen.")

    @property
    def changes(self) -> dict[str, Any]:
        """Return the options that are not those of the bundle, as JSON holds them, by the names of the command."""
        return {
            **({"fast": True} if self.fast else {}),
            **({} if self.step_size is None else {"step_size": self.step_size}),
            **({} if self.mirroring else {"no_mirroring": True}),
            **({"roi_subset": sorted(self.roi_subset)} if self.roi_subset else {}),
        }
