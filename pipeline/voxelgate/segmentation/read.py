"""Read the image of a case, and refuse what cannot be segmented."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError
from voxelgate.core.findings import Allow, Finding, refusals
from voxelgate.core.geometry import Grid, counts_pixels
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.plausibility import check_values
from voxelgate.dicom.read.reader import read_series
from voxelgate.evaluation.expectations import Expected, check_against
from voxelgate.images.pictures import RGB
from voxelgate.images.spec import ONE_VOLUME, ImageSpec, read_image
from voxelgate.images.volumes import has_orientation
from voxelgate.segmentation.cases import Case, wanted


class Image(NamedTuple):
    """What was read of a case.

    Args:
        voxels: (C, I, J, K), any real type.
        grid: of each channel, RAS+ mm.
        findings: a sentence for each thing worth knowing.
    """

    voxels: npt.NDArray[Any]
    grid: Grid
    findings: tuple[str, ...]

    @property
    def shown(self) -> npt.NDArray[Any]:
        """Return the voxels (I, J, K) by which a person knows the image: its first channel, of colours their mean."""
        is_colour = len(self.voxels) == len(RGB) and counts_pixels(self.grid)
        shown: npt.NDArray[Any] = self.voxels.mean(axis=0, dtype=np.float32) if is_colour else self.voxels[0]
        return shown


def read_case(
    case: Case,
    labels: LabelTable,
    expected: Expected | None = None,
    allow: Iterable[Allow] = (),
    images: ImageSpec = ONE_VOLUME,
) -> Image:
    """Read the image of a case and refuse what cannot be segmented.

    Args:
        case: what to read.
        labels: of the bundle; if they tell sides apart, an image without a known left and right is refused.
        expected: what the bundle was trained on; what differs is told.
        allow: faults of a DICOM series to mend, as given to `find_cases`.
        images: what the images of the bundle consist of.

    Raises:
        InputError: no image, it cannot be read, it is not what the bundle takes, its channels lie on different grids or
            are one and the same, or one holds NaN, infinite or all equal voxels.
    """
    if case.image is None:
        raise InputError(" ".join(case.findings))
    if isinstance(case.image, Path):
        image = _read_files(case.channels, labels, images)
        further: tuple[Finding, ...] = ()
    else:
        if images != ImageSpec(images.channels[:1]):
            raise InputError(f"{case.case_id}: a DICOM series has one channel, {wanted(images)}; give such files.")
        volume = read_series(case.image, allow=allow)
        image = Image(volume.voxels[None], volume.grid, tuple(str(finding) for finding in volume.findings))
        further = check_values(volume.voxels, volume.grid, case.image.modality)
    _refuse_unusable(image, case.case_id, images)
    if refused := refusals(further):
        raise InputError(f"{case.case_id}: {refused[0]}")
    if expected is not None:
        further += check_against(image.grid, expected)
    return image._replace(findings=case.findings + image.findings + tuple(map(str, further)))


def _read_files(paths: Sequence[Path], labels: LabelTable, images: ImageSpec) -> Image:
    voxels, grid = read_image(paths, images)
    path = paths[0]
    if has_orientation(path):
        return Image(voxels, grid, ())
    sentence = f"{path.name}: the header does not say where left and right are"
    if labels.side_pairs:
        raise InputError(f"{sentence}, but the bundle tells sides apart; convert the image again with its orientation.")
    return Image(
        voxels,
        grid,
        (f"NO_ORIENTATION: {sentence}; the default of its format was assumed, check the result against the image.",),
    )


def _refuse_unusable(image: Image, name: str, images: ImageSpec) -> None:
    voxels = image.voxels
    unusable = 0 if voxels.dtype.kind != "f" else voxels.size - int(np.isfinite(voxels).sum())
    if unusable:
        raise InputError(f"{name}: {unusable} voxels are NaN or infinite, expected numbers; replace them first.")
    for file in voxels.reshape(images.files, -1, *voxels.shape[1:]):  # of colours one may be empty
        if file.min() == file.max():
            raise InputError(f"{name}: all voxels are {file.flat[0]}, expected an image; export it again.")
