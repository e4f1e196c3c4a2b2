"""A data set like MRI of a left atrium: one large organ of weak contrast in fine voxels, among others that look alike.

python -m benchmarks.atrium --out atrium
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from voxelgate.core.files import make_folder
from voxelgate.datasets.build_manifest import build_manifest, write_manifest

Field = npt.NDArray[np.float32]

SPACING_MM = 0.625
SHAPE = (256, 256, 136)
"""160 x 160 x 85 mm."""

SIDES_MM = (102.0, 58.0, 36.0)
"""Of the organ, over its widest."""

NEIGHBOURS = (
    ((0.0, 44.0, 4.0), (90.0, 40.0, 44.0)),
    ((0.0, -42.0, -2.0), (80.0, 34.0, 34.0)),
    ((-10.0, 2.0, 33.0), (70.0, 46.0, 22.0)),
    ((12.0, -4.0, -33.0), (64.0, 50.0, 22.0)),
)
"""Centres from the organ's, and sides, in mm, of what looks like the organ and lies around it."""

VEINS = ((-38.0, -14.0), (-38.0, 14.0), (38.0, -14.0), (38.0, 14.0))
"""Where vessels 12 mm wide leave the organ, which belong to it for some 14 mm."""

BLOOD, WALL, REST, NOISE = 1.0, 0.35, 0.55, 0.3
"""Brightness of chambers, of their walls and of other tissue, and the deviation of the noise."""


def draw(rng: np.random.Generator) -> tuple[Field, npt.NDArray[np.uint8]]:
    """Return an image and the mask of its organ; shape, place and brightness are drawn."""
    places = np.stack(np.meshgrid(*[(np.arange(n) - n / 2) * SPACING_MM for n in SHAPE], indexing="ij"))
    warped = places.astype(np.float32) + _smooth(rng, 3, 26.0, 6.0) + rng.normal(0, 4, (3, 1, 1, 1))
    scale = rng.uniform(0.9, 1.1, (3, 1, 1, 1))
    x, y, z = warped / scale
    organ = _ball(x, y, z, (0.0, 0.0, 0.0), (84.0, SIDES_MM[1], SIDES_MM[2]))
    for across, along in VEINS:
        is_near = (np.abs(x) < SIDES_MM[0] / 2) & (np.sign(x) == np.sign(across))
        organ |= is_near & ((y - along) ** 2 + z**2 < 6.0**2) & (np.abs(x) > 20)
    chambers = organ.copy()
    for centre, sides in NEIGHBOURS:
        chambers |= _ball(x, y, z, centre, sides) & ~ndimage.binary_dilation(organ, iterations=3)
    wall = ndimage.binary_dilation(chambers, iterations=3) & ~chambers
    bright = np.where(chambers, BLOOD, np.where(wall, WALL, REST)) + _smooth(rng, 1, 9.0, 0.18)[0]
    bias = 1 + _smooth(rng, 1, 60.0, 0.2)[0]
    noise = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE).astype(np.float32), 0.7)
    image = bright * bias + NOISE * noise / noise.std()
    return (image * 400 * rng.uniform(0.5, 2)).astype(np.float32), organ.astype(np.uint8)


def write_data_set(out: Path, cases: int, seed: int) -> None:
    """Write images, labels and a manifest."""
    rng = np.random.default_rng(seed)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    for kind in ("images", "labels"):
        make_folder(out / kind)
    for number in range(cases):
        image, mask = draw(rng)
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), out / "images" / f"case_{number:02}.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), out / "labels" / f"case_{number:02}.nii.gz")
    write_manifest(build_manifest(out, modality="MRI", name="atrium", folds=4), out / "manifest.json")


def _ball(x: Field, y: Field, z: Field, centre: tuple[float, ...], sides: tuple[float, ...]) -> npt.NDArray[np.bool_]:
    parts = [((axis - at) / (side / 2)) ** 2 for axis, at, side in zip((x, y, z), centre, sides, strict=True)]
    return np.sum(parts, axis=0) < 1


def _smooth(rng: np.random.Generator, fields: int, width_mm: float, deviation: float) -> Field:
    """Return smooth random fields, drawn on a grid of a fifth of the voxels along each axis."""
    coarse = rng.normal(0, 1, (fields, *[n // 5 + 2 for n in SHAPE]))
    blurred = [ndimage.gaussian_filter(field, width_mm / SPACING_MM / 5) for field in coarse]
    fine = [ndimage.zoom(field, 5, order=1)[tuple(slice(n) for n in SHAPE)] for field in blurred]
    return np.stack([deviation * field / field.std() for field in fine]).astype(np.float32)


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_data_set(given.out, given.cases, given.seed)


if __name__ == "__main__":
    main()
