"""A DICOM study goes in, and NIfTI, SEG, RTSTRUCT and SR come out, on its grid and without the patient's name."""

import contextlib
import dataclasses
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from tests.conftest import Run
from tests.planted import CANARY, at_mm, ct_series, deleting, setting, tilted, with_canaries, write
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import BundleError, OutputError, UsageError
from voxelgate.core.findings import Allow
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.images.volumes import read_volume
from voxelgate.segmentation import outputs as results
from voxelgate.segmentation.cases import find_cases
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.report import CaseReport, CaseStatus
from voxelgate.segmentation.segment import segment_case

THRESHOLD_HU = 150
ALL = (Output.NIFTI, Output.SEG, Output.RTSTRUCT, Output.SR)


@pytest.fixture(scope="session")
def bundle_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundles") / "bright_ct")


def segment_one(inputs: Path, root: Path, out: Path, options: Options) -> CaseReport:
    (case,) = find_cases([inputs], allow=options.allow)
    return segment_case(case, open_bundle(root, "cpu"), out, options)


def test_a_study_goes_in_and_every_kind_of_output_comes_out(tmp_path: Path, bundle_root: Path) -> None:
    write(ct_series(), tmp_path / "in")

    report = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL))

    assert report.status is CaseStatus.DONE, report.findings
    assert set(report.outputs) == set(ALL)
    (series,) = scan_dicom(tmp_path / "in")
    volume = read_series(series)
    labels, grid = read_volume(report.outputs[Output.NIFTI])
    np.testing.assert_array_equal(labels, volume.voxels > THRESHOLD_HU)
    assert grid.agrees(volume.grid, 1e-3)
    assert report.volumes_ml["femur"] == pytest.approx(labels.sum() * grid.voxel_ml, abs=1e-3)
    assert {dcmread(report.outputs[kind]).Modality for kind in ALL[1:]} == {"SEG", "RTSTRUCT", "SR"}


@pytest.mark.slow
def test_real_studies_go_the_same_way(tmp_path: Path, bundle_root: Path, real_data: Path) -> None:
    study = real_data / "dicom" / "ct_philips_study_mixed"

    report = segment_one(study, bundle_root, tmp_path / "out", Options(ALL))

    assert report.status is CaseStatus.DONE, report.findings
    assert set(report.outputs) == set(ALL)
    assert sum("was not taken" in str(finding) for finding in report.findings) == 2


def test_a_source_without_uids_gives_nifti_and_a_refusal_of_seg_in_one_sentence(
    tmp_path: Path, bundle_root: Path, real_data: Path
) -> None:
    study = real_data / "dicom" / "ct_siemens_body_j2k"

    refused = segment_one(study, bundle_root, tmp_path / "out", Options((Output.NIFTI, Output.SEG)))
    done = segment_one(study, bundle_root, tmp_path / "out", Options((Output.NIFTI,)))

    assert refused.status is CaseStatus.REJECTED
    assert "UID" in str(refused.findings[0])
    assert done.status is CaseStatus.DONE


def test_dicom_outputs_of_a_volume_file_are_refused_before_the_network_runs(
    tmp_path: Path, bundle_root: Path, real_data: Path
) -> None:
    image = real_data / "small" / "sub-ct_label-22_ct.nii.gz"

    report = segment_one(image, bundle_root, tmp_path / "out", Options((Output.NIFTI, Output.SEG)))

    assert report.status is CaseStatus.REJECTED
    assert "only be written for a DICOM series" in str(report.findings[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("outputs", [(), (Output.PREVIEW,)])
def test_previews_alone_are_wrong_usage(outputs: tuple[Output, ...]) -> None:
    with pytest.raises(UsageError, match="no output but previews"):
        Options(outputs)


def test_an_sr_without_the_seg_it_refers_to_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="seg,sr"):
        Options((Output.NIFTI, Output.SR))


def test_where_nothing_is_found_only_nifti_and_a_report_of_what_is_absent_are_written_and_it_is_told(
    tmp_path: Path, bundle_root: Path
) -> None:
    write(without_bone(ct_series()), tmp_path / "in")

    report = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL))

    assert report.status is CaseStatus.DONE
    assert set(report.outputs) == {Output.NIFTI, Output.SR}
    assert any("no structure was found" in str(finding) for finding in report.findings)


def test_a_label_without_a_code_withholds_seg_and_sr_and_nothing_else(tmp_path: Path) -> None:
    root = make_threshold_bundle(tmp_path / "uncoded", {"0": "background", "1": "something bright"})
    write(ct_series(), tmp_path / "in")

    report = segment_one(tmp_path / "in", root, tmp_path / "out", Options(ALL))

    assert report.status is CaseStatus.DONE
    assert set(report.outputs) == {Output.NIFTI, Output.RTSTRUCT}
    assert "SEG and SR cannot be written" in str(report.findings[-1])


def test_a_bundle_may_bring_its_own_codes(tmp_path: Path) -> None:
    code = {"value": "71341001", "scheme": "SCT", "meaning": "Femur"}
    category = {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"}
    codes = {"1": {"category": category, "type": code}}
    root = make_threshold_bundle(tmp_path / "coded", {"0": "background", "1": "thigh bone"}, label_codes=codes)
    write(ct_series(), tmp_path / "in")

    report = segment_one(tmp_path / "in", root, tmp_path / "out", Options(ALL))

    assert report.status is CaseStatus.DONE, report.findings
    segment_case = dcmread(report.outputs[Output.SEG]).SegmentSequence[0]
    assert segment_case.SegmentedPropertyTypeCodeSequence[0].CodeValue == "71341001"


@pytest.mark.parametrize(
    ("plant", "allow", "code"),
    [
        (at_mm(100, 102.5, 105, 110, 112.5), Allow.GAPS, "FILLED_SLICES"),
        (tilted(10.0), Allow.TILT, "CORRECTED_TILT"),
    ],
)
def test_a_fault_is_mended_only_on_request_and_recorded(
    tmp_path: Path, bundle_root: Path, plant: object, allow: Allow, code: str
) -> None:
    write(plant(ct_series()), tmp_path / "in")  # type: ignore[operator]

    refused = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL))
    mended = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL, allow=(allow,)))

    assert refused.status is CaseStatus.REJECTED
    assert mended.status is CaseStatus.DONE, mended.findings
    assert any(str(finding).startswith(code) for finding in mended.findings)
    assert set(mended.outputs) == set(ALL)


def test_the_rule_of_a_bundle_chooses_the_series(tmp_path: Path) -> None:
    root = make_threshold_bundle(tmp_path / "thick", series_rule={"modality": ["CT"], "thickness_mm": [4, 6]})
    write(ct_series(6, series=1), tmp_path / "in")
    write(setting("SliceThickness", "5")(ct_series(5, series=2)), tmp_path / "in", prefix="T")

    (case,) = find_cases([tmp_path / "in"], rule=Metadata.read(root).series_rule)

    assert len(case.files) == 5


def test_a_rule_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="series_rule"):
        make_threshold_bundle(tmp_path / "odd", series_rule={"modality": "XA"})
    with pytest.raises(BundleError, match="series_rule"):
        _ = Metadata.read(tmp_path / "odd").series_rule


def test_what_a_bundle_was_not_trained_on_is_told(tmp_path: Path) -> None:
    root = make_threshold_bundle(tmp_path / "big", trained_on={"extent_mm": [[300, 500], [300, 500], [200, 900]]})
    write(ct_series(), tmp_path / "in")

    report = segment_one(tmp_path / "in", root, tmp_path / "out", Options())

    assert report.status is CaseStatus.DONE
    assert any("field of view" in str(finding) for finding in report.findings)


def canary_parts() -> tuple[bytes, ...]:
    return tuple(part.lower().encode() for part in (CANARY[:5], CANARY[-5:]))


def test_no_text_of_the_source_reaches_console_logs_reports_nifti_or_file_names(
    tmp_path: Path,
    bundle_root: Path,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    described = setting("SeriesDescription", "Shown by inspect alone")
    good = described(with_canaries(ct_series(series=51)))
    bad = described(with_canaries(deleting("RescaleSlope")(ct_series(series=52))))
    write(setting("StudyInstanceUID", "1.2.3.4")(good), tmp_path / "in" / "a")
    write(setting("StudyInstanceUID", "1.2.3.5")(bad), tmp_path / "in" / "b")

    with caplog.at_level(logging.INFO):
        inspected = run("inspect", "in")
        as_json = run("inspect", "in", "--json")
        segmented = run("segment", bundle_root, "in", "--out", "out", "--outputs", "nifti,seg,rtstruct,sr", "--json")

    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files if path.suffix != ".dcm")
    names = " ".join(path.name for path in (tmp_path / "out").rglob("*")).encode()
    printed = "".join(part for result in (inspected, as_json, segmented) for part in (result.stdout, result.stderr))
    for text in (written, names, printed.encode(), caplog.text.encode()):
        assert not any(part in text.lower() for part in canary_parts())
    for text in (written, names, (segmented.stdout + segmented.stderr).encode(), caplog.text.encode()):
        assert b"shown by inspect" not in text.lower()
    assert {json.loads(line)["status"] for line in segmented.stdout.splitlines()} == {"done", "rejected"}
    assert segmented.returncode == 1
    assert dcmread(next((tmp_path / "out").glob("*.seg.dcm"))).PatientName == good[0].PatientName


def test_inspect_says_what_can_be_used_and_ends_with_1_if_nothing_can(run: Run, tmp_path: Path) -> None:
    write(ct_series(series=1), tmp_path / "good")
    write(at_mm(0, 2.5, 10, 12.5)(ct_series(series=2)), tmp_path / "bad")

    good, bad, both = (run("inspect", *paths, "--json") for paths in (["good"], ["bad"], ["good", "bad"]))

    assert [result.returncode for result in (good, bad, both)] == [0, 1, 0]
    facts = json.loads(good.stdout)
    assert (facts["verdict"], facts["shape"], facts["spacing_mm"]) == ("usable", [40, 32, 12], [0.75, 0.75, 2.5])
    assert json.loads(bad.stdout)["findings"][0]["code"] == "MISSING_SLICE"
    table = run("inspect", "bad")
    assert "MISSING_SLICE" in table.stdout
    assert "0 of 1 series can be used" in table.stdout
    assert run("inspect", "bad", "--allow", "gaps").returncode == 0


def test_inspect_refuses_what_it_does_not_know(run: Run, tmp_path: Path) -> None:
    write(ct_series(), tmp_path / "in")

    unknown, nowhere = run("inspect", "in", "--allow", "everything"), run("inspect", "nowhere")

    assert (unknown.returncode, nowhere.returncode) == (2, 1)
    assert unknown.stderr.startswith("UsageError: --allow everything: expected some of ")
    assert nowhere.stderr.startswith("InputError: nowhere: does not exist")


def test_inspect_finds_damaged_pixels_unless_only_headers_are_asked_for(
    run: Run, tmp_path: Path, real_data: Path
) -> None:
    for path in (real_data / "dicom" / "mr_d2n_compressed" / "j2k").iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: -len(content) // 3])

    full, quick = run("inspect", tmp_path, "--json"), run("inspect", tmp_path, "--json", "--headers-only")

    assert full.returncode == 1, full.stdout
    assert json.loads(full.stdout)["findings"][0]["code"] in {"UNDECODABLE", "TRUNCATED"}
    assert quick.returncode == 0


def test_a_zip_of_a_study_is_segmented_in_place(tmp_path: Path, bundle_root: Path) -> None:
    paths = write(ct_series(), tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, f"folder/{path.name}")

    report = segment_one(tmp_path / "study.zip", bundle_root, tmp_path / "out", Options(ALL))

    assert report.status is CaseStatus.DONE, report.findings
    assert set(report.outputs) == set(ALL)


def without_bone(datasets: list) -> list:
    for dataset in datasets:
        stored = np.frombuffer(dataset.PixelData, "<u2")
        dataset.PixelData = np.minimum(stored, 1024 + 100).astype("<u2").tobytes()
    return datasets


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, and its hidden folders."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


@pytest.mark.parametrize("error", [OutputError("no space."), MemoryError(), KeyboardInterrupt()])
@pytest.mark.parametrize("writer", ["write_label_map", "write_rtstruct", "write_seg", "write_sr"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_fault_in_one_output_leaves_every_file_of_the_case_as_it_was(
    tmp_path: Path,
    bundle_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    writer: str,
    error: BaseException,
    is_new: bool,
) -> None:
    write(ct_series(), tmp_path / "in")
    (tmp_path / "out").mkdir()
    if not is_new:
        segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL))
    older = contents_of(tmp_path / "out")

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(results, writer, fails)
    with contextlib.suppress(KeyboardInterrupt):
        report = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL, overwrite=True))
        assert report.status is not CaseStatus.DONE

    assert contents_of(tmp_path / "out") == older


def test_a_name_that_cannot_be_given_leaves_every_file_of_the_case_as_it_was(
    tmp_path: Path, bundle_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ct_series(), tmp_path / "in")
    done = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL))
    done.outputs[Output.SEG].unlink()
    older = contents_of(tmp_path / "out")
    replace = Path.replace

    def refuses_reports(path: Path, target: Path) -> Path:
        if path.name.endswith(".sr.dcm") and target.parent == tmp_path / "out" and path.parent.name != "older":
            raise PermissionError(1, "Operation not permitted")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuses_reports)
    report = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL, overwrite=True))

    assert report.status is CaseStatus.REJECTED
    assert "Operation not permitted" in str(report.findings[0])
    assert contents_of(tmp_path / "out") == older


def test_a_file_system_without_links_replaces_files_too(
    tmp_path: Path, bundle_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", fails)
    write(ct_series(), tmp_path / "in")
    reports = [
        segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL, overwrite=True)) for _ in range(2)
    ]

    assert [report.status for report in reports] == [CaseStatus.DONE] * 2
    assert len(contents_of(tmp_path / "out")) == 4


def test_older_dicom_objects_of_a_case_in_which_nothing_is_found_any_more_are_removed_and_it_is_told(
    tmp_path: Path, bundle_root: Path
) -> None:
    write(ct_series(), tmp_path / "in")
    segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL))
    write(without_bone(ct_series()), tmp_path / "in")

    report = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL, overwrite=True))

    assert report.status is CaseStatus.DONE
    assert set(report.outputs) == {Output.NIFTI, Output.SR}
    assert len(contents_of(tmp_path / "out")) == 2
    assert "Files of an earlier run were removed: rtstruct, seg." in str(report.findings[-1])


def test_a_folder_in_the_place_of_an_output_is_refused_before_the_network_runs(
    tmp_path: Path, bundle_root: Path
) -> None:
    write(ct_series(), tmp_path / "in")
    (case,) = find_cases([tmp_path / "in"])
    (tmp_path / "out" / f"{case.case_id}.sr.dcm").mkdir(parents=True)

    report = segment_one(tmp_path / "in", bundle_root, tmp_path / "out", Options(ALL, overwrite=True))

    assert report.status is CaseStatus.REJECTED
    assert "is a folder" in str(report.findings[0])


def test_a_bundle_whose_name_is_too_long_for_dicom_still_gives_nifti(tmp_path: Path, bundle_root: Path) -> None:
    write(ct_series(), tmp_path / "in")
    bundle = dataclasses.replace(open_bundle(bundle_root, "cpu"), name="n" * 100)
    (case,) = find_cases([tmp_path / "in"])

    done = segment_case(case, bundle, tmp_path / "out", Options())
    refused = segment_case(case, bundle, tmp_path / "out", Options((Output.SEG,)))

    assert done.status is CaseStatus.DONE, done.findings
    assert "of an algorithm must be 1 to 64 characters" in str(refused.findings[0])
