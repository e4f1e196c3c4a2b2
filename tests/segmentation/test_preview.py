"""Previews: the right side on the left, true proportions, every structure to be seen, small, nothing of a patient."""

import base64
import io
import json
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.geometry import AXES_RAS, Grid
from voxelgate.core.labels import LabelTable
from voxelgate.images.volumes import read_volume
from voxelgate.segmentation.preview import LONGEST_PX, Preview, labels_as_shown, read_preview, sketch, write_preview

TABLE = LabelTable(("background", "ball", "cube"))
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
CODES = ["RAS", "LPS", "PIR", "SLA"]


def affine_of(codes: str, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> np.ndarray:
    """Return an affine whose axes run to these sides, with the origin in the middle of 30 voxels."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, code in enumerate(codes):
        axis = next(axis for axis, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        affine[axis, column] = spacing_mm[column] if code in "RAS" else -spacing_mm[column]
    affine[:3, 3] = -affine[:3, :3] @ (14.5, 14.5, 14.5)
    return affine


def two_shapes(grid: Grid) -> np.ndarray:
    """Return labels with structure 1 at the patient's left, front and head, and 2 at the right, back and feet."""
    points_mm = np.moveaxis(np.indices(grid.shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    labels = np.zeros(grid.shape, np.uint8)
    labels[np.linalg.norm(points_mm - (-14, 14, 14), axis=-1) < 8] = 1
    labels[np.linalg.norm(points_mm - (14, -14, -14), axis=-1) < 8] = 2
    return labels


def written(
    path: Path, voxels: np.ndarray, labels: np.ndarray, affine: np.ndarray, table: LabelTable = TABLE
) -> Preview:
    write_preview(path, sketch(voxels, Grid(voxels.shape, affine)), labels, table)
    return read_preview(path)


def slices(preview: Preview, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the slices of each plane, (count, rows, columns), from a picture of all planes."""
    planes = preview.layout.planes
    cut = {plane.name: values[:, plane.x : plane.x + plane.width] for plane in planes}
    return {
        plane.name: cut[plane.name][: len(plane.cells) * plane.height].reshape(
            len(plane.cells), plane.height, plane.width
        )
        for plane in planes
    }


def label_slices(preview: Preview) -> dict[str, np.ndarray]:
    layout = preview.layout
    kind = np.dtype("u1" if layout.bits == 8 else "<u2")
    return slices(preview, np.frombuffer(zlib.decompress(preview.labels), kind).reshape(layout.size_px[::-1]))


def image_slices(path: Path, preview: Preview) -> dict[str, np.ndarray]:
    with Image.open(path) as image:
        return slices(preview, np.array(image.convert("L")))


def centre(mask: np.ndarray) -> tuple[float, float]:
    """Return the mean row and column of a mask of slices, as shares of the picture."""
    _, row, column = (np.argwhere(mask).mean(axis=0) + 0.5) / mask.shape
    return float(row), float(column)


@pytest.mark.parametrize("codes", CODES)
def test_slices_show_the_right_side_at_the_left_the_front_and_the_head_at_the_top(tmp_path: Path, codes: str) -> None:
    affine = affine_of(codes)
    labels = two_shapes(Grid((30, 30, 30), affine))

    preview = written(tmp_path / "a.webp", np.where(labels == 1, 200, 20) + labels, labels, affine)

    edges = {plane.name: plane.edges for plane in preview.layout.planes}
    assert edges == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    is_left = {"axial": 1, "coronal": 1, "sagittal": 0}  # the ball at left, front, head: in which half of the columns
    images = image_slices(tmp_path / "a.webp", preview)
    for plane, coded in label_slices(preview).items():
        for row, column in (centre(coded == 1), centre(images[plane] > 128)):
            assert row < 0.4, plane
            assert (column > 0.6) == bool(is_left[plane]), plane
        row, column = centre(coded == 2)
        assert row > 0.6, plane
        assert (column < 0.4) == bool(is_left[plane]), plane


@pytest.mark.parametrize("codes", CODES)
def test_slices_have_the_size_of_what_they_show_whatever_the_spacing(tmp_path: Path, codes: str) -> None:
    spacing_mm = (1.0, 2.0, 6.0)
    affine = affine_of(codes, spacing_mm)
    voxels = np.random.default_rng(0).integers(1, 200, (30, 30, 30))

    preview = written(tmp_path / "a.webp", voxels, np.zeros_like(voxels, np.uint8), affine)

    extent_mm = {
        code: 30 * mm for code, mm in zip(codes.translate(str.maketrans("LPI", "RAS")), spacing_mm, strict=True)
    }
    sizes_mm = {plane.name: plane.size_mm for plane in preview.layout.planes}
    assert sizes_mm == {
        "axial": (extent_mm["R"], extent_mm["A"]),
        "coronal": (extent_mm["R"], extent_mm["S"]),
        "sagittal": (extent_mm["A"], extent_mm["S"]),
    }


def test_equal_cases_give_equal_bytes(tmp_path: Path) -> None:
    affine = affine_of("RAS")
    labels = two_shapes(Grid((30, 30, 30), affine))
    for name in ("a", "b"):
        written(tmp_path / f"{name}.webp", labels * 50.0, labels, affine)

    assert (tmp_path / "a.webp").read_bytes() == (tmp_path / "b.webp").read_bytes()


@pytest.mark.parametrize("codes", CODES)
def test_other_labels_of_an_image_are_cut_as_its_own_are_even_if_its_grid_was_rounded(
    tmp_path: Path, codes: str
) -> None:
    affine = affine_of(codes, (1.3, 0.7, 2.1))
    labels = two_shapes(Grid((30, 30, 30), affine))
    other = np.roll(labels, 4, axis=1)

    preview = written(tmp_path / "a.webp", labels * 50.0, labels, affine)

    rounded = Grid(labels.shape, affine.astype(np.float32))
    layout = preview.layout
    assert labels_as_shown(layout, labels, rounded) == preview.labels
    coded = labels_as_shown(layout, other, rounded)
    assert coded != preview.labels
    assert len(zlib.decompress(coded)) == len(zlib.decompress(preview.labels))


def test_any_viewer_opens_a_preview_and_finds_no_metadata_but_the_labels(tmp_path: Path) -> None:
    affine = affine_of("RAS")
    labels = two_shapes(Grid((30, 30, 30), affine))
    preview = written(tmp_path / "a.webp", labels * 50.0, labels, affine)

    with Image.open(tmp_path / "a.webp") as image:
        image.load()
        assert (image.format, image.n_frames) == ("WEBP", 1)
        assert not {"exif", "icc_profile"} & image.info.keys()
        assert not image.getexif()
        (property_,) = next(ET.fromstring(image.info["xmp"]).iter(f"{RDF}Description"))  # noqa: S314 - a file of our own
    assert json.loads(property_.text or "").keys() == {"layout", "labels", "attention"}
    assert preview.layout.names == ("ball", "cube")
    assert preview.layout.colours == ((230, 159, 0), (86, 180, 233))


def test_names_that_look_like_markup_are_kept(tmp_path: Path) -> None:
    names = ("</voxelgate:preview>", "<b>&amp;", "Käse\u2028")
    labels = np.zeros((10, 10, 10), np.uint8)

    preview = written(tmp_path / "a.webp", labels + 1.0, labels, np.eye(4), LabelTable(("background", *names)))

    assert preview.layout.names == names
    with Image.open(tmp_path / "a.webp") as image:
        ET.fromstring(image.info["xmp"])  # noqa: S314 - a file of our own


def test_a_picture_of_somebody_else_and_a_preview_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    picture = Image.new("L", (8, 8))
    picture.save(tmp_path / "earlier.webp")  # its labels stood in chunks of their own
    picture.save(tmp_path / "tagged.webp", xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    picture.save(tmp_path / "list.webp", xmp=b"<voxelgate:preview>[]</voxelgate:preview>")

    for name in ("earlier", "tagged", "list"):
        with pytest.raises(InputError, match=rf"{name}\.webp: is no preview"):
            read_preview(tmp_path / f"{name}.webp")


def test_a_structure_of_one_voxel_is_seen_in_each_plane(tmp_path: Path) -> None:
    voxels = np.full((200, 150, 60), 30, np.int16)
    voxels[::3] = 60
    labels = np.zeros(voxels.shape, np.uint8)
    labels[20:180, 20:130, 10:50] = 1
    labels[101, 77, 33] = 2

    preview = written(tmp_path / "a.webp", voxels, labels, np.eye(4))

    assert {plane: 2 in coded for plane, coded in label_slices(preview).items()} == dict.fromkeys(
        ("axial", "coronal", "sagittal"), True
    )


def test_labels_in_the_black_around_a_body_are_shown(tmp_path: Path) -> None:
    voxels = np.full((60, 60, 60), -1000, np.int16)
    voxels[20:40, 20:40, 20:40] = 50
    labels = np.zeros(voxels.shape, np.uint8)
    labels[2:5, 2:5, 2:5] = 1

    preview = written(tmp_path / "a.webp", voxels, labels, np.eye(4))

    assert all((coded == 1).any() for coded in label_slices(preview).values())


def test_the_slice_to_start_with_cuts_all_structures(tmp_path: Path) -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[5:20, 10:20, 5:20] = 1
    labels[22:35, 12:25, 15:35] = 2

    preview = written(tmp_path / "a.webp", labels * 40.0, labels, np.eye(4))

    axial = preview.layout.plane_of["axial"]
    assert set(np.unique(label_slices(preview)["axial"][axial.start])) == {0, 1, 2}
    assert 16 <= axial.source[axial.start] <= 20


def test_more_than_255_structures_keep_their_values(tmp_path: Path) -> None:
    table = LabelTable(("background", *(f"structure {value}" for value in range(1, 301))))
    labels = np.zeros((20, 20, 20), np.uint16)
    labels[5:15, 5:15, 5:15] = 300

    preview = written(tmp_path / "a.webp", np.random.default_rng(0).random(labels.shape), labels, np.eye(4), table)

    assert all(set(np.unique(coded)) == {0, 300} for coded in label_slices(preview).values())


def test_hounsfield_units_get_a_soft_tissue_window_and_other_values_percentiles() -> None:
    hu = np.full((30, 30, 30), -1000.0)
    hu[5:25, 5:25, 5:25] = 40
    magnitudes = np.random.default_rng(0).gamma(2.0, 100.0, (30, 30, 30))
    grid = Grid(hu.shape, np.eye(4))

    ct, mri = sketch(hu, grid), sketch(magnitudes, grid)

    assert (ct.window, ct.is_hu) == ((-160.0, 240.0), True)
    assert ct.cells[15, 15, 15] == round(255 * 200 / 400)
    assert not mri.is_hu
    assert mri.window == pytest.approx(np.percentile(magnitudes, (1, 99.5)), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*(st.integers(2, 140) for _ in range(3))), st.sampled_from("CF"), st.integers(0, 100))
def test_a_sketch_is_small_and_keeps_the_mean_of_the_image(shape: tuple[int, int, int], order: str, seed: int) -> None:
    rows = [np.random.default_rng(seed).random(size) for size in shape]
    voxels = np.array(np.einsum("i,j,k->ijk", *rows), order=order)
    voxels.flat[0], voxels.flat[-1] = 0, 1

    made = sketch(voxels, Grid(shape, np.diag((1.0, -1.5, 2.0, 1.0))))

    assert max(made.cells.shape) <= LONGEST_PX
    assert [weights.sum() for weights in made.lattice.weights] == pytest.approx(
        [len(weights) for weights in made.lattice.weights]
    )
    low, high = made.window
    if low <= voxels.min() and high >= voxels.max():  # nothing was clipped
        assert made.cells.mean() / 255 == pytest.approx((voxels.mean() - low) / (high - low), abs=0.003)


@pytest.mark.parametrize("name", ["ct_sm", "mr_sm"])
def test_previews_of_real_images_are_as_small_as_a_page_of_a_thousand_wants(
    real_data: Path, tmp_path: Path, name: str
) -> None:
    voxels, grid = read_volume(real_data / "small" / f"{name}.nii.gz")
    labels, _ = read_volume(real_data / "small" / f"{name}_seg_totalseg_pred.nii.gz")

    written(tmp_path / "a.webp", voxels, np.clip(labels, 0, 2).astype(np.uint8), grid.affine)

    assert (tmp_path / "a.webp").stat().st_size < 60_000


def test_a_preview_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    made = sketch(np.arange(1000.0).reshape(labels.shape), Grid(labels.shape, np.eye(4)))
    (tmp_path / "a.webp").mkdir()

    with pytest.raises(OutputError, match=r"a\.webp: cannot be written"):
        write_preview(tmp_path / "a.webp", made, labels, TABLE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.webp"]


def test_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    made = sketch(np.arange(1000.0).reshape(10, 10, 10), Grid((10, 10, 10), np.eye(4)))

    with pytest.raises(ValueError, match=r"labels of shape \(10, 10, 9\)"):
        write_preview(tmp_path / "a.webp", made, np.zeros((10, 10, 9), np.uint8), TABLE)


def test_what_is_no_whole_preview_is_refused(tmp_path: Path) -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    path = tmp_path / "a.webp"
    written(path, np.arange(1000.0).reshape(labels.shape), labels, np.eye(4))
    whole = path.read_bytes()

    for length in (0, 3, 20, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.webp: is no preview"):
            read_preview(path)
    with pytest.raises(InputError, match=r"b\.webp: cannot be read"):
        read_preview(tmp_path / "b.webp")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a preview with the attention of one gate."""
    labels = two_shapes(Grid((30, 30, 30), affine_of("RAS")))
    made = sketch(labels * 50.0, Grid(labels.shape, affine_of("RAS")))
    path = tmp_path_factory.mktemp("whole") / "a.webp"
    write_preview(path, made, labels, TABLE, {0: np.full(made.cells.shape, 0.5, np.float32)})
    return path.read_bytes()


def packet_of(whole: bytes) -> dict[str, Any]:
    """Return what a preview carries besides its picture."""
    return dict(json.loads(whole[whole.index(b"<voxelgate:preview>") + 19 : whole.index(b"</voxelgate:preview>")]))


def save_packet(path: Path, whole: bytes, ours: object) -> None:
    """Write a preview again with something else in it."""
    packet = b"<voxelgate:preview>" + json.dumps(ours).encode() + b"</voxelgate:preview>"
    with Image.open(io.BytesIO(whole)) as image:
        image.save(path, xmp=packet)


def read_or_refused(path: Path) -> Preview | None:
    """Return a preview; None if it is refused in a sentence."""
    try:
        return read_preview(path)
    except InputError:
        return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0), st.binary(min_size=1, max_size=6), st.booleans())
def test_any_bytes_that_change_are_refused_or_change_no_form(
    whole: bytes, tmp_path: Path, at: int, bytes_: bytes, is_in_packet: bool
) -> None:
    first = whole.index(b"<voxelgate") if is_in_packet else 0
    start = first + at % (len(whole) - first)
    path = tmp_path / "a.webp"
    path.write_bytes(whole[:start] + bytes_ + whole[start + len(bytes_) :])

    preview = read_or_refused(path)

    if preview is not None:
        columns, rows = preview.layout.size_px
        assert len(zlib.decompress(preview.labels)) == columns * rows


WRONG = {
    "planes": [[], {}, [1], None, "axial"],
    "lattice": [[30, 30], [0, 30, 30], [1.5, 30, 30], [5, 30, 30], [10**9] * 3, None],
    "first": [[0, 0], [-1, 0, 0], [25, 0, 0], "000"],
    "bits": [0, 9, "8", None, True],
    "names": [["ball"], [1, 2], "ab", None, {}],
    "window": [[0], [0, float("nan")], [0, 1e999], "01"],
    "is_hu": [2, "yes", None],
    "gates": [[], [0, 1], [-1], ["0"], None],
    "is_picture": [3, "no"],
    "colours": [[[1, 2, 3]], [[1, 2, 256]] * 2, [[1, 2]] * 2, ["red", "blue"], None],
}
WRONG_PLANES = {
    "name": ["oblique", "sagittal", 1, None],
    "edges": ["<b>x", "RL", "RLAPS", 5],
    "x": [-1, 1, 10**9, "0", None],
    "width": [0, 31, 10**9, 1.5, None],
    "height": [0, 31, 10**9, None],
    "size_mm": [[0, 60], [60], [60, -1], ["a", "b"], [float("nan"), 60]],
    "cells": [[], [1, 0], [0, 0], [999], list(range(999)), [None], "ab"],
    "shown": [0, 31, 10**9, None],
    "source": [[], [0], [31], [None], "ab"],
    "source_slices": [0, -1, 2**40, None],
    "start": [-1, 999, 0.5, None],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in (WRONG | WRONG_PLANES).items() for value in values]
    + [("labels", value) for value in ("", "eA==", "????", 5, None, [])]
    + [("attention", value) for value in ([], ["eA=="], [5], None, "eA==")]
    + [("layout", value) for value in ({}, [], None, 5)],
)
def test_a_layout_that_no_version_writes_is_refused(whole: bytes, tmp_path: Path, key: str, value: object) -> None:
    ours = packet_of(whole)
    place = ours if key in ours else ours["layout"] if key in WRONG else ours["layout"]["planes"][0]
    assert key in place
    place[key] = value
    save_packet(tmp_path / "a.webp", whole, ours)

    with pytest.raises(InputError, match=r"a\.webp: is no preview of a case, or damaged"):
        read_preview(tmp_path / "a.webp")


@pytest.mark.parametrize(
    "packet",
    [b"5", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"layout": 1' + b" " * 100, b""],
)
def test_a_packet_of_another_form_is_refused(tmp_path: Path, packet: bytes) -> None:
    xmp = b"<voxelgate:preview>" + packet + b"</voxelgate:preview>"
    Image.new("L", (8, 8)).save(tmp_path / "a.webp", xmp=xmp)

    with pytest.raises(InputError, match=r"a\.webp: is no preview"):
        read_preview(tmp_path / "a.webp")


def test_labels_that_unpack_to_more_than_the_pictures_are_refused_before_they_fill_the_memory(
    whole: bytes, tmp_path: Path
) -> None:
    bomb = base64.b64encode(zlib.compress(bytes(2**28), 9)).decode()
    ours = packet_of(whole)
    save_packet(tmp_path / "a.webp", whole, ours | {"labels": bomb})

    tracemalloc.start()
    with pytest.raises(InputError, match="is no preview"):
        read_preview(tmp_path / "a.webp")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_what_is_no_file_or_far_too_large_for_a_preview_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.webp")
    (tmp_path / "endless.webp").symlink_to("/dev/zero")
    (tmp_path / "folder.webp").mkdir()
    with (tmp_path / "large.webp").open("wb") as file:
        file.truncate(2**34)

    for name in ("pipe", "endless", "folder", "large"):
        with pytest.raises(InputError, match=rf"{name}\.webp: cannot be read"):
            read_preview(tmp_path / f"{name}.webp")


def test_a_picture_is_shown_alone_without_sides_of_a_patient(tmp_path: Path) -> None:
    rows, columns = 40, 60
    voxels = np.random.default_rng(0).integers(1, 255, (columns, rows, 1))
    labels = np.zeros(voxels.shape, np.uint8)
    labels[:20, :10] = 1

    preview = written(tmp_path / "a.webp", voxels, labels, AXES_RAS)

    (plane,) = preview.layout.planes
    assert preview.layout.is_picture
    assert (plane.edges, plane.size_mm, plane.source_slices) == ("", (columns, rows), 1)
    coded = label_slices(preview)["axial"]
    assert (coded[0, :10, :20] == 1).all()
    assert coded.sum() == 200
    other = labels_as_shown(preview.layout, np.flip(labels, axis=0), Grid(labels.shape, AXES_RAS))
    assert np.frombuffer(zlib.decompress(other), np.uint8).reshape(rows, columns)[:10, -20:].all()


@pytest.mark.parametrize(
    ("axis", "name", "edges"), [(0, "sagittal", "APSI"), (1, "coronal", "RLSI"), (2, "axial", "RLAP")]
)
def test_an_image_of_one_slice_is_shown_in_the_plane_of_the_slice(
    tmp_path: Path, axis: int, name: str, edges: str
) -> None:
    shape = tuple(1 if one == axis else 30 for one in range(3))
    labels = np.ones(shape, np.uint8)

    preview = written(tmp_path / "a.webp", np.arange(900.0).reshape(shape), labels, affine_of("RAS"))

    (plane,) = preview.layout.planes
    assert (plane.name, plane.edges, preview.layout.is_picture) == (name, edges, False)


def test_the_size_of_something_tiny_is_not_rounded_away(tmp_path: Path) -> None:
    labels = np.ones((3, 3, 3), np.uint8)
    affine = np.diag((0.001, 0.001, 0.001, 1))

    preview = written(tmp_path / "a.webp", np.arange(27.0).reshape(labels.shape), labels, affine)

    assert [plane.size_mm for plane in preview.layout.planes] == [(0.003, 0.003)] * 3


def test_a_preview_of_before_that_names_no_colours_has_those_of_its_structures_names(
    whole: bytes, tmp_path: Path
) -> None:
    ours = packet_of(whole)
    del ours["layout"]["colours"], ours["layout"]["is_picture"]
    ours["layout"]["names"] = ["left kidney", "thing"]
    save_packet(tmp_path / "a.webp", whole, ours)

    assert read_preview(tmp_path / "a.webp").layout.colours == ((46, 138, 184), (230, 159, 0))
