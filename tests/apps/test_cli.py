"""The command line as a user meets it: exit codes, one sentence for each mistake, no traceback, nothing half-done."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests import planted
from tests.conftest import REPOSITORY, Result, Run
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.dicom.read.series import scan_dicom

HIPPOCAMPUS_BUNDLE = REPOSITORY / "bundles" / "hippocampus_mri_segmentation"
NO_MANIFEST = "missing.json: cannot be read as a manifest: No such file or directory; check the path."
NOT_REPLACED = "scan: rejected: scan.nii.gz: exists already; pass --overwrite, or choose another output folder."


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Write a small MRI-like volume."""
    path = tmp_path / "scan.nii.gz"
    rng = np.random.default_rng(0)
    affine = np.array([[-1.0, 0, 0, 20], [0, 0, 1.2, 3], [0, 1.1, 0, -5], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(rng.normal(100, 20, (33, 41, 35)).astype(np.float32), affine), path)
    return path


ANY = ("--require", "any")
"""In noise nothing is found, which is a refused result: done, but with exit code 1, and written only if asked for."""


def assert_refused(result: Result, exit_code: int, *sentences: str) -> None:
    """Check how the program ended, and that it said why: in sentences, whose words alone any other error may have."""
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for sentence in sentences:
        assert sentence in result.stderr + result.stdout, result.stderr


def test_a_scan_is_segmented_on_its_own_grid_and_reported_as_json(run: Run, scan: Path, tmp_path: Path) -> None:
    result = run("segment", HIPPOCAMPUS_BUNDLE, scan, "--out", "results", "--json", *ANY)
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout)
    assert (report["status"], report["quality"]["verdict"]) == ("done", "refuse")
    assert set(report["volumes_ml"]) == {"anterior", "posterior"}
    written, image = nib.load(tmp_path / "results" / "scan.nii.gz"), nib.load(scan)
    assert written.shape == image.shape
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, image.affine)


@pytest.mark.slow
def test_nobody_else_can_read_what_is_written_in_private(scan: Path, tmp_path: Path) -> None:
    command = ["segment", str(HIPPOCAMPUS_BUNDLE), str(scan), "--out", "results", "--private", *ANY]
    subprocess.run([sys.executable, "-m", "voxelgate", *command], cwd=tmp_path, check=False, capture_output=True)

    written = [tmp_path / "results", *(tmp_path / "results").rglob("*")]
    assert len(written) > 5
    assert [path.name for path in written if path.stat().st_mode & 0o077] == []


def test_workers_of_a_cluster_are_not_made_private_from_here(run: Run, scan: Path) -> None:
    result = run(
        "segment", HIPPOCAMPUS_BUNDLE, scan, "--out", "results", "--private", "--engine", "dask:tcp://nowhere:1"
    )

    assert_refused(result, 2, "--private is for work on this machine")


def test_cases_and_folders_with_brackets_are_named_whole(run: Run, scan: Path, tmp_path: Path) -> None:
    names = ("T1[axial]", "T1[post]", ":smile:")
    (tmp_path / "scans").mkdir()
    for name in names:
        shutil.copy(scan, tmp_path / "scans" / f"{name}.nii.gz")

    result = run("segment", HIPPOCAMPUS_BUNDLE, "scans", "--out", "res[/]x", "--no-previews", "--engine", "serial")

    assert result.returncode == 1, result.stderr
    for shown in (*names, "3 of 3 volumes segmented into res[/]x"):
        assert shown in result.stdout


def test_the_same_command_again_does_nothing_twice(run: Run, scan: Path, tmp_path: Path) -> None:
    assert run("segment", HIPPOCAMPUS_BUNDLE, scan, "--out", "results", *ANY).returncode == 1
    result = tmp_path / "results" / "scan.nii.gz"
    before = result.stat()

    assert run("segment", HIPPOCAMPUS_BUNDLE, scan, "--out", "results", *ANY).returncode == 1
    after = result.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_files_of_others_are_not_replaced_unless_asked(run: Run, scan: Path, tmp_path: Path) -> None:
    result = tmp_path / "results" / "scan.nii.gz"
    result.parent.mkdir()
    result.write_bytes(b"mine")

    assert_refused(run("segment", HIPPOCAMPUS_BUNDLE, scan, "--out", "results"), 1, NOT_REPLACED)
    assert result.read_bytes() == b"mine"
    assert run("segment", HIPPOCAMPUS_BUNDLE, scan, "--out", "results", "--overwrite", *ANY).returncode == 1
    assert result.read_bytes() != b"mine"


@pytest.mark.parametrize("command", ["segment", "demo"])
def test_a_file_in_place_of_the_output_folder_is_refused_before_anything_is_worked_out(
    run: Run, scan: Path, tmp_path: Path, command: str
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number in range(10):  # enough for a forecast, which takes its time
        (inputs / f"{number}.nii.gz").hardlink_to(scan)
    (tmp_path / "results").write_text("mine", encoding="utf-8")

    result = run(command, *((HIPPOCAMPUS_BUNDLE, inputs) if command == "segment" else ()), "--out", "results")

    assert_refused(result, 1, "results: is a file, not a folder; choose another output folder.")
    assert "cases, about" not in result.stderr
    assert "Making" not in result.stdout
    assert (tmp_path / "results").read_text(encoding="utf-8") == "mine"


def test_what_is_passed_over_is_said_before_after_and_in_json(run: Run, scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(scan, folder)
    with zipfile.ZipFile(folder / "d.zip", "w") as archive:
        archive.write(scan, "d.nii.gz")
    for name in ("b.img", "b.hdr", "c.mgz", "notes.txt"):
        (folder / name).write_bytes(b"")

    shown = run("segment", HIPPOCAMPUS_BUNDLE, folder, "--out", "x", *ANY)
    as_json = run("segment", HIPPOCAMPUS_BUNDLE, folder, "--out", "y", "--json")

    assert "Passed over: 1 .hdr, 1 .img, 1 .mgz, 1 other" in shown.stderr
    assert "2 of 2 volumes segmented into x; passed over: 1 .hdr, 1 .img, 1 .mgz, 1 other" in shown.stdout
    first, *reports = map(json.loads, as_json.stdout.splitlines())
    assert first == {"passed_over": {".hdr": 1, ".img": 1, ".mgz": 1, "other": 1}}
    assert sorted(report["case_id"] for report in reports) == ["d/d", "scan"]
    assert (tmp_path / "x" / "d" / "d.nii.gz").read_bytes() == (tmp_path / "x" / "scan.nii.gz").read_bytes()


def test_a_manifest_says_which_kinds_of_images_it_passed_over(run: Run, tmp_path: Path) -> None:
    for number in range(3):
        for name, voxels in (("images", np.arange(64.0) + number), ("labels", np.arange(64) % 2)):
            (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
            volume = voxels.reshape(4, 4, 4).astype(np.uint8)
            nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "d" / name / f"c{number}.nii.gz")
    for name in ("images/c3.mgz", "images/c4.img", "images/c4.hdr", ".hidden.mgz", "notes.txt"):
        (tmp_path / "d" / name).write_bytes(b"")

    result = run("manifest", tmp_path / "d", "--modality", "MRI")

    assert "3 cases" in result.stdout
    assert "passed over: 1 .hdr, 1 .img, 1 .mgz; convert those that are images to NIfTI" in result.stdout


def test_one_bad_case_does_not_stop_the_others(run: Run, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(scan.read_bytes()[:2000])
    result = run("segment", HIPPOCAMPUS_BUNDLE, tmp_path, "--out", "results", *ANY)
    assert_refused(
        result,
        1,
        "broken: rejected: broken.nii.gz: the file ends too early; copy or export it again.",
        "1 of 2 volumes segmented",
    )
    assert [path.name for path in (tmp_path / "results").glob("*.nii.gz")] == ["scan.nii.gz"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("segment", "nothing", "a.nii.gz", "--out", "o"),
            "BundleError: nothing is neither a folder nor a bundle that is shipped or kept",
        ),
        (("evaluate", "missing", "missing_too"), "InputError: missing does not exist; name a label map or a folder"),
        (("manifest", "missing"), "missing: does not exist, expected a folder with images and labels; check the path."),
        (("plan", "missing.json", "--out", "b"), f"ManifestError: {NO_MANIFEST}"),
        (("train", HIPPOCAMPUS_BUNDLE, "missing.json", "--out", "t"), f"ManifestError: {NO_MANIFEST}"),
        (("segment", HIPPOCAMPUS_BUNDLE, "missing.nii.gz", "--out", "o"), "InputError: missing.nii.gz: does not exist"),
    ],
)
def test_what_is_not_there_is_answered_by_one_sentence(
    run: Run, tmp_path: Path, arguments: tuple[object, ...], sentence: str
) -> None:
    assert_refused(run(*arguments), 1, sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("segment", HIPPOCAMPUS_BUNDLE, "--out", "o"), "Missing argument 'inputs'."),
        (("segment", HIPPOCAMPUS_BUNDLE, "scan.nii.gz"), "Missing option '--out'."),
        (("nonsense",), "No such command 'nonsense'."),
        (("train", HIPPOCAMPUS_BUNDLE, "m.json", "--out", "t", "--engine", "serial"), "--engine goes with --folds"),
        (
            ("train", HIPPOCAMPUS_BUNDLE, "m.json", "--out", "t", "--folds", 2, "--fold", 1),
            "UsageError: --fold goes without --folds; leave it out.",
        ),
        (
            ("evaluate", HIPPOCAMPUS_BUNDLE, "m.json", "--workers", 3),
            "UsageError: --workers is for label maps, and this",
        ),
        (
            ("evaluate", "found", "true", "--fold", 0),
            "UsageError: --fold goes with a manifest, and these are label maps",
        ),
        (
            ("segment", HIPPOCAMPUS_BUNDLE, "a.nii.gz", "--out", "o", "--data-root", "d"),
            "UsageError: --data-root is for a manifest, and none is given; leave it out.",
        ),
        (
            ("segment", HIPPOCAMPUS_BUNDLE, "in", "--out", "o", "--idle-exit", 3),
            "UsageError: --idle-exit goes with --watch",
        ),
    ],
)
def test_a_wrong_argument_is_answered_by_one_sentence(
    run: Run, tmp_path: Path, arguments: tuple[object, ...], sentence: str
) -> None:
    assert_refused(run(*arguments), 2, sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("epoch=5", "UsageError: the bundle has no setting 'epoch'; did you mean epochs?"),
        ("epochs=many", "UsageError: setting epochs is 80 in the bundle, and 'many' is of another type"),
        ("epochs", "UsageError: --set epochs: expected ID=VALUE, for example --set learning_rate=0.001"),
    ],
)
def test_a_setting_that_would_be_ignored_or_is_wrong_is_refused_before_work_starts(
    run: Run, hippocampus: Path, tmp_path: Path, setting: str, sentence: str
) -> None:
    manifest = REPOSITORY / "data_manifests" / "hippocampus.json"
    arguments = ("train", HIPPOCAMPUS_BUNDLE, manifest, "--data-root", hippocampus, "--out", "t", "--set", setting)
    assert_refused(run(*arguments), 2, sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_volume_too_small_for_the_network_is_refused_with_the_smallest_size(run: Run, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).random((5, 5, 5), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "tiny.nii.gz")
    result = run("segment", HIPPOCAMPUS_BUNDLE, tmp_path / "tiny.nii.gz", "--out", "o")
    assert_refused(result, 1, "tiny: rejected: the network cannot take this volume", "works has 9 along axis 0")


def test_an_unknown_device_is_refused(run: Run, scan: Path) -> None:
    result = run("segment", HIPPOCAMPUS_BUNDLE, scan, "--out", "o", "--device", "gpu")
    assert_refused(result, 2, "UsageError: device 'gpu' is not there; use cpu, or cuda where PyTorch finds a GPU")


@pytest.mark.slow
def test_debug_shows_the_traceback_and_its_absence_hides_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "voxelgate", "plan", "missing.json", "--out", "b"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    debug = subprocess.run([*command, "--debug"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert plain.stderr == f"ManifestError: {NO_MANIFEST}\n"
    assert plain.returncode == 1
    assert "Traceback" in debug.stderr
    assert debug.stderr.endswith(f"ManifestError: {NO_MANIFEST}\n")


def test_the_real_defects_are_refused_with_one_line_each(run: Run, real_data: Path, tmp_path: Path) -> None:
    result = run("manifest", real_data / "hippocampus_defects", "--modality", "MRI", "--out", tmp_path / "m.json")
    assert_refused(result, 1)
    for path in (real_data / "hippocampus_defects").iterdir():
        assert sum(path.name in line for line in result.stderr.splitlines()) == 1
    assert not (tmp_path / "m.json").exists()


def test_chaos_gives_the_published_figures(run: Run, real_data: Path) -> None:
    chaos = real_data / "chaos_ct"
    result = run("evaluate", chaos / "sample_prediction", chaos / "labels")
    assert result.returncode == 0, result.stderr
    for figure in ("0.978", "0.665", "0.73", "14.00"):
        assert figure in result.stdout


def two_series(folder: Path) -> None:
    """Write a study of two series, each with a name of its own, of a patient."""
    for number, description in ((3, "Abdomen 5 mm"), (4, "Lung [sharp]")):
        datasets = planted.with_canaries(planted.ct_series(4, series=number))
        for dataset in datasets:
            dataset.update({"SeriesNumber": number, "SeriesDescription": description})
        planted.write(datasets, folder / f"part{number}")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_inspect_says_that_a_folder_holds_no_dicom(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "notes.txt").write_text("no image")

    assert_refused(run("inspect", "volumes", *options), 1, "volumes: holds no DICOM image")


def test_inspect_tells_which_series_is_which_and_whose_they_are_not(run: Run, tmp_path: Path) -> None:
    two_series(tmp_path / "study")

    shown = run("inspect", "study")
    lines = run("inspect", "study", "--json").stdout.splitlines()

    for text in ("Abdomen 5 mm", "Lung [sharp]", "....10.1357.3", "....10.1357.4", "study/part3", "study/part4"):
        assert text in shown.stdout, shown.stdout
    documents = [json.loads(line) for line in lines]
    assert [(one["series_number"], one["series_uid"], one["description"], one["path"]) for one in documents] == [
        (3, f"{planted.ROOT}.3", "Abdomen 5 mm", "study/part3"),
        (4, f"{planted.ROOT}.4", "Lung [sharp]", "study/part4"),
    ]
    assert not any(name in shown.stdout + "".join(lines) for name in planted.CANARY.split("^"))


@pytest.mark.parametrize("name", ["4", "lung [sharp]", "*sharp*", "....10.1357.4", f"{planted.ROOT}.4"])
def test_segment_takes_the_series_that_is_named_as_inspect_shows_it(run: Run, tmp_path: Path, name: str) -> None:
    two_series(tmp_path / "study")
    bundle = make_threshold_bundle(tmp_path / "bright_ct")

    result = run("segment", bundle, "study", "--series", name, "--out", "res", "--engine", "serial", "--json")

    assert result.returncode == 0, result.stderr
    (asked,) = (one for one in scan_dicom(tmp_path / "study") if one.number == 4)
    assert json.loads(result.stdout.splitlines()[-1])["case_id"] == asked.series_id


def test_a_series_that_is_not_there_is_one_sentence(run: Run, tmp_path: Path) -> None:
    two_series(tmp_path / "study")
    bundle = make_threshold_bundle(tmp_path / "bright_ct")
    result = run("segment", bundle, "study", "--series", "Liver", "--out", "res", "--engine", "serial")
    assert_refused(result, 1, "Liver: no series has this UID, number or description; `voxelgate inspect` lists those")
    assert not (tmp_path / "res").exists()
