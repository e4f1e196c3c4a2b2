"""A cohort of synthetic CT volumes whose truth is known exactly, to try the pipeline where no data may be used.

Anatomy is a list of ellipsoids and cylinders in patient space (RAS+ mm), tilted, bent and sized anew for each case. It
is evaluated at the voxel centres of each case's own grid, so the label map is exact there and every organ's volume is
known in closed form. Grey values alone do not solve it: spleen, aorta and bowel enhance like the kidneys, and only the
place tells the left kidney from the right.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from voxelgate.core.errors import OutputError
from voxelgate.core.files import whole_file
from voxelgate.core.geometry import Affine, Grid, triple
from voxelgate.core.labels import LabelTable
from voxelgate.images.volumes import write_label_map

Vector = tuple[float, float, float]
Points = npt.NDArray[np.float32]
Values = npt.NDArray[np.float32]

LABELS = LabelTable(("background", "liver", "left kidney", "right kidney"))
"""The structures of every case."""

AXIS_CODES = ("RAS", "LPS", "LAS", "RPI", "PIR", "ASL")
"""Orders and directions of the stored axes, as scanners and converters produce them."""

AIR_HU, GAS_HU, FAT_HU, SOFT_TISSUE_HU, DISC_HU, BONE_HU = -1000.0, -700.0, -100.0, 45.0, 90.0, 350.0
"""Typical values at 120 kV, rounded."""

LIVER_HU, KIDNEY_HU = (70.0, 110.0), (120.0, 180.0)
"""Ranges of the mean of an organ in portal venous phase; one value is drawn for each case."""

BODY_RADII_MM = (70.0, 52.0, math.inf)
"""Half width and half depth of the body: that of a small child, so that few voxels suffice."""

VERTEBRA_MM = 19.0
"""Height of a vertebra with its disc."""

FIELD_OF_VIEW_MM = (160.0, 160.0, 150.0)
"""Extent of a volume towards right, front and head before the limits of `SIDE_VOX`."""

SIDE_VOX = (48, 72)
"""Fewest and most voxels along an axis."""

IN_PLANE_MM, SLICE_MM = (2.2, 3.5), (2.5, 5.0)
"""Ranges of the spacing."""

LARGEST_OBLIQUENESS_DEG, SHARE_OBLIQUE = 8.0, 0.4
"""How far a grid is turned against the patient, and how many of them."""

LARGEST_TILT_DEG = 6.0
"""How far the patient lies turned, about each axis."""

NOISE_HU, TEXTURE_HU = (8.0, 22.0), 8.0
"""Range of the standard deviation of the voxel noise, and that of the smooth texture of tissue."""

TEXTURE_MM = 6.0
"""Standard deviation of the Gaussian that smooths the texture."""

LOOPS = 14
"""Loops of bowel in each patient."""

APART_LEVEL = 1.05
"""Organs a twentieth larger do not overlap on the lattice; so neither do those that are drawn, between its points."""

LATTICE_MM = 4.0
"""Distance of the points at which organs are tested for touching."""

MOST_DRAWS = 200
"""Anatomies drawn before giving up; two in five are accepted."""


@dataclass(frozen=True)
class Solid:
    """An ellipsoid, or a cylinder where a radius is infinite, bent along its own axes without change of volume.

    Args:
        centre_mm: RAS+.
        radii_mm: along its own axes; `inf` for a cylinder.
        rotation: its own axes as columns, (3, 3).
        bend_mm: how far the ends of the third axis are moved along the first, and those of the first along the second.
            Both are shears, of determinant 1.
    """

    centre_mm: Vector
    radii_mm: Vector
    rotation: Affine
    bend_mm: tuple[float, float] = (0.0, 0.0)

    @property
    def volume_ml(self) -> float:
        """Return the exact volume; infinite for a cylinder."""
        return 4 / 3 * math.pi * math.prod(self.radii_mm) / 1000

    def level(self, points_mm: Points) -> Values:
        """Return 0 at the centre, 1 on the surface and more outside, for points (..., 3) in RAS+ mm."""
        radii = np.array(self.radii_mm, dtype=np.float32)
        bend, end_bend = np.array(self.bend_mm, dtype=np.float32)
        own = (points_mm - np.array(self.centre_mm, dtype=np.float32)) @ self.rotation.astype(np.float32)
        first, second, third = np.moveaxis(own, -1, 0)
        first = first - bend * (third / radii[2]) ** 2
        second = second - end_bend * (first / radii[0]) ** 2
        level: Values = np.sqrt((first / radii[0]) ** 2 + (second / radii[1]) ** 2 + (third / radii[2]) ** 2)
        return level

    def share(self, points_mm: Points, blur_mm: float) -> Values:
        """Return how much of a voxel at each point is filled, 0 to 1, falling over `blur_mm` at the surface."""
        reach_mm = min(self.radii_mm)
        share: Values = np.clip(0.5 + (1 - self.level(points_mm)) * np.float32(reach_mm / blur_mm), 0, 1)
        return share

    def tilted(self, rotation: Affine, scale: float) -> "Solid":
        """Return the solid after turning and scaling the whole patient about the origin."""
        x, y, z = (scale * (rotation @ self.centre_mm)).tolist()
        first, second, third = self.radii_mm
        bend, end_bend = self.bend_mm
        return Solid(
            centre_mm=(x, y, z),
            radii_mm=(scale * first, scale * second, scale * third),
            rotation=rotation @ self.rotation,
            bend_mm=(scale * bend, scale * end_bend),
        )


@dataclass(frozen=True)
class Tissue:
    """A solid and its mean value; later tissues of an anatomy lie over earlier ones."""

    solid: Solid
    mean_hu: float


@dataclass(frozen=True)
class Anatomy:
    """One patient: the tissues around the organs, from the skin inwards, and the organs by name, disjoint."""

    surroundings: tuple[Tissue, ...]
    organs: Mapping[str, Tissue]


@dataclass(frozen=True)
class SyntheticCase:
    """One written case; `volumes_ml` are the exact volumes of the organs, not counted voxels."""

    case_id: str
    image: Path
    label: Path
    volumes_ml: Mapping[str, float]


def make_cohort(folder: Path, count: int, rng: np.random.Generator) -> list[SyntheticCase]:
    """Write `images/case_01.nii.gz`, ... (int16 HU) and label maps of the same names in `labels/`.

    Args:
        folder: made if it is not there; must be empty.
        count: number of cases, at least 1.
        rng: the only source of chance; equal generators give equal voxels.

    Returns:
        The cases in the order of their names.

    Raises:
        OutputError: the folder is not empty, or is a file.
        ValueError: `count` is less than one.
    """
    if count < 1:
        raise ValueError(f"a cohort has at least one case, found {count}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not an empty folder; name a new one for the synthetic cohort.")
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    digits = max(2, len(str(count)))
    return [_make_case(folder, f"case_{number:0{digits}d}", rng) for number in range(1, count + 1)]


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient whose organs lie apart from each other and inside the body.

    Raises:
        RuntimeError: no such patient in `MOST_DRAWS`, which the ranges of this module exclude in practice.
    """
    for _ in range(MOST_DRAWS):
        anatomy = _draw_anatomy(rng)
        if _is_plausible(anatomy):
            return anatomy
    raise RuntimeError(f"no plausible anatomy in {MOST_DRAWS} draws")


def draw_grid(rng: np.random.Generator) -> Grid:
    """Draw spacing, order and direction of the axes, obliqueness and position of a scan."""
    in_plane_mm = rng.uniform(*IN_PLANE_MM)
    spacing_mm = np.array([in_plane_mm, in_plane_mm, rng.uniform(*SLICE_MM)])
    size_vox = np.clip(np.ceil(np.array(FIELD_OF_VIEW_MM) / spacing_mm), *SIDE_VOX).astype(int)
    oblique = _rotation(rng, LARGEST_OBLIQUENESS_DEG if rng.random() < SHARE_OBLIQUE else 0.0)
    directions, patient_axes = _directions(str(rng.choice(AXIS_CODES)))
    affine = np.eye(4)
    affine[:3, :3] = oblique @ directions * spacing_mm[patient_axes]
    affine[:3, 3] = rng.uniform(-4, 4, size=3) - affine[:3, :3] @ ((size_vox[patient_axes] - 1) / 2)
    return Grid(triple(map(int, size_vox[patient_axes])), affine)


def render(
    anatomy: Anatomy, grid: Grid, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Return HU and exact labels of an anatomy on a grid.

    Args:
        anatomy: in RAS+ mm.
        grid: where to evaluate it, at voxel centres.
        rng: draws texture and noise; neither moves the labels.

    Returns:
        Image in HU and label map by `LABELS`, both of the grid's shape. Surfaces are blurred over one voxel.
    """
    points_mm = _centres_mm(grid)
    blur_mm = float(np.cbrt(grid.voxel_ml * 1000))
    texture_hu = ndimage.gaussian_filter(
        rng.standard_normal(grid.shape, dtype=np.float32), [TEXTURE_MM / spacing for spacing in grid.spacing_mm]
    )
    texture_hu *= TEXTURE_HU / texture_hu.std()
    image_hu = np.full(grid.shape, AIR_HU, np.float32)
    for tissue in (*anatomy.surroundings, *anatomy.organs.values()):
        share = tissue.solid.share(points_mm, blur_mm)
        image_hu += share * (np.float32(tissue.mean_hu) + texture_hu - image_hu)
    image_hu += rng.uniform(*NOISE_HU) * rng.standard_normal(grid.shape, dtype=np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    for value, name in LABELS.foreground.items():
        labels[anatomy.organs[name].solid.level(points_mm) <= 1] = value
    return np.rint(np.clip(image_hu, -1024, 3071)).astype(np.int16), labels


def _make_case(folder: Path, case_id: str, rng: np.random.Generator) -> SyntheticCase:
    anatomy, grid = draw_anatomy(rng), draw_grid(rng)
    image_hu, labels = render(anatomy, grid, rng)
    image, label = (folder / name / f"{case_id}.nii.gz" for name in ("images", "labels"))
    _write_image(image, image_hu, grid)
    write_label_map(label, labels, grid, like=image)
    volumes_ml = {name: organ.solid.volume_ml for name, organ in anatomy.organs.items()}
    return SyntheticCase(case_id, image, label, volumes_ml)


def _write_image(path: Path, image_hu: npt.NDArray[np.int16], grid: Grid) -> None:
    nifti = nib.Nifti1Image(image_hu, grid.affine)
    nifti.set_qform(grid.affine, code=1)
    nifti.set_sform(grid.affine, code=1)
    nifti.header.set_xyzt_units("mm")
    with whole_file(path, suffix=".nii.gz") as partial:
        nib.save(nifti, partial)


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    scale = rng.uniform(0.88, 1.06)
    tilt = _rotation(rng, LARGEST_TILT_DEG)
    surroundings = [*_trunk(rng), *_bowel(rng), *_enhancing(rng)]
    return Anatomy(
        tuple(replace(tissue, solid=tissue.solid.tilted(tilt, scale)) for tissue in surroundings),
        {name: replace(tissue, solid=tissue.solid.tilted(tilt, scale)) for name, tissue in _organs(rng).items()},
    )


def _trunk(rng: np.random.Generator) -> list[Tissue]:
    """Draw fat under the skin, muscle wall, cavity with more or less fat in it, psoas and spine."""
    fat_mm = rng.uniform(4, 9)
    wide, deep, long = BODY_RADII_MM
    inner = (wide - fat_mm, deep - fat_mm, long)
    spine_y_mm = rng.uniform(-31, -27)
    vertebrae_mm = rng.uniform(-10, 10) + VERTEBRA_MM * np.arange(-5, 6)
    return [
        Tissue(_solid((0, 0, 0), BODY_RADII_MM), FAT_HU),
        Tissue(_solid((0, 0, 0), inner), SOFT_TISSUE_HU),
        Tissue(_solid((0, 2, 0), (inner[0] - 7, inner[1] - 8, long)), rng.uniform(-70, 10)),
        *(Tissue(_solid((side * 15, spine_y_mm, 0), (8, 7, long)), SOFT_TISSUE_HU + 15) for side in (-1, 1)),
        Tissue(_solid((0, spine_y_mm, 0), (8.5, 7.5, long)), DISC_HU),
        *(Tissue(_solid((0, spine_y_mm, height_mm), (11, 9.5, 11)), BONE_HU) for height_mm in vertebrae_mm),
        Tissue(_solid((0, spine_y_mm - 11, 0), (5, 6, long)), BONE_HU),
        Tissue(_solid((0, spine_y_mm - 9, 0), (3.5, 3.5, long)), SOFT_TISSUE_HU),
    ]


def _bowel(rng: np.random.Generator) -> list[Tissue]:
    """Draw stomach and loops of bowel; some enhance like a kidney, some hold gas."""
    stomach = _jittered(rng, (-24, 20, 24), (16, 13, 14))
    loops = []
    for _ in range(LOOPS):
        centre_mm = (rng.uniform(-42, 42), rng.uniform(2, 30), rng.uniform(-75, -8))
        solid = _jittered(rng, centre_mm, (7, 7, 14), largest_turn_deg=90, bend_mm=(8, 0))
        loops.append(
            Tissue(solid, float(rng.choice([GAS_HU, SOFT_TISSUE_HU, SOFT_TISSUE_HU, rng.uniform(*KIDNEY_HU)])))
        )
    return [Tissue(stomach, float(rng.choice([15.0, GAS_HU]))), *loops]


def _enhancing(rng: np.random.Generator) -> list[Tissue]:
    """Draw aorta and spleen, which are as bright as the kidneys and belong to no label."""
    aorta = _jittered(rng, (-4, -14, 0), (4.5, 4.5, math.inf))
    spleen = _jittered(rng, (-41, -10, 30), (9, 17, 17), bend_mm=(3, -4))
    return [Tissue(aorta, rng.uniform(140, 200)), Tissue(spleen, rng.uniform(*KIDNEY_HU))]


def _organs(rng: np.random.Generator) -> dict[str, Tissue]:
    """Draw the labelled organs; both kidneys share one value, and their upper poles lean towards the spine."""
    kidney_hu = rng.uniform(*KIDNEY_HU)
    kidneys = {
        side: Tissue(
            _jittered(rng, (sign * 31, -20, height_mm), (10, 11, 21), bend_mm=(-sign * 4, 0), lean_deg=-sign * 14),
            kidney_hu,
        )
        for side, sign, height_mm in (("left kidney", -1, -10), ("right kidney", 1, -17))
    }
    liver = _jittered(rng, (24, 9, 14), (30, 24, 28), bend_mm=(4, 7))
    return {"liver": Tissue(liver, rng.uniform(*LIVER_HU)), **kidneys}


def _solid(centre_mm: Vector, radii_mm: Vector) -> Solid:
    return Solid(centre_mm, radii_mm, np.eye(3))


def _jittered(
    rng: np.random.Generator,
    centre_mm: Vector,
    radii_mm: Vector,
    *,
    bend_mm: tuple[float, float] = (0.0, 0.0),
    lean_deg: float = 0.0,
    largest_turn_deg: float = 10.0,
) -> Solid:
    """Draw a solid near the given one: moved by up to 4 mm, radii up to 15 % off, turned and bent a little."""
    x, y, z = rng.uniform(-4, 4, size=3) + centre_mm
    first, second, third = rng.uniform(0.85, 1.15, size=3) * radii_mm
    bends = rng.uniform(0.5, 1.5, size=2) * bend_mm
    angle = math.radians(lean_deg)
    lean = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    return Solid((x, y, z), (first, second, third), _rotation(rng, largest_turn_deg) @ lean, (bends[0], bends[1]))


def _rotation(rng: np.random.Generator, largest_deg: float) -> Affine:
    """Draw turns of up to `largest_deg` about each axis, one after the other."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.radians(rng.uniform(-largest_deg, largest_deg, size=3))):
        turn = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        rotation = rotation @ turn
    return rotation


def _is_plausible(anatomy: Anatomy) -> bool:
    """Return whether, at all points of a lattice, organs lie inside the muscle wall and apart from each other."""
    axis_mm = np.arange(-80, 80, LATTICE_MM, dtype=np.float32)
    points_mm = np.stack(np.meshgrid(axis_mm, axis_mm, axis_mm, indexing="ij"), axis=-1)
    inside = [organ.solid.level(points_mm) <= APART_LEVEL for organ in anatomy.organs.values()]
    wall = anatomy.surroundings[1].solid
    return bool(np.sum(inside, axis=0).max() == 1 and wall.level(points_mm[np.any(inside, axis=0)]).max() < 0.97)


def _directions(axis_codes: str) -> tuple[Affine, list[int]]:
    """Return where the stored axes point, as columns in RAS+, and which of right, front and head each runs along.

    >>> _directions("PIR")[1]
    [1, 2, 0]
    """
    patient_axes = [
        ("RL", "AP", "SI").index(pair) for code in axis_codes for pair in ("RL", "AP", "SI") if code in pair
    ]
    directions = np.zeros((3, 3))
    for column, (code, axis) in enumerate(zip(axis_codes, patient_axes, strict=True)):
        directions[axis, column] = 1 if code in "RAS" else -1
    return directions, patient_axes


def _centres_mm(grid: Grid) -> Points:
    """Return the voxel centres, (I, J, K, 3) RAS+ mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    centres_mm: Points = (index @ grid.affine[:3, :3].T + grid.affine[:3, 3]).astype(np.float32)
    return centres_mm
