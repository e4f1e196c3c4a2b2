"""`--attention`: the maps of the gates beside the results, what they say in report and console, and nothing else."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.attention_bundle import LEVELS, make_attention_bundle
from tests.batch_bundle import save_case
from tests.batch_runs import tree
from tests.conftest import Run
from tests.planted import ct_series, write
from tests.segmentation.test_preview import CODES, affine_of, centre, slices, two_shapes
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.bundle.checksums import seal
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.verdict import Quality
from voxelgate.images.volumes import read_grid, read_volume
from voxelgate.inference.attention.gate_report import GateReport, GateVerdict
from voxelgate.segmentation.batch.ledger import read_ledger
from voxelgate.segmentation.batch.run_batch import foretell, segment, setup_of
from voxelgate.segmentation.cases import find_cases
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.preview import read_preview, sketch, write_preview
from voxelgate.segmentation.report import CaseReport, CaseStatus
from voxelgate.segmentation.segment import segment_case

MAPS = {f"attention-{level}" for level in LEVELS}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_attention_bundle(tmp_path_factory.mktemp("bundles") / "gated")


def segment_one(inputs: Path, bundle: Path, out: Path, options: Options) -> CaseReport:
    (case,) = find_cases([inputs])
    return segment_case(case, open_bundle(bundle, "cpu"), out, options)


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_maps_of_all_gates_lie_beside_the_labels_on_the_grid_of_the_image(tmp_path: Path, bundle: Path) -> None:
    image = save_case(tmp_path / "a.nii.gz", size=20)

    report = segment_one(image, bundle, tmp_path / "out", Options(attention=LEVELS))

    assert report.status is CaseStatus.DONE, report.findings
    assert set(report.outputs) == MAPS | {"nifti"}
    for level in LEVELS:
        path = report.outputs[f"attention-{level}"]
        assert path == tmp_path / "out" / f"a.attention-{level}.nii.gz"
        assert read_grid(path).agrees(read_grid(image), 1e-4)
        values, _ = read_volume(path)
        assert 0 <= values.min() < values.max() <= 1 + 1e-6
    assert [gate.level for gate in report.attention] == list(LEVELS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in report.outputs.values()
    )


def test_maps_follow_the_image_wherever_it_lies(tmp_path: Path, bundle: Path) -> None:
    image = save_case(tmp_path / "a.nii.gz", size=20)
    turned = nib.load(image).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nib.save(turned, tmp_path / "b.nii.gz")

    reports = [
        segment_one(tmp_path / f"{name}.nii.gz", bundle, tmp_path / "out", Options(attention=LEVELS)) for name in "ab"
    ]

    for kind in MAPS:
        straight, turned = (nib.as_closest_canonical(nib.load(report.outputs[kind])) for report in reports)
        np.testing.assert_allclose(straight.get_fdata(), turned.get_fdata(), atol=1.5 / 255)


@pytest.mark.parametrize("gating", ["inside", "coarse"])
def test_gates_of_any_kind_have_maps(tmp_path: Path, gating: str) -> None:
    root = make_attention_bundle(tmp_path / "bundle", gating=gating, ungated_levels=1)

    report = segment_one(save_case(tmp_path / "a.nii.gz"), root, tmp_path / "out", Options(attention=(1,)))

    assert set(report.outputs) == {"nifti", "attention-1"}


def test_maps_of_a_dicom_series_lie_beside_its_dicom_outputs_under_the_same_name(tmp_path: Path, bundle: Path) -> None:
    write(ct_series(), tmp_path / "in")

    report = segment_one(tmp_path / "in", bundle, tmp_path / "out", Options((Output.SEG,), attention=LEVELS))

    assert report.status is CaseStatus.DONE, report.findings
    assert set(report.outputs) >= MAPS
    for kind in MAPS:
        assert report.outputs[kind].name == f"{report.case_id}.{kind}.nii.gz"
    assert {path.parent for path in report.outputs.values()} == {tmp_path / "out"}


def test_labels_and_what_is_said_of_them_are_the_same_with_and_without(tmp_path: Path, bundle: Path) -> None:
    image = save_case(tmp_path / "a.nii.gz", size=20)
    plain, gated = (
        segment_one(image, bundle, tmp_path / name, Options((Output.NIFTI, Output.PREVIEW), attention=attention))
        for name, attention in (("plain", ()), ("gated", LEVELS))
    )

    assert plain.outputs["nifti"].read_bytes() == gated.outputs["nifti"].read_bytes()
    assert (plain.volumes_ml, plain.quality, plain.findings) == (gated.volumes_ml, gated.quality, gated.findings)
    before, after = (read_preview(one.outputs["preview"]) for one in (plain, gated))
    with Image.open(io.BytesIO(before.image)) as one, Image.open(io.BytesIO(after.image)) as other:
        assert one.tobytes() == other.tobytes()
    assert before.labels == after.labels
    assert (len(before.attention), len(after.attention)) == (0, len(LEVELS))


def test_a_map_of_somebody_else_is_not_overwritten(tmp_path: Path, bundle: Path) -> None:
    image, options = save_case(tmp_path / "a.nii.gz"), Options(attention=LEVELS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.attention-1.nii.gz").write_bytes(b"mine")

    refused = segment_one(image, bundle, tmp_path / "out", options)

    assert refused.status is CaseStatus.REJECTED
    assert "a.attention-1.nii.gz: exists already" in str(refused.findings[0])
    assert tree(tmp_path / "out") == {"a.attention-1.nii.gz": b"mine"}
    replaced = segment_one(image, bundle, tmp_path / "out", Options(overwrite=True, attention=LEVELS))
    assert replaced.status is CaseStatus.DONE


def test_other_gates_than_the_network_has_are_refused(tmp_path: Path, bundle: Path) -> None:
    report = segment_one(save_case(tmp_path / "a.nii.gz"), bundle, tmp_path / "out", Options(attention=(0, 1, 2)))

    assert report.status is CaseStatus.REJECTED
    assert "the network has gates (0, 1)" in str(report.findings[0])


# --- report ---------------------------------------------------------------------------------------------------------


def test_a_report_keeps_what_is_said_of_gates_and_older_ones_say_nothing() -> None:
    gate = GateReport(0, GateVerdict.SATURATED, 0.96, 0.99, 1.0, 0.1, 0.1, 0.01)
    report = CaseReport("a", CaseStatus.DONE, "ab", {}, quality=Quality(), attention=(gate,))

    assert CaseReport.from_json(report.to_json()) == report
    record = json.loads(report.to_json())
    assert record.pop("attention") == [asdict(gate)]
    assert CaseReport.from_json(json.dumps(record)).attention == ()


@pytest.mark.parametrize("codes", CODES)
def test_the_attention_of_a_preview_lies_where_the_labels_do(tmp_path: Path, codes: str) -> None:
    grid = Grid((30, 30, 30), affine_of(codes))
    labels = two_shapes(grid)
    made = sketch(labels * 50.0, grid)
    points_mm = (
        np.moveaxis(np.indices(made.lattice.grid.shape), 0, -1) @ made.lattice.grid.affine[:3, :3].T
        + made.lattice.grid.affine[:3, 3]
    )
    at_ball = (np.linalg.norm(points_mm - (-14, 14, 14), axis=-1) < 8).astype(np.float32)  # as structure 1 is
    table = LabelTable(("background", "ball", "cube"))

    write_preview(tmp_path / "a.webp", made, labels, table, {2: at_ball})

    preview = read_preview(tmp_path / "a.webp")
    assert preview.layout.gates == (2,)
    seen = slices(preview, np.array(Image.open(io.BytesIO(preview.attention[0])).convert("L")))
    is_left = {"axial": 1, "coronal": 1, "sagittal": 0}
    for plane, values in seen.items():
        row, column = centre(values > 128)
        assert row < 0.4, plane
        assert (column > 0.6) == bool(is_left[plane]), plane


# --- command and batch ----------------------------------------------------------------------------------------------


def test_the_command_says_a_line_of_each_gate_and_its_json_the_same(tmp_path: Path, bundle: Path, run: Run) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    arguments = ("segment", bundle, tmp_path / "in", "--engine", "serial", "--attention", "--out")

    result = run(*arguments, tmp_path / "out")
    as_json = run(*arguments, tmp_path / "json", "--json")

    assert result.returncode == as_json.returncode == 0, result.stderr
    (entry,) = read_ledger(tmp_path / "out")[0]
    assert entry.report is not None
    lines = [line for line in result.stdout.splitlines() if line.startswith("a: gate ")]
    assert lines == [f"a: {gate}" for gate in entry.report.attention]
    assert len(lines) == len(LEVELS)
    record = json.loads(as_json.stdout)
    assert [gate["level"] for gate in record["attention"]] == list(LEVELS)
    assert set(record["outputs"]) == MAPS | {"nifti", "preview"}


@pytest.mark.parametrize("kind", ["no gates", "other network", "ensemble"])
def test_what_has_no_gates_is_refused_before_any_work(tmp_path: Path, run: Run, kind: str) -> None:
    image = save_case(tmp_path / "a.nii.gz")
    root, extra = tmp_path / "bundle", []
    if kind == "no gates":
        make_attention_bundle(root, attention=False)
    if kind == "other network":
        make_threshold_bundle(root)
    if kind == "ensemble":
        root, extra = make_ensemble(root), ["--ensemble"]

    result = run("segment", root, image, "--out", tmp_path / "out", "--attention", *extra)

    assert result.returncode == 2
    assert result.stderr.startswith("UsageError: ")
    assert "attention maps" in result.stderr
    assert not (tmp_path / "out").exists()


def make_ensemble(root: Path) -> Path:
    make_attention_bundle(root)
    for fold in range(2):
        (root / "models" / f"fold_{fold}.pt").write_bytes((root / "models" / "model.pt").read_bytes())
    seal(root)
    return root


@pytest.mark.slow
def test_all_engines_write_the_same_maps(tmp_path: Path, bundle: Path) -> None:
    for seed, name in enumerate("ab"):
        save_case(tmp_path / "in" / f"{name}.nii.gz", seed=seed)
    for engine in ("serial", "processes:1"):
        reports = list(segment(bundle, tmp_path / "in", tmp_path / engine, workers=engine, attention=True))
        assert {report.status for report in reports} == {CaseStatus.DONE}
        assert {gate.level for report in reports for gate in report.attention} == set(LEVELS)

    serial, processes = tree(tmp_path / "serial"), tree(tmp_path / "processes:1")
    assert {"a.attention-0.nii.gz", "b.attention-1.nii.gz"} <= serial.keys()
    assert serial == processes


def test_a_forecast_without_a_trial_says_that_it_leaves_maps_out(tmp_path: Path, bundle: Path) -> None:
    plain, gated = (
        foretell([], setup_of(bundle, tmp_path / "out", Options(attention=attention, max_memory_gib=4)))[0]
        for attention in ((), LEVELS)
    )

    assert gated == f"{plain} Attention maps and mirroring take time and disk beyond that."
