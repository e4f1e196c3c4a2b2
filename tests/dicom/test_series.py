"""Which series are found in a tree of files, whatever these are called and wherever they lie."""

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from tests import planted
from tests.dicom_files import stack, write_all
from voxelgate.core.findings import Allow, FindingCode, Severity
from voxelgate.dicom.read.series import Series, group, scan_dicom


def summary(found: list[Series]) -> list[tuple[object, ...]]:
    return [
        (
            series.series_id,
            series.study_id,
            series.modality,
            series.findings,
            [(part.header.sop_instance_uid, part.plane.frame) for part in series.slices] if series.is_usable else (),
        )
        for series in found
    ]


def scattered(datasets: list[Dataset], folder: Path, seed: int) -> None:
    """Write files in any order, under any name, into any of several folders."""
    rng = random.Random(seed)  # noqa: S311
    shuffled = rng.sample(datasets, len(datasets))
    for number, dataset in enumerate(shuffled):
        planted.write([dataset], folder / rng.choice("abc") / rng.choice("xy"), prefix=f"{rng.random()}{number}")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    every = [*planted.ct_series(), *planted.without(4)(planted.mr_series()), *planted.enhanced_series()]
    planted.write(every, folder)
    return folder


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_names_folders_and_order_of_files_do_not_matter(
    study: Path, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("scattered")
    every = [*planted.ct_series(), *planted.without(4)(planted.mr_series()), *planted.enhanced_series()]
    scattered(every, folder, seed)
    assert summary(scan_dicom(folder)) == summary(scan_dicom(study))


def test_a_zip_inside_a_zip_is_told_as_such_and_not_as_dicom(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as inner:
        inner.writestr("a.dcm", b"anything")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(tmp_path / "inner.zip", "inner.zip")
    (series,) = scan_dicom(tmp_path / "outer.zip")
    (finding,) = series.findings
    assert finding.message.startswith("a zip was not looked into: damaged, encrypted, beyond the limits, or inside")


@given(order=st.randoms())
@settings(deadline=None, max_examples=25)
def test_the_order_of_headers_does_not_matter(study: Path, order: random.Random) -> None:
    found = scan_dicom(study)
    headers = [header for series in found for header in series.headers]
    order.shuffle(headers)
    assert summary(group(headers)) == summary(found)


def test_slices_come_in_order_of_their_place_not_of_their_names(tmp_path: Path) -> None:
    datasets = planted.setting("InstanceNumber", lambda index: 50 - index)(planted.ct_series())
    planted.write(reversed(datasets), tmp_path)
    (series,) = scan_dicom(tmp_path)
    assert [part.plane.position_lps_mm[2] for part in series.slices] == [100 + 2.5 * index for index in range(12)]
    assert series.grid.spacing_mm == pytest.approx((0.75, 0.75, 2.5))
    assert series.grid.affine[:3, 3] == pytest.approx((15, 12, 100))


def test_junk_beside_the_slices_is_passed_over(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path)
    (tmp_path / "README.txt").write_text("nothing")
    (tmp_path / "Thumbs.db").write_bytes(bytes(2000))
    (tmp_path / "empty").touch()
    (tmp_path / ".DS_Store").write_bytes(b"\0" * 128 + b"DICM")
    (series,) = scan_dicom(tmp_path)
    assert series.findings == ()


def test_a_damaged_file_is_reported_and_named_a_danger_to_its_neighbours(tmp_path: Path) -> None:
    paths = planted.write(planted.ct_series(), tmp_path / "one")
    planted.write(planted.mr_series(), tmp_path / "two")
    paths[11].write_bytes(paths[11].read_bytes()[:600])
    ct, mr, unreadable = sorted(scan_dicom(tmp_path), key=lambda series: series.series_id)
    assert [(finding.code, finding.severity) for finding in ct.findings] == [
        (FindingCode.UNREADABLE_FILE, Severity.WARN)
    ]
    assert mr.findings == ()
    assert [finding.code for finding in unreadable.findings] == [FindingCode.UNREADABLE_FILE]
    assert not unreadable.is_usable


def test_series_without_uids_are_told_apart_by_what_they_show(tmp_path: Path) -> None:
    nameless = planted.chained(*(planted.setting(f"{name}InstanceUID", "") for name in ("Series", "Study", "SOP")))
    for name, base in (("ct", planted.ct_series), ("mr", planted.mr_series)):
        planted.write(nameless(base()), tmp_path / name)
    found = scan_dicom(tmp_path)
    assert sorted((series.modality, len(series.headers)) for series in found) == [("CT", 12), ("MR", 12)]
    assert all([finding.code for finding in series.findings] == [FindingCode.BAD_UID] for series in found)
    assert len({series.series_id for series in found}) == 2


def test_copies_count_once(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path / "one")
    planted.write(planted.ct_series(), tmp_path / "two")
    (series,) = scan_dicom(tmp_path)
    assert len(series.headers) == 12
    assert [(finding.code, finding.severity) for finding in series.findings] == [
        (FindingCode.DUPLICATE_FILE, Severity.NOTE)
    ]


def test_copies_under_other_uids_are_a_warning(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path / "one")
    renamed = planted.setting("SOPInstanceUID", lambda index: f"{planted.ROOT}.77.{index}")(planted.ct_series())
    planted.write(renamed, tmp_path / "two")
    (series,) = scan_dicom(tmp_path)
    assert [(finding.code, finding.severity) for finding in series.findings] == [
        (FindingCode.DUPLICATE_FILE, Severity.WARN)
    ]


def test_different_images_of_one_uid_and_place_are_never_copies(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path / "one")
    changed = planted.ct_series()
    changed[5].PixelData = bytes(len(changed[5].PixelData))
    planted.write(changed, tmp_path / "two")
    (series,) = scan_dicom(tmp_path)
    assert not series.is_usable


def test_images_that_cannot_be_decoded_are_no_copies(tmp_path: Path) -> None:
    encode = planted.encapsulated("1.2.840.10008.1.2.4.90")
    planted.write(encode(planted.ct_series()), tmp_path / "one")
    planted.write(encode(planted.ct_series()), tmp_path / "two")
    (series,) = scan_dicom(tmp_path)
    assert not series.is_usable


def test_what_is_allowed_becomes_a_warning(tmp_path: Path) -> None:
    planted.write(planted.without(5)(planted.ct_series()), tmp_path)
    assert not scan_dicom(tmp_path)[0].is_usable
    assert not scan_dicom(tmp_path, allow=[Allow.TILT])[0].is_usable
    assert scan_dicom(tmp_path, allow=[Allow.GAPS])[0].is_usable


def test_progress_is_told_for_every_file(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path)
    told: list[tuple[int, int]] = []
    scan_dicom(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 12) for number in range(1, 13)]


def test_findings_come_worst_first(tmp_path: Path) -> None:
    faulty = planted.chained(
        planted.without(5), planted.setting("PixelSpacing", [0.75, 0.5]), planted.deleting("FrameOfReferenceUID")
    )
    planted.write(faulty(planted.ct_series()), tmp_path)
    severities = [finding.severity for finding in scan_dicom(tmp_path)[0].findings]
    assert severities == [Severity.REFUSE, Severity.WARN, Severity.NOTE]


def test_a_series_of_one_enhanced_file_has_a_grid(tmp_path: Path) -> None:
    planted.write(planted.enhanced_series(), tmp_path)
    (series,) = scan_dicom(tmp_path)
    assert series.grid.shape == (planted.COLUMNS, planted.ROWS, planted.SLICES)


def test_an_empty_folder_has_no_series(tmp_path: Path) -> None:
    assert scan_dicom(tmp_path) == []


@pytest.mark.parametrize("content", [b"", bytes(4096)])
def test_an_empty_file_named_like_the_slices_is_not_passed_over(tmp_path: Path, content: bytes) -> None:
    paths = planted.write(planted.ct_series(), tmp_path)
    paths[-1].write_bytes(content)
    ct, unreadable = scan_dicom(tmp_path)
    assert {ct.series_id, unreadable.series_id} > {"unreadable"}
    assert all(
        FindingCode.UNREADABLE_FILE in {finding.code for finding in series.findings} for series in (ct, unreadable)
    )


def test_a_link_to_a_slice_that_is_gone_is_told(tmp_path: Path) -> None:
    paths = planted.write(planted.ct_series(), tmp_path)
    paths[-1].unlink()
    paths[-1].symlink_to(tmp_path / ".git" / "annex")
    codes = {finding.code for series in scan_dicom(tmp_path) for finding in series.findings}
    assert codes == {FindingCode.MISSING_FILE, FindingCode.UNREADABLE_FILE}


def test_a_series_without_a_uid_keeps_its_identifier_from_version_to_version(tmp_path: Path) -> None:
    folder = write_all(stack(np.zeros((3, 4, 4), np.uint16), SeriesInstanceUID=""), tmp_path / "images")

    assert [series.series_id for series in scan_dicom(folder)] == ["ct-6e8ee369b309"]
