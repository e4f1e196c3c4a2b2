"""True labels in the report: cut as the pictures, scored as `evaluate` scores, and refused where they do not fit."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.attention_bundle import make_attention_bundle
from tests.batch_bundle import save_case
from tests.conftest import Run
from tests.report_cases import packed_previews
from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.core.verdict import Quality, Verdict
from voxelgate.evaluation.scores import LabelScores, score
from voxelgate.images.volumes import read_volume
from voxelgate.segmentation.batch.ledger import read_inputs, read_ledger
from voxelgate.segmentation.batch.run_batch import segment
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.page.build import write_report
from voxelgate.segmentation.page.reference import Truth, compared, judged_by, references_of
from voxelgate.segmentation.page.rows import RunFacts
from voxelgate.segmentation.preview import read_preview
from voxelgate.segmentation.report import CaseReport, CaseStatus

MANIFEST = {
    "name": "two",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "one"},
    "licence": "CC0-1.0",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `in` and `out`, in which two cases were segmented, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("finished")
    bundle = make_attention_bundle(folder / "bundle")
    save_case(folder / "in" / "a.nii.gz")
    save_case(folder / "in" / "b.nii.gz", seed=1)
    outputs = (Output.NIFTI, Output.PREVIEW)
    list(segment(bundle, folder / "in", folder / "out", workers="serial", outputs=outputs, attention=True))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of it, with the results as true labels in `true`."""
    shutil.copytree(finished / "out", tmp_path / "out")
    (tmp_path / "true").mkdir()
    for name in "ab":
        shutil.copy(finished / "out" / f"{name}.nii.gz", tmp_path / "true")
    return tmp_path


def cases_of(out_dir: Path) -> list[CaseReport]:
    return [entry.report for entry in read_ledger(out_dir)[0] if entry.report is not None]


def truths(folder: Path) -> dict[str, Truth]:
    cases = cases_of(folder / "out")
    return compared(cases, references_of(cases, folder / "out", folder / "true"))


def changed(path: Path, change: object) -> None:
    """Replace the voxels of a label map."""
    image = nib.load(path)
    voxels = change(np.asarray(image.dataobj))  # type: ignore[operator]  # a function of the test's own
    nib.save(nib.Nifti1Image(voxels, image.affine), path)


def test_labels_that_were_found_exactly_score_1_and_are_cut_like_them(folder: Path) -> None:
    found = truths(folder)

    assert list(found) == ["a", "b"]
    for case in cases_of(folder / "out"):
        truth = found[case.case_id]
        assert truth.labels == read_preview(case.outputs["preview"]).labels
        assert {one.dice for one in truth.scores} == {1.0}
        for seen, told in zip(truth.gates, case.attention, strict=True):
            assert (seen.low, seen.high, seen.entropy) == (told.low, told.high, told.entropy)
            assert seen.mass_inside == pytest.approx(told.mass_inside, abs=0.005)  # maps are written as bytes
            assert seen.label_share == told.label_share


def test_other_labels_score_as_evaluate_says_and_say_other_things_of_the_gates(folder: Path) -> None:
    changed(folder / "true" / "a.nii.gz", lambda voxels: np.roll(voxels, 3, axis=0))

    truth = truths(folder)["a"]

    (case, _) = cases_of(folder / "out")
    labels, grid = read_volume(folder / "true" / "a.nii.gz")
    found, _ = read_volume(case.outputs["nifti"])
    layout = read_preview(case.outputs["preview"]).layout
    assert list(truth.scores) == score(found, labels, grid, LabelTable(("background", *layout.names)), "a")
    assert all(one.dice < 1 for one in truth.scores)
    assert truth.labels != read_preview(case.outputs["preview"]).labels
    assert [gate.mass_inside for gate in truth.gates] != [gate.mass_inside for gate in case.attention]


@pytest.mark.parametrize(("dice", "verdict"), [(0.3, "review"), (0.0, "review"), (0.7, "accept"), (math.nan, "accept")])
def test_a_result_that_agrees_badly_with_true_labels_is_not_shown_as_accepted(dice: float, verdict: str) -> None:
    case = CaseReport("a", CaseStatus.DONE, "ab", {}, quality=Quality())
    scores = [LabelScores("a", "liver", dice, *[0.5] * 9), LabelScores("a", "spleen", 0.95, *[0.5] * 9)]

    judged = judged_by(case, Truth(None, scores, ()))

    assert judged.verdict == verdict
    reasons = judged.quality.reasons if judged.quality else ()
    assert reasons == ((f"true labels: Dice below 0.7 of liver ({dice:.2f}).",) if verdict == "review" else ())


def test_true_labels_make_no_verdict_better_and_leave_those_without_a_result_alone() -> None:
    refused = CaseReport("a", CaseStatus.DONE, "ab", {}, quality=Quality(Verdict.REFUSE, ("volume: absurd.",)))
    rejected = CaseReport("b", CaseStatus.REJECTED, "ab", {})
    truth = Truth(None, [LabelScores("a", "liver", 0.3, *[0.5] * 9)], ())

    assert judged_by(refused, truth).quality == Quality(
        Verdict.REFUSE, ("true labels: Dice below 0.7 of liver (0.30).", "volume: absurd.")
    )
    assert judged_by(rejected, truth) == rejected
    assert judged_by(refused, None) == refused


def test_the_page_counts_a_result_that_agrees_badly_as_one_for_review(folder: Path, run: Run) -> None:
    changed(folder / "true" / "a.nii.gz", lambda voxels: np.roll(voxels, 12, axis=0))

    run("report", folder / "out", "--reference", folder / "true")

    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    facts = json.loads(page.split('id="facts">')[1].split("</script>")[0])
    (row,) = [one for one in facts["cases"] if one["id"] == "a"]
    assert row["outcome"] == "review"
    assert any(reason.startswith("true labels: Dice below") for reason in row["reasons"])


def test_cases_without_true_labels_are_shown_without(folder: Path, run: Run) -> None:
    (folder / "true" / "b.nii.gz").unlink()

    done = run("report", folder / "out", "--reference", folder / "true")

    assert done.returncode == 0
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "mean Dice, 1 of 2 cases" in page
    assert page.count('"truth": null') == 1
    truths = [preview["truth"] for _, preview in sorted(packed_previews(folder / "out" / "report.html").items())]
    assert [truth is None for truth in truths] == [False, True]


def test_cases_without_previews_are_scored(folder: Path) -> None:
    cases = [
        replace(case, outputs={kind: path for kind, path in case.outputs.items() if kind != Output.PREVIEW})
        for case in cases_of(folder / "out")
    ]

    found = compared(cases, references_of(cases, folder / "out", folder / "true"))

    assert [(truth.labels, truth.scores[0].dice) for truth in found.values()] == [(None, 1.0)] * 2


def test_a_manifest_names_the_true_labels_by_case(folder: Path) -> None:
    row = {"case_id": "b", "image": "out/a.nii.gz", "label": "true/b.nii.gz", "subject": "1"}
    (folder / "two.json").write_text(json.dumps(MANIFEST | {"training": [row]}), encoding="utf-8")

    cases = cases_of(folder / "out")

    assert references_of(cases, folder / "out", folder / "two.json") == {"b": folder / "true" / "b.nii.gz"}


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `in`, in which two images have one name and a third another, and `out` with hashed names."""
    folder = tmp_path_factory.mktemp("hashed")
    for number, name in enumerate(("one/a", "two/a", "b_0000")):
        save_case(folder / "in" / f"{name}.nii.gz", seed=number)
    bundle = make_attention_bundle(folder / "bundle")
    list(segment(bundle, folder / "in", folder / "out", workers="serial", hashed_names=True))
    return folder


def paired_inputs(folder: Path, reference: Path) -> dict[str, str]:
    """Return the true label map that was found for each input, as paths."""
    out_dir, inputs = folder / "out", read_inputs(folder / "out")
    found = references_of(cases_of(out_dir), out_dir, reference, inputs=inputs)
    return {
        inputs[case_id].resolve().relative_to(folder / "in").as_posix(): path.relative_to(reference.parent).as_posix()
        for case_id, path in found.items()
    }


@pytest.mark.parametrize(
    ("true", "expected"),
    [
        (
            ["one/a", "two/a", "b"],
            {"one/a.nii.gz": "one/a", "two/a.nii.gz": "two/a", "b_0000.nii.gz": "b"},
        ),
        (["a", "b"], {"b_0000.nii.gz": "b"}),  # whose `a` is, nobody knows
        (["one/a", "a"], {"one/a.nii.gz": "one/a", "two/a.nii.gz": "a"}),
    ],
)
def test_cases_with_hashed_names_have_the_true_labels_that_are_called_like_their_images(
    hashed: Path, tmp_path: Path, true: list[str], expected: dict[str, str]
) -> None:
    for name in true:
        save_case(tmp_path / "true" / f"{name}.nii.gz")

    found = paired_inputs(hashed, tmp_path / "true")

    assert found == {image: f"true/{name}.nii.gz" for image, name in expected.items()}


def test_a_manifest_names_the_true_labels_of_cases_with_hashed_names_by_their_images(hashed: Path) -> None:
    for name in ("one", "two"):
        save_case(hashed / "labels" / f"{name}.nii.gz")
    rows = [
        {"case_id": name, "image": f"in/{name}/a.nii.gz", "label": f"labels/{name}.nii.gz", "subject": name}
        for name in ("one", "two")
    ]
    manifest = hashed / "manifest.json"
    manifest.write_text(json.dumps(MANIFEST | {"training": rows}), encoding="utf-8")

    found = paired_inputs(hashed, manifest)

    assert found == {"one/a.nii.gz": "labels/one.nii.gz", "two/a.nii.gz": "labels/two.nii.gz"}


def test_a_folder_of_other_cases_is_refused(folder: Path) -> None:
    (folder / "true" / "a.nii.gz").rename(folder / "true" / "c.nii.gz")
    (folder / "true" / "b.nii.gz").unlink()

    with pytest.raises(UsageError, match="holds the true labels of none of the 2 cases"):
        truths(folder)


def test_true_labels_on_another_grid_are_refused(folder: Path) -> None:
    changed(folder / "true" / "a.nii.gz", lambda voxels: voxels[:-1])

    with pytest.raises(InputError, match="a: the true labels lie on another grid"):
        truths(folder)


def test_a_value_without_a_name_is_refused(folder: Path) -> None:
    changed(folder / "true" / "a.nii.gz", lambda voxels: voxels + 9)

    with pytest.raises(InputError, match="has no name"):
        truths(folder)


def test_a_data_root_without_a_manifest_is_refused(folder: Path, run: Run) -> None:
    for arguments in (("--reference", folder / "true"), ()):
        done = run("report", folder / "out", *arguments, "--data-root", folder)
        assert done.returncode == 2
        assert "--data-root is for a manifest" in done.stderr


def test_a_preview_that_cannot_be_read_costs_its_pictures_and_not_the_scores(folder: Path) -> None:
    cases = cases_of(folder / "out")
    Image.new("L", (8, 8)).save(cases[0].outputs["preview"])  # as one of an earlier version

    found = compared(cases, references_of(cases, folder / "out", folder / "true"))
    page = write_report(RunFacts(cases, folder / "out", truths=found))

    assert found["a"].labels is None
    assert [truth.scores[0].dice for truth in found.values()] == [1.0] * 2
    assert set(packed_previews(page)) == {1}
