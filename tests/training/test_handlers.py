"""The training handlers on tiny ignite engines."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from monai.transforms import Compose, RandScaleIntensity
from torch import nn

from voxelgate.core.errors import InputError, UsageError
from voxelgate.training import handlers
from voxelgate.training.distributed import STATE, identify, save_atomically, set_aside, start_from
from voxelgate.training.handlers import (
    KeepBest,
    ResumeState,
    SeedEpochs,
    ShardedRandomSampler,
    ShowProgress,
    StopOnBadLoss,
    UpdateAverage,
)

IDENTITY = {"fold": 0, "epochs": 3}


def trainer(step: Callable[[Engine, Any], Any] = lambda _engine, _batch: {"loss": torch.tensor(1.0)}) -> Engine:
    return Engine(step)


def validator_of(values: Sequence[float]) -> Engine:
    """Return an engine whose measure is the next of `values` each time it runs."""
    remaining = list(values)
    engine = Engine(lambda _engine, _batch: None)

    @engine.on(Events.COMPLETED)
    def measure(engine: Engine) -> None:
        engine.state.metrics["val_mean_dice"] = remaining.pop(0)

    return engine


def draw(sampler: ShardedRandomSampler, epoch: int) -> list[int]:
    sampler.epoch = epoch
    return list(sampler)


# --- sampler ------------------------------------------------------------------------------------------------------


@given(cases=st.integers(1, 12), samples=st.integers(1, 30), epochs=st.integers(1, 8), seed=st.integers(0, 2**40))
def test_after_any_number_of_epochs_each_case_was_drawn_as_often_as_any_other_give_or_take_one(
    cases: int, samples: int, epochs: int, seed: int
) -> None:
    sampler = ShardedRandomSampler(cases, samples, seed=seed)
    drawn = Counter(dict.fromkeys(range(cases), 0))
    for epoch in range(epochs):
        order = draw(sampler, epoch)
        assert len(order) == len(sampler) == samples
        drawn.update(order)
    assert max(drawn.values()) - min(drawn.values()) <= 1


@given(cases=st.integers(1, 12), samples=st.integers(1, 30), epoch=st.integers(0, 50), seed=st.integers(0, 99))
def test_the_order_is_a_function_of_seed_and_epoch(cases: int, samples: int, epoch: int, seed: int) -> None:
    used = ShardedRandomSampler(cases, samples, seed=seed)
    draw(used, 3)
    torch.rand(1)
    assert draw(used, epoch) == draw(ShardedRandomSampler(cases, samples, seed=seed), epoch)


def test_another_seed_or_epoch_gives_another_order() -> None:
    orders = {tuple(draw(ShardedRandomSampler(20, 20, seed=seed), epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@settings(deadline=None)
@given(cases=st.integers(1, 12), samples=st.integers(1, 30), epoch=st.integers(0, 9), ranks=st.integers(1, 4))
def test_the_shares_of_all_processes_together_are_the_order_of_one(
    cases: int, samples: int, epoch: int, ranks: int
) -> None:
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "world_size", lambda: ranks)
        for number in range(ranks):
            patch.setattr(handlers, "rank", lambda number=number: number)
            shares.append(draw(ShardedRandomSampler(cases, samples, seed=1), epoch))
    assert [len(share) for share in shares] == [samples] * ranks
    together = [case for step in zip(*shares, strict=True) for case in step]
    whole = ShardedRandomSampler(cases, samples * ranks, seed=1)
    assert together == draw(whole, epoch)


def test_two_processes_never_share_a_case_while_there_are_enough() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "world_size", lambda: 2)
        first = draw(ShardedRandomSampler(20, 10, seed=0), 0)
        patch.setattr(handlers, "rank", lambda: 1)
        second = draw(ShardedRandomSampler(20, 10, seed=0), 0)
    assert sorted(first + second) == list(range(20))


def test_no_case_is_refused() -> None:
    with pytest.raises(UsageError, match="no case to train on"):
        ShardedRandomSampler(0, 4, seed=0)


# --- seeds --------------------------------------------------------------------------------------------------------


def drawn_in(epochs: Sequence[int], *, seed: int = 5) -> list[tuple[float, list[float], list[int]]]:
    """Return what a training draws in some epochs: from PyTorch, from a transform, and the order of cases."""
    transform = Compose([RandScaleIntensity(factors=0.5, prob=1.0)])
    sampler = ShardedRandomSampler(5, 4, seed=seed)
    found = []

    def step(_engine: Engine, _batch: Any) -> None:
        found.append((torch.rand(1).item(), transform(torch.ones(1, 3)).flatten().tolist(), list(sampler)))

    engine = trainer(step)
    SeedEpochs(seed=seed, sampler=sampler, transform=transform).attach(engine)
    if epochs[0] > 1:

        @engine.on(Events.STARTED)
        def skip(engine: Engine) -> None:
            engine.state.epoch, engine.state.iteration = epochs[0] - 1, epochs[0] - 1

    engine.run([0], max_epochs=epochs[-1])
    return found


def test_a_later_epoch_draws_the_same_whether_or_not_the_earlier_ones_ran() -> None:
    assert drawn_in([1, 2, 3])[2:] == drawn_in([3])


def test_epochs_and_seeds_draw_differently() -> None:
    draws = [repr(d) for seed in (5, 6) for d in drawn_in([1, 2, 3], seed=seed)]
    assert len(set(draws)) == 6


# --- best weights -------------------------------------------------------------------------------------------------


def run_keep_best(path: Path, values: Sequence[float], **arguments: Any) -> tuple[KeepBest, Engine]:
    """Train a number that equals the epoch, and validate after each epoch with the next of `values`."""
    network = nn.Linear(1, 1)
    validator = validator_of(values)

    def step(engine: Engine, _batch: Any) -> None:
        nn.init.constant_(network.weight, engine.state.epoch)

    engine = trainer(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run([0]))
    keep = KeepBest(path=path, network=network, validator=validator, **arguments)
    keep.attach(engine)
    engine.run([0], max_epochs=len(values))
    return keep, engine


def saved_epoch(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["weight"])


def test_the_weights_of_the_best_validation_are_kept(tmp_path: Path) -> None:
    keep, _ = run_keep_best(tmp_path / "models" / "model.pt", [0.2, 0.7, 0.7, 0.5])
    assert saved_epoch(tmp_path / "models" / "model.pt") == 2
    history = [[1.0, 0.2], [2.0, 0.7], [3.0, 0.7], [4.0, 0.5]]
    assert keep.state_dict() == {"best": 0.7, "best_epoch": 2, "stale": 2, "history": history}


def test_a_state_of_before_tells_no_history(tmp_path: Path) -> None:
    keep, _ = run_keep_best(tmp_path / "models" / "model.pt", [0.2])
    keep.load_state_dict({"best": 0.7, "best_epoch": 2, "stale": 2})
    assert keep.history == []
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["model.pt"]


def test_training_ends_when_patience_does(tmp_path: Path) -> None:
    _, engine = run_keep_best(tmp_path / "model.pt", [0.5, 0.4, 0.6, 0.1, 0.2, 0.9], patience=2)
    assert engine.state.epoch == 5
    assert saved_epoch(tmp_path / "model.pt") == 3


def test_without_patience_training_goes_on(tmp_path: Path) -> None:
    _, engine = run_keep_best(tmp_path / "model.pt", [0.9] + [0.1] * 9)
    assert engine.state.epoch == 10


def test_a_measure_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    run_keep_best(tmp_path / "model.pt", [0.1, float("nan")])
    assert saved_epoch(tmp_path / "model.pt") == 1


def test_a_measure_that_is_always_0_keeps_the_last_weights(tmp_path: Path) -> None:
    keep, _ = run_keep_best(tmp_path / "model.pt", [0.0, 0.0, 0.0])
    assert saved_epoch(tmp_path / "model.pt") == 3
    assert (keep.best, keep.best_epoch, keep.stale) == (0.0, 3, 2)


def test_a_training_that_patience_ended_is_not_taken_up_again(tmp_path: Path) -> None:
    keep, _ = run_keep_best(tmp_path / "model.pt", [0.5, 0.4, 0.3], patience=2)
    steps: list[int] = []
    engine = trainer(lambda engine, _batch: steps.append(engine.state.iteration))
    again = KeepBest(path=tmp_path / "model.pt", network=nn.Linear(1, 1), validator=validator_of([]), patience=2)
    again.attach(engine)
    again.load_state_dict(keep.state_dict())
    engine.run([0], max_epochs=9)
    assert not steps
    assert saved_epoch(tmp_path / "model.pt") == 1


def test_an_epoch_without_validation_counts_for_nothing(tmp_path: Path) -> None:
    validator = validator_of([0.5, 0.4])
    engine = trainer()
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=3), lambda: validator.run([0]))
    keep = KeepBest(path=tmp_path / "model.pt", network=nn.Linear(1, 1), validator=validator, patience=2)
    keep.attach(engine)
    engine.run([0], max_epochs=8)
    assert keep.state_dict() == {"best": 0.5, "best_epoch": 3, "stale": 1, "history": [[3.0, 0.5], [6.0, 0.4]]}


@pytest.mark.parametrize("values", [[], [float("nan")]], ids=["never validated", "validated without a number"])
def test_a_training_without_a_best_validation_keeps_its_last_weights(tmp_path: Path, values: list[float]) -> None:
    validator = validator_of(values)
    network = nn.Linear(1, 1)
    engine = trainer(lambda engine, _batch: nn.init.constant_(network.weight, engine.state.epoch))
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: validator.run([0]) if values else None)
    KeepBest(path=tmp_path / "model.pt", network=network, validator=validator).attach(engine)
    engine.run([0], max_epochs=2)
    assert saved_epoch(tmp_path / "model.pt") == 2


def test_the_state_of_keep_best_goes_round(tmp_path: Path) -> None:
    keep, _ = run_keep_best(tmp_path / "model.pt", [0.2, 0.7, 0.5])
    save_atomically(keep.state_dict(), tmp_path / "state.pt")
    other = KeepBest(path=tmp_path / "other.pt", network=nn.Linear(1, 1), validator=validator_of([]))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict() == keep.state_dict()


# --- resume -------------------------------------------------------------------------------------------------------


def run_with_state(path: Path, *, epochs: int, identity: dict[str, Any], resume: bool) -> tuple[nn.Module, Engine]:
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)

    def step(_engine: Engine, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        optimiser.zero_grad()
        loss = network(batch).square().mean()
        loss.backward()
        optimiser.step()
        return {"loss": loss}

    engine = trainer(step)
    objects = {"network": network, "optimizer": optimiser}
    ResumeState(path=path, objects=objects, identity=identity, resume=resume).attach(engine)
    engine.run([torch.ones(1, 2), -torch.ones(1, 2)], max_epochs=epochs)
    return network, engine


def test_a_run_in_two_parts_ends_with_the_weights_of_one(tmp_path: Path) -> None:
    whole, _ = run_with_state(tmp_path / "whole.pt", epochs=5, identity={}, resume=False)
    run_with_state(tmp_path / "parts.pt", epochs=2, identity={}, resume=False)
    parts, engine = run_with_state(tmp_path / "parts.pt", epochs=5, identity={}, resume=True)
    assert engine.state.iteration == 10
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_resuming_without_a_state_starts_from_the_beginning(tmp_path: Path) -> None:
    _, engine = run_with_state(tmp_path / "state.pt", epochs=2, identity={}, resume=True)
    assert engine.state.iteration == 4


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    run_with_state(path, epochs=1, identity=IDENTITY, resume=False)
    for identity, message in (
        (IDENTITY | {"fold": 1}, "made with fold=0, not 1"),
        (IDENTITY | {"seed": 3}, "made with seed=None, not 3"),
        ({"epochs": 3}, "made with fold=0, not None"),
    ):
        with pytest.raises(UsageError, match=message):
            run_with_state(path, epochs=2, identity=identity, resume=True)


def test_a_state_that_is_there_is_refused_without_resume(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    run_with_state(path, epochs=1, identity=IDENTITY, resume=False)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"state\.pt holds an earlier run: resume it"):
        run_with_state(path, epochs=1, identity=IDENTITY, resume=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no state", [1, 2], {"epoch": 3}])
def test_a_file_that_is_no_state_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "state.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match=r"state\.pt cannot be taken up"):
        run_with_state(path, epochs=1, identity={}, resume=True)


# --- an earlier training ------------------------------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path: Path) -> tuple[Path, Path]:
    """Return the folder of a training and the weights that it left."""
    folder, weights = tmp_path / "training", tmp_path / "models" / "model.pt"
    for path, text in ((folder / STATE, "state"), (folder / "events" / "1", "events"), (weights, "weights")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder, weights


def files_in(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_training_is_kept_beside_with_its_weights(tmp_path: Path, earlier: tuple[Path, Path]) -> None:
    before = files_in(tmp_path / "training")
    set_aside(*earlier)
    assert files_in(tmp_path / "training_1") == before | {"model.pt": "weights"}
    assert not earlier[0].exists()
    assert earlier[1].read_text(encoding="utf-8") == "weights"  # where a training may start from them


def test_no_earlier_training_is_ever_replaced(tmp_path: Path, earlier: tuple[Path, Path]) -> None:
    (tmp_path / "training_1").mkdir()
    (tmp_path / "training_2").write_text("mine", encoding="utf-8")
    set_aside(*earlier)
    assert list((tmp_path / "training_1").iterdir()) == []
    assert (tmp_path / "training_2").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "training_3" / STATE).is_file()


def test_a_training_that_goes_on_stays_where_it_is(tmp_path: Path, earlier: tuple[Path, Path]) -> None:
    before = files_in(tmp_path)
    set_aside(*earlier, resume=True)
    assert files_in(tmp_path) == before


def test_weights_without_a_training_are_kept_too_even_if_one_should_go_on(
    tmp_path: Path, earlier: tuple[Path, Path]
) -> None:
    shutil.rmtree(earlier[0])
    set_aside(*earlier, resume=True)
    assert files_in(tmp_path / "training_1") == {"model.pt": "weights"}


def test_where_nothing_is_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "training" / "events").mkdir(parents=True)
    set_aside(tmp_path / "training", tmp_path / "models" / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["training"]


def test_cases_are_told_by_their_names_and_their_order() -> None:
    rows = [{"case_id": name, "image": f"/data/{name}.nii.gz"} for name in "abc"]
    moved = [{"case_id": name, "image": f"/mnt/{name}.nii.gz"} for name in "abc"]
    assert identify(rows) == identify(moved)
    assert identify(rows).startswith("3 cases ")
    others = ([*rows[:2], {"case_id": "d"}], rows[::-1], rows[:2], [{"image": f"/x/{name}.nii"} for name in "abc"])
    assert len({identify(each) for each in (rows, *others)}) == 5
    assert identify([{"image": ["/data/a_0.nii", "/data/a_1.nii"]}]) == identify([{"image": ["/a_0.nii", "/a_1.nii"]}])


# --- saving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("had_old", [True, False])
def test_saving_what_cannot_be_saved_leaves_what_was_there(tmp_path: Path, had_old: bool) -> None:
    path = tmp_path / "state.pt"
    if had_old:
        save_atomically({"epoch": 1}, path)
    with pytest.raises((AttributeError, TypeError)):
        save_atomically({"weights": torch.ones(1000), "epoch": (n for n in range(3))}, path)
    assert path.exists() == had_old
    if had_old:
        assert torch.load(path, weights_only=True) == {"epoch": 1}


# --- each step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_ends_the_training_and_names_the_cases(loss: float) -> None:
    def step(engine: Engine, _batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(1.0 if engine.state.iteration < 2 else loss)}

    engine = trainer(step)
    StopOnBadLoss().attach(engine)
    with pytest.raises(InputError, match=rf"became {loss} at step 2 on b, c; look at these images"):
        engine.run([{"case_id": ["a"]}, {"case_id": ["b", "c"]}])


def test_a_decollated_output_without_case_ids_is_understood() -> None:
    engine = trainer(lambda _engine, _batch: [{"loss": torch.tensor(float("nan"))}])
    StopOnBadLoss().attach(engine)
    with pytest.raises(InputError, match="on unnamed cases"):
        engine.run([{}])


def test_a_loss_that_is_a_number_goes_on() -> None:
    engine = trainer()
    StopOnBadLoss().attach(engine)
    assert engine.run([{}, {}, {}]).iteration == 3


def test_the_average_follows_the_weights_after_each_step() -> None:
    network = nn.Linear(1, 1)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    engine = trainer(lambda engine, _batch: nn.init.constant_(network.weight, engine.state.iteration))
    UpdateAverage(averaged=average, network=network).attach(engine)
    engine.run([0, 0, 0])
    assert average.module.weight.item() == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3)
    assert int(average.n_averaged) == 3


def test_progress_logs_one_line_an_epoch_with_loss_and_measure(caplog: pytest.LogCaptureFixture) -> None:
    engine, validator = trainer(), validator_of([0.25, 0.5])
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run([0]))
    ShowProgress(validator=validator).attach(engine)
    with caplog.at_level(logging.INFO, logger="voxelgate.training.handlers"):
        engine.run([0, 0], max_epochs=2)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("epoch 1 of 2: loss 1.0000, val_mean_dice 0.2500, ")
    assert second == "epoch 2 of 2: loss 1.0000, val_mean_dice 0.5000, 0.0 minutes left"


def test_progress_of_a_long_epoch_is_told_meanwhile(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxelgate.training.handlers.TELL_EVERY_S", 0.0)
    engine = trainer()
    ShowProgress().attach(engine)
    with caplog.at_level(logging.INFO, logger="voxelgate.training.handlers"):
        engine.run([0, 0], max_epochs=2)
    lines = [record.getMessage().rpartition(", ")[0] for record in caplog.records]
    assert lines[:3] == [
        "epoch 1 of 2: step 1 of 2, loss 1.0000",
        "epoch 1 of 2: step 2 of 2, loss 1.0000",
        "epoch 1 of 2: loss 1.0000",
    ]
    assert lines[3].startswith("epoch 2 of 2: step 1 of 2")


def test_progress_lets_an_error_through() -> None:
    def step(_engine: Engine, _batch: Any) -> None:
        raise InputError("broken")

    engine = trainer(step)
    ShowProgress().attach(engine)
    with pytest.raises(InputError, match="broken"):
        engine.run([0])


def test_a_training_can_start_from_the_weights_of_an_equal_network_only(tmp_path: Path) -> None:
    trained = torch.nn.Linear(2, 2)
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    started = start_from(torch.nn.Linear(2, 2), str(tmp_path / "model.pt"))
    assert torch.equal(started.state_dict()["weight"], trained.weight)
    with pytest.raises(UsageError, match=r"model\.pt cannot start this network"):
        start_from(torch.nn.Linear(3, 2), str(tmp_path / "model.pt"))
    with pytest.raises(UsageError, match=r"missing\.pt cannot start this network"):
        start_from(torch.nn.Linear(2, 2), str(tmp_path / "missing.pt"))
