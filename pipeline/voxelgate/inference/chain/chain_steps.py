"""The steps of a MONAI bundle after its network, in their order, and what they decide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import torch

from voxelgate.core.errors import UsageError

LabelStep: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Takes and gives labels (1, i, j, k)."""

MOST_CHANNELS = 30
"""Channels that may overlap take one bit each of an int32."""

BYTE_VALUES = 256


class ChainStep(StrEnum):
    """A step of ours; any other is a component that changes labels."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    ARGMAX = "argmax"
    INVERT = "invert"
    INVERT_NEAREST = "invert_nearest"


@dataclass(frozen=True)
class Decision:
    """What class scores become.

    Args:
        activation: before the decision and after the scores were brought back; None if there is none.
        threshold: channels at least as high are on; None for the first of the highest channels.
        regions: (channel, label) of channels that overlap; the first one that is on gives the label.

    Raises:
        UsageError: a threshold without regions or regions without a threshold, no region, or a number out of range.
    """

    activation: ChainStep | None = None
    threshold: float | None = None
    regions: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if (self.threshold is None) != (not self.regions):
            raise UsageError("a threshold and regions belong together: say which label each channel that is on gives.")
        if self.regions and self.activation is ChainStep.SOFTMAX:
            raise UsageError("a threshold behind a late softmax: channels that overlap have a sigmoid.")
        if any(not 0 <= channel < MOST_CHANNELS or label < 1 for channel, label in self.regions):
            raise UsageError(
                f"regions {list(self.regions)}: expected pairs of a channel, 0 to {MOST_CHANNELS - 1}, and a label "
                "above 0."
            )

    def codes(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the decision of each voxel: a class, or one bit for each channel that is on.

        Args:
            scores: (classes, ...) float32, as they are after the scores were brought back.

        Returns:
            (...), uint8, or int32 where it would not do.
        """
        values = activated(scores, self.activation)
        if self.threshold is None:
            return values.argmax(dim=0).to(code_type(len(values)))
        codes = torch.zeros(values.shape[1:], dtype=code_type(2 ** len(values)), device=values.device)
        for bit, channel in enumerate(values):
            codes |= (channel >= self.threshold).to(codes.dtype) << bit
        return codes

    def labels(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the labels of decisions, uint8, or int32 where one lies above 255."""
        if self.threshold is None:
            return codes
        highest = max(label for _, label in self.regions)
        labels = torch.zeros(codes.shape, dtype=code_type(highest + 1), device=codes.device)
        for channel, label in reversed(self.regions):
            labels[(codes >> channel) & 1 == 1] = label
        return labels

    @property
    def outside_label(self) -> int:
        """Return the label where all scores are 0, as MONAI pads them where a crop is taken back."""
        channels = 1 + max((channel for channel, _ in self.regions), default=0)
        return int(self.labels(self.codes(torch.zeros(channels, 1))))

    def refusal(self, channels: int) -> str | None:
        """Say why a network of so many channels cannot be decided on, or return None."""
        if self.threshold is None:
            return None if channels > 1 else "the network gives one channel, of which no class can be chosen"
        highest = max(channel for channel, _ in self.regions)
        if highest >= channels or channels > MOST_CHANNELS:
            return f"the network gives {channels} channels, but the regions name channel {highest}"
        return None


@dataclass(frozen=True, eq=False)
class StepChain:
    """Steps in their order.

    Args:
        activation: of the scores on the network grid.
        inversion: how scores are brought back to the source grid, to be decided on there; None if they are not.
        decision: what the scores become.
        label_steps: what is done with labels, on the network grid until `ChainStep.INVERT_NEAREST` brings them back.
    """

    activation: ChainStep | None
    inversion: ChainStep | None
    decision: Decision
    label_steps: tuple[LabelStep | ChainStep, ...]

    @classmethod
    def of(cls, steps: Sequence[str | Mapping[str, Any] | LabelStep]) -> "StepChain":
        """Return the chain that a config describes.

        Raises:
            UsageError: an unknown step, or an order that no labels can come of.
        """
        known = [_known_step(step) for step in steps]
        decided = [index for index, step in enumerate(known) if step is ChainStep.ARGMAX or isinstance(step, Decision)]
        inversions = [step for step in known if step in {ChainStep.INVERT, ChainStep.INVERT_NEAREST}]
        if len(decided) != 1 or len(inversions) > 1:
            raise UsageError(f"steps {_names(known)}: expected argmax or a threshold once, and at most one inversion.")
        first, last = known[: decided[0]], known[decided[0] + 1 :]
        return cls._between(first, known[decided[0]], last, _names(known))

    @classmethod
    def _between(cls, first: list[Any], decision: Any, last: list[Any], names: str) -> "StepChain":
        activations = [index for index, step in enumerate(first) if step in {ChainStep.SOFTMAX, ChainStep.SIGMOID}]
        inverted = [index for index, step in enumerate(first) if step in {ChainStep.INVERT, ChainStep.INVERT_NEAREST}]
        is_late = bool(inverted and activations) and activations[0] > inverted[0]
        if len(activations) > 1 or any(not isinstance(step, ChainStep) for step in first):
            raise UsageError(
                f"steps {names}: expected one activation at most, and components only behind the decision."
            )
        if ChainStep.INVERT in last or any(step in {ChainStep.SOFTMAX, ChainStep.SIGMOID} for step in last):
            raise UsageError(
                f"steps {names}: label numbers are neither interpolated nor activated; bring labels back with "
                "invert_nearest."
            )
        activation = first[activations[0]] if activations else None
        threshold, regions = (decision.threshold, decision.regions) if isinstance(decision, Decision) else (None, ())
        return cls(
            activation=None if is_late else activation,
            inversion=first[inverted[0]] if inverted else None,
            decision=Decision(activation if is_late else None, threshold, regions),
            label_steps=tuple(last),
        )


class Certainty:
    """The mean probability of each class where it is the likeliest, added up slab by slab."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None

    def add(self, probabilities: torch.Tensor) -> None:
        """Count some voxels, (classes, ...); the background has most of them and tells nothing."""
        highest, likeliest = probabilities.max(dim=0)
        found = likeliest > 0
        classes, values = likeliest[found].cpu(), highest[found].double().cpu()
        sums = [torch.bincount(classes, weight, len(probabilities)) for weight in (values, torch.ones_like(values))]
        self._sums = torch.stack(sums) if self._sums is None else self._sums + torch.stack(sums)

    def means(self) -> torch.Tensor | None:
        """Return the means (classes,) float32, NaN for the background and what is nowhere; None if nothing came."""
        return None if self._sums is None else (self._sums[0] / self._sums[1]).float()


def activated(scores: torch.Tensor, activation: ChainStep | None) -> torch.Tensor:
    """Return scores (classes, ...) after an activation, as MONAI's `Activations` gives them."""
    if activation is ChainStep.SOFTMAX:
        return torch.softmax(scores, dim=0)
    return torch.sigmoid(scores) if activation is ChainStep.SIGMOID else scores


def code_type(count: int) -> torch.dtype:
    """Return the smallest type that holds so many values, of those that PyTorch computes with."""
    return torch.uint8 if count <= BYTE_VALUES else torch.int32


def _known_step(step: str | Mapping[str, Any] | LabelStep) -> ChainStep | Decision | LabelStep:
    if isinstance(step, Mapping):
        if set(step) != {"threshold", "regions"}:
            raise UsageError(f"step {dict(step)}: expected a threshold and regions.")
        regions = tuple((int(channel), int(label)) for channel, label in step["regions"])
        return Decision(threshold=float(step["threshold"]), regions=regions)
    if isinstance(step, str):
        if step not in list(ChainStep):
            raise UsageError(f"step {step!r}: expected one of {', '.join(ChainStep)}, a threshold, or a component.")
        return ChainStep(step)
    return step


def _names(steps: Sequence[object]) -> str:
    return ", ".join(str(step) if isinstance(step, ChainStep) else type(step).__name__ for step in steps)
