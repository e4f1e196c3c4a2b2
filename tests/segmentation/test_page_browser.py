"""The report page in a real Chromium: quiet, quick, usable by keyboard, and honest about its pictures."""

import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browsing import OpenedPage
from tests.report_cases import (
    GATES,
    HOSTILE,
    TABLE,
    done,
    preview_of,
    some_cases,
    some_facts,
    truth_of,
    with_attention,
)
from voxelgate.core.geometry import AXES_RAS, Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.segmentation.page.build import write_report
from voxelgate.segmentation.page.rows import RunFacts
from voxelgate.segmentation.preview import sketch, write_preview
from voxelgate.segmentation.report import CaseReport

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")

COLOURS = structure_colours(TABLE)

MANY = 1000
MANY_OPEN_S = 20.0
"""A loose limit for a busy machine; about 1.3 s were measured on two slow cores."""


class Visit(OpenedPage):
    """The report page."""

    def names(self) -> list[str]:
        """Return the cases in the table, from top to bottom."""
        return self.page.locator("#cases tbody td.name").all_inner_texts()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def open(self, name: str) -> None:
        self.page.get_by_role("link", name=name, exact=True).click()
        self.page.locator(".stage canvas").first.wait_for()

    def pixels(self, plane: str = "axial") -> np.ndarray:
        """Return what is seen of a plane, (rows, columns, RGB)."""
        figure = self.page.locator(".planes figure", has_text=plane.capitalize())
        return np.array(Image.open(io.BytesIO(figure.locator("canvas").screenshot())).convert("RGB")).astype(int)

    def colourful(self) -> int:
        """Return how many pixels of the axial plane are not grey."""
        return int((np.ptp(self.pixels(), axis=-1) > 25).sum())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page with a case of each outcome, one of them hostile, attention of one and true labels of another."""
    folder = tmp_path_factory.mktemp("report")
    facts = some_facts(folder)
    cases = [with_attention(case, folder) if case.case_id == "case_2" else case for case in facts.cases]
    truths = {"case_10": truth_of(folder, "case_10")}
    return write_report(replace(facts, cases=cases, truths=truths))


@pytest.fixture
def visit(browser: "sync_api.Browser", report: Path) -> Iterator[Visit]:
    """Open the page; whatever a test does, the page says nothing and asks for nothing but its own files."""
    opened = Visit(browser, report)
    yield opened
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    files = [url for url in opened.asked if url.startswith("file:")]
    assert files[0] == report.as_uri()
    assert set(files[1:]) <= {path.as_uri() for path in report.with_name("report_files").iterdir()}
    opened.page.context.close()


def test_what_needs_a_look_comes_first(visit: Visit) -> None:
    names = visit.names()

    assert names[:2] == ["case_4", "case_3"]
    assert names[3:] == ["case_10", "case_2", "scan_5", "scan_6"]


def test_a_column_sorts_both_ways_and_numbers_in_names_count(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Case", exact=True).click()
    ascending = [name for name in visit.names() if name.startswith("case")]
    visit.page.get_by_role("button", name="liver, ml").click()
    visit.page.get_by_role("button", name="liver, ml").click()
    descending = visit.names()

    assert ascending == ["case_2", "case_3", "case_4", "case_10"]
    assert descending[:2] == ["case_4", "case_2"]
    assert descending[-2:] == ["scan_5", "scan_6"]  # without a volume
    assert visit.page.get_by_role("columnheader", name="liver, ml").get_attribute("aria-sort") == "descending"


def test_search_and_filters_narrow_the_table_and_say_so(visit: Visit) -> None:
    visit.press("/")
    visit.page.keyboard.type("border liver")
    assert visit.names() == ["case_3"]
    assert visit.page.get_by_role("status").inner_text() == "1 of 7 cases"

    visit.page.get_by_role("searchbox").fill("")
    visit.page.get_by_role("checkbox", name="accepted").uncheck()
    visit.page.get_by_role("checkbox", name="for review").uncheck()
    assert visit.names() == ["case_4", "scan_5", "scan_6"]


def test_the_table_and_the_cases_are_walked_through_by_keys_alone(visit: Visit) -> None:
    visit.press("ArrowDown", "Enter")
    visit.page.locator(".stage canvas").first.wait_for()
    title = sync_api.expect(visit.page.locator("h1"))  # waits: a page follows its address a moment later
    title.to_have_text("case_3")

    visit.press("k")
    title.to_have_text("case_4")
    visit.press("Escape")
    sync_api.expect(visit.page.locator("#case")).to_be_hidden()
    assert visit.page.evaluate("document.activeElement.textContent") == "case_4"


def test_the_plane_that_keys_move_through_is_marked_from_the_start(visit: Visit) -> None:
    visit.press("Enter")
    visit.page.locator(".stage canvas").first.wait_for()

    assert visit.page.locator("figure.active figcaption b").all_text_contents() == ["axial"]


def test_back_leads_from_a_case_to_the_table(visit: Visit) -> None:
    visit.open("case_2")
    visit.page.go_back()

    sync_api.expect(visit.page.locator("#cases")).to_be_visible()


def test_slices_scroll_by_arrow_wheel_and_slider(visit: Visit) -> None:
    visit.open("case_2")
    slider = visit.page.get_by_role("slider", name="axial slice")
    start, seen = int(slider.input_value()), [visit.pixels()]

    visit.press("1", "ArrowDown")
    assert int(slider.input_value()) == start + 1
    seen.append(visit.pixels())
    visit.page.locator(".stage").first.hover()
    visit.page.mouse.wheel(0, 100)
    visit.page.wait_for_function(
        "(value) => document.querySelector('.planes input').value === value", arg=str(start + 2)
    )
    seen.append(visit.pixels())
    slider.fill("0")
    seen.append(visit.pixels())

    assert all((one != other).any() for one, other in pairwise(seen))
    assert slider.get_attribute("aria-valuetext") == visit.page.locator("figcaption span").first.inner_text()


def test_a_click_brings_the_other_planes_to_the_point(visit: Visit) -> None:
    visit.open("case_2")
    box = visit.page.locator(".stage canvas").first.bounding_box()
    assert box is not None
    coronal = visit.page.get_by_role("slider", name="coronal slice")

    visit.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.3)
    front = int(coronal.input_value())
    visit.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.7)

    assert int(coronal.input_value()) < front  # slices run from back to front, the front is at the top


def test_the_overlay_its_outline_and_its_strength_change_what_is_seen(visit: Visit) -> None:
    visit.open("case_2")
    visit.press("n")  # numbers are white on black
    both = visit.colourful()
    visit.press("l")
    fill = visit.colourful()
    stronger = visit.pixels()
    visit.press("]", "]", "]")
    assert (visit.pixels() != stronger).any()
    visit.press("o")

    assert both >= fill > 1000
    assert visit.colourful() == 0
    assert not visit.page.get_by_role("checkbox", name="Overlay").is_checked()


def test_fill_and_outline_have_the_colour_of_the_legend(visit: Visit) -> None:
    visit.open("case_2")

    seen = visit.pixels().reshape(-1, 3)

    for colour in COLOURS.values():  # outlines
        assert (np.abs(seen - colour).sum(axis=1) < 12).sum() > 50


def test_a_structure_can_be_hidden(visit: Visit) -> None:
    visit.open("case_2")
    visit.page.get_by_role("checkbox", name="Show liver").uncheck()

    seen = visit.pixels().reshape(-1, 3)

    assert (np.abs(seen - COLOURS[1]).sum(axis=1) < 12).sum() == 0
    assert (np.abs(seen - COLOURS[2]).sum(axis=1) < 12).sum() > 50


def test_attention_is_shown_on_request_where_it_was_written(visit: Visit) -> None:
    visit.open("case_2")
    before = visit.pixels()
    assert not visit.page.get_by_role("checkbox", name="Attention").is_checked()
    visit.press("a")

    assert (visit.pixels() != before).mean() > 0.3
    visit.press("a")
    assert (visit.pixels() == before).all()
    visit.press("Escape")
    visit.open("case_3")
    assert visit.page.get_by_role("checkbox", name="Attention").count() == 0
    assert visit.page.get_by_role("combobox").count() == 0
    visit.press("a", "g")
    assert visit.colourful() > 1000  # still filled


def test_attention_lies_where_the_gate_saw_it_over_the_image_and_below_the_outlines(visit: Visit) -> None:
    visit.open("case_2")
    visit.press("n", "o")
    image = visit.pixels()
    visit.press("a")  # rises to the patient's left, which is on the right
    change = np.abs(visit.pixels() - image).sum(axis=(0, 2))
    assert change[-20:].mean() > 5 * change[:20].mean()

    visit.press("o")
    seen = visit.pixels().reshape(-1, 3)
    for colour in COLOURS.values():  # outlines
        assert (np.abs(seen - colour).sum(axis=1) < 12).sum() > 50
    visit.press("]", "]")
    assert (visit.pixels().reshape(-1, 3) == seen).all()  # no fill, whatever its strength


def test_gates_are_chosen_by_key_and_by_list_and_what_they_do_is_said(visit: Visit) -> None:
    visit.open("case_2")
    choice, attention = visit.page.get_by_role("combobox"), visit.page.get_by_role("checkbox", name="Attention")

    visit.press("g")
    assert (choice.input_value(), attention.is_checked()) == ("0", True)
    first = visit.pixels()
    visit.press("g")
    assert choice.input_value() == "1"
    assert (visit.pixels() != first).mean() > 0.3
    assert "attention of gate 1" in (visit.page.locator(".stage canvas").first.get_attribute("aria-label") or "")
    choice.select_option("gate 0")
    assert (visit.pixels() == first).all()
    said = visit.page.locator("section", has=visit.page.get_by_role("heading", name="Attention gates")).last
    assert said.locator("li").all_inner_texts() == [str(gate) for gate in GATES]


def test_true_labels_are_outlined_where_they_lie_and_their_scores_are_told(visit: Visit) -> None:
    visit.open("case_10")
    visit.press("n", "o")
    with_truth = visit.pixels()
    visit.press("t")
    image = visit.pixels()

    is_white = (with_truth.min(axis=-1) > 240) & (image.max(axis=-1) < 240)
    is_coloured = np.abs(with_truth - COLOURS[1]).sum(axis=-1) < 12
    assert is_white.sum() > 50
    assert is_coloured.sum() > 50
    drawn = np.flatnonzero((with_truth != image).any(axis=(0, 2)))
    width = with_truth.shape[1]
    assert drawn[0] == pytest.approx(width * (1 - 20 / 40), abs=width / 40)  # voxels 4 to 20 of 40, right to left
    assert drawn[-1] == pytest.approx(width * (1 - 4 / 40), abs=width / 40)
    said = [row.locator("td.number").all_inner_texts() for row in visit.page.locator("#case tbody tr").all()]
    assert [one[1:] for one in said] == [["0.750", "8.0"], ["0.000", "\u2013"]]
    visit.press("Escape")
    dice = visit.page.locator("#cases tbody tr", has_text="case_10").locator("td.number").first
    assert dice.inner_text() == "0.375"


def test_without_true_labels_nothing_asks_for_them(visit: Visit) -> None:
    visit.open("case_3")
    assert visit.page.get_by_role("checkbox", name="True labels").count() == 0
    before = visit.pixels()
    visit.press("t")
    assert (visit.pixels() == before).all()


def test_hostile_text_stays_text(visit: Visit) -> None:
    visit.page.get_by_role("searchbox").fill("hacked")
    visit.page.locator("#cases tbody a").click()
    visit.page.locator(".stage canvas").first.wait_for()

    assert visit.page.locator("h1").text_content() == HOSTILE
    assert HOSTILE in (visit.page.locator(".reasons").text_content() or "")
    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("img").count() == 0


def test_hostile_names_of_structures_files_and_software_stay_text(browser: "sync_api.Browser", tmp_path: Path) -> None:
    table = LabelTable(("background", HOSTILE, "__proto__"))
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:6, 2:6, 2:6], labels[7:10, 7:10, 7:10] = 1, 2
    grid = Grid(labels.shape, np.eye(4))
    case = done(tmp_path, "case", 1.0)
    write_preview(case.outputs["preview"], sketch(labels * 50.0, grid), labels, table)
    case = replace(
        case,
        volumes_ml={HOSTILE: 5.0, "__proto__": 3.0},
        outputs=case.outputs | {HOSTILE: tmp_path / HOSTILE.replace("/", "") / "a.nii.gz"},
        versions={HOSTILE: HOSTILE},
    )

    visit = Visit(browser, write_report(RunFacts([case], tmp_path), "a'b\"&<i>.html"))
    visit.open("case")

    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("img").count() == 0
    assert visit.page.locator("#case .structure").all_text_contents() == [f"1 {HOSTILE}", "2 __proto__"]
    assert visit.colourful() > 100
    assert visit.said == []
    visit.page.context.close()


def test_a_case_without_result_says_why(visit: Visit) -> None:
    visit.page.get_by_role("link", name="scan_5").click()

    assert visit.page.locator(".reasons").inner_text() == "scan_5: all voxels are 0."
    assert visit.page.locator(".film").inner_text() == "There is no result to show."


def test_question_mark_shows_the_keys(visit: Visit) -> None:
    visit.press("?")

    assert visit.page.get_by_role("dialog", name="Keys").is_visible()
    visit.press("Escape")
    assert visit.page.get_by_role("dialog").count() == 0


def test_outcomes_have_a_word_and_a_shape_of_their_own(visit: Visit) -> None:
    marks = visit.page.locator("#cases tbody .outcome")

    shapes = {mark.inner_text(): mark.locator("path").get_attribute("d") for mark in marks.all()}

    assert set(shapes) == {"accepted", "for review", "refused", "rejected", "failed"}
    assert len(set(shapes.values())) == len(shapes)


@pytest.mark.parametrize("size", [{"width": 700, "height": 450}, {"width": 360, "height": 640}])
def test_nothing_sticks_out_sideways_at_200_percent_zoom_or_on_a_phone(
    browser: "sync_api.Browser", report: Path, size: dict[str, int]
) -> None:
    visit = Visit(browser, report, viewport=size)
    overhang = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

    assert visit.page.evaluate(overhang) == 0
    visit.open("case_2")
    assert visit.page.evaluate(overhang) == 0
    visit.page.context.close()


def test_the_page_follows_the_colours_of_the_system_and_prints_without_controls(
    browser: "sync_api.Browser", report: Path
) -> None:
    visit = Visit(browser, report, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"

    dark = visit.page.evaluate(paper)
    visit.page.emulate_media(color_scheme="light")
    assert visit.page.evaluate(paper) != dark
    visit.page.emulate_media(media="print")
    assert visit.page.locator("#filters").is_hidden()
    assert visit.page.locator("#cases").is_visible()
    visit.page.context.close()


def test_a_thousand_cases_open_quickly_and_only_what_is_shown_is_made(
    browser: "sync_api.Browser", tmp_path: Path
) -> None:
    cases = thousand_cases(tmp_path)
    path = write_report(RunFacts(cases, tmp_path, busy_s=1.0))

    started_s = time.perf_counter()
    visit = Visit(browser, path)
    elapsed_s = time.perf_counter() - started_s

    assert path.stat().st_size < 600 * MANY
    assert len(visit.asked) == 1
    assert len(visit.names()) == 100
    assert visit.page.evaluate("document.querySelectorAll('*').length") < 5 * MANY
    assert visit.page.evaluate("document.images.length") == 0
    assert elapsed_s < MANY_OPEN_S
    visit.page.get_by_role("button", name="Next page").click()
    visit.open("case_0150")
    assert visit.colourful() > 1000
    assert len(visit.asked) == 2  # the page, and a file of previews
    assert visit.said == []
    visit.page.context.close()


def thousand_cases(out_dir: Path) -> list[CaseReport]:
    """Return cases that share one preview, each with a copy of it."""
    content = preview_of(out_dir, "first").read_bytes()
    first = done(out_dir, "first", 1500.0)
    cases = []
    for number in range(MANY):
        name = f"case_{number:04d}"
        path = out_dir / "previews" / f"{name}.webp"
        path.write_bytes(content)
        volumes = {"liver": 1000.0 + number, "spleen": 200.0}
        cases.append(replace(first, case_id=name, outputs={"preview": path}, volumes_ml=volumes))
    return cases


def tab_stops_to_the_first_case(visit: Visit) -> int:
    """Return how often Tab is pressed on a fresh page until the first case has the keyboard."""
    for count in range(30):
        if visit.page.evaluate("document.activeElement.closest('#cases tbody tr') !== null"):
            return count
        visit.press("Tab")
    return 30


def test_a_fresh_page_has_the_keyboard_on_its_first_case_and_shows_it(visit: Visit) -> None:
    assert tab_stops_to_the_first_case(visit) == 0
    row = visit.page.locator("#cases tbody tr").first
    assert row.evaluate("row => getComputedStyle(row).outlineStyle") == "solid"
    visit.press("j", "j", "k", "Enter")
    sync_api.expect(visit.page.locator("h1")).to_have_text("case_3")


def test_the_link_that_skips_leads_to_the_first_case(visit: Visit) -> None:
    visit.page.locator("#skip").focus()
    visit.press("Enter")

    assert visit.page.evaluate("document.activeElement.textContent") == "case_4"
    assert visit.page.url.endswith("report.html")


@pytest.mark.parametrize("width", [1000, 1120, 1280, 1366, 1440, 1920])
def test_no_column_of_the_table_is_cut(browser: "sync_api.Browser", tmp_path: Path, width: int) -> None:
    names = ("hippocampus_anterior", "hippocampus_posterior", "parahippocampal_gyrus")
    first = done(tmp_path, "sub-01_ses-20240131_acq-highres_run-02_T1w", 1400.0)
    truth = truth_of(tmp_path, first.case_id)
    cases = [replace(first, volumes_ml=dict.fromkeys(names, 12345.6)), some_cases(tmp_path)[5]]

    path = write_report(RunFacts(cases, tmp_path, truths={first.case_id: truth}))

    visit = Visit(browser, path, viewport={"width": width, "height": 720})
    room = visit.page.locator(".scroll")
    assert room.evaluate("room => room.scrollWidth - room.clientWidth") == 0
    visit.page.context.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Write the page of a picture, 60 pixels wide and 40 high."""
    grid = Grid((60, 40, 1), AXES_RAS)
    voxels = np.random.default_rng(0).integers(1, 255, grid.shape)
    labels = np.zeros(grid.shape, np.uint8)
    labels[10:30, 10:30] = 1
    case = replace(done(tmp_path, "eye", 0.4), is_picture=True)
    write_preview(tmp_path / "previews" / "eye.webp", sketch(voxels, grid), labels, TABLE)
    return write_report(RunFacts([case], tmp_path))


def test_a_picture_is_shown_as_one_picture_without_sides_slices_and_centimetres(
    browser: "sync_api.Browser", pictures: Path
) -> None:
    visit = Visit(browser, pictures)
    visit.open("eye")

    assert visit.page.locator(".planes figure").count() == 1
    assert visit.page.locator(".planes figcaption").inner_text().strip() == "Picture"
    assert visit.page.locator(".stage span").count() == 0
    assert visit.page.get_by_role("slider").count() == 1  # of the fill
    assert visit.page.locator(".stage canvas").get_attribute("aria-label") == "picture, with liver"
    box = visit.page.locator(".stage canvas").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(60 / 40, rel=0.02)
    assert "Areas among all cases" in visit.page.locator("#case").inner_text()
    visit.press("n", "o")
    lowest = visit.pixels("picture")[-20:]
    assert (lowest.max(axis=(0, 2)) == 255).sum() == 0  # no bar of centimetres
    assert visit.said == []
    visit.page.context.close()


@pytest.mark.parametrize("damage", ["folder", "picture", "page"])
def test_pictures_that_are_not_there_or_damaged_are_told_in_words(
    browser: "sync_api.Browser", tmp_path: Path, damage: str
) -> None:
    facts = some_facts(tmp_path)
    preview = tmp_path / "previews" / "case_10.webp"
    if damage != "folder":
        content = preview.read_bytes()
        at = content.index(b"VP8 ") + 8 if damage == "picture" else content.index(b"layout")
        preview.write_bytes(content[:at] + bytes(40) + content[at + 40 :])
    path = write_report(facts, single_file=damage == "page")
    if damage == "folder":
        shutil.rmtree(tmp_path / "report_files")

    visit = Visit(browser, path)
    visit.page.get_by_role("link", name="case_10", exact=True).click()

    words = {"folder": "The folder report_files with the pictures is not beside this page; copy it there"}
    film = sync_api.expect(visit.page.locator(".film"))
    film.to_contain_text(words.get(damage, "The preview of this case is damaged; segment the case again."))
    if damage != "folder":
        visit.press("j")
        visit.page.locator(".stage canvas").first.wait_for()
    visit.page.context.close()


def test_one_file_shows_its_pictures_wherever_it_is_copied(browser: "sync_api.Browser", tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    path = write_report(some_facts(tmp_path / "made"), single_file=True)
    copied = Path(shutil.copy(path, tmp_path / "sent.html"))

    visit = Visit(browser, copied)
    visit.open("case_2")

    assert visit.colourful() > 1000
    assert [url for url in visit.asked if url.startswith("file:")] == [copied.as_uri()]
    visit.page.context.close()


def test_going_quickly_through_cases_ends_at_the_pictures_of_the_last(
    browser: "sync_api.Browser", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxelgate.segmentation.page.packs.PACK_BYTES", 1)  # one preview in a file
    visit = Visit(browser, write_report(some_facts(tmp_path)))

    visit.press("Enter", *"jjkjjkj")
    visit.page.locator(".stage canvas").first.wait_for()

    assert visit.page.locator(".film .empty-film").count() == 0
    assert visit.colourful() > 1000
    assert visit.page.evaluate("document.head.querySelectorAll('script').length") == 0
    visit.page.context.close()
