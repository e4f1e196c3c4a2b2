"""Two acquisitions in one stack are told by the values of their slices; one acquisition never is taken for two."""

from pathlib import Path

import numpy as np
import pytest

from tests import planted
from voxelgate.core.findings import FindingCode, Severity, refusals
from voxelgate.dicom.inspect import inspect
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.dicom.read.woven import woven_finding

SLICES = 24


def body(noise: float = 15.0, count: int = SLICES, seed: int = 0) -> np.ndarray:
    """Return a CT of air, a body that changes from slice to slice, an organ and bone, with noise, (I, J, K)."""
    i, j, k = np.ogrid[:64, :56, :count]
    voxels = np.full((64, 56, count), -1000.0)
    voxels[np.hypot((i - 32 - 3 * np.sin(k / 5)) / 26, (j - 28) / 22) < 1] = 0
    voxels[np.hypot((i - 25) / 12, (j - 26 + k / 4) / 9) < 1] = 55
    voxels[np.hypot(i - 40, j - 30 - k / 6) < 4] = 700
    return (voxels + np.random.default_rng(seed).normal(0, noise, voxels.shape)).astype(np.float32)


def with_phases(voxels: np.ndarray, phases: int, rise: float) -> np.ndarray:
    """Return slices in turn of acquisitions in which soft tissue has `rise` more than in the one before."""
    found = voxels.copy()
    for phase in range(phases):
        slices = found[:, :, phase::phases]
        slices[(slices > -60) & (slices < 150)] += phase * rise
    return found


@pytest.mark.parametrize("noise", [0.0, 15.0])
@pytest.mark.parametrize("phases", [2, 3])
def test_phases_in_turn_are_refused(phases: int, noise: float) -> None:
    finding = woven_finding(with_phases(body(noise, 48), phases, 60), "CT", is_suspect=False)
    assert finding is not None
    assert finding.code is FindingCode.MIXED_ACQUISITIONS
    assert finding.severity is Severity.REFUSE


def odd_slices_darker(voxels: np.ndarray) -> np.ndarray:
    found = voxels + 1100
    found[:, :, 1::2] *= 0.85
    return found


IN_HU = "a scanner's own difference"

SOUND = {
    "a body": body,
    "a body without noise": lambda: body(0),
    "a body with much noise": lambda: body(60),
    "noise alone": lambda: np.random.default_rng(1).normal(0, 20, (40, 40, SLICES)).astype(np.float32),
    "one value": lambda: np.full((40, 40, SLICES), 7, np.float32),
    "a few slices": lambda: with_phases(body(count=6), 2, 60),
    IN_HU: lambda: with_phases(body(), 2, 4),
    "two blocks": lambda: np.concatenate([body()[:, :, :12], with_phases(body(), 1, 0)[:, :, 12:] + 60], axis=2),
    "steps of an edge": lambda: np.where(np.arange(SLICES) % 12 < 6, 400, 0) * np.ones((40, 40, 1), np.float32),
}


@pytest.mark.parametrize(
    ("name", "modality"),
    [(name, modality) for modality in ("CT", "MR", "PT") for name in SOUND if modality == "CT" or name != IN_HU],
)
def test_one_acquisition_is_one(name: str, modality: str) -> None:
    assert woven_finding(np.ascontiguousarray(SOUND[name](), np.float32), modality, is_suspect=False) is None


def test_odd_slices_of_mr_may_be_darker() -> None:
    assert woven_finding(odd_slices_darker(body()), "MR", is_suspect=False) is None


def test_other_tissue_in_turn_in_mr_is_a_warning_and_a_refusal_if_settings_alternate_too() -> None:
    voxels = with_phases(body(), 2, 300) + 1100
    finding = woven_finding(voxels, "MR", is_suspect=False)
    assert finding is not None
    assert finding.severity is Severity.WARN
    suspect = woven_finding(voxels, "MR", is_suspect=True)
    assert suspect is not None
    assert suspect.severity is Severity.REFUSE


def interleaved_phases(folder: Path, **more: object) -> Path:
    """Write two phases of a CT into one series, half a gap beside each other, with nothing that tells them apart."""
    datasets = planted.ct_series(SLICES)
    voxels = with_phases(body(5), 2, 60)
    for index, dataset in enumerate(datasets):
        dataset.Rows, dataset.Columns = voxels.shape[1], voxels.shape[0]
        dataset.PixelData = (voxels[:, :, index].T + 1024).clip(0, 4095).astype("<u2").tobytes()
        for keyword, value in more.items():
            setattr(dataset, keyword, value(index) if callable(value) else value)
    planted.write(datasets, folder)
    return folder


def test_two_phases_that_no_header_tells_apart_are_refused_by_inspect_and_by_the_reader(tmp_path: Path) -> None:
    folder = interleaved_phases(tmp_path)
    (series,) = scan_dicom(folder)
    assert series.is_usable
    (inspected,) = inspect([folder])
    assert [finding.code for finding in refusals(inspected.series.findings)] == [FindingCode.MIXED_ACQUISITIONS]
    assert inspected.grid is None
    with pytest.raises(Exception, match="MIXED_ACQUISITIONS: every second slice differs"):
        read_series(series)


def test_two_phases_are_told_by_their_acquisition_times_before_pixels_are_read(tmp_path: Path) -> None:
    folder = interleaved_phases(tmp_path, AcquisitionTime=lambda index: ("120000", "120130")[index % 2])
    (series,) = scan_dicom(folder)
    (finding,) = refusals(series.findings)
    assert "90 s apart" in finding.message


def test_a_slice_without_acquisition_time_does_not_hide_two_phases(tmp_path: Path) -> None:
    folder = interleaved_phases(
        tmp_path, AcquisitionTime=lambda index: "" if index == 3 else ("120000", "120130")[index % 2]
    )
    (series,) = scan_dicom(folder)
    (finding,) = refusals(series.findings)
    assert "90 s apart" in finding.message


@pytest.mark.slow
def test_real_volumes_are_one_acquisition_along_every_axis(real_data: Path) -> None:
    for series in scan_dicom(real_data / "dicom"):
        if series.is_usable and len(series.slices) > 2:
            voxels = read_series(series).voxels
            for axis in range(3):
                along = np.moveaxis(voxels, axis, 2)
                assert woven_finding(along, series.modality, is_suspect=False) is None
