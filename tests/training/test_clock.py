"""A training that was granted minutes takes them, on a clock of its own, with steps and validations of any length."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from torch import nn

from voxelgate.training import clock
from voxelgate.training.clock import KeepTime
from voxelgate.training.handlers import ResumeState, ValidateEpochs, growing_average
from voxelgate.training.planning.rules import MOST_CLOSING_SHARE

MINUTES = 10.0
GRANTED_S = 60 * MINUTES
EPOCH_STEPS = 50
PEAK = 0.1
CLOSING = 3.0
CASES = [{"image": torch.zeros(1), "label": torch.zeros(1)}] * 2


@dataclass
class Clock:
    """What the time is, and what was seen meanwhile."""

    now_s: float = 0.0
    rates: list[float] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    steps: int = 0

    def monotonic(self) -> float:
        return self.now_s

    def take(self, cost_s: float, result: Any = None) -> Any:
        self.now_s += cost_s
        return result


def train(
    epochs: int,
    step_s: Callable[[float], float],
    *,
    validation_s: float = 0.0,
    minutes: float | None = MINUTES,
    state: Path | None = None,
    stop_at: int | None = None,
) -> Clock:
    """Train planned epochs of which a step takes what `step_s` says of the time, and a validation of both cases."""
    time, optimizer = Clock(), torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=PEAK)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=20, t_total=epochs * EPOCH_STEPS)
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=CASES,
        network=nn.Identity(),
        inferer=lambda image, _: time.take(validation_s / len(CASES), image),
    )

    def step(_engine: Engine, _batch: int) -> None:
        optimizer.step()
        time.take(step_s(time.now_s))

    engine = Engine(step)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: time.rates.append(optimizer.param_groups[0]["lr"]))
    validator.add_event_handler(Events.COMPLETED, lambda: time.validated.append(engine.state.epoch))
    LrScheduleHandler(schedule, print_lr=False, epoch_level=False).attach(engine)
    ValidateEpochs(validator=validator, interval=2).attach(engine)
    if stop_at is not None:
        engine.add_event_handler(Events.EPOCH_STARTED(once=stop_at + 1), engine.terminate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", SimpleNamespace(monotonic=time.monotonic))
        keep = KeepTime(minutes=minutes, schedule=schedule, validator=validator, interval=2, closing=CLOSING)
        if state is not None:
            objects = {"optimizer": optimizer, "lr_scheduler": schedule, "keep_time": keep}
            ResumeState(path=state, objects=objects, identity={"epochs": epochs}, resume=True).attach(engine)
        keep.attach(engine)
        engine.run([0] * EPOCH_STEPS, max_epochs=epochs)
    time.steps = keep.steps
    return time


def closing_s(validation_s: float) -> float:
    """Return what is left for what comes after a training."""
    return min(CLOSING * validation_s, MOST_CLOSING_SHARE * GRANTED_S)


def is_smooth(rates: list[float]) -> bool:
    """Return whether rates rise to the peak, and fall without a jump towards 0."""
    top = rates.index(max(rates))
    steps = [later - earlier for earlier, later in itertools.pairwise(rates)]
    return all(step >= 0 for step in steps[:top]) and all(-0.1 * PEAK < step <= 0 for step in steps[top:])


@settings(deadline=None, max_examples=12)
@given(st.integers(4, 40), st.floats(0.3, 10), st.floats(0.3, 10), st.floats(0, 1), st.floats(0, 30))
@example(epochs=6, first_s=0.25, then_s=5.0, change=0.5, validation_s=0.0)
@example(epochs=4, first_s=4.0, then_s=0.25, change=0.5, validation_s=0.0)
@example(epochs=4, first_s=0.25, then_s=7.0, change=0.75, validation_s=2.0)
def test_a_training_takes_its_minutes_whatever_was_planned_and_wherever_its_pace_changes(
    epochs: int, first_s: float, then_s: float, change: float, validation_s: float
) -> None:
    found = train(epochs, lambda now_s: first_s if now_s < change * GRANTED_S else then_s, validation_s=validation_s)
    end_s = found.now_s + closing_s(validation_s)
    assert 0.9 * GRANTED_S <= end_s <= 1.1 * GRANTED_S
    assert found.validated[-1] == -(-found.steps // EPOCH_STEPS)
    assert len(found.rates) == found.steps


@pytest.mark.parametrize("step_s", [0.2, 0.7, 3.0, 8.0])
def test_the_learning_rate_goes_through_its_whole_schedule_without_a_jump(step_s: float) -> None:
    rates = train(12, lambda _: step_s).rates
    assert is_smooth(rates)
    assert max(rates) == pytest.approx(PEAK, rel=0.05)
    assert rates[-1] < 0.01 * PEAK


def test_what_was_planned_stands_where_it_ends_on_time() -> None:
    kept, free = (train(12, lambda _: 0.97, minutes=minutes) for minutes in (MINUTES, None))
    assert kept.steps == 12 * EPOCH_STEPS
    assert kept.rates == free.rates
    assert kept.validated == free.validated == [2, 4, 6, 8, 10, 12]


def test_without_minutes_the_steps_count_however_long_they_take() -> None:
    assert train(4, lambda _: 100.0, minutes=None).now_s == 4 * EPOCH_STEPS * 100.0


def test_steps_of_which_each_takes_longer_than_the_minutes_are_no_more_than_it_takes_to_know() -> None:
    assert train(4, lambda _: 2 * GRANTED_S).steps == 3


def test_a_plan_of_a_few_short_steps_becomes_longer_before_it_is_over() -> None:
    assert train(1, lambda _: 0.05).now_s >= 0.9 * GRANTED_S


def test_no_training_ends_with_an_epoch_of_a_few_steps() -> None:
    ends = {
        train(12, lambda _, cost=cost: cost).steps % EPOCH_STEPS for cost in (1.15, 1.155, 1.16, 1.165, 1.17, 1.175)
    }
    assert ends
    assert not ends & {1, 2, 3, 4}


def test_a_change_of_steps_is_said_in_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=clock.__name__):
        train(12, lambda _: 2.0, validation_s=5.0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(
        "steps instead of 600, so that the training takes its 10 minutes: a step takes 2.00 s here, a validation 5 s"
    )


@pytest.mark.parametrize("step_s", [0.3, 0.97, 4.0])
def test_a_training_that_is_taken_up_again_has_the_time_that_it_had_left(tmp_path: Path, step_s: float) -> None:
    state = tmp_path / "state.pt"
    first = train(12, lambda _: step_s, state=state, stop_at=2)
    then = train(12, lambda _: step_s, state=state)
    assert len(first.rates) == 2 * EPOCH_STEPS
    assert 0.9 * GRANTED_S <= first.now_s + then.now_s <= 1.1 * GRANTED_S
    assert is_smooth(first.rates + then.rates)
    again = train(12, lambda _: step_s, state=state)
    assert not again.rates


@pytest.mark.parametrize("step_s", [0.3, 4.0])
def test_a_training_that_the_clock_ended_can_be_lengthened_by_epochs(tmp_path: Path, step_s: float) -> None:
    state = tmp_path / "state.pt"
    ended = train(12, lambda _: step_s, state=state)
    epochs = -(-ended.steps // EPOCH_STEPS)
    longer = train(epochs + 4, lambda _: step_s, state=state, minutes=None)
    assert len(longer.rates) == 4 * EPOCH_STEPS
    assert 0 < longer.rates[-1] < longer.rates[1] < PEAK


def test_the_average_reaches_back_over_a_tenth_of_the_steps_until_its_decay_does() -> None:
    network = nn.Linear(1, 1, bias=False)
    averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=growing_average(0.5))
    seen = []
    for value in (0.0, 1.0, 1.0):
        nn.init.constant_(network.weight, value)
        averaged.update_parameters(network)
        seen.append(float(averaged.module.weight.detach()))
    assert seen == pytest.approx([0.0, 1 - 2 / 11, 1 - 2 / 11 * 3 / 12])
