"""What the audit finds in planted faults, in harmless variants of them, and in real series."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from tests import planted
from tests.planted import CANARY, FAULTS, HARMLESS, ROOT, Fault
from voxelgate.core.findings import Allow, Finding, FindingCode, Severity
from voxelgate.dicom import audit as audit_module
from voxelgate.dicom.audit import RULES, Rule, audit
from voxelgate.dicom.audit.facts import SeriesFacts
from voxelgate.dicom.audit.values import LONGEST_UID
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.dicom_files import list_files
from voxelgate.dicom.read.headers import Header, read_header
from voxelgate.dicom.read.series import Series, scan_dicom


def headers_of(folder: Path) -> list[Header]:
    with quiet_pydicom():
        return [header for file in list_files(folder) if (header := read_header(file)) is not None]


def only_series(folder: Path, fault: Fault) -> Series:
    found = scan_dicom(folder, allow=fault.allow)
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def planted_series(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Fault], Series]:
    """Return what writes and scans a planted fault, each but once."""

    @cache
    def scanned(name: str) -> Series:
        fault = next(fault for fault in (*FAULTS, *HARMLESS) if fault.name == name)
        folder = tmp_path_factory.mktemp("planted")
        fault.write(folder)
        return only_series(folder, fault)

    return lambda fault: scanned(fault.name)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found_and_nothing_else_is(fault: Fault, planted_series: Callable[[Fault], Series]) -> None:
    series = planted_series(fault)
    assert sorted((finding.code, finding.severity) for finding in series.findings) == sorted(fault.expected)
    assert series.is_usable == all(severity is not Severity.REFUSE for _, severity in fault.expected)


@pytest.mark.parametrize("fault", HARMLESS, ids=lambda fault: fault.name)
def test_a_harmless_variant_is_read(fault: Fault, planted_series: Callable[[Fault], Series]) -> None:
    series = planted_series(fault)
    assert [(finding.code, finding.severity) for finding in series.findings] == list(fault.expected)
    assert series.is_usable
    assert series.grid.shape[2] == len(series.slices)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*FAULTS, *HARMLESS], ids=lambda fault: fault.name)
def test_no_text_of_a_header_is_ever_shown(fault: Fault, tmp_path: Path) -> None:
    paths = planted.write(planted.with_canaries(fault.plant(fault.base())), tmp_path)
    fault.damage(paths)
    series = only_series(tmp_path, fault)
    shown = repr(series.findings) + series.series_id + series.study_id + series.modality + repr(series.headers)
    for part in (*CANARY.split("^"), ROOT, "phantom", "1970", str(tmp_path)):
        assert part.lower() not in shown.lower()


def test_every_finding_is_one_sentence(planted_series: Callable[[Fault], Series]) -> None:
    for fault in FAULTS:
        for finding in planted_series(fault).findings:
            assert re.fullmatch(r"[^\n]+[^.\n]\.", finding.message)
            assert ". " not in finding.message


def test_every_rule_has_a_planted_fault(
    planted_series: Callable[[Fault], Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = set()

    def watched(rule: Rule) -> Rule:
        def speak(facts: SeriesFacts) -> Iterator[Finding]:
            for finding in rule(facts):
                spoken.add(rule)
                yield finding

        return speak

    for name in ("KIND", "GEOMETRY", "VALUES"):
        stages = getattr(audit_module, name)
        monkeypatch.setattr(audit_module, name, tuple(tuple(map(watched, stage)) for stage in stages))
    for fault in FAULTS:
        audit(planted_series(fault).headers, allow=fault.allow)
    assert set(RULES) == spoken


def test_there_are_faults_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(FAULTS) >= 45
    names = [fault.name for fault in (*FAULTS, *HARMLESS)]
    assert len(set(names)) == len(names)


def test_a_missing_slice_is_refused_with_its_position(tmp_path: Path) -> None:
    planted.write(planted.without(5)(planted.ct_series()), tmp_path)
    message = str(scan_dicom(tmp_path)[0].findings[0])
    assert message == (
        "MISSING_SLICE: gap of 5.00 mm between slices 5 and 6, expected 2.50 mm within 1 %; 1 slice is missing; "
        "send the series again, or pass --allow gaps."
    )


def test_a_tilt_is_refused_with_its_angle(tmp_path: Path) -> None:
    planted.write(planted.tilted(14)(planted.ct_series()), tmp_path)
    assert "tilted by 14.00 degrees" in str(scan_dicom(tmp_path)[0].findings[0])


def test_no_headers_have_no_findings() -> None:
    assert audit([]) == ()


@pytest.fixture(scope="module")
def clean_headers(tmp_path_factory: pytest.TempPathFactory) -> list[Header]:
    folder = tmp_path_factory.mktemp("clean")
    planted.write(planted.ct_series(), folder)
    return headers_of(folder)


def at(header: Header, position: object) -> Header:
    place = tuple(float(value) for value in np.asarray(position))
    return replace(header, planes=(replace(header.planes[0], position_lps_mm=place),))


@given(jitter=st.lists(st.tuples(*[st.floats(-0.005, 0.005)] * 3), min_size=12, max_size=12))
@settings(deadline=None)
def test_jitter_of_a_thousandth_of_the_gap_passes(clean_headers: list[Header], jitter: list[tuple[float, ...]]) -> None:
    moved = [
        at(header, np.add(header.planes[0].position_lps_mm, shift))
        for header, shift in zip(clean_headers, jitter, strict=True)
    ]
    assert audit(moved) == ()


@given(index=st.integers(1, 11), factor=st.floats(1.03, 40))
@settings(deadline=None)
def test_one_wider_gap_is_always_refused(clean_headers: list[Header], index: int, factor: float) -> None:
    extra = (factor - 1) * planted.GAP_MM
    moved = [
        at(header, np.add(header.planes[0].position_lps_mm, (0, 0, extra * (number >= index))))
        for number, header in enumerate(clean_headers)
    ]
    codes = {finding.code for finding in audit(moved) if finding.severity is Severity.REFUSE}
    rounding_explains = extra <= 0.21
    assert codes & {FindingCode.MISSING_SLICE, FindingCode.NON_UNIFORM_SPACING} or rounding_explains


@given(
    spacing=st.floats(0.4, 10),
    start=st.floats(-1000, 1000),
    angle=st.floats(0, 1.5),
    count=st.integers(3, 12),
)
@settings(deadline=None)
def test_rounding_to_a_tenth_of_a_millimetre_is_never_refused(
    clean_headers: list[Header], spacing: float, start: float, angle: float, count: int
) -> None:
    normal = np.array((0, -np.sin(angle), np.cos(angle)))
    orientation = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    moved = []
    for number, header in enumerate(clean_headers[:count]):
        place = np.round(start + spacing * number * normal, 1)
        plane = replace(at(header, place).planes[0], orientation_lps=orientation, thickness_mm=spacing)
        moved.append(replace(header, planes=(plane,)))
    assert all(finding.code is FindingCode.ROUNDED_POSITIONS for finding in audit(moved))


@given(shear=st.floats(0.01, 1.0), turn=st.floats(0, 6.28))
@settings(deadline=None)
def test_any_shear_that_matters_is_refused(clean_headers: list[Header], shear: float, turn: float) -> None:
    aside = shear * np.array((np.cos(turn), np.sin(turn), 0)) * planted.GAP_MM
    moved = [
        at(header, np.add(header.planes[0].position_lps_mm, aside * number))
        for number, header in enumerate(clean_headers)
    ]
    found = audit(moved)
    assert [(finding.code, finding.severity) for finding in found] == [(FindingCode.GANTRY_TILT, Severity.REFUSE)]
    assert [finding.severity for finding in audit(moved, allow=[Allow.TILT])] == [Severity.WARN]


@given(order=st.permutations(range(12)))
@settings(deadline=None, max_examples=25)
def test_the_order_of_headers_does_not_matter(clean_headers: list[Header], order: list[int]) -> None:
    damaged = [*clean_headers[:5], *clean_headers[6:], replace(clean_headers[2], sop_instance_uid="1.0.01")]
    assert audit([damaged[index] for index in order]) == audit(damaged)


@given(uid=st.text(st.sampled_from("0123456789."), max_size=70))
@settings(deadline=None)
def test_a_uid_is_valid_as_pydicom_says(clean_headers: list[Header], uid: str) -> None:
    changed = [replace(header, frame_of_reference_uid=uid) for header in clean_headers]
    is_valid = len(uid) <= LONGEST_UID and "." in uid and UID(uid).is_valid
    assert bool(audit(changed)) != is_valid


def test_ten_thousand_slices_are_audited_in_seconds(clean_headers: list[Header]) -> None:
    many = [
        replace(at(clean_headers[0], (0, 0, number)), sop_instance_uid=f"1.2.{number}", instance_number=number)
        for number in range(10_000)
    ]
    started = time.perf_counter()
    assert audit(many) == ()
    assert time.perf_counter() - started < 5


REAL = {
    "ct_d2n_gantrytilt": {("ct", 4, "GANTRY_TILT"): 1},
    "ct_d2n_sliceincrement_001": {("ct", 4, "MISSING_SLICE"): 1},
    "ct_dcmqi_3slice": {("ct", 3, ""): 1, ("seg", 1, "NOT_AN_IMAGE"): 2, ("seg", 2, "NOT_AN_IMAGE"): 1},
    "ct_philips_study_mixed": {("ct", 1, "LOCALIZER"): 1, ("ct", 28, ""): 1, ("ct", 4, "SECONDARY_CAPTURE"): 1},
    "ct_siemens_body_j2k": {("ct", 20, ""): 1},
    "ct_torchio_small": {("ct", 17, ""): 1},
    "mr_d2n_compressed": {("mr", 4, ""): 2},
    "mr_d2n_philips_enhanced": {("mr", 1, ""): 1, ("mr", 1, "DIFFUSION"): 1, ("mr", 1, "SEVERAL_VOLUMES"): 1},
    "mr_d2n_siemens_mosaic": {("mr", 2, "MOSAIC"): 1},
    "mr_ge_t1_sag_deidentified": {("mr", 196, ""): 1},
}


@pytest.mark.parametrize("folder", REAL)
def test_real_series_get_their_verdict(folder: str, real_data: Path) -> None:
    found: Counter[tuple[str, int, str]] = Counter()
    for series in scan_dicom(real_data / "dicom" / folder):
        refused = [finding.code for finding in series.findings if finding.severity is Severity.REFUSE]
        found[series.modality.lower(), len(series.headers), ",".join(refused)] += 1
    assert dict(found) == REAL[folder]


def test_the_real_tilt_is_14_degrees(real_data: Path) -> None:
    findings = scan_dicom(real_data / "dicom" / "ct_d2n_gantrytilt")[0].findings
    assert "tilted by 14.00 degrees" in findings[0].message


def test_the_real_mosaic_is_found_without_its_tags(real_data: Path) -> None:
    headers = headers_of(real_data / "dicom" / "mr_d2n_siemens_mosaic")
    hidden = [replace(header, image_type=(), mosaic_count=None) for header in headers]
    assert {finding.code for finding in audit(hidden) if finding.severity is Severity.REFUSE} == {FindingCode.MOSAIC}
    blind = [replace(header, acquisition_matrix=None) for header in hidden]
    assert FindingCode.MOSAIC in {finding.code for finding in audit(blind)}


def test_the_real_series_without_uids_says_that_no_results_can_refer_to_it(real_data: Path) -> None:
    series = scan_dicom(real_data / "dicom" / "ct_siemens_body_j2k")[0]
    assert [(finding.code, finding.severity) for finding in series.findings] == [(FindingCode.BAD_UID, Severity.WARN)]
    assert series.grid.spacing_mm[2] == pytest.approx(2.0)


def test_copies_in_other_encodings_count_once(real_data: Path) -> None:
    found = [finding for series in scan_dicom(real_data / "dicom" / "mr_d2n_compressed") for finding in series.findings]
    assert "16 of 20 files are copies" in " ".join(finding.message for finding in found)


@pytest.mark.parametrize("dropped", [1, 8, 15])
def test_a_slice_taken_from_a_real_series_is_missed(real_data: Path, dropped: int) -> None:
    headers = headers_of(real_data / "dicom" / "ct_torchio_small")
    headers.sort(key=lambda header: header.planes[0].position_lps_mm[2])
    found = audit(headers[:dropped] + headers[dropped + 1 :])
    assert [finding.code for finding in found] == [FindingCode.MISSING_SLICE]
    assert f"between slices {dropped} and {dropped + 1}" in found[0].message


def test_a_frame_in_another_plane_is_named_by_its_number(tmp_path: Path) -> None:
    (dataset,) = planted.enhanced_series()
    groups = dataset.PerFrameFunctionalGroupsSequence[3]
    groups.PlaneOrientationSequence = Items([Dataset()])
    groups.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    planted.write([dataset], tmp_path)
    assert "1 of 12 images (number 4) are localizers" in str(scan_dicom(tmp_path)[0].findings[0])
