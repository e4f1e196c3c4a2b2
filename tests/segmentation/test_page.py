"""The report page as a file: complete alone, true to its cases, and safe against any text."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.report_cases import GATES, HOSTILE, done, some_cases, some_facts, with_attention
from voxelgate.core.errors import OutputError
from voxelgate.segmentation.batch.ledger import Ledger
from voxelgate.segmentation.batch.ledger_records import FileRecord, PublishPlan, RunVersions
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.page import REPORT_NAME, write_page
from voxelgate.segmentation.page.build import embedded_cases, write_report
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
    assert kinds.count("script") == 2 + 5  # facts, program, and a preview of each case that is done
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


def test_previews_that_need_a_look_are_embedded_first(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)
    size = (tmp_path / "previews" / "case_4.webp").stat().st_size * 4 // 3

    assert embedded_cases(facts, limit=0) == set()
    assert embedded_cases(facts, limit=size) == {"case_4"}
    assert embedded_cases(facts, limit=3 * size) == {"case_4", "case_3", HOSTILE}
    assert len(embedded_cases(facts)) == 5


def test_a_preview_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)
    (tmp_path / "previews" / "case_10.webp").write_bytes(b"RIFF")

    ids = {attributes.get("id") for _, attributes in Page(write_report(facts)).elements}

    assert "preview-0" not in ids
    assert "preview-1" in ids


def test_attention_is_embedded_with_what_is_said_of_each_gate(tmp_path: Path) -> None:
    facts = some_facts(tmp_path)
    facts = replace(facts, cases=[with_attention(facts.cases[0], tmp_path), *facts.cases[1:]])

    page = Page(write_report(facts))

    preview, other = page.island("preview-0"), page.island("preview-1")
    assert preview["layout"]["gates"] == [0, 1]  # type: ignore[index]  # JSON
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in preview["attention"]]  # type: ignore[attr-defined]
    with Image.open(tmp_path / "previews" / "case_10.webp") as image:
        assert {one.size for one in pictures} == {image.size}
    assert (other["layout"]["gates"], other["attention"]) == ([], [])  # type: ignore[index]
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
    assert [path.name for path in (tmp_path / "blocked").iterdir()] == [REPORT_NAME]


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
    assert rows["case_1"]["preview"] == "embedded"
    assert "<b>1</b> not finished" in path.read_text(encoding="utf-8")


def test_a_page_above_the_outputs_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill_ledger(tmp_path / "out", [done(tmp_path / "out", "case_1", 1400.0)])

    path = write_page(tmp_path / "out", page=tmp_path / "index.html")

    assert path == tmp_path / "index.html"
    (row,) = Page(path).island("facts")["cases"]  # type: ignore[misc]  # JSON
    assert row["links"] == [["nifti", "./out/case_1.nii.gz"]]


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
