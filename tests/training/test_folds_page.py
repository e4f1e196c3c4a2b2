"""The page of a cross-validation: its figures, its order, and how it looks and works in Chromium."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from tests.browsing import OpenedPage
from tests.training.shown_training import NAMES, SHAPE, balls, one_hot
from voxelgate.core.errors import OutputError
from voxelgate.core.geometry import AXES_RAS, Grid
from voxelgate.core.labels import LabelTable
from voxelgate.evaluation.scores import score
from voxelgate.evaluation.table import without_name
from voxelgate.training.pages import folds_page
from voxelgate.training.pages.case_drawing import draw_case
from voxelgate.training.pages.drawing_handler import DrawCases, read_drawings
from voxelgate.training.pages.folds_page import CrossValidationFacts, write_folds_page

TABLE = LabelTable.from_mapping(NAMES)
GRID = Grid((SHAPE[0], SHAPE[1], SHAPE[2]), np.eye(4))
SHIFTS = {"fair": 1, "good": 0, "bad": 3}


def some_facts() -> CrossValidationFacts:
    """Return three cases, of which the second ball is found beside where it is, and one without any structure."""
    scores, drawings = [], {}
    for case_id, shift in SHIFTS.items():
        scores += score(balls(shift), balls(), GRID, TABLE, case_id)
        drawings[case_id] = draw_case(one_hot(balls())[1:2], balls(shift), balls(), GRID)
    scores += score(0 * balls(), 0 * balls(), GRID, TABLE, "empty")
    ids = [*SHIFTS, "empty"]
    fold_of = {case_id: number % 2 for number, case_id in enumerate(ids)}
    return CrossValidationFacts("balls", TABLE, scores, drawings, fold_of, {case_id: case_id for case_id in ids})


def written(facts: CrossValidationFacts, folder: Path) -> str:
    write_folds_page(facts, folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_cases_come_from_the_worst_to_the_best_and_those_without_structures_last(tmp_path: Path) -> None:
    text = written(some_facts(), tmp_path)
    assert re.findall(r"<h3>(\w+)", text) == ["bad", "fair", "good", "empty"]
    assert text.count("no true structure") == 1
    assert text.count("not drawn") == 1


def test_the_figures_are_those_of_the_scores(tmp_path: Path) -> None:
    facts = some_facts()
    text = written(facts, tmp_path)
    dice = {one.case_id: one.dice for one in facts.scores if one.label == "right ball"}
    mean = (dice["fair"] + dice["good"] + dice["bad"]) / 3
    assert f"<b>{mean:.3f}</b>" in text
    assert f"<b>{1:.3f}</b>" in text
    assert f'class="figure">{(1 + mean) / 2:.3f}' in text


def test_how_much_too_large_all_volumes_are_is_told(tmp_path: Path) -> None:
    facts = some_facts()
    scores = [replace(one, volume_ml=1.07 * one.reference_ml) for one in facts.scores]
    assert written(replace(facts, scores=scores), tmp_path).count("+7.0 % in all") == 2


def test_pictures_are_told_in_pixels(tmp_path: Path) -> None:
    truth = np.zeros((40, 30, 1), np.int32)
    truth[5:15, 10:20] = 1
    grid = Grid((40, 30, 1), AXES_RAS)
    image = MetaTensor(torch.zeros(3, 40, 30, 1), affine=torch.as_tensor(AXES_RAS.copy()))
    drawings = {"one": draw_case(image, truth, truth, grid)}
    table = LabelTable(("background", "vessel"))
    scores = score(truth, truth, grid, table, "one")
    text = written(CrossValidationFacts("eyes", table, scores, drawings, {"one": 0}, {"one": "one"}), tmp_path)
    assert "Areas that were found against the true ones, px" in text
    assert "100 px found, 100 px true" in text
    assert " mm" not in text
    assert "axial" not in text


def test_of_more_drawings_than_a_page_holds_the_worst_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = some_facts()
    monkeypatch.setattr(folds_page, "DRAWN_BYTES", 1.5 * folds_page._drawing_bytes(facts.drawings["bad"]))
    text = written(facts, tmp_path)
    assert text.count("not drawn") == 3
    assert text.index('<svg class="slice') < text.index("<h3>fair")


def test_names_that_would_be_markup_are_text(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    facts = some_facts()
    scores = [replace(one, case_id=hostile) if one.case_id == "bad" else one for one in facts.scores]
    known = {hostile: 0, **facts.fold_of}
    text = written(
        replace(facts, title=hostile, scores=scores, fold_of=known, subject_of=dict.fromkeys(known, "s")), tmp_path
    )
    assert "<img" not in text


def test_a_page_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_folds_page(some_facts(), tmp_path / "nowhere" / "page.html")


def test_an_evaluation_draws_every_case_into_one_file(tmp_path: Path) -> None:
    def step(engine: Engine, number: int) -> list[dict[str, MetaTensor]]:
        engine.state.batch = [{"case_id": f"case_{number}"}]
        return [{"image": one_hot(balls())[1:2], "label": one_hot(balls()), "pred": one_hot(balls(number))}]

    evaluator = Engine(step)
    DrawCases(path=tmp_path / "drawings.json").attach(evaluator)
    evaluator.run([1, 2])

    drawings = read_drawings(tmp_path / "drawings.json")
    assert list(drawings) == [without_name("case_1"), without_name("case_2")]
    assert drawings[without_name("case_2")] == draw_case(one_hot(balls())[1:2], balls(2), balls(), GRID)


@pytest.mark.parametrize("content", [None, "", "{", '{"case": 1}'])
def test_drawings_that_are_missing_or_damaged_are_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "drawings.json").write_text(content, encoding="utf-8")
    assert read_drawings(tmp_path / "drawings.json") == {}


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cases_are_ordered_anew_and_a_dot_leads_to_its_case(browser: object, tmp_path: Path) -> None:
    write_folds_page(some_facts(), tmp_path / "page.html")
    opened = OpenedPage(browser, tmp_path / "page.html")
    page = opened.page

    page.locator("#direction").select_option("best")
    page.locator("#order").select_option("right ball")
    assert [text.split()[0] for text in page.locator("h3").all_text_contents()] == ["good", "fair", "bad", "empty"]
    page.locator(".scatter").nth(1).locator("a").nth(2).click()

    assert page.locator(".case:target h3").text_content().startswith("bad")
    ranks = json.loads(page.locator(".case:target").get_attribute("data-dice"))
    assert ranks["1"] == 1
    assert ranks["3"] is None
    assert opened.said == []
    assert all(url.startswith(("file:", "data:")) for url in opened.asked)
