"""An ignite handler that watches losses, gradients and gates while a network trains, and says what goes wrong."""

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle
from torch.utils.tensorboard import SummaryWriter

from voxelgate.networks import AttentionGate
from voxelgate.training.distributed import rank

logger = logging.getLogger(__name__)

VANISHING = 1e-6
"""A layer learns nothing whose gradient, as root mean square, is below this part of the largest layer's."""

EXPLODING = 100.0
"""Factor between the norm of all gradients and its usual value, the median of the checks before."""

DEAD_RANGE = 0.01
"""A gate whose values in a whole batch differ by less gates nothing."""

PATIENCE = 10
"""Checks in a row before a warning, and checks that make a usual value; one step alone says little."""

MEMORY = 50
"""Checks whose median is the usual norm."""


@dataclass(frozen=True)
class GateValues:
    """What a gate let through in one batch.

    Args:
        low: least coefficient.
        mean: of all coefficients.
        high: largest coefficient.
    """

    low: float
    mean: float
    high: float


@dataclass
class TrainingHealth:
    """Judge one check after the other; every sentence comes once for each layer or gate.

    Args:
        vanishing: part of the largest layer's gradient below which a layer learns nothing.
        exploding: factor above the usual norm.
        dead_range: range of its values below which a gate is dead.
        patience: checks in a row.
    """

    vanishing: float = VANISHING
    exploding: float = EXPLODING
    dead_range: float = DEAD_RANGE
    patience: int = PATIENCE
    _usual: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))
    _streaks: dict[str, int] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def of_gradients(self, layers: Mapping[str, float], total: float) -> list[str]:
        """Return what is wrong with the gradients.

        Args:
            layers: root mean square of each layer's gradient.
            total: norm of all gradients, finite.
        """
        largest = max(layers.values(), default=0.0)
        found = [
            f"the gradient of {name} vanishes, {value:.1e} against {largest:.1e} in the largest layer: it does not "
            "learn; look for a saturated activation in front of it, or use a norm"
            for name, value in layers.items()
            if self._lasts(f"vanishing {name}", is_so=value < self.vanishing * largest)
        ]
        usual = median(self._usual) if len(self._usual) >= self.patience else math.inf
        self._usual.append(total)
        if total > self.exploding * usual and self._is_new("exploding"):
            found.append(
                f"the gradients explode, norm {total:.1e} against {usual:.1e} before: lower the learning rate, or look "
                "at the cases of this batch"
            )
        return found

    def of_gates(self, gates: Mapping[str, GateValues]) -> list[str]:
        """Return which gates are dead."""
        return [
            f"{name} is dead, its coefficients lie between {gate.low:.3f} and {gate.high:.3f}: all voxels weigh alike; "
            "supervise the gates, or train without this one"
            for name, gate in gates.items()
            if self._lasts(f"dead {name}", is_so=gate.high - gate.low < self.dead_range)
        ]

    def _lasts(self, sign: str, *, is_so: bool) -> bool:
        """Count a sign; return whether it has been there for `patience` checks in a row, once."""
        self._streaks[sign] = self._streaks.get(sign, 0) + 1 if is_so else 0
        return self._streaks[sign] >= self.patience and self._is_new(sign)

    def _is_new(self, sign: str) -> bool:
        is_new = sign not in self._told
        self._told.add(sign)
        return is_new


class WatchTraining:
    """Follow the gradients of every layer and the coefficients of every gate: in TensorBoard, with warnings in the log.

    Training goes on after a warning. Where a loss or a gradient is no number, the cases that made it are named;
    `voxelgate.training.handlers.StopOnBadLoss` then ends the training.

    Args:
        network: that is trained, not its wrapper for several processes.
        log_dir: folder of the TensorBoard events, shared with other handlers.
        interval: steps from one check of layers and gates to the next.
        health: what counts as wrong.

    >>> network = vg.AttentionUNet(in_channels=1, out_channels=2, channels=(8, 16))
    >>> watch = vg.WatchTraining(network=network, log_dir="events")
    """

    def __init__(
        self, *, network: nn.Module, log_dir: str | Path, interval: int = 10, health: TrainingHealth | None = None
    ) -> None:
        self.network = network
        self.interval = interval
        self.health = health or TrainingHealth()
        self.writer = SummaryWriter(str(log_dir)) if rank() == 0 else None
        self._has_bad_gradient = False
        self._gates: dict[str, GateValues] = {}
        self._hooks: list[RemovableHandle] = []

    def attach(self, engine: Engine) -> None:
        """Listen to each step of a MONAI trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._listen)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._check_gradients)

    def _listen(self, engine: Engine) -> None:
        if engine.state.iteration % self.interval:
            return
        for name, module in self.network.named_modules():
            if isinstance(module, AttentionGate):
                self._hooks.append(module.register_forward_hook(self._recorder(name)))

    def _recorder(self, name: str) -> Any:  # PyTorch's type of a hook is private
        def record(_gate: nn.Module, _inputs: object, alpha: torch.Tensor) -> None:
            values = torch.stack((alpha.amin(), alpha.mean(dtype=torch.float32).to(alpha.dtype), alpha.amax()))
            self._gates[name] = GateValues(*values.detach().tolist())

        return record

    def _check_loss(self, engine: Engine) -> None:
        if not math.isfinite(float(engine.state.output["loss"].detach())):
            logger.warning("step %d: the loss is no number; %s", engine.state.iteration, _blame(engine, self.network))

    def _check_gradients(self, engine: Engine) -> None:
        scaler = getattr(engine, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        total = float(nn.utils.get_total_norm(gradients)) / scale
        if not math.isfinite(total):
            if scaler is None and not self._has_bad_gradient:  # a scaler tries its scale, and leaves such steps out
                self._has_bad_gradient = True
                worst = next(name for name, value in layer_gradients(self.network).items() if not math.isfinite(value))
                logger.warning(
                    "step %d: the gradient of %s is infinite or no number, on %s; look at these cases, lower the "
                    "learning rate, or train in float32",
                    engine.state.iteration,
                    worst,
                    ", ".join(_case_ids(engine)),
                )
        elif engine.state.iteration % self.interval == 0:
            layers = {name: value / scale for name, value in layer_gradients(self.network).items()}
            self._tell(engine.state.iteration, layers, total)
        while self._hooks:
            self._hooks.pop().remove()

    def _tell(self, step: int, layers: Mapping[str, float], total: float) -> None:
        for sentence in (*self.health.of_gradients(layers, total), *self.health.of_gates(self._gates)):
            logger.warning("step %d: %s", step, sentence)
        if self.writer is None:
            return
        scalars = {f"gradient/{name}": value for name, value in layers.items()} | {"gradient_norm": total}
        for name, gate in self._gates.items():
            scalars |= {f"gate_mean/{name}": gate.mean, f"gate_range/{name}": gate.high - gate.low}
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()


def layer_gradients(network: nn.Module) -> dict[str, float]:
    """Return the root mean square of the gradient of every layer that can learn; 0 for one that got none."""
    names, squares = [], []
    for name, layer in network.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        if own:
            norms = [p.new_zeros(()) if p.grad is None else p.grad.detach().square().sum() for p in own]
            names.append(name or type(layer).__name__)
            squares.append(torch.stack(norms).sum() / sum(p.numel() for p in own))
    return dict(zip(names, torch.stack(squares).sqrt().tolist(), strict=True)) if names else {}


@torch.no_grad()
def _blame(engine: Engine, network: nn.Module) -> str:
    """Say what made a loss that is no number: the weights, an image, or a case that the network cannot take alone."""
    if not all(p.isfinite().all() for p in network.parameters()):
        return "the weights have been none since an earlier step: lower the learning rate"
    names = _case_ids(engine)
    images, labels = engine.state.output["image"], engine.state.output["label"]
    damaged = [name for name, image in zip(names, images, strict=False) if not image.isfinite().all()]
    if damaged:
        return f"the images of {', '.join(damaged)} have voxels that are NaN or infinite: repair or leave them out"
    losses = [
        float(engine.loss_function(_run_alone(engine, network, images[i : i + 1]), labels[i : i + 1]).mean())
        for i in range(len(images))
    ]
    alone = [name for name, loss in zip(names, losses, strict=False) if not math.isfinite(loss)]
    if alone:
        return f"{', '.join(alone)} made it: look at image and label"
    return f"no case alone makes it, {', '.join(names)} together do: lower the learning rate"


def _case_ids(engine: Engine) -> Sequence[str]:
    batch = engine.state.batch
    ids = batch.get("case_id") if isinstance(batch, Mapping) else None
    return [str(case) for case in ids] if ids else [f"case {i} of the batch" for i in range(len(batch["image"]))]


@torch.no_grad()
def _run_alone(engine: Engine, network: nn.Module, image: torch.Tensor) -> Any:  # what the inferer returns
    """Run one case with copies of the statistics of norms, which another case may have spoilt; none are kept."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return engine.inferer(image, lambda inputs: functional_call(network, buffers, (inputs,)))
