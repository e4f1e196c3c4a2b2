"""The demo's page: complete alone, honest about misses, and with pictures that show a patient the right way round."""

import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from voxelgate.apps.demo.cohort import LABELS, make_cohort
from voxelgate.apps.demo.page import OKABE_ITO, Command, DemoRun, HeldOutCase, draw_overlay, widest_cut_mm, write_page
from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.evaluation.scores import score
from voxelgate.images.volumes import read_volume, write_label_map

RUN = DemoRun("an attention U-Net", "2 CPU cores", 7, 18, 40, 231.4, 1.3)
COMMANDS = [
    Command("Plan", "voxelgate plan <manifest>"),
    Command("Train", "voxelgate train bundle"),
    Command("Segment", "voxelgate segment scans"),
]
SIDES = LabelTable(("background", "left ball", "right ball"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOutCase:
    """Make a case whose prediction misses the left kidney and is perfect otherwise."""
    folder = tmp_path_factory.mktemp("demo")
    (case,) = make_cohort(folder / "cohort", 1, np.random.default_rng(5))
    truth, grid = read_volume(case.label)
    prediction = np.where(truth == 2, 0, truth).astype(np.uint8)
    write_label_map(folder / "prediction.nii.gz", prediction, grid, like=case.image)
    scores = tuple(score(prediction, truth, grid, LABELS, case.case_id))
    return HeldOutCase(case.case_id, case.image, case.label, folder / "prediction.nii.gz", scores)


class Tags(HTMLParser):
    """Collect the tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_needs_nothing_but_itself(held_out: HeldOutCase, tmp_path: Path) -> None:
    text = write_page(tmp_path, RUN, [held_out], LABELS, COMMANDS).read_text(encoding="utf-8")

    assert "http" not in text
    assert "<script" not in text
    links = [
        value for _, attributes in Tags(text).found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all(link is not None and link.startswith("data:image/png;base64,") for link in links)


def test_the_page_tells_the_numbers_and_what_was_missed(held_out: HeldOutCase, tmp_path: Path) -> None:
    text = write_page(tmp_path, RUN, [held_out], LABELS, COMMANDS).read_text(encoding="utf-8")

    words = re.sub(r"\s+", " ", text)
    assert "An attention U-Net was trained for 40 steps on 18 synthetic CT volumes, which took 3 min 51 s" in words
    assert "missed<small>0.0 of" in words
    assert "1 missed or invented, counted as 0" in words
    assert "0.667" in words  # the mean over two perfect structures and a missed one


def test_the_page_shows_the_commands_with_their_signs_escaped(held_out: HeldOutCase, tmp_path: Path) -> None:
    text = write_page(tmp_path, RUN, [held_out], LABELS, COMMANDS).read_text(encoding="utf-8")

    assert re.findall(r"<pre>(.*)</pre>", text) == [
        "voxelgate plan &lt;manifest&gt;",
        "voxelgate train bundle",
        "voxelgate segment scans",
    ]


def test_every_picture_has_an_alternative_text_and_lies_next_to_the_page(held_out: HeldOutCase, tmp_path: Path) -> None:
    text = write_page(tmp_path, RUN, [held_out], LABELS, COMMANDS).read_text(encoding="utf-8")

    (image,) = [attributes for tag, attributes in Tags(text).found if tag == "img"]
    assert image["alt"] is not None
    assert "liver 1.000, left kidney 0.000" in image["alt"]
    png = (tmp_path / "pictures" / "case_01.png").read_bytes()
    assert image["src"] == "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def test_a_page_is_never_overwritten(held_out: HeldOutCase, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine", encoding="utf-8")

    with pytest.raises(OutputError, match="exists already"):
        write_page(tmp_path, RUN, [held_out], LABELS, COMMANDS)


def test_a_page_without_cases_or_with_scores_of_other_labels_is_refused(held_out: HeldOutCase, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no held-out case"):
        write_page(tmp_path, RUN, [], LABELS, COMMANDS)
    with pytest.raises(InputError, match="case_01: scores must be of left ball"):
        write_page(tmp_path, RUN, [held_out], SIDES, COMMANDS)
    assert not list(tmp_path.iterdir())


def two_balls(folder: Path, affine: np.ndarray) -> HeldOutCase:
    """Write a volume of 60 mm with a ball (1) at the patient's left and front, and one (2) at the right and back."""
    shape = (30, 30, 30)
    centres_mm = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    labels = np.zeros(shape, np.uint8)
    labels[np.linalg.norm(centres_mm - (-14, 14, 0), axis=-1) < 8] = 1
    labels[np.linalg.norm(centres_mm - (14, -14, 0), axis=-1) < 8] = 2
    paths = [folder / f"{name}.nii.gz" for name in ("image", "truth", "prediction")]
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), affine), paths[0])
    for path in paths[1:]:
        nib.save(nib.Nifti1Image(labels, affine), path)
    scores = tuple(score(labels, labels, Grid(shape, affine), SIDES, "balls"))
    return HeldOutCase("balls", paths[0], paths[1], paths[2], scores)


def centre_of(colour: tuple[int, int, int], panel: np.ndarray) -> np.ndarray:
    """Return the mean row and column of the pixels of nearly that colour, as shares of the panel."""
    near = np.abs(panel.astype(int) - colour).sum(axis=-1) < 60
    return np.argwhere(near).mean(axis=0) / near.shape


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_pictures_show_the_right_side_at_the_left_and_the_front_at_the_top(tmp_path: Path, codes: str) -> None:
    axes = [("RL", "AP", "SI").index(pair) for code in codes for pair in ("RL", "AP", "SI") if code in pair]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, code) in enumerate(zip(axes, codes, strict=True)):
        affine[axis, column] = 2 if code in "RAS" else -2
    affine[:3, 3] = -affine[:3, :3] @ (14.5, 14.5, 14.5)

    picture = np.array(draw_overlay(two_balls(tmp_path, affine), SIDES))

    axial = picture[14:-54, : picture.shape[1] // 3]
    left_ball, right_ball = (centre_of(colour, axial) for colour in OKABE_ITO[:2])
    assert left_ball[1] > 0.6
    assert right_ball[1] < 0.4
    assert left_ball[0] < 0.4
    assert right_ball[0] > 0.6


def test_panels_have_equal_scale_in_mm_whatever_the_spacing(tmp_path: Path) -> None:
    case = two_balls(tmp_path, np.array([[1.0, 0, 0, -15], [0, 2.0, 0, -30], [0, 0, 4.0, -60], [0, 0, 0, 1]]))

    picture = draw_overlay(case, SIDES)

    # 29 x 58 x 116 mm at 380 pixels for 116 mm: 95 + 95 + 190 pixels across, between four margins of 14
    assert picture.width == pytest.approx(95 + 95 + 190 + 4 * 14, abs=3)
    assert picture.height == pytest.approx(380 + 2 * 14 + 40, abs=3)


def test_planes_go_where_all_structures_are_cut() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:6, 2:6, 2:12] = 1
    labels[10:14, 10:14, 8:18] = 2

    _, _, z_mm = widest_cut_mm(labels, Grid((20, 20, 20), np.eye(4)))

    assert 8 <= z_mm <= 12


def test_without_any_structure_the_planes_go_through_the_centre() -> None:
    assert widest_cut_mm(np.zeros((3, 5, 7)), Grid((3, 5, 7), np.eye(4))) == (1, 2, 3)


def test_files_on_different_grids_are_not_drawn(held_out: HeldOutCase, tmp_path: Path) -> None:
    other = two_balls(tmp_path, np.diag((2.0, 2.0, 2.0, 1.0)))
    mixed = HeldOutCase("mixed", held_out.image, other.truth, held_out.prediction, held_out.scores)

    with pytest.raises(InputError, match=r"mixed: truth.nii.gz lies on another grid"):
        draw_overlay(mixed, LABELS)


def test_a_case_that_nobody_segmented_can_be_drawn(tmp_path: Path) -> None:
    case = two_balls(tmp_path, np.diag((2.0, 2.0, 2.0, 1.0)))
    nothing = tmp_path / "nothing.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((30, 30, 30), np.uint8), np.diag((2.0, 2.0, 2.0, 1.0))), nothing)

    picture = draw_overlay(HeldOutCase("empty", case.image, nothing, nothing, case.scores), SIDES)

    assert isinstance(picture, Image.Image)
    assert not math.isnan(float(np.array(picture).mean()))
