"""Segmenting cases: what is written, reported and refused; no case ends a batch or overwrites another."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose, Orientationd, Spacingd
from torch import nn

from voxelgate.bundle.predict import Bundle
from voxelgate.core.errors import InputError
from voxelgate.core.findings import Finding, FindingCode, Severity, remark
from voxelgate.core.labels import LabelTable
from voxelgate.core.verdict import Verdict
from voxelgate.dicom.choose import SeriesRule
from voxelgate.images.spec import ONE_VOLUME, ImageSpec
from voxelgate.images.volumes import read_grid, read_volume
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.read import read_case
from voxelgate.segmentation.report import CaseReport, CaseStatus
from voxelgate.segmentation.segment import segment_case

AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.0, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 30.0], [0.0, 0.0, 0.0, 1.0]])
BRIGHT = np.zeros((9, 8, 7), np.float32)
BRIGHT[2:6, 3:6, 1:5] = 1
CPU = torch.device("cpu")
INFERER = RestoringSlidingWindowInferer(roi_size=(32, 32, 32))


class Threshold(nn.Module):
    """Two logits: class 1 where the image is brighter than a half."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat((0.5 - image, image - 0.5), dim=1)


def preprocess(*more: Any) -> Compose:
    return Compose([Orientationd("image", "RAS", labels=None), *more])


def as_it_is(labels: MetaTensor) -> MetaTensor:
    return labels


def small_bundle() -> Bundle:
    """Return a bundle without files."""
    return Bundle(
        root=Path(),
        name="bright",
        version="1.2.0",
        fingerprint="ab" * 32,
        labels=LabelTable(("background", "bright")),
        preprocessing=preprocess(),
        inferer=INFERER,
        network=Threshold().eval(),
        device=CPU,
        series_rule=SeriesRule(),
        expected=None,
        cleaning=as_it_is,
        image_spec=ONE_VOLUME,
    )


@pytest.fixture
def bundle() -> Bundle:
    return small_bundle()


def save(path: Path, voxels: np.ndarray = BRIGHT, affine: np.ndarray | None = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def test_a_case_is_written_on_its_own_grid_and_reported(tmp_path: Path, bundle: Bundle) -> None:
    image = save(tmp_path / "image.nii.gz")

    report = segment_case(Case("sub/image", image), bundle, tmp_path / "out")

    assert report.status is CaseStatus.DONE, report.findings
    assert report.findings == ()
    assert report.outputs == {Output.NIFTI: tmp_path / "out" / "sub" / "image.nii.gz"}
    labels, grid = read_volume(report.outputs[Output.NIFTI])
    np.testing.assert_array_equal(labels, BRIGHT)
    assert grid.agrees(read_grid(image), 1e-9)
    assert report.volumes_ml == {"bright": pytest.approx(4 * 3 * 4 * 6 / 1000)}
    assert set(report.seconds) == {"read", "network", "write"}
    assert report.versions["bundle"] == "bright 1.2.0"
    assert report.bundle_sha256 == "ab" * 32


def test_a_report_is_one_line_of_json(tmp_path: Path, bundle: Bundle) -> None:
    report = segment_case(Case("Kopf\nä", save(tmp_path / "image.nii.gz")), bundle, tmp_path / "out")

    line = report.to_json()

    assert "\n" not in line
    record = json.loads(line)
    assert record["case_id"] == "Kopf\nä"
    assert record["status"] == "done"
    assert record["outputs"] == {"nifti": str(tmp_path / "out" / "Kopf\nä.nii.gz")}


def test_resampling_in_the_bundle_still_gives_labels_on_the_source_grid(tmp_path: Path, bundle: Bundle) -> None:
    resampling = replace(bundle, preprocessing=preprocess(Spacingd("image", (1.5, 1.5, 1.5), mode="bilinear")))

    report = segment_case(Case("labels", save(tmp_path / "image.nii.gz")), resampling, tmp_path)

    labels, _ = read_volume(tmp_path / "labels.nii.gz")
    assert labels.shape == BRIGHT.shape
    assert report.volumes_ml["bright"] == pytest.approx(4 * 3 * 4 * 6 / 1000, rel=0.25)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_other_formats_are_segmented_alike(tmp_path: Path, bundle: Bundle, suffix: str) -> None:
    sitk.WriteImage(sitk.ReadImage(str(save(tmp_path / "image.nii.gz"))), str(tmp_path / f"image{suffix}"))

    report = segment_case(Case("labels", tmp_path / f"image{suffix}"), bundle, tmp_path)

    assert report.status is CaseStatus.DONE, report.findings
    np.testing.assert_array_equal(read_volume(tmp_path / "labels.nii.gz")[0], BRIGHT)
    assert read_grid(tmp_path / "image.nii.gz").agrees(read_grid(tmp_path / "labels.nii.gz"), 1e-4)


def test_real_images_are_segmented_on_their_grid(tmp_path: Path, real_data: Path, bundle: Bundle) -> None:
    for image in ("sub-ct_label-22_ct", "two_grids/sub-strokecase0009_ses-0001_dwi"):
        path = real_data / "small" / f"{image}.nii.gz"

        report = segment_case(Case("labels", path), bundle, tmp_path, Options(overwrite=True))

        assert report.status is CaseStatus.DONE, report.findings
        assert read_grid(path).agrees(read_grid(tmp_path / "labels.nii.gz"), 1e-9)
        np.testing.assert_array_equal(read_volume(tmp_path / "labels.nii.gz")[0], read_volume(path)[0] > 0.5)


def refusal(image: Path, bundle: Bundle, tmp_path: Path) -> str:
    report = segment_case(Case("labels", image), bundle, tmp_path / "out")
    assert report.status is CaseStatus.REJECTED
    assert not (tmp_path / "out").exists()
    assert report.outputs == {}
    (finding,) = report.findings
    return str(finding)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(tmp_path: Path, bundle: Bundle, value: float) -> None:
    voxels = BRIGHT.copy()
    voxels[0, 0, :2] = value

    assert "2 voxels are NaN or infinite" in refusal(save(tmp_path / "image.nii.gz", voxels), bundle, tmp_path)


def test_values_that_no_float32_holds_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    image = save(tmp_path / "image.nii", (BRIGHT * 100).astype(np.int16))
    content = bytearray(image.read_bytes())
    content[112:116] = np.array(1e38, "<f4").tobytes()  # scl_slope
    image.write_bytes(content)

    assert "48 voxels are NaN or infinite as float32" in refusal(image, bundle, tmp_path)


def test_an_image_of_one_value_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    image = save(tmp_path / "image.nii.gz", np.full((4, 4, 4), -1024, np.int16))

    assert "all voxels are -1024" in refusal(image, bundle, tmp_path)


def test_a_missing_and_a_four_dimensional_image_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.nii.gz", bundle, tmp_path)
    assert "4 axes" in refusal(save(tmp_path / "four.nii.gz", np.stack([BRIGHT] * 2, -1)), bundle, tmp_path)


def test_an_unknown_orientation_is_told_and_refused_where_sides_matter(tmp_path: Path, bundle: Bundle) -> None:
    image = save(tmp_path / "image.nii.gz", BRIGHT, None)
    sided = replace(bundle, labels=LabelTable(("background", "left eye", "right eye")))

    assert "does not say where left and right are" in refusal(image, sided, tmp_path)
    report = segment_case(Case("labels", image), bundle, tmp_path)
    assert report.status is CaseStatus.DONE
    assert "does not say where left and right are" in str(report.findings[0])


MIRRORED = np.diag((-1.0, 1, 1, 1)) @ AFFINE


def test_forms_that_exchange_the_sides_are_told_and_refused_where_sides_matter(tmp_path: Path, bundle: Bundle) -> None:
    image = nib.Nifti1Image(BRIGHT, AFFINE)
    image.set_sform(MIRRORED, 1)
    image.set_qform(AFFINE, 1)
    nib.save(image, path := tmp_path / "image.nii.gz")
    sided = replace(bundle, labels=LabelTable(("background", "left eye", "right eye")))

    assert "but the bundle tells sides apart" in refusal(path, sided, tmp_path)
    report = segment_case(Case("labels", path), bundle, tmp_path)
    assert report.status is CaseStatus.DONE
    assert [finding.code for finding in report.findings] == [FindingCode.CONTRADICTORY_GEOMETRY]
    np.testing.assert_allclose(nib.load(report.outputs[Output.NIFTI]).affine, MIRRORED)


def test_a_second_channel_without_known_sides_is_refused_where_sides_matter(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a_0000.nii.gz", BRIGHT, np.eye(4)), tmp_path / "a_0001.nrrd"
    shape = " ".join(map(str, BRIGHT.shape))
    header = f"NRRD0004\ntype: float\ndimension: 3\nsizes: {shape}\nspace: scanner-xyz\nspace directions: "
    header += "(-1,0,0) (0,-1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n\n"
    second.write_bytes(header.encode() + (BRIGHT * 2).astype("<f4").tobytes(order="F"))
    case = Case("a", first, further_channels=(second,))
    sided = LabelTable(("background", "left eye", "right eye"))

    with pytest.raises(InputError, match=r"a_0001.nrrd: the header does not say where left and right are"):
        read_case(case, sided, images=ImageSpec(("T1", "T2")))
    found = read_case(case, LabelTable(("background", "eye")), images=ImageSpec(("T1", "T2"))).findings
    assert [finding.code for finding in found] == [FindingCode.NO_ORIENTATION]


def test_an_existing_output_is_replaced_only_if_asked(tmp_path: Path, bundle: Bundle) -> None:
    case = Case("labels", save(tmp_path / "image.nii.gz"))
    output = tmp_path / "labels.nii.gz"
    output.write_bytes(b"older")

    refused = segment_case(case, bundle, tmp_path)

    assert refused.status is CaseStatus.REJECTED
    assert "exists already" in str(refused.findings[0])
    assert output.read_bytes() == b"older"
    assert segment_case(case, bundle, tmp_path, Options(overwrite=True)).status is CaseStatus.DONE
    assert read_volume(output)[0].any()


def test_an_empty_result_is_told(tmp_path: Path, bundle: Bundle) -> None:
    report = segment_case(Case("labels", save(tmp_path / "image.nii.gz", BRIGHT / 4)), bundle, tmp_path)

    assert report.status is CaseStatus.DONE
    assert "no structure was found" in str(report.findings[0])


def test_an_unforeseen_error_fails_the_case_in_one_sentence(
    tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(_: MetaTensor, __: nn.Module) -> MetaTensor:
        raise RuntimeError("out of memory\nand a long story")

    with caplog.at_level(logging.DEBUG, "voxelgate.segmentation.segment"):
        report = segment_case(Case("one", save(tmp_path / "image.nii.gz")), replace(bundle, inferer=explode), tmp_path)

    assert report.status is CaseStatus.FAILED
    assert report.findings == (remark("RuntimeError: out of memory", Severity.REFUSE),)
    assert not (tmp_path / "labels.nii.gz").exists()
    assert "Traceback" in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def test_a_refusal_that_monai_wraps_stays_a_refusal(tmp_path: Path, bundle: Bundle) -> None:
    def refuse(_: dict[str, Any]) -> dict[str, Any]:
        raise InputError("image.nii.gz: not a CT.")

    wrapped = replace(bundle, preprocessing=Compose([refuse]))

    assert refusal(save(tmp_path / "image.nii.gz"), wrapped, tmp_path) == "image.nii.gz: not a CT."


def test_a_bundle_that_leaves_the_source_grid_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    class Argmax(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (image > 0.5).byte()

    elsewhere = replace(bundle, inferer=SimpleInferer(), network=Argmax().eval())

    assert "does not lie on the image's grid" in refusal(save(tmp_path / "image.nii.gz"), elsewhere, tmp_path)


def test_a_network_with_more_classes_than_names_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    def three(image: torch.Tensor) -> torch.Tensor:
        return torch.cat((1 - image, image * 0, image), dim=1)

    assert "gives label 2" in refusal(save(tmp_path / "image.nii.gz"), replace(bundle, network=three), tmp_path)


def test_an_output_folder_that_cannot_be_made_refuses_the_case(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "out").write_bytes(b"a file")

    report = segment_case(Case("labels", save(tmp_path / "image.nii.gz")), bundle, tmp_path / "out")

    assert report.status is CaseStatus.REJECTED
    assert "cannot be made" in str(report.findings[0])


def test_the_inferers_confidence_and_the_mirrored_image_reach_the_quality(tmp_path: Path, bundle: Bundle) -> None:
    def unsure(image: MetaTensor, network: nn.Module) -> MetaTensor:
        labels = INFERER(image, network)
        labels.meta["confidence"] = [0.9, 0.1]
        return labels

    case = Case("labels", save(tmp_path / "image.nii.gz"))
    sure = segment_case(case, bundle, tmp_path / "a", Options(check_flips=True))
    doubted = segment_case(case, replace(bundle, inferer=unsure), tmp_path / "b")

    assert sure.quality.verdict is not Verdict.REFUSE
    assert not any("bright" in reason for reason in sure.quality.reasons)
    assert doubted.quality.verdict is Verdict.REVIEW
    assert any("bright" in reason for reason in doubted.quality.reasons)


def test_a_preview_is_one_of_the_files_of_a_case(tmp_path: Path, bundle: Bundle) -> None:
    options = Options((Output.NIFTI, Output.PREVIEW))

    report = segment_case(Case("sub/image", save(tmp_path / "image.nii.gz")), bundle, tmp_path / "out", options)

    assert report.outputs[Output.PREVIEW] == tmp_path / "out" / "previews" / "sub" / "image.webp"
    assert report.outputs[Output.PREVIEW].read_bytes()[:4] == b"RIFF"


def test_a_full_disk_refuses_the_case_and_leaves_nothing(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("voxelgate.core.files.os.fsync", fail)
    report = segment_case(Case("labels", save(tmp_path / "image.nii.gz")), bundle, tmp_path / "out")

    assert report.status is CaseStatus.REJECTED
    assert "No space left on device" in str(report.findings[0])
    assert not list((tmp_path / "out").iterdir())


def test_a_cleaned_result_is_compared_with_the_cleaned_one_of_the_mirrored_image(
    tmp_path: Path, bundle: Bundle
) -> None:
    image = np.zeros((9, 8, 7), np.float32)
    image[1:3, 3:6, 1:5], image[6:8, 3:6, 1:5] = 1, 1

    def without_the_first_half(labels: MetaTensor) -> MetaTensor:
        cleaned = labels.clone()
        cleaned[:, :, :4] = 0
        return cleaned

    report = segment_case(
        Case("labels", save(tmp_path / "image.nii.gz", image)),
        replace(bundle, cleaning=without_the_first_half),
        tmp_path,
        Options(check_flips=True),
    )

    assert not any("mirror" in reason for reason in report.quality.reasons)


def test_a_report_keeps_findings_as_code_severity_and_sentence() -> None:
    told = Finding(FindingCode.LOSSY, Severity.WARN, "the images were compressed.")
    report = CaseReport("a", CaseStatus.FAILED, "ab", {}, (told, remark("a: memory ran out.")))

    assert CaseReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["findings"] == [
        {"code": "LOSSY", "severity": "warn", "message": "the images were compressed."},
        {"code": "REMARK", "severity": "note", "message": "a: memory ran out."},
    ]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("LOSSY: compressed.", Finding(FindingCode.LOSSY, Severity.WARN, "compressed.")),
        ("MONOCHROME1 (note): inverted.", Finding(FindingCode.MONOCHROME1, Severity.NOTE, "inverted.")),
        ("RuntimeError: out of memory", remark("RuntimeError: out of memory")),
        ("LOSSY_COPY: no code.", remark("LOSSY_COPY: no code.")),
        ("a: LOSSY: was not taken.", remark("a: LOSSY: was not taken.")),
    ],
)
def test_findings_of_an_older_ledger_are_read_from_their_text(text: str, finding: Finding) -> None:
    record = json.loads(CaseReport("a", CaseStatus.FAILED, "ab", {}).to_json()) | {"findings": [text]}

    report = CaseReport.from_json(json.dumps(record))

    assert report.findings == (finding,)
    assert str(report.findings[0]) == text
