"""A training keeps the minutes that were granted: it measures its pace, and does fewer or more steps than planned."""

import bisect
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch.optim.lr_scheduler import LRScheduler

from voxelgate.training.distributed import first_says, rank
from voxelgate.training.handlers import SCHEDULE_LENGTH
from voxelgate.training.planning.rules import MOST_CLOSING_SHARE

logger = logging.getLogger(__name__)

EARLIEST, AIM, LATEST = 0.93, 0.98, 1.04
"""Parts of the minutes. While a training would end between the first and the last, its steps stay as planned, so that a
free machine repeats it; else they become those that end at the one between."""

LEARN_SHARE, LEARN_STEPS_SHARE = 0.04, 1 / 4
"""Part of the minutes over which a pace is measured, and part of the steps left after which it is in any case."""

SHORTEST_EPOCH = 0.1
"""Part of an epoch that is worth one; after fewer steps there would be a validation again."""


class KeepTime:
    """End a training when its minutes are over, validations and all, with a schedule that is done by then.

    The planned steps stand while they end on time. Otherwise fewer or more are left, and the learning rate goes through
    the rest of its schedule in as many, without a jump. Of processes that train together the first decides. A training
    that is taken up again has the time that it had left.

    Args:
        minutes: by the clock, from `started_s` until all is saved and measured; None keeps to the planned steps.
        schedule: of the learning rate; goes on with each step, `t_total` in all.
        validator: runs between epochs.
        interval: epochs between its runs.
        closing: what follows the last step, in runs of the validator; at most a quarter of the minutes is kept.
        started_s: when the training began to read, by `time.monotonic()`; now if None.

    >>> optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    >>> schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    >>> clock = vg.KeepTime(minutes=30, schedule=schedule, validator=Engine(lambda engine, batch: None))
    >>> clock.attach(Engine(lambda engine, batch: None))
    """

    def __init__(
        self,
        *,
        minutes: float | None,
        schedule: LRScheduler,
        validator: SupervisedEvaluator,
        interval: int = 1,
        closing: float = 0.0,
        started_s: float | None = None,
    ) -> None:
        self.granted_s = None if minutes is None else 60 * minutes
        self.schedule = schedule
        self.validator = validator
        self.interval = interval
        self.closing = closing
        self.steps = 0
        self._started_s = time.monotonic() if started_s is None else started_s
        self._pace = _Pace()
        self._rate = 1.0
        self._first = 0

    def attach(self, engine: Engine) -> None:
        """Listen to start and steps; put this handler last, behind the one that takes a training up again."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self._go_on)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)
        self.validator.add_event_handler(Events.STARTED, self._pace.begin_validation)
        self.validator.add_event_handler(Events.COMPLETED, self._pace.end_validation)

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps the training is to have, and how long it has taken so far."""
        return {"steps": self.steps, "spent_s": self._spent_s()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.steps = int(state_dict["steps"])
        self._started_s -= float(state_dict["spent_s"])

    def _spent_s(self) -> float:
        return time.monotonic() - self._started_s

    def _begin(self, engine: Engine) -> None:
        done, planned = engine.state.iteration, engine.state.max_epochs * engine.state.epoch_length
        if self.granted_s is None:
            self.steps = planned
            if hasattr(self.schedule, SCHEDULE_LENGTH):
                self.schedule.last_epoch = done  # where a clock has been before, and is not any more
            return
        self._first = done
        self._lay_out(self.steps or planned, engine, done)
        if done < self.steps:
            self._pace.validation_s = _probed_s(self.validator)

    def _go_on(self, engine: Engine) -> None:
        """Look at the clock, and let the schedule go faster or slower than by one a step."""
        done = engine.state.iteration - 1
        if self.granted_s is not None:
            steps = first_says(self._decide(self.granted_s, engine.state.epoch_length, done) if rank() == 0 else 0)
            if steps != self.steps:
                self._tell(steps)
                self._lay_out(steps, engine, done)
        if self._rate != 1:
            self.schedule.last_epoch += self._rate - 1  # type: ignore[assignment]  # the schedules take parts of steps

    def _end(self, engine: Engine) -> None:
        state = engine.state
        if self.granted_s is not None and state.iteration >= self.steps and state.iteration % state.epoch_length:
            engine.terminate_epoch()

    def _lay_out(self, steps: int, engine: Engine, done: int) -> None:
        """Make the training so many steps long, and bring its schedule to an end by then."""
        self.steps = steps
        engine.state.max_epochs = math.ceil(steps / engine.state.epoch_length)
        length = getattr(self.schedule, SCHEDULE_LENGTH, None)
        if length is not None:
            self._rate = max(0, length - self.schedule.last_epoch) / max(1, steps - done)

    def _tell(self, steps: int) -> None:
        if rank() == 0 and self.granted_s is not None:
            logger.info(
                "%d steps instead of %d, so that the training takes its %.3g minutes: a step takes %.2f s here, a "
                "validation %.0f s",
                steps,
                self.steps,
                self.granted_s / 60,
                self._pace.step_s,
                self._pace.validation_s,
            )

    def _decide(self, granted_s: float, epoch_length: int, done: int) -> int:
        """Return how many steps the training is to have."""
        if done <= self._first + 1:  # the first step of a process prepares what the others find prepared
            self._pace.mark(done)
            return self.steps
        steps, taken_s = self._pace.since_mark(done)
        is_long = taken_s >= LEARN_SHARE * granted_s or steps >= LEARN_STEPS_SHARE * (self.steps - done + steps)
        if not is_long or taken_s == 0:
            return self.steps
        self._pace.learn(done)
        return self._fitting(granted_s, epoch_length, done)

    def _fitting(self, granted_s: float, epoch_length: int, done: int) -> int:
        """Return the steps of the training if they end on time, else the most that do."""
        pace, spent_s = self._pace, self._spent_s()
        closing_s = min(self.closing * pace.validation_s, MOST_CLOSING_SHARE * granted_s)

        def end_s(steps: int) -> float:
            runs = _validations(done, steps, epoch_length, self.interval)
            return spent_s + (steps - done) * pace.step_s + runs * pace.validation_s + closing_s

        if EARLIEST * granted_s <= end_s(self.steps) <= LATEST * granted_s:
            return self.steps
        most = done + 1 + int(max(0.0, granted_s - spent_s) / pace.step_s)
        steps = done + max(1, bisect.bisect_right(range(done + 1, most + 1), AIM * granted_s, key=end_s))
        rest = steps % epoch_length
        return steps - rest if rest < SHORTEST_EPOCH * epoch_length and steps - rest > done else steps


class _Pace:
    """What a step and a validation take here.

    Args:
        step_s: mean of what was measured last and before, which counts half as much with each time.
        validation_s: the last one; before there was any, what it will take by the time of one case.
    """

    def __init__(self) -> None:
        self.step_s = 0.0
        self.validation_s = 0.0
        self._validated_s = 0.0
        self._began_s = 0.0
        self._mark = 0, 0.0

    def begin_validation(self, _: Engine) -> None:
        self._began_s = time.monotonic()

    def end_validation(self, _: Engine) -> None:
        self.validation_s = time.monotonic() - self._began_s
        self._validated_s += self.validation_s

    def mark(self, done: int) -> None:
        """Count from here."""
        self._mark = done, time.monotonic() - self._validated_s

    def since_mark(self, done: int) -> tuple[int, float]:
        """Return the steps since then, and the time they took without validations."""
        steps, start_s = self._mark
        return done - steps, time.monotonic() - self._validated_s - start_s

    def learn(self, done: int) -> None:
        steps, taken_s = self.since_mark(done)
        self.step_s = (self.step_s or taken_s / steps) / 2 + taken_s / steps / 2
        self.mark(done)


def _validations(done: int, steps: int, epoch_length: int, interval: int) -> int:
    """Return how many validations there are after step `done` of a training: at each interval, and at the end."""
    epochs = math.ceil(steps / epoch_length)
    return epochs // interval - done // epoch_length // interval + (epochs % interval > 0)


def _probed_s(validator: SupervisedEvaluator) -> float:
    """Return what a validation will take, by the time of its first case.

    Nothing random is drawn, and nobody is told, so that the training goes on as if this had not been.
    """
    batch = next(iter(validator.data_loader))
    start_s = time.monotonic()
    image, _ = validator.prepare_batch(batch, validator.state.device)
    with validator.mode(validator.network):
        validator.inferer(image, validator.network)
    if image.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - start_s) * len(validator.data_loader)
