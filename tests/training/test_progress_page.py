"""The page of a training: what it says, when it is written, that it harms no training, and how it looks in Chromium."""

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.browsing import OpenedPage
from tests.training.shown_training import EPOCHS, balls, run_training
from voxelgate.bundle.frame import Config
from voxelgate.evaluation.table import without_name
from voxelgate.training.configs.train_config import train_config
from voxelgate.training.pages import progress_handler, training_record
from voxelgate.training.pages.charts import ChartLine, round_values, spread, thinned_out
from voxelgate.training.pages.training_record import TrainingRecord, ValidationRecord, read_record
from voxelgate.training.planning import Plan

NOTHING = 0 * balls()
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings of milliseconds be drawn at each validation."""
    monkeypatch.setattr(progress_handler, "MOST_SHARE", 1e9)


def text_of(folder: Path) -> str:
    return (folder / "progress.html").read_text(encoding="utf-8")


# --- what it says -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
def test_cases_of_a_data_set_that_names_none_are_numbered(tmp_path: Path) -> None:
    run_training(tmp_path, [balls(), balls(1)], are_named=False)

    assert "case 1" in text_of(tmp_path)
    assert "case 2" in text_of(tmp_path)


@pytest.mark.usefixtures("unhurried")
def test_the_page_tells_losses_structures_and_cases(tmp_path: Path) -> None:
    run_training(tmp_path, [balls(), balls(1)])
    text = text_of(tmp_path)
    for part in (
        "training of <b>balls</b>, fold 0 validates",
        "left ball",
        "right ball",
        without_name("case_0"),
        without_name("case_1"),
    ):
        assert part in text
    assert "of 24 steps" in text
    assert text.count("<article") == 2


@pytest.mark.usefixtures("unhurried")
def test_the_record_holds_each_epoch_and_the_dice_of_each_structure_and_case(tmp_path: Path) -> None:
    run_training(tmp_path, [balls(), NOTHING])
    record = read_record(tmp_path / "progress.json")
    assert len(record.epochs) == EPOCHS
    assert record.epochs[0].losses == pytest.approx([2 / step for step in range(1, 7)])
    assert record.epochs[0].learning_rates == (0.25,) * 6
    left, right, absent = record.validations[0].of_structures
    assert left == 1.0
    assert 0 < right < 1
    assert absent is None
    assert record.validations[0].of_cases == [pytest.approx((1.0 + right) / 2), None]
    assert record.best == record.validations[-1]
    assert record.best.mean_dice == 1.0


@pytest.mark.usefixtures("unhurried")
def test_a_case_without_any_true_structure_is_shown_and_said_to_be_such(tmp_path: Path) -> None:
    run_training(tmp_path, [NOTHING])
    assert "no true structure" in text_of(tmp_path)
    assert text_of(tmp_path).count('class="result s1"') > 0


def test_a_training_on_all_cases_says_that_its_dice_is_of_seen_cases(tmp_path: Path) -> None:
    run_training(tmp_path, [balls()], fold=-1)
    assert "Mean Dice of cases that are trained on" in text_of(tmp_path)


def test_a_training_without_validation_has_a_page_too(tmp_path: Path) -> None:
    run_training(tmp_path, [])
    assert "no validation yet" in text_of(tmp_path)
    assert "<article" not in text_of(tmp_path)


def test_a_name_that_would_be_markup_is_text(tmp_path: Path) -> None:
    run_training(tmp_path, [balls()], title="<script>alert(1)</script>")
    assert "<script>alert" not in text_of(tmp_path)


@pytest.mark.usefixtures("unhurried")
def test_tensorboard_lists_losses_first_then_dice_of_each_structure_and_pictures_of_cases(tmp_path: Path) -> None:
    run_training(tmp_path, [balls()])
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    tags = events.Tags()
    assert sorted(tags["scalars"]) == [
        "1_loss/epoch", "1_loss/step", "2_dice/left ball", "2_dice/mean", "2_dice/right ball", "3_learning_rate"
    ]  # fmt: skip
    assert tags["images"] == [f"cases/{without_name('case_0')}"]
    assert [event.step for event in events.Images(f"cases/{without_name('case_0')}")] == [1, 2, 3, 4]


# --- when it is written -------------------------------------------------------------------------------------------


def test_drawing_waits_where_it_has_taken_too_much_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_handler, "MOST_SHARE", 0.0)
    run_training(tmp_path, [balls()])
    drawn = [bool(one.paths) for one in read_record(tmp_path / "progress.json").validations]
    assert drawn == [True, False, False, False]
    assert "After step 6" in text_of(tmp_path)


def test_the_page_is_written_within_an_epoch_that_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_handler, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(progress_handler, "MOST_SHARE", 1e9)
    assert run_training(tmp_path, [balls()], epochs=1) == [1, 2, 3, 4, 5, 6]


def test_a_training_that_is_taken_up_again_goes_on_with_what_is_known(tmp_path: Path) -> None:
    run_training(tmp_path, [balls()], epochs=3)
    first = read_record(tmp_path / "progress.json")

    run_training(tmp_path, [balls()], done=2)

    record = read_record(tmp_path / "progress.json")
    assert record.epochs[:2] == first.epochs[:2]
    assert [one.epoch for one in record.validations] == [1, 2, 3, 4]
    assert [epoch.busy_s for epoch in record.epochs] == sorted(epoch.busy_s for epoch in record.epochs)


@pytest.mark.parametrize("content", ["", "{", '{"epochs": 3}', "[]"])
def test_a_record_that_is_damaged_is_begun_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.json").write_text(content, encoding="utf-8")
    run_training(tmp_path, [balls()])
    assert len(read_record(tmp_path / "progress.json").epochs) == EPOCHS


def test_a_page_that_cannot_be_written_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "progress.html").mkdir()
    with caplog.at_level(logging.WARNING):
        run_training(tmp_path, [balls()])
    assert "progress.html: cannot be written" in caplog.text


def test_the_page_draws_no_random_number(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run_training(tmp_path, [balls()])
    assert torch.equal(torch.get_rng_state(), before)


def test_outlines_of_older_validations_are_thinned_out_where_they_become_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_record, "MOST_PATHS", 50)
    record = TrainingRecord()
    for epoch in range(1, 30):
        record = record.with_validation(ValidationRecord(epoch, 10 * epoch, 0.5, ((0.5,),), (({1: "M0 0l10 0z"},),)))
    kept = [one.epoch for one in record.validations if one.paths]
    assert len(kept) <= 5
    assert kept[-1] == 29
    assert len(record.validations) == 29


def test_plans_of_older_versions_train_without_the_page() -> None:
    plan = Plan.from_json(REPOSITORY / "bundles" / "hippocampus_mri_segmentation" / "plan.json")
    targets = {version: _targets(train_config(replace(plan, plan_version=version))) for version in (2, 3)}
    assert "voxelgate.WriteProgressPage" not in targets[2]
    assert targets[3].count("voxelgate.WriteProgressPage") == 1


def _targets(config: Config) -> list[str]:
    return [handler["_target_"] for handler in config["train"]["handlers"]]


# --- charts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "count", "expected"),
    [((0, 1), 5, [0, 0.2, 0.4, 0.6, 0.8, 1]), ((0.7, 1), 5, [0.7, 0.8, 0.9, 1]), ((0, 37), 7, [0, 10, 20, 30]),
     ((3, 3), 5, [3])],
)  # fmt: skip
def test_marks_of_an_axis_are_round(span: tuple[float, float], count: int, expected: list[float]) -> None:
    assert round_values(span, count) == pytest.approx(expected)


def test_names_at_the_ends_of_lines_do_not_cover_each_other() -> None:
    line = ChartLine("one", "s1", ())
    placed = [at for _, at in spread([(line, 100), (line, 101), (line, 99), (line, 198)], 0, 200)]
    assert all(below - above >= 13 for above, below in pairwise(placed))
    assert placed[-1] <= 200


def test_many_points_become_means_of_neighbours() -> None:
    assert thinned_out([(0, 1), (1, 3), (2, 5), (3, 7), (4, 9)], 3) == ((0.5, 2), (2.5, 6), (4, 9))
    assert thinned_out([], 3) == ()


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("unhurried")
def test_the_slider_shows_what_was_found_after_each_epoch(browser: object, tmp_path: Path) -> None:
    run_training(tmp_path, [balls()])
    opened = OpenedPage(browser, tmp_path / "progress.html")
    page = opened.page
    last = page.locator(".found path.s2").first.get_attribute("d")

    page.locator("#step").focus()
    page.keyboard.press("Home")

    assert page.locator("#step-name").inner_text() == "6"
    assert page.locator(".found path.s2").first.get_attribute("d") != last
    assert page.locator(".found path.s2").first.evaluate("path => getComputedStyle(path).stroke") == "rgb(86, 180, 233)"
    page.reload()
    assert page.locator("#step-name").inner_text() == "6"
    page.keyboard.press("Tab")
    page.get_by_label("true labels").uncheck()
    assert not page.locator(".truth").first.is_visible()
    assert opened.said == []
    assert all(url.startswith(("file:", "data:")) for url in opened.asked)
    assert json.loads(page.locator("#history").text_content())["steps"] == [6, 12, 18, 24]
