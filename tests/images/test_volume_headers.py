"""Headers of NIfTI, NRRD and MetaImage: each field that is wrong or missing gives the right value or a sentence."""

import bz2
import gzip
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volume_files import AFFINE_RAS, CONTENT, VOXELS, metaimage_bytes, nifti_bytes, nrrd_bytes, packed_nifti
from voxelgate.core.errors import InputError
from voxelgate.core.findings import FindingCode, Severity
from voxelgate.core.geometry import Grid
from voxelgate.images.volumes import Reading, read_volume_header, read_with_findings

GRID = Grid((7, 6, 5), AFFINE_RAS)


def saved(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_with_findings(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path.name}: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def read_whole(path: Path) -> Reading:
    """Read a file that holds the voxels, wherever they lie."""
    found = read_with_findings(path)
    np.testing.assert_array_equal(found.voxels[0], VOXELS)
    return found


def codes(found: Reading) -> list[tuple[FindingCode, Severity]]:
    return [(finding.code, finding.severity) for finding in found.findings]


def rows(affine: np.ndarray) -> dict[str, Any]:
    return {f"srow_{axis}": affine[row] for row, axis in enumerate("xyz")}


# --- all three formats --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.nii", nifti_bytes()), ("a.nii.gz", packed_nifti()), ("a.nrrd", nrrd_bytes()), ("a.mha", metaimage_bytes())],
)
def test_a_sound_file_is_read_without_a_word(tmp_path: Path, name: str, content: bytes) -> None:
    found = read_whole(saved(tmp_path, name, content))

    assert found.findings == ()
    assert found.sides_problem == ""
    assert GRID.agrees(found.grid, 1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii", nifti_bytes()),
        ("a.nrrd", nrrd_bytes()),
        ("a.mha", metaimage_bytes()),
    ],
)
def test_missing_bytes_are_told_in_numbers(tmp_path: Path, name: str, content: bytes) -> None:
    sentence = refusal(saved(tmp_path, name, content[:-7]))

    assert "ends too early: its voxels need 420 bytes, 413 are there" in sentence


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", gzip.compress(nifti_bytes()[:-7])),
        ("a.nrrd", nrrd_bytes({"encoding": "gzip"}, gzip.compress(CONTENT[:-7]))),
        ("a.mha", metaimage_bytes({"CompressedData": "True"}, zlib.compress(CONTENT[:-7]))),
    ],
)
def test_missing_bytes_of_compressed_voxels_are_told_in_numbers(tmp_path: Path, name: str, content: bytes) -> None:
    assert "its voxels need 420 bytes, 413 are there" in refusal(saved(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", packed_nifti()[:-20]),
        ("a.nrrd", nrrd_bytes({"encoding": "gzip"}, gzip.compress(CONTENT)[:-20])),
        ("a.mha", metaimage_bytes({"CompressedData": "True"}, zlib.compress(CONTENT)[:-20])),
        ("a.mha", metaimage_bytes({"CompressedData": "True", "CompressedDataSize": "9999"}, zlib.compress(CONTENT))),
    ],
)
def test_compression_that_is_cut_off_is_named_so(tmp_path: Path, name: str, content: bytes) -> None:
    assert "ends too early" in refusal(saved(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii", nifti_bytes() + b"\1" * 9),
        ("a.nii.gz", gzip.compress(nifti_bytes() + b"\1" * 9)),
        ("a.nrrd", nrrd_bytes() + b"\1" * 9),
        ("a.nrrd", nrrd_bytes({"encoding": "gzip"}, gzip.compress(CONTENT + b"\1" * 9))),
        ("a.mha", metaimage_bytes() + b"\1" * 9),
        ("a.mha", metaimage_bytes({"CompressedData": "True"}, zlib.compress(CONTENT + b"\1" * 9))),
    ],
)
def test_a_few_bytes_behind_the_voxels_are_noted(tmp_path: Path, name: str, content: bytes) -> None:
    found = read_whole(saved(tmp_path, name, content))

    assert codes(found) == [(FindingCode.EXTRA_BYTES, Severity.NOTE)]
    assert "9 bytes behind its voxels" in found.findings[0].message


@pytest.mark.parametrize(("name", "of"), [("a.nii", nifti_bytes), ("a.nrrd", nrrd_bytes), ("a.mha", metaimage_bytes)])
def test_a_slice_more_than_the_header_says_is_a_warning(tmp_path: Path, name: str, of: Any) -> None:
    found = read_with_findings(saved(tmp_path, name, of() + CONTENT[: 7 * 6 * 2]))

    assert codes(found) == [(FindingCode.EXTRA_BYTES, Severity.WARN)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", gzip.compress(nifti_bytes({"dim": [3, 2000, 2000, 2000, 1, 1, 1, 1]}))),
        ("a.nrrd", nrrd_bytes({"sizes": "2000 2000 2000", "encoding": "gzip"}, gzip.compress(CONTENT))),
        ("a.nrrd", nrrd_bytes({"sizes": "9999999 9999999 9999999"})),
        ("a.mha", metaimage_bytes({"DimSize": "2000 2000 2000", "CompressedData": "True"}, zlib.compress(CONTENT))),
        ("a.mha", metaimage_bytes({"DimSize": "2147483647 2147483647 1"})),
    ],
)
def test_sizes_beyond_what_the_file_can_hold_take_no_memory(tmp_path: Path, name: str, content: bytes) -> None:
    path = saved(tmp_path, name, content)
    tracemalloc.start()

    assert "ends too early" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii", nifti_bytes({"xyzt_units": 1})),
        ("a.nii", nifti_bytes({"xyzt_units": 3})),
        ("a.nii.gz", packed_nifti({"xyzt_units": 3 + 8})),
        ("a.nrrd", nrrd_bytes({"space units": '"um" "um" "um"'})),
        ("a.nrrd", nrrd_bytes({"space units": '"mm" "mm" "cm"'})),
        ("a.nrrd", nrrd_bytes({"space": None, "space directions": None, "spacings": "1 1 2", "units": '"m" "m" "m"'})),
        ("a.mha", metaimage_bytes({"DistanceUnits": "um"})),
        ("a.mha", metaimage_bytes({"DistanceUnits": "cm"})),
    ],
)
def test_other_units_than_mm_are_refused_in_every_format(tmp_path: Path, name: str, content: bytes) -> None:
    assert "expected mm" in (sentence := refusal(saved(tmp_path, name, content))) or "than mm" in sentence


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii", nifti_bytes({"xyzt_units": 0})),
        ("a.nii", nifti_bytes({"xyzt_units": 2 + 56})),  # a unit of time that NIfTI does not define
        ("a.nii", nifti_bytes({"xyzt_units": 2 + 128})),
        ("a.nrrd", nrrd_bytes({"space units": '"mm" "mm" "mm"'})),
        ("a.nrrd", nrrd_bytes({"space units": '"" "Millimeters" "???"'})),
        ("a.mha", metaimage_bytes({"DistanceUnits": "mm"})),
        ("a.mha", metaimage_bytes({"DistanceUnits": "?"})),
    ],
)
def test_mm_and_no_unit_are_mm_whatever_is_said_of_time(tmp_path: Path, name: str, content: bytes) -> None:
    assert GRID.agrees(read_whole(saved(tmp_path, name, content)).grid, 1e-5)


@pytest.mark.parametrize("code", [4, 5, 6, 7])
def test_a_unit_that_nifti_does_not_define_is_refused_with_its_code(tmp_path: Path, code: int) -> None:
    assert f"code {code}, which NIfTI does not define" in refusal(
        saved(tmp_path, "a.nii", nifti_bytes({"xyzt_units": code}))
    )


SIZES = [(0.0, 1.5, 2.0), (1.5, -1.5, 2.0), (np.nan, 1.5, 2.0), (1.5, 1.5, np.inf)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("codes_of_forms", [(0, 1), (0, 0)])
def test_voxel_sizes_that_are_none_are_refused_in_nifti(
    tmp_path: Path, sizes: tuple[float, ...], codes_of_forms: tuple[int, int]
) -> None:
    sform, qform = codes_of_forms
    fields = {"sform_code": sform, "qform_code": qform, "pixdim": [1, *sizes, 0, 0, 0, 0]}

    assert "voxel sizes of" in refusal(saved(tmp_path, "a.nii", nifti_bytes(fields)))


@pytest.mark.parametrize("sizes", SIZES)
def test_voxel_sizes_that_are_none_are_refused_in_nrrd(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    directions = " ".join(str(tuple(row)) for row in np.diag(sizes).tolist()).replace(" ", "").replace(")(", ") (")
    bare = {"space": None, "space directions": None, "spacings": " ".join(map(str, sizes))}

    refusal(saved(tmp_path, "b.nrrd", nrrd_bytes(bare)))
    if min(sizes) != -1.5:  # an axis may run the other way
        refusal(saved(tmp_path, "a.nrrd", nrrd_bytes({"space directions": directions})))


@pytest.mark.parametrize("sizes", SIZES)
def test_voxel_sizes_that_are_none_are_refused_in_metaimage(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    content = metaimage_bytes({"ElementSpacing": " ".join(map(str, sizes))})

    assert "voxel sizes" in refusal(saved(tmp_path, "a.mha", content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mha", metaimage_bytes({"ElementSpacing": None})),
        ("a.nrrd", nrrd_bytes({"space directions": None, "space": None})),
        ("a.nrrd", nrrd_bytes({"space directions": "none none none"})),
    ],
)
def test_a_header_without_voxel_sizes_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    refusal(saved(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii", nifti_bytes({"sform_code": 0, "qform_code": 0})),
        ("a.nrrd", nrrd_bytes({"space": "scanner-xyz"})),
        ("a.nrrd", nrrd_bytes({"space": "3D-right-handed"})),
        ("a.nrrd", nrrd_bytes({"space": None, "space dimension": "3"})),
        ("a.nrrd", nrrd_bytes({"space directions": None, "space origin": None, "spacings": "1.5 1.5 2"})),
        (
            "a.nrrd",
            nrrd_bytes({"space": None, "space directions": None, "space origin": None, "spacings": "1.5 1.5 2"}),
        ),
        ("a.mha", metaimage_bytes({"TransformMatrix": None, "AnatomicalOrientation": None})),
        ("a.mha", metaimage_bytes({"TransformMatrix": None, "AnatomicalOrientation": "???"})),
    ],
)
def test_a_header_that_leaves_the_sides_open_is_read_and_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    found = read_whole(saved(tmp_path, name, content))

    assert "where left and right are" in found.sides_problem
    assert codes(found) == [(FindingCode.NO_ORIENTATION, Severity.WARN)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", nifti_bytes()),
        ("a.nii", packed_nifti()),
    ],
)
def test_a_name_that_is_wrong_about_gzip_is_noted(tmp_path: Path, name: str, content: bytes) -> None:
    found = read_whole(saved(tmp_path, name, content))

    assert codes(found) == [(FindingCode.MISNAMED_FILE, Severity.NOTE)]


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(nifti_bytes()[:100]) + gzip.compress(nifti_bytes()[100:]),
        gzip.compress(nifti_bytes()[:352]) + gzip.compress(CONTENT),
        packed_nifti() + bytes(4096),
        packed_nifti() + gzip.compress(b""),
    ],
    ids=["two members", "a member for the header", "zeros behind", "an empty member behind"],
)
def test_a_gzip_file_of_several_parts_is_read_whole(tmp_path: Path, content: bytes) -> None:
    assert read_whole(saved(tmp_path, "a.nii.gz", content)).findings == ()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", packed_nifti() + b"garbage"),
        ("a.nrrd", nrrd_bytes({"encoding": "gzip"}, gzip.compress(CONTENT) + b"garbage")),
        ("a.mha", metaimage_bytes({"CompressedData": "True"}, zlib.compress(CONTENT) + b"garbage")),
    ],
)
def test_garbage_behind_a_compression_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    assert "behind the end of its compression" in refusal(saved(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.nrrd", nrrd_bytes({"encoding": "gzip"})), ("a.mha", metaimage_bytes({"CompressedData": "True"}))],
)
def test_voxels_that_are_not_packed_although_the_header_says_so_are_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    assert "not packed, although its header says so" in refusal(saved(tmp_path, name, content))


def test_a_metaimage_that_is_packed_by_gzip_is_read(tmp_path: Path) -> None:
    read_whole(saved(tmp_path, "a.mha", metaimage_bytes({"CompressedData": "True"}, gzip.compress(CONTENT))))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_a_file_that_is_packed_twice_is_refused(tmp_path: Path, name: str) -> None:
    assert "packed by gzip twice" in refusal(saved(tmp_path, name, gzip.compress(packed_nifti())))


# --- NIfTI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 100, 348, 351, -352, 352.5, np.nan, np.inf, 1e30, 2**27])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_that_begin_nowhere_or_inside_the_header_are_refused(tmp_path: Path, name: str, offset: float) -> None:
    content = nifti_bytes({"vox_offset": offset})

    sentence = refusal(saved(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content))

    assert "begin at byte" in sentence


def test_voxels_that_begin_behind_the_end_are_missing(tmp_path: Path) -> None:
    assert "420 bytes, 0 are there" in refusal(saved(tmp_path, "a.nii", nifti_bytes({"vox_offset": 8192})))


@pytest.mark.parametrize("gap", [16, 7, 4096])
def test_voxels_may_begin_at_any_byte_behind_the_header(tmp_path: Path, gap: int) -> None:
    read_whole(saved(tmp_path, "a.nii", nifti_bytes({"vox_offset": 352 + gap}, content=bytes(gap) + CONTENT)))


def test_an_extension_of_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = packer.compress(nifti_bytes({"vox_offset": 352 + 2**30}, content=b""))
    content += b"".join(packer.compress(bytes(2**22)) for _ in range(2**5)) + packer.flush()
    path = saved(tmp_path, "a.nii.gz", content)
    tracemalloc.start()

    assert "begin at byte" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_what_an_extension_says_is_not_looked_at(tmp_path: Path) -> None:
    for size in (-16, 0, 2**31 - 16):
        extension = np.array([size, 6], "<i4").tobytes() + bytes(24)
        content = nifti_bytes({"vox_offset": 384}, content=extension + CONTENT)
        read_whole(saved(tmp_path, "a.nii", content[:348] + b"\1\0\0\0" + content[352:]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_second", [False, True])
def test_both_versions_and_both_orders_of_bytes_are_read(tmp_path: Path, order: str, is_second: bool) -> None:
    found = read_whole(saved(tmp_path, "a.nii", nifti_bytes(order=order, is_second=is_second)))

    assert found.voxels.dtype.isnative
    assert found.findings == ()
    assert GRID.agrees(found.grid, 1e-5)


@pytest.mark.parametrize("dim", [[4, 7, 6, 5, 1, 1, 1, 1], [7, 7, 6, 5, 1, 1, 1, 1], [3, 7, 6, 5, 9, 9, 9, 9]])
def test_axes_of_one_voxel_and_sizes_of_no_axis_change_nothing(tmp_path: Path, dim: list[int]) -> None:
    assert read_whole(saved(tmp_path, "a.nii", nifti_bytes({"dim": dim}))).grid.shape == (7, 6, 5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dim": [0, 7, 6, 5, 1, 1, 1, 1]}, "0 axes"),
        ({"dim": [200, 7, 6, 5, 1, 1, 1, 1]}, "200 axes"),
        ({"dim": [-3, 7, 6, 5, 1, 1, 1, 1]}, "-3 axes"),
        ({"dim": [3, -7, 6, 5, 1, 1, 1, 1]}, "at least one voxel"),
        ({"dim": [4, 7, 6, 5, 2, 1, 1, 1]}, "4 axes (7x6x5x2)"),
        ({"datatype": 128}, "code 128"),
        ({"datatype": 1536}, "code 1536"),
        ({"datatype": 999}, "code 999"),
        ({"bitpix": 8}, "int16, but of 8 bits"),
        ({"scl_slope": np.inf}, "scaled by inf"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "scaled by 2 and nan"),
        ({"magic": b"ni1"}, "pair of files"),
        ({"magic": b"xyz"}, "not a NIfTI file"),
        ({**rows(np.full((3, 4), np.nan))}, "its sform is"),
        ({**rows(np.eye(4) * 1e-20)}, "its sform is"),
        ({"sform_code": 17}, "sform_code of 17"),
        ({"qform_code": -1}, "qform_code of -1"),
        ({"sform_code": 0, "quatern_b": 5}, "longer than 1"),
        ({"sform_code": 0, "quatern_c": np.nan}, "not finite"),
        ({"sform_code": 0, "qoffset_x": np.inf}, "not finite"),
        ({"sform_code": 0, "pixdim": [-7, 1.5, 1.5, 2, 0, 0, 0, 0]}, "qfac"),
    ],
)
def test_what_a_nifti_header_cannot_mean_is_refused(tmp_path: Path, fields: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(saved(tmp_path, "a.nii", nifti_bytes(fields)))


@pytest.mark.parametrize(("slope", "inter"), [(0, 0), (0, 7), (np.nan, np.nan), (1, 0)])
def test_a_slope_of_zero_or_nan_scales_nothing(tmp_path: Path, slope: float, inter: float) -> None:
    found = read_whole(saved(tmp_path, "a.nii", nifti_bytes({"scl_slope": slope, "scl_inter": inter})))

    assert found.voxels.dtype == np.int16


def test_a_qform_without_hand_and_rounded_beyond_1_is_read(tmp_path: Path) -> None:
    turned = {"quatern_b": np.float32(1) + np.finfo(np.float32).eps, "quatern_c": 0, "quatern_d": 0}
    fields = {"sform_code": 0, **turned, "pixdim": [0, 1.5, 1.5, 2, 0, 0, 0, 0]}

    grid = read_whole(saved(tmp_path, "a.nii", nifti_bytes(fields))).grid

    np.testing.assert_allclose(np.diag(grid.affine)[:3], (1.5, -1.5, -2), atol=1e-3)


MIRRORED = np.diag((-1.0, 1, 1, 1)) @ AFFINE_RAS
HALF_A_TURN = np.diag((-1.0, -1, 1, 1)) @ AFFINE_RAS
UPSIDE_DOWN = np.diag((1.0, 1, -1, 1)) @ AFFINE_RAS


@pytest.mark.parametrize("sform", [MIRRORED, HALF_A_TURN, UPSIDE_DOWN], ids=["mirrored", "half a turn", "upside down"])
def test_a_qform_that_exchanges_left_and_right_leaves_the_sides_open(tmp_path: Path, sform: np.ndarray) -> None:
    found = read_whole(saved(tmp_path, "a.nii", nifti_bytes(rows(sform))))

    assert "qform" in found.sides_problem
    assert codes(found) == [(FindingCode.CONTRADICTORY_GEOMETRY, Severity.WARN)]
    assert Grid((7, 6, 5), sform).agrees(found.grid, 1e-4)


@pytest.mark.parametrize(
    ("fields", "severity"),
    [
        ({"srow_x": [-1.5, 0, 0, 17]}, Severity.WARN),
        ({"srow_x": [-1.5, 0, 0, 17], "sform_code": 2}, Severity.NOTE),
        ({"srow_x": [-3.0, 0, 0, 10]}, Severity.WARN),
        ({"srow_x": [-3.0, 0, 0, 10], "sform_code": 4}, Severity.WARN),
    ],
    ids=["moved in one space", "moved in another space", "larger", "larger in another space"],
)
def test_a_qform_that_places_the_image_elsewhere_is_told(
    tmp_path: Path, fields: dict[str, Any], severity: Severity
) -> None:
    found = read_whole(saved(tmp_path, "a.nii", nifti_bytes(fields)))

    assert found.sides_problem == ""
    assert codes(found) == [(FindingCode.CONTRADICTORY_GEOMETRY, severity)]


@pytest.mark.parametrize(
    "fields",
    [{"quatern_b": 5}, {"pixdim": [1, 0, 0, 0, 0, 0, 0, 0]}, {"qoffset_x": np.nan}],
    ids=["quaternion", "voxel sizes", "offset"],
)
def test_a_qform_that_means_nothing_beside_a_sound_sform_is_told(tmp_path: Path, fields: dict[str, Any]) -> None:
    found = read_whole(saved(tmp_path, "a.nii", nifti_bytes(fields)))

    assert codes(found) == [(FindingCode.CONTRADICTORY_GEOMETRY, Severity.WARN)]
    assert GRID.agrees(found.grid, 1e-5)


def test_pixdim_that_contradicts_the_only_form_is_told(tmp_path: Path) -> None:
    fields = {"qform_code": 0, "pixdim": [1, 1, 1, 1, 0, 0, 0, 0]}

    found = read_whole(saved(tmp_path, "a.nii", nifti_bytes(fields)))

    assert codes(found) == [(FindingCode.CONTRADICTORY_GEOMETRY, Severity.WARN)]
    assert "voxels of 1 x 1 x 1 mm" in found.findings[0].message


# --- NRRD -----------------------------------------------------------------------------------------------------------


def test_every_named_space_is_brought_to_ras(tmp_path: Path) -> None:
    for space, signs in {"RAS": (1, 1, 1), "LAS": (-1, 1, 1), "right-anterior-superior": (1, 1, 1)}.items():
        found = read_whole(saved(tmp_path, "a.nrrd", nrrd_bytes({"space": space})))
        steps = np.array((1.5, 1.5, 2)) * signs
        np.testing.assert_allclose(np.diag(found.grid.affine)[:3], steps)
        assert found.findings == ()


@pytest.mark.parametrize(
    "content",
    [
        nrrd_bytes({"encoding": "gz"}, gzip.compress(CONTENT)),
        nrrd_bytes({"encoding": "gzip", "byte skip": "3"}, gzip.compress(b"abc" + CONTENT)),
        nrrd_bytes({"byte skip": "3"}, b"abc" + CONTENT),
        nrrd_bytes({"byte skip": "-1"}, b"abc" + CONTENT),
        nrrd_bytes({"encoding": "ascii", "endian": None}, " ".join(map(str, VOXELS.ravel(order="F"))).encode()),
        nrrd_bytes({"endian": "big"}, VOXELS.astype(">i2").tobytes(order="F")),
        nrrd_bytes(
            {
                "dimension": "4",
                "sizes": "1 7 6 5",
                "space directions": "none (1.5,0,0) (0,1.5,0) (0,0,2)",
                "kinds": "vector domain domain domain",
            }
        ),
        nrrd_bytes(
            {
                "dimension": "4",
                "sizes": "7 6 5 1",
                "space directions": "(1.5,0,0) (0,1.5,0) (0,0,2) none",
                "kinds": None,
            }
        ),
        nrrd_bytes({"type": "signed short int", "old min": "3", "content": "anything: at all"}),
        nrrd_bytes().replace(b"\n", b"\r\n", 11),
        nrrd_bytes().replace(b"type:", b"# a remark: of nobody\nkey:=value: of a writer\nType:"),
    ],
)
def test_every_way_to_write_the_same_voxels_is_read(tmp_path: Path, content: bytes) -> None:
    found = read_whole(saved(tmp_path, "a.nrrd", content))

    assert found.findings == ()
    assert GRID.agrees(found.grid, 1e-9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encoding": "bzip2"}, "raw, gzip and ascii"),
        ({"encoding": "hex"}, "raw, gzip and ascii"),
        ({"line skip": "1"}, "line and byte skip"),
        ({"sizes": "7 6"}, "sizes of 2"),
        ({"sizes": "-7 6 5"}, "at least one voxel"),
        ({"sizes": "7 6 x"}, "whole numbers"),
        ({"sizes": None}, "without the field 'sizes'"),
        ({"dimension": "1000"}, "1000 axes"),
        ({"type": "block"}, "no number"),
        ({"type": "long"}, "no number"),
        ({"endian": None}, "without the field 'endian'"),
        ({"endian": "middle"}, "neither little nor big"),
        ({"space directions": "(1.5,0,0) (0,1.5,0) (nan,nan,nan)"}, "finite numbers"),
        ({"space directions": "(1.5,0,0) (0,1.5,0) (0,0,0)"}, "voxel sizes"),
        ({"space directions": "(1.5,0,0) (0,1.5,0)"}, "2 space directions for 3 axes"),
        ({"space directions": "(1.5,0,0) (1.5,0,0) (0,0,2)"}, "no volume"),
        ({"space directions": "(1.5,0) (0,1.5) (0,0)"}, "finite numbers"),
        ({"space origin": "(0,0,inf)"}, "finite numbers"),
        ({"space origin": "nowhere"}, "cannot be read"),
        ({"space origin": "none"}, "an origin that cannot be read"),
        ({"space origin": "(0,0,0) (1,1,1)"}, "an origin that cannot be read"),
        ({"space units": "um um um"}, "in quotes"),
        ({"kinds": "rgb-color domain domain"}, "7 values in each voxel"),
        ({"kinds": "domain domain time"}, "5 values in each voxel"),
        (
            {"space": None, "space directions": None, "spacings": "1 1 1", "kinds": "vector domain domain"},
            "7 values in each voxel",
        ),
        ({"spacings": "1 1 1"}, "voxel sizes twice"),
        (
            {
                "kinds": None,
                "dimension": "4",
                "sizes": "3 7 6 5",
                "space directions": "none (1.5,0,0) (0,1.5,0) (0,0,2)",
            },
            "3 values",
        ),
        ({"kinds": "domain domain dom!in"}, "kinds of axes"),
        ({"kinds": "domain domain"}, "kinds of axes"),
        ({"space origin": "(1e300,0,0)"}, "beyond any size"),
        ({"John_Doe": "1970"}, "NRRD does not define"),
        ({"Sizes": "7 6 5"}, "'sizes' twice"),
    ],
)
def test_what_a_nrrd_header_cannot_mean_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(saved(tmp_path, "a.nrrd", nrrd_bytes(changes, bz2.compress(CONTENT) + CONTENT)))


@pytest.mark.parametrize("word", ["1.5", "40000", "one"])
def test_a_voxel_written_out_that_its_type_cannot_hold_is_told_as_that(tmp_path: Path, word: str) -> None:
    text = " ".join([word, *map(str, VOXELS.ravel(order="F")[1:])]).encode()
    sentence = refusal(saved(tmp_path, "a.nrrd", nrrd_bytes({"encoding": "ascii", "endian": None}, text)))
    assert "no numbers of the type int16" in sentence


# --- MetaImage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        metaimage_bytes({"TransformMatrix": None, "Orientation": "1 0 0 0 1 0 0 0 1"}),
        metaimage_bytes({"TransformMatrix": None, "Rotation": "1 0 0 0 1 0 0 0 1"}),
        metaimage_bytes({"Orientation": "1 0 0 0 1 0 0 0 1"}),
        metaimage_bytes({"TransformMatrix": None}),
        metaimage_bytes({"AnatomicalOrientation": None}),
        metaimage_bytes({"Offset": None, "Position": "-10 -20 30"}),
        metaimage_bytes({"Offset": None, "Origin": "-10 -20 30"}),
        metaimage_bytes({"ElementSpacing": None, "ElementSize": "1.5 1.5 2"}),
        metaimage_bytes({"ElementSize": "1 1 1"}),
        metaimage_bytes({"BinaryData": None, "CompressedData": None, "ObjectType": None}),
        metaimage_bytes({"BinaryData": "False"}, " ".join(map(str, VOXELS.ravel(order="F"))).encode()),
        metaimage_bytes({"CompressedData": "True"}, zlib.compress(CONTENT)),
        metaimage_bytes({"BinaryDataByteOrderMSB": "True"}, VOXELS.astype(">i2").tobytes(order="F")),
        metaimage_bytes(
            {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"}, VOXELS.astype(">i2").tobytes(order="F")
        ),
        metaimage_bytes({"HeaderSize": "-1"}, b"abc" + CONTENT),
        metaimage_bytes({"Modality": "MET_MOD_CT", "Whatever": "else"}),
        metaimage_bytes(
            {
                "NDims": "4",
                "DimSize": "7 6 5 1",
                "ElementSpacing": "1.5 1.5 2 1",
                "Offset": "-10 -20 30 0",
                "TransformMatrix": "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1",
            }
        ),
        metaimage_bytes(data_file="Local"),
        metaimage_bytes().replace(b"\n", b"\r\n", 12),
    ],
)
def test_every_name_of_a_field_gives_the_same_image(tmp_path: Path, content: bytes) -> None:
    found = read_whole(saved(tmp_path, "a.mha", content))

    assert found.findings == ()
    assert GRID.agrees(found.grid, 1e-9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"NDims": "1000"}, "1000 axes"),
        ({"NDims": "2"}, "2 axes (NDims), but the sizes of 3"),
        ({"NDims": "-3"}, "-3 axes"),
        ({"NDims": "three"}, "whole numbers"),
        ({"NDims": None}, "without the field NDims"),
        ({"DimSize": "-7 6 5"}, "at least one voxel"),
        ({"DimSize": "7 6 5 4"}, "sizes of 4"),
        ({"ElementType": "MET_BANANA"}, "no number"),
        ({"ElementNumberOfChannels": "3"}, "3 values"),
        ({"ElementNumberOfChannels": "1000000"}, "1000000 values"),
        ({"ObjectType": "Tube"}, "no image"),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "length is not 1"),
        ({"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, "finite numbers"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "no volume"),
        ({"Offset": ",1 2 3"}, "finite numbers"),
        ({"TransformMatrix": "1 0 0 0"}, "finite numbers"),
        ({"Orientation": "-1 0 0 0 1 0 0 0 1"}, "two names"),
        ({"Position": "0 0 0"}, "two names"),
        ({"TransformMatrix": None, "AnatomicalOrientation": "LPI"}, "two ways"),
        ({"ElementToIntensityFunctionSlope": "2"}, "to be scaled"),
        ({"ElementToIntensityFunctionOffset": "-1024"}, "to be scaled"),
        ({"HeaderSize": "12"}, "HeaderSize"),
        ({"CompressedData": "perhaps"}, "neither True nor False"),
        ({"DimSize ": "1 1 1"}, "twice"),
    ],
)
def test_what_a_metaimage_header_cannot_mean_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(saved(tmp_path, "a.mha", metaimage_bytes(changes)))


def test_letters_that_contradict_the_matrix_are_told(tmp_path: Path) -> None:
    found = read_whole(saved(tmp_path, "a.mha", metaimage_bytes({"AnatomicalOrientation": "LPI"})))

    assert codes(found) == [(FindingCode.CONTRADICTORY_GEOMETRY, Severity.WARN)]
    assert GRID.agrees(found.grid, 1e-9)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.nrrd", nrrd_bytes({"space origin": None})), ("a.mha", metaimage_bytes({"Offset": None}))],
)
def test_a_header_without_position_is_read_and_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    found = read_whole(saved(tmp_path, name, content))

    assert codes(found) == [(FindingCode.NO_POSITION, Severity.NOTE)]
    np.testing.assert_array_equal(found.grid.affine[:3, 3], 0)


def test_a_file_that_is_packed_as_a_whole_is_no_metaimage_and_no_nrrd(tmp_path: Path) -> None:
    assert "not a MetaImage file" in refusal(saved(tmp_path, "a.mha", gzip.compress(metaimage_bytes())))
    assert "not a NRRD file" in refusal(saved(tmp_path, "a.nrrd", gzip.compress(nrrd_bytes())))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.mha", b"A = " + b"x" * 5_000_000 + metaimage_bytes()), ("a.nrrd", nrrd_bytes({"content": "x" * 5_000_000}))],
)
def test_a_header_without_end_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    refusal(saved(tmp_path, name, content))


# --- what SimpleITK writes and reads ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    st.sampled_from([".nrrd", ".mha", ".mhd", ".nii", ".nii.gz"]),
    st.booleans(),
)
def test_what_itk_writes_is_read_as_itk_reads_it(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: str, suffix: str, is_packed: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 9, 3))
    image = sitk.GetImageFromArray((rng.normal(size=shape) * 50).astype(dtype))
    image.SetSpacing(rng.uniform(0.3, 5, 3).tolist())
    image.SetOrigin(rng.uniform(-300, 300, 3).tolist())
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    image.SetDirection((rotation * np.sign(np.linalg.det(rotation))).ravel().tolist())
    path = tmp_path_factory.mktemp("itk") / f"image{suffix}"
    sitk.WriteImage(image, str(path), is_packed)

    found = read_with_findings(path)

    written = sitk.ReadImage(str(path))
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.reshape(written.GetDirection(), (3, 3)) * written.GetSpacing()
    affine_lps[:3, 3] = written.GetOrigin()
    np.testing.assert_array_equal(found.voxels[0], sitk.GetArrayFromImage(written).T)
    assert found.voxels.dtype == np.dtype(dtype)
    assert Grid(shape[::-1], np.diag((-1.0, -1, 1, 1)) @ affine_lps).agrees(found.grid, 1e-3)
    assert found.findings == ()


# --- where the voxels may lie -----------------------------------------------------------------------------------------


def detached(name: str) -> dict[str, bytes]:
    return {"a.nrrd": nrrd_bytes({"data file": name}, b""), "a.mhd": metaimage_bytes(content=b"", data_file=name)}


def test_voxels_in_a_file_beside_the_header_are_read(tmp_path: Path) -> None:
    saved(tmp_path, "my voxels.raw", CONTENT)
    for name, header in detached("my voxels.raw").items():
        assert GRID.agrees(read_whole(saved(tmp_path, name, header)).grid, 1e-9)


def test_a_header_of_a_stranger_may_name_no_file(tmp_path: Path) -> None:
    saved(tmp_path, "voxels.raw", CONTENT)
    for name, header in detached("voxels.raw").items():
        with pytest.raises(InputError, match="save it as one file"):
            read_volume_header(saved(tmp_path, name, header), may_name_others=False)
    for name, whole in {"b.nrrd": nrrd_bytes(), "b.mha": metaimage_bytes(), "b.nii": nifti_bytes()}.items():
        assert read_volume_header(saved(tmp_path, name, whole), may_name_others=False).is_oriented


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../voxels.raw", "sub/voxels.raw", "..", ".", "\\\\host\\voxels.raw", "C:voxels.raw",
        "/dev/zero", "LIST", "LIST 2", "list", "voxels%d.raw 1 5 1", "%s%n%n", "voxels.raw\0.txt",
    ],
)  # fmt: skip
def test_a_header_that_names_a_file_elsewhere_or_several_is_refused_without_a_word_of_it(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        saved(place, "voxels.raw", CONTENT)
    for file, header in detached(name).items():
        sentence = refusal(saved(folder, file, header))
        assert len(name) < 3 or name not in sentence


def test_a_data_file_that_is_missing_or_no_regular_file_is_refused_without_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "John_Doe_pipe.raw")
    (tmp_path / "John_Doe_folder.raw").mkdir()
    (tmp_path / "John_Doe_loop.raw").symlink_to("John_Doe_loop.raw")
    (tmp_path / "John_Doe_device.raw").symlink_to("/dev/zero")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "John_Doe_link.raw").symlink_to(saved(outside, "voxels.raw", CONTENT))
    for name in ("missing", "pipe", "folder", "loop", "device", "link"):
        for file, header in detached(f"John_Doe_{name}.raw").items():
            assert "John" not in refusal(saved(tmp_path, file, header))


def test_a_header_may_not_take_itself_for_voxels(tmp_path: Path) -> None:
    for name in ("a.nrrd", "a.mhd"):
        assert "names itself" in refusal(saved(tmp_path, name, detached(name)[name] + CONTENT))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".png"])
def test_pipes_devices_folders_and_endless_links_are_no_images(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"lost{suffix}").symlink_to("nothing")

    for name in ("pipe", "folder", "loop", "device", "lost", "missing"):
        refusal(tmp_path / f"{name}{suffix}")


def test_no_text_of_a_header_is_told(tmp_path: Path) -> None:
    doe = {"content": "DOE^JANE", "type": "DOE^JANE"}
    files = {
        "a.nrrd": nrrd_bytes(doe),
        "b.nrrd": nrrd_bytes({"DOE^JANE": "1"}),
        "c.nrrd": nrrd_bytes({"sizes": "DOE^JANE"}),
        "d.mha": metaimage_bytes({"ElementType": "DOE^JANE"}),
        "e.mha": metaimage_bytes({"Offset": "DOE^JANE"}),
        "f.mha": metaimage_bytes({"Comment": "DOE^JANE", "DOE^JANE": "x", "DOE^JANE ": "y"}),
        "g.nii": nifti_bytes({"descrip": b"DOE^JANE", "datatype": 999}),
    }
    for name, content in files.items():
        assert "DOE" not in refusal(saved(tmp_path, name, content))
