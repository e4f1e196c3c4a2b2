"""The report page as a file: complete alone, true to its cases, and safe against any text."""

import base64
import hashlib
import io
import json
import math
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.report_cases import (
    GATES,
    HOSTILE,
    done,
    packed_previews,
    some_cases,
    some_facts,
    with_attention,
)
from voxelgate.core.errors import OutputError
from voxelgate.segmentation.batch.ledger import Ledger
from voxelgate.segmentation.batch.ledger_records import FileRecord, PublishPlan, RunVersions
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.page import REPORT_NAME, write_page
from voxelgate.segmentation.page.build import embedded_cases, write_report
from voxelgate.segmentation.page.packs import PACK_BYTES, write_packs
from voxelgate.segmentation.page.rows import RunFacts, case_rows, link
from voxelgate.segmentation.report import CaseStatus


class Page(HTMLParser):
    """The elements of a page, and the text of each script and style."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self.raw.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.raw[-1] += data

    def island(self, name: str) -> dict[str, object]:
        """Return the JSON in a script by its id."""
        ids = [attributes.get("id") for tag, attributes in self.elements if tag in {"script", "style"}]
        return dict(json.loads(self.raw[ids.index(name)]))


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    path = write_report(some_facts(tmp_path))

    page = Page(path)
    (policy,) = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data: blob:;")
    assert re.search(r"script-src 'sha256-[^']+' 'strict-dynamic';", policy)  # scripts that the page's own script loads
    assert not [attributes for _, attributes in page.elements if {"src", "srcset", "data"} & attributes.keys()]
    addresses = set(re.findall(r"https?://[^\s\"']+", path.read_text(encoding="utf-8")))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nobody visits


def test_only_the_script_and_style_of_this_package_may_run(tmp_path: Path) -> None:
    page = Page(write_report(some_facts(tmp_path)))

    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes) or ""
    kinds = [(tag, attributes.get("type")) for tag, attributes in page.elements if tag in {"script", "style"}]
    ran = [text for kind, text in zip(kinds, page.raw, strict=True) if kind[1] is None]
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in ran}
    assert {tag for tag, kind in kinds if kind is None} == {"script", "style"}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on") or name == "style"
    ]


def test_hostile_text_makes_no_element_and_is_kept_as_it_is(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)

    page, harmless = Page(write_report(facts)), Page(write_report(replace(facts, cases=[])))

    kinds = [tag for tag, _ in page.elements]
    assert "img" not in kinds
    assert kinds.count("script") == 2  # facts and program
    assert set(kinds) - {tag for tag, _ in harmless.elements} == set()
    case = next(row for row in page.island("facts")["cases"] if row["id"] == HOSTILE)  # type: ignore[attr-defined]  # JSON
    assert case["reasons"] == case["findings"] == [HOSTILE]


def test_outcomes_are_counted_by_verdict_and_state(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)

    assert facts.counts == {"accept": 2, "review": 2, "refuse": 1, "rejected": 1, "failed": 1, "unfinished": 2}
    assert facts.states == {"done": 5, "rejected": 1, "failed": 1}
    assert facts.cases_an_hour == pytest.approx(3600 * 7 / 70)
    assert facts.median_seconds == {"read": 0.5, "network": 2.0, "write": 0.25}


def test_a_run_without_cases_still_makes_a_page(tmp_path: Path) -> None:
    facts = RunFacts([], tmp_path)

    page = Page(write_report(facts))

    assert facts.cases_an_hour is None
    assert page.island("facts")["cases"] == []


def test_why_a_case_is_not_done_stands_in_the_place_of_its_reasons(tmp_path: Path) -> None:
    rows = {row["id"]: row for row in case_rows(some_facts(tmp_path))}

    assert rows["scan_5"]["reasons"] == ["scan_5: all voxels are 0."]
    assert rows["scan_5"]["volumes"] == [None, None]
    assert rows["case_3"]["findings"] == ["LOSSY: the images were compressed."]


@pytest.mark.parametrize(
    ("name", "href"),
    [
        ("a/b.nii.gz", "./a/b.nii.gz"),
        ("javascript:alert(1).nii.gz", "./javascript%3Aalert%281%29.nii.gz"),
        ("50 % ä#?.nii.gz", "./50%20%25%20%C3%A4%23%3F.nii.gz"),
    ],
)
def test_links_are_relative_whatever_a_case_is_called(tmp_path: Path, name: str, href: str) -> None:
    assert link(tmp_path / name, tmp_path) == href


def test_one_file_holds_first_the_previews_that_need_a_look(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)
    size = (tmp_path / "previews" / "case_4.webp").stat().st_size * 4 // 3

    assert embedded_cases(facts, limit=0) == []
    assert embedded_cases(facts, limit=size) == [3]
    assert embedded_cases(facts, limit=3 * size) == [3, 2, 4]
    assert len(embedded_cases(facts)) == 5


def test_pictures_lie_beside_the_page_or_on_request_in_it(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)

    page = Page(write_report(facts))
    beside = packed_previews(tmp_path / REPORT_NAME)
    places = [row["preview"] for row in page.island("facts")["cases"]]  # type: ignore[attr-defined]  # JSON
    alone = Page(write_report(facts, single_file=True))

    assert len(set(places[:5])) == 1
    assert places[5:] == [None, None]
    assert {number: alone.island(f"preview-{number}") for number in range(5)} == beside
    assert [row["preview"] for row in alone.island("facts")["cases"]] == ["page"] * 5 + [None] * 2  # type: ignore[attr-defined]
    assert not (tmp_path / "report_files").exists()


def test_a_page_is_as_long_as_its_table_however_large_its_previews_are(tmp_path: Path) -> None:
    cases = [done(tmp_path, f"case_{number}", 1000.0) for number in range(30)]

    path = write_report(RunFacts(cases, tmp_path))

    empty = write_report(RunFacts([], tmp_path), "empty.html").stat().st_size
    assert path.stat().st_size - empty < 30 * 600
    assert sum(pack.stat().st_size for pack in (tmp_path / "report_files").iterdir()) > 30 * 20_000


def test_previews_are_packed_in_files_of_a_few_megabytes_and_each_is_in_the_one_that_the_page_names(
    tmp_path: Path,
) -> None:
    previews = [(number, {"image": chr(97 + number % 26) * 400_000}) for number in range(12)]

    name_of = write_packs(tmp_path / "report_files", iter(previews))

    packs = list((tmp_path / "report_files").iterdir())
    assert sorted(name_of) == list(range(12))
    assert len(packs) == 3
    assert all(pack.stat().st_size < 1.1 * PACK_BYTES for pack in packs)
    for number, values in previews:
        text = (tmp_path / "report_files" / f"{name_of[number]}.js").read_text(encoding="utf-8")
        assert json.dumps(json.dumps(values)) in text


def test_files_of_an_older_page_go_and_those_of_others_stay(tmp_path: Path) -> None:
    write_report(some_facts(tmp_path))
    older = {path.name for path in (tmp_path / "report_files").iterdir()}
    (tmp_path / "report_files" / "notes.js").write_text("mine", encoding="utf-8")

    path = write_report(RunFacts([done(tmp_path, "another", 1.0)], tmp_path))

    names = {path.name for path in (tmp_path / "report_files").iterdir()}
    (row,) = Page(path).island("facts")["cases"]  # type: ignore[misc]  # JSON
    assert names == {"notes.js", f"{row['preview']}.js"}
    assert not names & older


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / f"{'0' * 16}.js").write_text("theirs", encoding="utf-8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report_files").symlink_to(tmp_path / "theirs")

    with pytest.raises(OutputError, match="report_files: is a link or a file"):
        write_report(some_facts(tmp_path / "out"))
    write_report(some_facts(tmp_path / "out"), single_file=True)

    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "theirs").iterdir()] == ["theirs"]


@pytest.mark.parametrize("single_file", [False, True])
def test_a_damaged_preview_costs_the_pictures_of_its_case_alone(tmp_path: Path, *, single_file: bool) -> None:
    facts = some_facts(tmp_path)
    path = tmp_path / "previews" / "case_10.webp"
    content = path.read_bytes()
    at = content.index(b'"layout"')
    path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])

    page = Page(write_report(facts, single_file=single_file))

    ids = {attributes.get("id") for _, attributes in page.elements}
    first, second = page.island("facts")["cases"][:2]  # type: ignore[index]  # JSON
    if single_file:
        assert ("preview-0" in ids, "preview-1" in ids) == (False, True)
    else:
        assert set(packed_previews(tmp_path / REPORT_NAME)) == {1, 2, 3, 4}
        assert first["preview"] == "unreadable" != second["preview"]


def test_attention_is_shown_with_what_is_said_of_each_gate(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)
    facts = replace(facts, cases=[with_attention(facts.cases[0], tmp_path), *facts.cases[1:]])

    page = Page(write_report(facts))

    preview, other = (packed_previews(tmp_path / REPORT_NAME)[number] for number in (0, 1))
    assert preview["layout"]["gates"] == [0, 1]
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in preview["attention"]]
    with Image.open(tmp_path / "previews" / "case_10.webp") as image:
        assert {one.size for one in pictures} == {image.size}
    assert (other["layout"]["gates"], other["attention"]) == ([], [])
    first, second = page.island("facts")["cases"][:2]  # type: ignore[index]
    assert first["gates"] == [str(gate) for gate in GATES]
    assert [kind for kind, _ in first["links"]] == ["nifti", "attention-0"]
    assert second["gates"] == []


def test_areas_of_pictures_are_told_in_pixels(tmp_path: Path) -> None:
    cases = [replace(case, is_picture=True) for case in some_cases(tmp_path)[:2]]

    page = Page(write_report(RunFacts(cases, tmp_path)))

    facts = page.island("facts")
    assert facts["unit"] == "px"
    assert facts["cases"][0]["volumes"] == [1_400_000, 200_000]  # type: ignore[index]  # JSON; cubes of 1 mm


def test_an_older_page_is_replaced_and_one_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    first = write_report(some_facts(tmp_path)).read_bytes()
    (tmp_path / "blocked" / REPORT_NAME).mkdir(parents=True)

    assert write_report(RunFacts([], tmp_path)).read_bytes() != first
    with pytest.raises(OutputError, match=r"report\.html: cannot be written"):
        write_report(RunFacts([], tmp_path / "blocked"))
    with pytest.raises(OutputError, match=r"report\.html: cannot be written"):
        write_report(RunFacts([done(tmp_path / "blocked", "case", 1.0)], tmp_path / "blocked"))
    assert {path.name for path in (tmp_path / "blocked").iterdir()} == {REPORT_NAME, "previews"}


def test_equal_facts_give_equal_pages(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)

    assert write_report(facts).read_bytes() == write_report(facts).read_bytes()


def test_a_page_is_made_of_the_ledger_of_an_output_folder(tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    reports = [done(out_dir, "case_1", 1400.0), some_cases(out_dir)[5]]
    fill_ledger(out_dir, reports)

    path = write_page(out_dir)

    assert path == out_dir / REPORT_NAME
    facts = Page(path).island("facts")
    rows = {row["id"]: row for row in facts["cases"]}  # type: ignore[attr-defined]  # JSON
    assert {name: row["status"] for name, row in rows.items()} == {"case_1": "done", "scan_5": "rejected"}
    assert rows["case_1"]["links"] == [["nifti", "./case_1.nii.gz"]]
    assert (out_dir / "report_files" / f"{rows['case_1']['preview']}.js").is_file()
    assert ">1</b> not finished" in path.read_text(encoding="utf-8")


def test_a_page_above_the_outputs_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill_ledger(tmp_path / "out", [done(tmp_path / "out", "case_1", 1400.0)])

    path = write_page(tmp_path / "out", page=tmp_path / "index.html")

    assert path == tmp_path / "index.html"
    (row,) = Page(path).island("facts")["cases"]  # type: ignore[misc]  # JSON
    assert row["links"] == [["nifti", "./out/case_1.nii.gz"]]


@pytest.mark.parametrize(
    ("field", "value"),
    [(None, text) for text in ("5", "null", "[" * 100_000, '{"case_id": "case_2"}', "no JSON")]
    + [("volumes_ml", {"liver": math.nan}), ("volumes_ml", {"liver": math.inf}), ("seconds", {"read": math.nan})]
    + [("peak_mib", math.inf), ("versions", {"bundle": "\ud800"}), ("findings", [{"code": 5}])]
    + [("outputs", {"preview": "../../secret.webp"}), ("outputs", {"preview": "/etc/passwd"})],
    ids=lambda value: str(value)[:20],
)
def test_a_row_of_the_ledger_that_is_no_report_is_a_case_that_failed(
    tmp_path: Path, field: str | None, value: Any
) -> None:
    fill_ledger(tmp_path, [done(tmp_path, "case_1", 1400.0), done(tmp_path, "case_2", 1400.0)])
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as connection:
        (known,) = connection.execute("SELECT report FROM cases WHERE case_id = 'case_2'").fetchone()
        report = value if field is None else json.dumps(json.loads(known) | {field: value})
        connection.execute("UPDATE cases SET report = ? WHERE case_id = 'case_2'", (report,))

    page = Page(write_page(tmp_path))

    first, second = page.island("facts")["cases"]  # type: ignore[misc]  # JSON
    assert (first["id"], first["outcome"], second["id"], second["outcome"]) == ("case_1", "accept", "case_2", "failed")
    assert second["reasons"] == ["the ledger holds no report of this case, but something else; segment it again."]


def test_a_folder_without_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="ledger"):
        write_page(tmp_path)


def fill_ledger(out_dir: Path, reports: list) -> None:
    """Write a ledger with these cases and one that waits."""
    ledger = Ledger(out_dir)
    ledger.begin_run("serial", "organs 1.0.0")
    ledger.enrol([Case(name, None) for name in [*(report.case_id for report in reports), "scan_9"]])
    versions = RunVersions("", "", "ab" * 32, "")
    for report in reports:
        if report.status is not CaseStatus.DONE:
            ledger.end(report, versions)
            continue
        files = tuple(FileRecord(path.relative_to(out_dir), kind, "") for kind, path in report.outputs.items())
        plan = PublishPlan(Path(".scratch"), files)
        ledger.plan(report.case_id, plan, report, versions)
        ledger.finish(report.case_id, plan, dict.fromkeys((file.path for file in files), ""))
    ledger.end_run()
    ledger.close()
