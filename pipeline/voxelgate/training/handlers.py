"""Ignite handlers that MONAI's trainers lack: exact resume, a running average of the weights, time left.

Each goes into the `train_handlers` of any MONAI trainer and needs nothing else of this package.

Ignite's `EMAHandler` is not used: it blends by other arithmetic than `AveragedModel`, so that trainings would not
repeat earlier weights bit for bit. Its `Checkpoint` and `EarlyStopping` keep nothing of a training without validation.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.transforms import Randomizable
from torch import nn
from torch.utils.data import Sampler
from tqdm import tqdm

from voxelgate.core.errors import InputError, UsageError, reason_of
from voxelgate.training.distributed import UNREADABLE_STATE, rank, save_atomically, world_size

logger = logging.getLogger(__name__)

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]
MultiAverage = Callable[[Tensors, Tensors, torch.Tensor | int], None]

LENGTH_NAME = "epochs"
"""Of the setting in which a training that is taken up again may differ."""

SCHEDULE_LENGTH = "t_total"
"""Attribute of MONAI's `WarmupCosineSchedule` with its steps, which it keeps in its state."""

SEED_LIMIT = 2**32
"""NumPy takes seeds below this."""


class Stateful(Protocol):
    """Whatever can hand out its state and take it back: networks, optimisers, schedules, handlers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, readable with `torch.load(weights_only=True)`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take back what `state_dict` returned."""


class ShardedRandomSampler(Sampler[int]):
    """Draw a fixed number of cases an epoch, each as often as any other give or take one, shared between processes.

    The order is a function of seed and epoch alone; every process computes it and takes its own share.

    Args:
        cases: how many there are.
        samples: how many are drawn an epoch by each process.
        seed: of the whole run.

    Raises:
        UsageError: there is no case.

    >>> sampler = vg.ShardedRandomSampler(cases=3, samples=6, seed=0)
    >>> sorted(sampler)
    [0, 0, 1, 1, 2, 2]
    """

    def __init__(self, cases: int, samples: int, *, seed: int) -> None:
        if cases < 1:
            raise UsageError("there is no case to train on: the manifest or the chosen fold leaves none")
        self.cases = cases
        self.samples = samples
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Return the samples an epoch of one process."""
        return self.samples

    def __iter__(self) -> Iterator[int]:
        """Yield the case numbers of this process and epoch."""
        total = self.samples * world_size()
        first = self.epoch * total
        order: list[int] = []
        for lap in range(first // self.cases, math.ceil((first + total) / self.cases)):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + lap) % SEED_LIMIT)
            order += torch.randperm(self.cases, generator=generator).tolist()
        start = first % self.cases
        return iter(order[start + rank() : start + total : world_size()])


class SeedEpochs:
    """Make all randomness of an epoch a function of seed and epoch, so that a resumed run draws what it would have.

    Args:
        seed: of the whole run.
        sampler: told the epoch.
        transform: random transforms of the training data, seeded anew each epoch.

    >>> handler = vg.SeedEpochs(seed=0, sampler=vg.ShardedRandomSampler(cases=3, samples=6, seed=0))
    >>> handler.attach(Engine(lambda engine, batch: None))
    """

    def __init__(self, *, seed: int, sampler: ShardedRandomSampler, transform: Randomizable | None = None) -> None:
        self.seed = seed
        self.sampler = sampler
        self.transform = transform

    def attach(self, engine: Engine) -> None:
        """Listen to the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed PyTorch and the transforms, and tell the sampler the epoch."""
        epoch = engine.state.epoch - 1
        seed = (self.seed * 7919 + epoch * world_size() + rank()) % SEED_LIMIT
        torch.manual_seed(seed)
        self.sampler.epoch = epoch
        if self.transform is not None:
            self.transform.set_random_state(seed=seed)


class UpdateAverage:
    """Update an `AveragedModel` after every step; a running average of weights validates better than the last ones.

    Args:
        averaged: a `torch.optim.swa_utils.AveragedModel`.
        network: the network that is being trained.

    >>> network = torch.nn.Conv3d(1, 2, 1)
    >>> handler = vg.UpdateAverage(averaged=torch.optim.swa_utils.AveragedModel(network), network=network)
    >>> handler.attach(Engine(lambda engine, batch: None))
    """

    def __init__(self, *, averaged: torch.optim.swa_utils.AveragedModel, network: nn.Module) -> None:
        self.averaged = averaged
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Listen to each step."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:  # noqa: ARG002  # ignite's interface
        """Blend the new weights in."""
        self.averaged.update_parameters(self.network)


def growing_average(decay: float) -> MultiAverage:
    """Return how `AveragedModel` blends: a running average, over no more than a tenth of the steps so far.

    A training that turns out shorter than planned is then averaged over as much less, and keeps nothing of its first
    weights (as `num_updates` of TensorFlow's `ExponentialMovingAverage`).

    Args:
        decay: of the average, once there were so many steps.

    >>> network = torch.nn.Conv3d(1, 2, 1)
    >>> averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=vg.growing_average(0.995))
    """

    def blend(averaged: Tensors, new: Tensors, count: torch.Tensor | int) -> None:
        steps = int(count)
        reached = min(decay, (1 + steps) / (10 + steps))
        one = torch.optim.swa_utils.get_ema_multi_avg_fn(reached)  # type: ignore[no-untyped-call]  # PyTorch types none
        one(averaged, new, count)

    return blend


class ValidateEpochs:
    """Measure the network every few epochs, and after the last one, whichever it turns out to be.

    Args:
        validator: measures it.
        interval: epochs between.

    >>> validator = Engine(lambda engine, batch: None)
    >>> vg.ValidateEpochs(validator=validator, interval=5).attach(Engine(lambda engine, batch: None))
    """

    def __init__(self, *, validator: Evaluator, interval: int) -> None:
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Listen to the end of each epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Validate if it is time to."""
        epoch = engine.state.epoch
        if epoch % self.interval == 0 or epoch >= engine.state.max_epochs:
            self.validator.run(epoch)


class StopOnBadLoss:
    """End the training with one sentence when the loss is no longer a number, naming the cases of that batch.

    >>> trainer = Engine(lambda engine, batch: {"loss": torch.tensor(0.5)})
    >>> vg.StopOnBadLoss().attach(trainer)
    >>> trainer.run([0]).iteration
    1
    """

    def attach(self, engine: Engine) -> None:
        """Listen to each step."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss of this step.

        Raises:
            InputError: the loss is infinite or not a number.
        """
        loss = _loss(engine)
        if not math.isfinite(loss):
            cases = ", ".join(str(case) for case in engine.state.batch.get("case_id", ["unnamed cases"]))
            raise InputError(
                f"the loss became {loss} at step {engine.state.iteration} on {cases}; look at these images, or "
                "lower the learning rate"
            )


class KeepBest:
    """Save the weights whenever the validation measure is the best so far; stop when it no longer improves.

    A training that ends without any validation, or with none that gave a number, keeps its last weights. So does one
    whose measure has always been 0, which is what MONAI gives too where no case holds any structure.

    Args:
        path: where the plain state dict goes, written atomically.
        network: whose weights are kept.
        validator: its `state.metrics[metric]` is compared, after it has run.
        metric: name of the measure; higher is better.
        patience: end the training after this many validations without a better one; 0 never does.

    >>> validator = Engine(lambda engine, batch: None)
    >>> best = vg.KeepBest(path="best.pt", network=torch.nn.Conv3d(1, 2, 1), validator=validator)
    >>> best.attach(Engine(lambda engine, batch: None))
    """

    def __init__(
        self,
        *,
        path: str | Path,
        network: nn.Module,
        validator: Engine,
        metric: str = "val_mean_dice",
        patience: int = 0,
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.validator = validator
        self.metric = metric
        self.patience = patience
        self.best = -math.inf
        self.best_epoch = 0
        self.stale = 0
        self.history: list[list[float]] = []
        self._seen_runs = 0

    def attach(self, engine: Engine) -> None:
        """Listen to the end of each epoch; put this handler behind the one that validates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._end_if_stale)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._save_if_never_best)
        self.validator.add_event_handler(Events.COMPLETED, self._count)

    def state_dict(self) -> dict[str, Any]:
        """Return best value, its epoch, how many validations came since, and epoch and value of all of them."""
        return {"best": self.best, "best_epoch": self.best_epoch, "stale": self.stale, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.best, self.best_epoch, self.stale = (state_dict[key] for key in ("best", "best_epoch", "stale"))
        self.history = [list(one) for one in state_dict.get("history", [])]

    def __call__(self, engine: Engine) -> None:
        """Compare, save, count, and perhaps end the training."""
        if self._seen_runs == 0:
            return
        self._seen_runs = 0
        value = float(self.validator.state.metrics[self.metric])
        self.history.append([float(engine.state.epoch), value])
        self.stale += 1
        if value > self.best:
            self.best, self.best_epoch, self.stale = value, engine.state.epoch, 0
            self._save()
        elif value == self.best == 0:
            self.best_epoch = engine.state.epoch
            self._save()
        if self._is_stale():
            logger.info(
                "no better validation in %d tries: training ends after epoch %d", self.stale, engine.state.epoch
            )
            engine.terminate()

    def _is_stale(self) -> bool:
        return 0 < self.patience <= self.stale

    def _end_if_stale(self, engine: Engine) -> None:
        """End a training that is taken up again although it had ended."""
        if self._is_stale():
            engine.terminate()

    def _count(self, engine: Engine) -> None:  # noqa: ARG002  # ignite's interface
        self._seen_runs += 1

    def _save_if_never_best(self, engine: Engine) -> None:
        if self.best_epoch == 0:
            logger.warning("no validation gave a measure: keeping the weights of epoch %d", engine.state.epoch)
            self._save()

    def _save(self) -> None:
        if rank() == 0:
            weights = {name: tensor.contiguous().cpu() for name, tensor in self.network.state_dict().items()}
            save_atomically(weights, self.path)


class ResumeState:
    """Save everything a training needs after each epoch, and go on from there: the same weights as without a break.

    Together with `SeedEpochs` the random state needs no saving: it follows from the epoch. The weights are the same
    with as many threads on such a machine; others take sums in another order. A training may go on to more epochs than
    it was meant to have, on the schedule of the new length.

    Args:
        path: of the state, written atomically; readable with `torch.load(weights_only=True)`.
        objects: what has a state: network, average, optimiser, schedule, `KeepBest`.
        identity: settings that must be equal when a run is taken up again, but for "epochs".
        resume: take up the run at `path`; otherwise a state that lies there is refused.

    >>> state = vg.ResumeState(path="state.pt", objects={"network": torch.nn.Conv3d(1, 2, 1)}, identity={"seed": 0})
    """

    def __init__(
        self,
        *,
        path: str | Path,
        objects: Mapping[str, Stateful],
        identity: Mapping[str, str | int | float | bool],
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.objects = objects
        self.identity = dict(identity)
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Listen to start and to the end of each epoch; put this handler last."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Write the state of all objects, from the first process only."""
        if rank() != 0:
            return
        content: dict[str, Any] = {name: thing.state_dict() for name, thing in self.objects.items()}
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            content["scaler"] = scaler.state_dict()
        save_atomically(content | {"epoch": engine.state.epoch, "identity": self.identity}, self.path)

    def load(self, engine: Engine) -> None:
        """Read the state if there is one.

        Raises:
            UsageError: a state is there and `resume` was not asked for, or it belongs to other settings, or is none.
        """
        if not self.path.is_file():
            return
        if not self.resume:
            raise UsageError(f"{self.path} holds an earlier run: resume it (--resume), or train into another folder")
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            self._refuse_other(content["identity"])
            for name, thing in self.objects.items():
                thing.load_state_dict(_with_own_length(content[name], thing))
            if "scaler" in content and getattr(engine, "scaler", None) is not None:
                engine.scaler.load_state_dict(content["scaler"])
            engine.state.epoch = content["epoch"]
        except UNREADABLE_STATE as error:
            raise UsageError(
                f"{self.path} cannot be taken up ({reason_of(error)}): train anew, without resume or elsewhere"
            ) from error
        engine.state.iteration = content["epoch"] * engine.state.epoch_length
        logger.info("resuming after epoch %d of %d", engine.state.epoch, engine.state.max_epochs)
        self._tell_length(content["identity"], engine)

    def _tell_length(self, saved: Mapping[str, Any], engine: Engine) -> None:
        before, now = saved.get(LENGTH_NAME), self.identity.get(LENGTH_NAME)
        if before == now or before is None or now is None:
            return
        if engine.state.epoch > engine.state.max_epochs:
            raise UsageError(
                f"{self.path} holds {engine.state.epoch} epochs, more than {now}: give as many at least, or train into "
                "another folder"
            )
        logger.warning(
            "the training goes on to epoch %s instead of %s, from here on with the learning rates of that length: its "
            "weights are not those of one training of %s epochs",
            now,
            before,
            now,
        )

    def _refuse_other(self, saved: Mapping[str, Any]) -> None:
        for name in sorted((self.identity.keys() | saved.keys()) - {LENGTH_NAME}):
            if self.identity.get(name) != saved.get(name):
                raise UsageError(
                    f"{self.path} was made with {name}={saved.get(name)}, not {self.identity.get(name)}: "
                    "resume with the same settings, or train into another folder"
                )


def _with_own_length(state: dict[str, Any], thing: Stateful) -> dict[str, Any]:
    """Return a state in which a schedule has the length that it was made for now."""
    length = getattr(thing, SCHEDULE_LENGTH, None)
    return state if length is None else state | {SCHEDULE_LENGTH: length}


TELL_EVERY_S = 30.0
"""How often a log says how far an epoch is; one of hours would else look like a process that hangs."""


class ShowProgress:
    """Show a bar with the time left on a terminal, and log lines everywhere: one an epoch, and every half minute.

    Args:
        validator: its metrics are shown.
        metrics: names of the metrics to show.

    >>> vg.ShowProgress().attach(Engine(lambda engine, batch: {"loss": torch.tensor(0.5)}))
    """

    def __init__(self, *, validator: Engine | None = None, metrics: Sequence[str] = ("val_mean_dice",)) -> None:
        self.validator = validator
        self.metrics = tuple(metrics)
        self._losses: list[float] = []
        self._bar: tqdm[Any] | None = None
        self._started_s = self._told_s = 0.0
        self._first_epoch = 1

    def attach(self, engine: Engine) -> None:
        """Listen to steps and epochs; put this handler behind the one that validates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._summarise)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    def _open(self, engine: Engine) -> None:
        self._losses = []
        if self._bar is None:
            self._started_s = self._told_s = time.monotonic()
            self._first_epoch = engine.state.epoch
            total = engine.state.max_epochs * engine.state.epoch_length
            done = (engine.state.epoch - 1) * engine.state.epoch_length
            is_shown = sys.stderr.isatty() and rank() == 0
            self._bar = tqdm(total=total, initial=done, unit="step", desc="training", disable=not is_shown)

    def _step(self, engine: Engine) -> None:
        self._losses.append(_loss(engine))
        if self._bar is not None:
            self._bar.update()
        if time.monotonic() - self._told_s >= TELL_EVERY_S and rank() == 0:
            self._tell(engine)

    def _tell(self, engine: Engine) -> None:
        """Say how far the training is, and how long it will take if validation takes no time."""
        self._told_s = time.monotonic()
        steps = engine.state.epoch_length
        done = engine.state.iteration - (self._first_epoch - 1) * steps
        left_s = (engine.state.max_epochs * steps - engine.state.iteration) * (self._told_s - self._started_s) / done
        step = (engine.state.iteration - 1) % steps + 1
        text = "epoch %d of %d: step %d of %d, loss %.4f, %.1f minutes left"
        logger.info(text, engine.state.epoch, engine.state.max_epochs, step, steps, self._losses[-1], left_s / 60)

    def _summarise(self, engine: Engine) -> None:
        values = {"loss": sum(self._losses) / max(1, len(self._losses))}
        if self.validator is not None and self.validator.state.metrics:
            values |= {name: float(self.validator.state.metrics[name]) for name in self.metrics}
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        epoch, epochs = engine.state.epoch, engine.state.max_epochs
        epoch_s = (time.monotonic() - self._started_s) / (epoch - self._first_epoch + 1)
        logger.info("epoch %d of %d: %s, %.1f minutes left", epoch, epochs, text, (epochs - epoch) * epoch_s / 60)

    def _close(self, engine: Engine) -> None:  # noqa: ARG002  # ignite's interface
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _close_and_raise(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error


def _loss(engine: Engine) -> float:
    """Return the loss of the last step; MONAI's output is a list once it was decollated."""
    output = engine.state.output
    return float((output[0] if isinstance(output, list) else output)["loss"].detach())
