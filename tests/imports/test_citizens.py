"""Imported bundles are bundles like others: asked, limited, judged and reported; what they cannot do is said."""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from pydicom import dcmread
from typer.testing import CliRunner

from tests.batch_runs import start, start_to_die, tree
from tests.dicom_files import stack, write_all
from tests.imports.imported_bundles import imported_bundle
from tests.imports.nnunet_files import write_data_set
from tests.imports.parts_bundle import NAMES, WINDOW, parts_model, thresholds, write_parts_bundle
from voxelgate.apps.cli.main import app
from voxelgate.bundle.export import export
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.passing import averages_mirrorings
from voxelgate.bundle.predict import WITHOUT_RANGES, Bundle
from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.evaluation.pairs import label_maps_in
from voxelgate.inference.composed.cascade_inferer import CascadeInferer
from voxelgate.inference.composed.part import Part
from voxelgate.inference.composed.parts_inferer import PartsInferer
from voxelgate.inference.nnunet.nnunet_inferer import NnUNetInferer
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.runtimes.formats import is_installed
from voxelgate.inference.runtimes.kinds import Format
from voxelgate.inference.source_grid import part_around
from voxelgate.segmentation.batch.forecast.sample import sample
from voxelgate.segmentation.batch.ledger import read_ledger
from voxelgate.segmentation.batch.run_batch import segment, setup_of
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import is_no_label_map
from voxelgate.segmentation.report import CaseReport
from voxelgate.segmentation.segment import segment_case
from voxelgate.training.bundle_checks import pass_checks
from voxelgate.training.train import how_to_go_on
from voxelgate.transforms.io import as_image

needs_onnx = pytest.mark.skipif(not is_installed(Format.ONNX), reason="the extra onnx is not installed")

SHAPE = (20, 18, 14)
BLOCKS = {1: slice(2, 6), 2: slice(7, 10), 3: slice(11, 14), 4: slice(15, 18)}


def phantom() -> np.ndarray:
    """Return values of which each structure of the bundle is a slab."""
    voxels = np.full(SHAPE, -50, np.int16)
    for value, block in BLOCKS.items():
        voxels[block, 2:-2, 2:-2] = 100 * value + 50
    return voxels + np.random.default_rng(0).integers(-20, 20, SHAPE).astype(np.int16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts_bundle(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(phantom(), np.diag([2, 2, 2, 1.0])), path)
    return path


@pytest.fixture
def bundle(root: Path) -> Bundle:
    return open_bundle(root, "cpu")


def done(root: Path, scan: Path, out: Path, **asked: Any) -> CaseReport:
    (report,) = segment(root, scan, out, workers="serial", **asked)
    return report


class Told:
    """An inferer that keeps what it is told, and gives a label map that is known."""

    def __init__(self, label: int = 1, **told: Any) -> None:
        self.label, self.told = label, told

    def adjusted(self, asked: PassOptions) -> "Told":
        return Told(2 if asked.fast else self.label, **asked.changes)

    def within(self, limit_bytes: int) -> "Told":
        return Told(self.label, **self.told, limit=limit_bytes)

    def __call__(self, image: MetaTensor, _network: object) -> MetaTensor:
        labels = (image[:, :1] > 0) * self.label
        labels[0, 0, 0] = 1
        return labels.to(torch.uint8)


# --- asked to run otherwise


def test_only_structures_that_are_looked_for_are_found_and_only_their_parts_run(bundle: Bundle, scan: Path) -> None:
    asked = bundle.adjusted(PassOptions(roi_subset=("Kidney, left", "liver")))

    found = asked.segment(scan)

    whole = bundle.segment(scan).labels
    assert np.array_equal(found.labels, np.where(np.isin(whole, (1, 3)), whole, 0))
    assert found.volumes_ml.keys() == {"liver", "left kidney"}
    assert not any("missing" in reason for reason in found.review.reasons)
    one = bundle.adjusted(PassOptions(roi_subset=("spleen",)))
    assert len(one.inferer.parts) == 1  # type: ignore[attr-defined]
    assert set(one.segment(scan).volumes_ml) == {"spleen"}


def test_structures_of_a_bundle_without_parts_are_left_out_of_its_result(bundle: Bundle, scan: Path) -> None:
    plain = replace(bundle, inferer=bundle.inferer.__call__)

    found = plain.adjusted(PassOptions(roi_subset=("spleen",))).segment(scan)

    assert set(np.unique(found.labels)) == {0, 2}


def test_what_was_asked_for_reaches_the_inferer_and_nothing_else_does(bundle: Bundle) -> None:
    told = replace(bundle, inferer=Told())

    assert told.adjusted(PassOptions()).inferer is told.inferer
    changed = told.adjusted(PassOptions(fast=True, step_size=0.8, mirroring=False)).inferer
    assert changed.told == {"fast": True, "step_size": 0.8, "no_mirroring": True}  # type: ignore[attr-defined]
    assert told.within(10**9).inferer.told == {"limit": 10**9}  # type: ignore[attr-defined]
    parts = bundle.within(10**9).inferer.parts  # type: ignore[attr-defined]
    assert [part.inferer.max_memory for part in parts] == [10**9] * 2
    steps = bundle.adjusted(PassOptions(step_size=1.0)).inferer.parts  # type: ignore[attr-defined]
    assert [part.inferer.overlap for part in steps] == [0.0] * 2


def test_a_fast_pass_is_measured_against_the_exact_one_once(bundle: Bundle) -> None:
    fast = replace(bundle, inferer=Told()).adjusted(PassOptions(fast=True))
    image = as_image(phantom()[None], Grid(SHAPE, np.diag([2, 2, 2, 1.0])))
    expected = 1 - float((phantom()[1:] > 0).mean()) * 19 / 20

    found = fast.predict(fast.prepare(image), Grid.of(image))

    assert found.runtime == "fast"
    assert found.agreement == pytest.approx(expected)
    assert fast.predict(fast.prepare(image) * 0 - 1, Grid.of(image)).agreement == found.agreement
    assert bundle.predict(bundle.prepare(image), Grid.of(image)).agreement is None


def test_a_part_of_an_image_lies_where_it_lay() -> None:
    grid = Grid(SHAPE, np.array([[0, 2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1.0]]))
    image = as_image(phantom()[None], grid)[None]
    centre_mm = grid.affine[:3, :3] @ [10, 17, 0] + grid.affine[:3, 3]

    part = part_around(image, centre_mm, (8, 6, 40))

    assert part.shape == (1, 1, 8, 6, 14)
    assert np.array_equal(part[0, 0], phantom()[6:14, 12:18])
    assert Grid.of(part).difference(grid.cropped((slice(6, 14), slice(12, 18), slice(0, 14)))) is None


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"fast": True}, "--fast is for imported models"),
        ({"runtime": "onnx"}, "--runtime is for bundles that were trained here"),
        ({"fast": True, "runtime": "eager"}, "give one of them"),
        ({"step_size": 1.5}, "--step-size 1.5"),
        ({"roi_subset": ["pancreas"]}, "it has liver, spleen, left kidney, right kidney"),
        ({"roi_subset": ["liver", "liver"]}, "names a structure twice"),
        ({"outputs": ["nifti", "probabilities"]}, "joins several networks or steps, and tells labels only"),
    ],
)
def test_what_a_bundle_cannot_be_asked_for_is_refused_before_the_first_case(
    root: Path, scan: Path, tmp_path: Path, asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        segment(root, scan, tmp_path / "out", workers="serial", **asked)

    assert not (tmp_path / "out").exists()


def test_an_inferer_that_takes_no_options_is_named_by_the_option(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="--step-size, --no-mirroring: this bundle has one way to run"):
        replace(bundle, inferer=print).adjusted(PassOptions(step_size=0.5, mirroring=False))


def test_a_run_asked_otherwise_does_cases_again_and_says_so(root: Path, scan: Path, tmp_path: Path) -> None:
    first = done(root, scan, tmp_path / "out")
    again = done(root, scan, tmp_path / "out", roi_subset=["liver"], step_size=0.8, mirroring=False)

    entries, _ = read_ledger(tmp_path / "out")
    assert "asked" not in first.versions
    assert again.versions["asked"] == "step_size 0.8, no_mirroring, roi_subset liver"
    assert '"roi_subset": ["liver"], ' in entries[0].versions.options
    labels = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, 1}


def test_the_command_takes_the_options(root: Path, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["segment", str(root), str(scan), "--out", str(out), "--json", "--engine", "serial"]

    ended = CliRunner().invoke(app, [*words, "--roi-subset", "liver, spleen", "--step-size", "0.9", "--no-mirroring"])

    assert ended.exit_code == 0, ended.output
    record = json.loads(ended.stdout.splitlines()[-1])
    assert set(record["volumes_ml"]) == {"liver", "spleen"}
    assert record["versions"]["asked"] == "step_size 0.9, no_mirroring, roi_subset liver+spleen"
    assert record["versions"]["licence"] == "CC BY-NC 4.0"


def test_a_structure_with_a_comma_in_its_name_is_named_in_quotation_marks(scan: Path, tmp_path: Path) -> None:
    named = ("background", "liver", "Kidney, left", "kidney left", "a, b and c")
    root = write_parts_bundle(tmp_path, labels=LabelTable(named))
    words = ["segment", str(root), str(scan), "--out", str(tmp_path / "out"), "--json", "--engine", "serial"]

    ended = CliRunner().invoke(app, [*words, "--roi-subset", 'liver, "Kidney, left"'])
    other = CliRunner().invoke(app, [*words, "--roi-subset", "Kidney, left"])

    assert ended.exit_code == 0, ended.output
    assert set(json.loads(ended.stdout.splitlines()[-1])["volumes_ml"]) == {"liver", "Kidney, left"}
    assert 'it has liver, "Kidney, left", kidney left, "a, b and c"' in str(other.exception)


# --- judged and reported


def test_a_verdict_without_ranges_is_said_to_be_one(bundle: Bundle, scan: Path) -> None:
    assert bundle.segment(scan).review.reasons[-1] == WITHOUT_RANGES
    assert replace(bundle, is_imported=False).segment(scan).review.reasons.count(WITHOUT_RANGES) == 0


def test_the_licence_of_a_model_stands_in_report_seg_and_sr(root: Path, tmp_path: Path) -> None:
    stored = (np.moveaxis(phantom(), 2, 0).transpose(0, 2, 1) + 1024).astype(np.int16)
    study = write_all(stack(stored), tmp_path / "study")

    report = done(root, study, tmp_path / "out", outputs=["seg", "sr", "rtstruct"])

    assert report.versions["licence"] == "CC BY-NC 4.0"
    seg, structures = (dcmread(report.outputs[kind]) for kind in ("seg", "rtstruct"))
    assert seg.ImageComments.endswith("Licence of the model: CC BY-NC 4.0.")
    assert structures.StructureSetDescription.endswith("Licence of the model: CC BY-NC 4.0.")
    assert b"licence CC BY-NC 4.0" in report.outputs["sr"].read_bytes()


def test_one_case_is_done_with_options_too(bundle: Bundle, scan: Path, tmp_path: Path) -> None:
    report = segment_case(Case("scan", scan), bundle, tmp_path, Options())

    assert report.volumes_ml.keys() == set(NAMES[1:])


# --- looked at, checked and exported


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an imported bundle whose network sees slices."""
    folder = tmp_path_factory.mktemp("flat")
    network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    state = {name: value[..., 0] if value.ndim == 5 else value for name, value in thresholds(100).items()}
    inferer = {"_target_": "voxelgate.NnUNetInferer", "patch_size": [12, 16], "spacing": [2.0, 2.0]}
    return write_parts_bundle(
        folder,
        network_def=network,
        state=state,
        inferer=inferer,
        labels=LabelTable(NAMES[:2]),
        spatial_shape=(12, 16),
    )


def printed(*words: object) -> str:
    ended = CliRunner().invoke(app, list(map(str, words)))
    assert ended.exit_code == 0, ended.output
    return " ".join(ended.output.split())


def test_a_bundle_of_several_networks_is_described_by_the_first_with_its_licence(root: Path, flat: Path) -> None:
    told = printed("bundle", "describe", root)

    assert "licence: CC BY-NC 4.0" in told
    assert "2 networks, of which this is the first" in told
    assert "parameters" in printed("bundle", "describe", flat)


@pytest.mark.slow
def test_an_imported_bundle_passes_the_checks_that_can_be_made(root: Path, flat: Path) -> None:
    for bundle in (root, flat):
        gates = {gate.name: gate.seen for gate in pass_checks(bundle)}

        assert list(gates) == ["files", "metadata", "networks", "export", "inference"]
        assert how_to_go_on(bundle.name) in gates["files"]
        assert gates["inference"] == "inference.json segments an image alone"


def test_a_network_that_takes_no_window_is_said_in_a_sentence(tmp_path: Path) -> None:
    root = write_parts_bundle(tmp_path, channels=("CT", "PET"))

    with pytest.raises(BundleError, match=r"^networks: two_parts: the network takes no window of 16x16x16 voxels \("):
        list(pass_checks(root))


def test_each_network_of_a_bundle_is_exported_by_its_number(root: Path, tmp_path: Path) -> None:
    first = export(open_bundle(root, "cpu"), "torchscript", tmp_path / "first.ts")
    printed("bundle", "export", root, "--to", "torchscript", "--network", 1, "--out", tmp_path / "second.ts")

    assert first.agreement.unequal == 0
    window = torch.full((1, 1, 16, 16, 16), 350.0)
    loaded = [torch.jit.load(tmp_path / name)(window).argmax(1).unique().tolist() for name in ("first.ts", "second.ts")]  # type: ignore[no-untyped-call]
    assert loaded == [[2], [1]]
    about = told_in(tmp_path / "second.ts")
    assert (about["network"], about["networks"], about["licence"]) == (1, 2, "CC BY-NC 4.0")
    assert about["output"]["labels"] == {"0": "background", "1": "left kidney", "2": "right kidney"}
    with pytest.raises(UsageError, match="network 2: two_parts has networks 0 to 1"):
        export(open_bundle(root, "cpu"), "torchscript", tmp_path / "third.ts", number=2)
    image = as_image(phantom()[None], Grid(SHAPE, np.eye(4)))
    with pytest.raises(UsageError, match="leave out --image"):
        export(open_bundle(root, "cpu"), "torchscript", tmp_path / "third.ts", image)


def told_in(path: Path) -> Any:
    """Return what an exported program tells of itself."""
    texts = {"export.json": ""}
    torch.jit.load(path, _extra_files=texts)  # type: ignore[no-untyped-call]
    return json.loads(texts["export.json"])


PARTS = parts_model().inferer
ROUGH = {"_target_": "voxelgate.Part", "inferer": WINDOW, "networks": [0]}
WHOLE = {"_target_": "voxelgate.Part", "inferer": PARTS, "networks": [0, 1]}
KIDNEYS = {"0": "background", "1": "left kidney", "2": "right kidney"}


@pytest.mark.parametrize(
    ("inferer", "number", "labels"),
    [
        ({"_target_": "voxelgate.CroppedInferer", "rough": ROUGH, "inner": WHOLE}, 1, KIDNEYS),
        ({"_target_": "voxelgate.CroppedInferer", "rough": ROUGH, "inner": WHOLE, "labels": [1]}, 0, {}),
        (WINDOW | {"regions": [3, 1, 2]}, 0, {"0": "left kidney", "1": "liver", "2": "spleen"}),
    ],
    ids=["a part of the inner model", "a rough model of other structures", "regions"],
)
def test_an_exported_network_names_its_own_channels(
    tmp_path: Path, inferer: dict[str, Any], number: int, labels: dict[str, str]
) -> None:
    bundle = open_bundle(write_parts_bundle(tmp_path, inferer=inferer), "cpu")

    export(bundle, "torchscript", tmp_path / "network.ts", number=number)

    assert told_in(tmp_path / "network.ts")["output"]["labels"] == labels


def test_a_network_of_slices_is_exported_and_compared_on_an_image(flat: Path, tmp_path: Path) -> None:
    image = as_image(phantom()[None], Grid(SHAPE, np.diag([2, 2, 2, 1.0])))

    plain = export(open_bundle(flat, "cpu"), "torchscript", tmp_path / "phantom.ts")
    seen = export(open_bundle(flat, "cpu"), "torchscript", tmp_path / "image.ts", image)

    assert plain.sizes.window_vox == seen.sizes.window_vox == (12, 16)
    assert (plain.source, seen.source) == ("a phantom", "the image")
    assert (seen.agreement.unequal, seen.voxels) == (0, 5 * 12 * 16)


@needs_onnx
@pytest.mark.slow
def test_onnx_says_what_an_imported_network_of_nnunet_says(tmp_path: Path) -> None:
    bundle = imported_bundle(write_data_set(tmp_path / "Dataset001_Blobs"), tmp_path / "blobs")

    printed("bundle", "export", bundle.root, "--to", "onnx", "--out", tmp_path / "model.onnx")

    window = torch.randn(1, 1, 16, 12, 20, generator=torch.Generator().manual_seed(0))
    (logits,) = onnx_says(tmp_path / "model.onnx", window)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), bundle.network(window), rtol=0, atol=1e-3)
    assert len(np.unique(logits.argmax(1))) == len(bundle.labels.names)


def onnx_says(path: Path, window: torch.Tensor) -> list[np.ndarray]:
    session = importlib.import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: window.numpy()}))


# --- in evaluation and training


@pytest.fixture
def labelled(scan: Path, tmp_path: Path) -> Path:
    """Return the manifest of one case, whose labels are those that the bundle finds."""
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.nii.gz").write_bytes(scan.read_bytes())
    labels = np.digitize(np.asarray(nib.load(scan).dataobj), (100, 200, 300, 400)).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, np.diag([2, 2, 2, 1.0])), tmp_path / "data" / "labels" / "a.nii.gz")
    printed("manifest", tmp_path / "data", "--labels", ",".join(NAMES[1:]))
    return tmp_path / "data" / "manifest.json"


def test_an_imported_bundle_is_evaluated_on_a_manifest(root: Path, labelled: Path, tmp_path: Path) -> None:
    printed("evaluate", root, labelled, "--fold", -1, "--csv", tmp_path / "scores.csv")

    header, *rows = (row.split(",") for row in (tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines())
    assert {row[header.index("label")]: row[header.index("dice")] for row in rows} == dict.fromkeys(NAMES[1:], "1")


def test_an_imported_bundle_is_not_trained_as_it_is_and_the_way_is_said(
    root: Path, labelled: Path, tmp_path: Path
) -> None:
    words = ["train", str(root), str(labelled), "--out", str(tmp_path / "trained")]

    for folds in (["--fold", "-1"], ["--folds", "2"]):
        ended = CliRunner().invoke(app, [*words, *folds])
        assert str(ended.exception) == f"two_parts: {how_to_go_on('two_parts')}"
    assert not (tmp_path / "trained").exists()


# --- many cases


def test_memory_of_an_imported_model_is_foretold_by_two_blocks(root: Path, scan: Path, tmp_path: Path) -> None:
    setup = setup_of(root, tmp_path / "out", Options())

    (seen,) = sample(setup, [Case("scan", scan)])

    assert seen.measured.windows is None
    assert seen.measured.of_whole(10**6) - seen.measured.of_whole(0) == pytest.approx(10**6 * seen.measured.whole_bytes)
    assert min(seen.measured.whole_bytes, seen.measured.whole_fixed_bytes) >= 0


@pytest.mark.slow
def test_a_batch_runs_in_processes_within_a_limit_of_memory(root: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(3):
        (tmp_path / "scans" / f"{number}.nii.gz").write_bytes(scan.read_bytes())

    reports = list(
        segment(
            root, tmp_path / "scans", tmp_path / "out", workers="processes:2", max_memory_gib=3, roi_subset=["liver"]
        )
    )

    assert [str(report.status) for report in reports] == ["done"] * 3
    assert {tuple(report.volumes_ml) for report in reports} == {("liver",)}


# --- one file a structure


def test_each_structure_gets_a_file_called_like_it(root: Path, scan: Path, tmp_path: Path) -> None:
    report = done(root, scan, tmp_path / "out", outputs=["nifti", "structures"], roi_subset=["left kidney", "liver"])

    labels = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj)
    folder = tmp_path / "out" / "scan.structures"
    assert sorted(path.name for path in folder.iterdir()) == ["left_kidney.nii.gz", "liver.nii.gz"]
    assert report.outputs["structures-liver"] == folder / "liver.nii.gz"
    for name, value in (("liver", 1), ("left_kidney", 3)):
        mask = nib.load(folder / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj), labels == value)
        assert np.array_equal(mask.affine, nib.load(scan).affine)
    assert list(label_maps_in(tmp_path / "out", is_no_label_map)) == ["scan"]


def test_a_case_called_like_a_structure_keeps_both_files(root: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "liver.nii.gz").write_bytes(scan.read_bytes())

    done(root, tmp_path / "liver.nii.gz", tmp_path / "out", outputs=["nifti", "structures"])
    again = done(root, tmp_path / "liver.nii.gz", tmp_path / "out", outputs=["nifti", "structures"])

    labels = np.asarray(nib.load(tmp_path / "out" / "liver.nii.gz").dataobj)
    liver = np.asarray(nib.load(tmp_path / "out" / "liver.structures" / "liver.nii.gz").dataobj)
    assert labels.max() == 4
    assert np.array_equal(liver, labels == 1)
    assert str(again.status) == "done"


def test_structures_that_are_not_asked_for_again_leave_with_the_older_result(
    root: Path, scan: Path, tmp_path: Path
) -> None:
    done(root, scan, tmp_path / "out", outputs=["structures"])
    done(root, scan, tmp_path / "out", outputs=["structures"], roi_subset=["liver"], again=True)

    left = {path.name for path in (tmp_path / "out" / "scan.structures").iterdir()}
    assert left == {"liver.nii.gz"}


def test_probabilities_of_each_structure_are_written_and_agree_with_the_labels(
    flat: Path, scan: Path, tmp_path: Path
) -> None:
    done(flat, scan, tmp_path / "out", outputs=["nifti", "probabilities"])

    labels = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj)
    found = nib.load(tmp_path / "out" / "scan.probabilities" / "liver.nii.gz")
    values = np.asarray(found.dataobj)
    assert values.dtype == np.float32
    assert np.array_equal(values > 0.5, labels == 1)
    assert np.array_equal(found.affine, nib.load(scan).affine)


@pytest.mark.slow
def test_files_of_structures_are_old_or_new_whenever_a_run_dies_and_whole_after_the_next(
    flat: Path, tmp_path: Path
) -> None:
    given, out, log = tmp_path / "scan.nii.gz", tmp_path / "out", tmp_path / "log"
    options = ("segment", flat, given, "--outputs", "structures,probabilities", "--engine", "serial", "--out")
    trees = []
    for voxels in (phantom(), phantom()[::-1]):
        nib.save(nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1.0])), given)
        trees.append((given.read_bytes(), segmented(log, *options, tmp_path / f"wanted {len(trees)}")))
    (older, old), (newer, new) = trees

    for change in range(1, 100, 7):
        shutil.rmtree(out, ignore_errors=True)
        given.write_bytes(older)
        segmented(log, *options, out)
        given.write_bytes(newer)
        died = start_to_die(log, out, change, *options, out).end()
        for name, content in tree(out).items():
            if name.startswith("scan.") and ".partial" not in name:
                assert content in (old[name], new[name]), f"{name} after dying before change {change}"
        assert segmented(log, *options, out) == new, f"after dying before change {change}"
        if died == 0:
            break

    assert change > 10
    assert {"scan.structures/liver.nii.gz", "scan.probabilities/liver.nii.gz"} <= new.keys()


def segmented(log: Path, *words: Any) -> dict[str, bytes]:
    """Run the command, and return the tree of its output folder."""
    command = start(log, *words)
    assert command.end() == 0, command.printed
    return tree(words[-1])


def test_structures_whose_files_would_have_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="files of one name"):
        Options(structures=("left kidney", "left_kidney"))


def test_a_result_is_compared_with_that_of_the_mirrored_image(bundle: Bundle, flat: Path, scan: Path) -> None:
    some = replace(bundle, inferer=bundle.inferer.__call__).adjusted(PassOptions(roi_subset=("liver",)))
    for one in (bundle, some, open_bundle(flat, "cpu")):
        prepared, grid, _ = one._read_and_prepare(scan, ())

        found = one.predict(prepared, grid, check_flips=True)

        sides = {name: 0.0 for name in one.labels.foreground.values() if "kidney" in name}  # by value, they stay
        assert found.flip_dice == dict.fromkeys(one.labels.foreground.values(), 1.0) | sides


def test_an_inferer_is_asked_without_mirroring_where_it_or_a_part_of_it_mirrors() -> None:
    mirroring = NnUNetInferer(patch_size=(8, 8, 8), spacing=(1, 1, 1), mirror_axes=(0, 1))

    assert averages_mirrorings(mirroring)
    assert averages_mirrorings(PartsInferer([Part(mirroring.adjusted(PassOptions(mirroring=False))), Part(mirroring)]))
    assert not averages_mirrorings(PartsInferer([Part(mirroring.adjusted(PassOptions(mirroring=False)))]))
    assert averages_mirrorings(CascadeInferer(Part(mirroring), Part(Told())))
