"""Values that are no HU and images unlike the training's are told, and good ones are not."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelgate.core.findings import FindingCode, Severity
from voxelgate.core.geometry import Grid
from voxelgate.dicom.plausibility import check_values
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.evaluation.expectations import Expected, check_against

SHAPE = (40, 50, 30)
GRID = Grid(SHAPE, np.eye(4))


def body(*, air: float = 0.4, fat: float = 0.1, noise: float = 20) -> np.ndarray:
    """Return HU of a made-up body: air, fat, water and muscle with contrast, bone."""
    rng = np.random.default_rng(0)
    rest = max(1 - air - fat, 0.0)  # not below 0 by rounding
    shares = [air, fat, 0.9 * rest, 0.1 * rest]
    centres = rng.choice([-1000.0, -100.0, 60.0, 700.0], p=shares, size=SHAPE)
    return np.clip(centres + rng.normal(scale=noise, size=SHAPE), -1024, 3071).astype("f4")


def codes(voxels: np.ndarray, modality: str = "CT") -> list[FindingCode]:
    return [finding.code for finding in check_values(voxels, GRID, modality)]


def reason(voxels: np.ndarray) -> str:
    (finding,) = check_values(voxels, GRID, "CT")
    assert finding.severity is Severity.WARN
    assert finding.code is FindingCode.NOT_HU
    return finding.message


@pytest.mark.parametrize("air", [0.0, 0.01, 0.4, 0.9])
@pytest.mark.parametrize("padding", [None, -2000, -3024])
def test_hu_of_a_body_with_or_without_air_and_padding_are_plausible(air: float, padding: int | None) -> None:
    voxels = body(air=air, fat=0.02)
    if padding is not None:
        voxels[:10] = padding
    assert codes(voxels) == []


def test_stored_values_without_their_intercept_are_told() -> None:
    assert "without their intercept" in reason(body() + 1024)


def test_stored_values_without_any_air_are_told() -> None:
    assert "hardly any value is below -60" in reason(body(air=0) + 1024)


def test_values_between_0_and_1_are_told() -> None:
    assert "between 0 and 1" in reason(np.clip((body() + 1000) / 2000, 0, 1))


def test_8_bit_values_are_told() -> None:
    assert "8-bit" in reason(np.clip((body() + 160) / 400 * 255, 0, 255).round())


def test_a_window_clipped_at_zero_is_told() -> None:
    assert "hardly any value is below" in reason(np.clip(body(), 0, 1000))


def test_values_far_from_air_and_tissue_are_told() -> None:
    assert "neither air" in reason(body(air=0) * 0.1 - 500)


def test_a_constant_volume_is_refused() -> None:
    (finding,) = check_values(np.zeros(SHAPE, "f4"), GRID, "MR")
    assert (finding.code, finding.severity) == (FindingCode.CONSTANT, Severity.REFUSE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_and_counted(value: float) -> None:
    voxels = body()
    voxels[0, 0, :3] = value
    (finding,) = check_values(voxels, GRID, "MR")
    assert (finding.code, finding.severity) == (FindingCode.BAD_VALUE, Severity.REFUSE)
    assert finding.message.startswith("3 voxels")


def test_only_ct_must_be_in_hu() -> None:
    assert codes(np.clip(body(), 0, 255), "MR") == []


def test_voxels_and_grid_must_have_one_shape() -> None:
    with pytest.raises(ValueError, match="on a grid of shape"):
        check_values(np.zeros((2, 2, 2)), GRID, "CT")


@given(st.floats(0, 0.9), st.floats(0.01, 0.1), st.floats(5, 60))
def test_hu_are_never_told_and_a_missing_intercept_always(air: float, fat: float, noise: float) -> None:
    hu = body(air=air, fat=fat, noise=noise)
    assert codes(hu) == []
    assert codes(hu + 1024) == [FindingCode.NOT_HU]


@pytest.mark.parametrize("name", ["ct_philips_study_mixed", "ct_siemens_body_j2k", "ct_dcmqi_3slice"])
def test_real_ct_is_plausible(real_data: Path, name: str) -> None:
    for series in scan_dicom(real_data / "dicom" / name):
        if series.is_usable:
            volume = read_series(series)
            assert check_values(volume.voxels, volume.grid, series.modality) == ()


def test_real_ct_whose_intercept_is_0_is_told(real_data: Path) -> None:
    # torchio's small CT has Rescale Type US and values from 0 to 696
    (series,) = scan_dicom(real_data / "dicom" / "ct_torchio_small")
    volume = read_series(series)
    assert [finding.code for finding in check_values(volume.voxels, volume.grid, "CT")] == [FindingCode.NOT_HU]


def test_real_ct_that_was_stored_with_an_offset_is_told(real_data: Path) -> None:
    # OpenKBP: value = HU + 1000 to 1024
    path = sorted((real_data / "head_neck_ct" / "images").glob("*.nii.gz"))[0]
    voxels = np.asarray(nib.load(path).dataobj)
    (finding,) = check_values(voxels, Grid(voxels.shape, np.eye(4)), "CT")
    assert "without their intercept" in finding.message


HEAD = Expected.from_mapping(
    {
        "extent_mm": [[180, 260], [180, 260], [140, 220]],
        "spacing_mm": [[0.4, 1.0], [0.4, 1.0], [1.0, 5.0]],
        "plane": "axial",
    }
)


def axial(shape: tuple[int, int, int] = (440, 440, 60), spacing: tuple[float, ...] = (0.5, 0.5, 3.0)) -> Grid:
    return Grid(shape, np.diag((-spacing[0], -spacing[1], spacing[2], 1)))


def test_an_image_like_those_of_the_training_is_not_told() -> None:
    assert check_against(axial(), HEAD) == ()


def test_the_order_of_the_axes_does_not_matter() -> None:
    affine = axial().affine[:, [2, 0, 1, 3]]
    assert check_against(Grid((60, 440, 440), affine), HEAD) == ()


def test_a_small_field_of_view_is_told_in_mm() -> None:
    (finding,) = check_against(axial((440, 440, 10)), HEAD)
    assert finding.code is FindingCode.FIELD_OF_VIEW
    assert "field of view 220 x 220 x 30 mm (left to right, back to front, foot to head)" in finding.message
    assert "trained on 180 to 260 x 180 to 260 x 140 to 220 mm" in finding.message


def test_other_voxels_are_told_in_mm() -> None:
    (finding,) = check_against(axial((110, 110, 60), (2.0, 2.0, 3.0)), HEAD)
    assert finding.code is FindingCode.VOXEL_SIZE
    assert "2.00 x 2.00 x 3.00 mm" in finding.message


def test_slices_in_another_plane_are_told() -> None:
    affine = np.array([[0, 0, 3.0, 0], [-0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]])
    found = {finding.code: finding.message for finding in check_against(Grid((440, 360, 75), affine), HEAD)}
    assert "slices are sagittal, the bundle was trained on axial ones" in found[FindingCode.ORIENTATION]


def test_cubic_voxels_have_no_plane() -> None:
    found = check_against(Grid((220, 220, 180), np.diag((-1.0, -1.0, 1.1, 1))), Expected(plane="coronal"))
    assert found == ()


@pytest.mark.parametrize(
    "values",
    [
        {"extent_mm": [[1, 2]]},
        {"extent_mm": [[2, 1], [1, 2], [1, 2]]},
        {"spacing_mm": [[0, 1], [1, 2], [1, 2]]},
        {"plane": "oblique"},
        {"colour": 1},
    ],
)
def test_what_cannot_be_expected_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|knows"):
        Expected.from_mapping(values)
