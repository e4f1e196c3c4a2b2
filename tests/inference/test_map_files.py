"""Files of gate maps: on the grid of the image whichever part of its header a viewer follows, whole, and small."""

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from isal import igzip

from voxelgate.core.errors import OutputError
from voxelgate.core.geometry import Grid
from voxelgate.images.volumes import read_grid, read_volume, write_label_map
from voxelgate.inference.attention.map_files import write_attention_map
from voxelgate.inference.attention.maps import GateMap, on_grid

AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.5, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 30.0], [0.0, 0.0, 0.0, 1.0]])
SHAPE = (14, 12, 9)
COARSE = AFFINE @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1.0]])
GRID = Grid(SHAPE, AFFINE)
MOVED = AFFINE + np.array([[0, 0, 0, 5.0], [0, 0, 0, -7], [0, 0, 0, 9], [0, 0, 0, 0]])


@pytest.fixture
def gate() -> GateMap:
    alpha = np.random.default_rng(0).random((7, 6, 9), dtype=np.float32)
    alpha[0, 0, 0], alpha[6, 5, 8] = 0, 1
    return GateMap(1, alpha, Grid((7, 6, 9), COARSE))


def image_with(path: Path, sform: tuple[np.ndarray | None, int], qform: tuple[np.ndarray | None, int]) -> Path:
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header["descrip"] = b"Doe^Jane"
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), None, header)
    image.set_qform(*qform)
    image.set_sform(*sform)
    nib.save(image, path)
    return path


def test_a_written_map_reads_as_0_to_1_within_a_step(tmp_path: Path, gate: GateMap) -> None:
    write_attention_map(tmp_path / "a.nii.gz", gate, GRID, like=None)

    values, grid = read_volume(tmp_path / "a.nii.gz")

    assert grid.agrees(GRID, 1e-4)
    np.testing.assert_allclose(values, on_grid(gate, GRID), atol=0.5 / 255 + 1e-6)
    assert (values.min(), values.max()) == (0, pytest.approx(1))


@pytest.mark.parametrize(
    ("sform", "qform"),
    [
        ((AFFINE, 2), (MOVED, 1)),
        ((AFFINE, 4), (None, 0)),
        ((None, 0), (AFFINE, 1)),
        ((None, 0), (None, 0)),
    ],
    ids=["both, apart", "sform", "qform", "neither"],
)
def test_a_map_has_the_places_and_codes_of_its_image_as_the_label_map_does(
    tmp_path: Path, gate: GateMap, sform: Any, qform: Any
) -> None:
    like = image_with(tmp_path / "image.nii.gz", sform, qform)
    grid = read_grid(like)
    write_attention_map(tmp_path / "a.nii.gz", gate, grid, like=like)
    write_label_map(tmp_path / "labels.nii.gz", np.zeros(SHAPE, np.uint8), grid, like=like)

    written, labels = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("a", "labels"))

    for kind in ("get_sform", "get_qform"):
        (found, code), (expected, expected_code) = (getattr(one, kind)(coded=True) for one in (written, labels))
        assert code == expected_code
        assert (found is None) == (expected is None)
        assert found is None or np.abs(found - expected).max() < 1e-4
    assert written.header.get_xyzt_units() == labels.header.get_xyzt_units()
    assert np.abs(written.affine - nib.load(like).affine).max() < 1e-4
    assert b"Doe" not in igzip.decompress((tmp_path / "a.nii.gz").read_bytes())


def test_a_sheared_grid_has_no_qform(tmp_path: Path, gate: GateMap) -> None:
    sheared = Grid(SHAPE, AFFINE @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    write_attention_map(tmp_path / "a.nii.gz", gate, sheared, like=None)

    assert nib.load(tmp_path / "a.nii.gz").get_qform(coded=True)[1] == 0
    assert read_grid(tmp_path / "a.nii.gz").agrees(sheared, 1e-4)


def test_equal_maps_give_equal_bytes(tmp_path: Path, gate: GateMap) -> None:
    for name in "ab":
        write_attention_map(tmp_path / f"{name}.nii.gz", gate, GRID, like=None)

    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_large_map_never_lies_in_memory_as_a_whole(tmp_path: Path, gate: GateMap) -> None:
    large = Grid((256, 256, 400), AFFINE @ np.diag((14 / 256, 12 / 256, 9 / 400, 1.0)))
    tracemalloc.start()
    write_attention_map(tmp_path / "a.nii.gz", gate, large, like=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 256 * 256 * 400 * 4 / 2  # half of the map in float32
    assert nib.load(tmp_path / "a.nii.gz").shape == large.shape


def test_a_map_that_reads_back_differently_is_refused(
    tmp_path: Path, gate: GateMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = igzip.IGzipFile.write
    monkeypatch.setattr(
        igzip.IGzipFile, "write", lambda file, data: write(file, data if len(data) < 1000 else data[:-1] + b"\x07")
    )

    with pytest.raises(OutputError, match=r"a\.nii\.gz: reads back with other values; check the disk"):
        write_attention_map(tmp_path / "a.nii.gz", gate, GRID, like=None)
