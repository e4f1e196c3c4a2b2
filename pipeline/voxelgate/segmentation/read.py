"""Read the image of a case."""

from collections.abc import Iterable

from voxelgate.bundle.reading import Image, read_source
from voxelgate.core.errors import InputError
from voxelgate.core.findings import Allow
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.read.series import Series
from voxelgate.evaluation.expectations import Expected
from voxelgate.images.spec import ONE_VOLUME, ImageSpec
from voxelgate.segmentation.cases import Case


def read_case(
    case: Case,
    labels: LabelTable,
    expected: Expected | None = None,
    allow: Iterable[Allow] = (),
    images: ImageSpec = ONE_VOLUME,
) -> Image:
    """Read the image of a case and refuse what cannot be segmented; arguments as for `read_source`.

    Raises:
        InputError: there is no image, or as for `read_source`.
    """
    if case.image is None:
        raise InputError(" ".join(map(str, case.findings)))
    source = case.image if isinstance(case.image, Series) else case.channels
    image = read_source(source, case.case_id, labels, expected=expected, allow=allow, images=images)
    return image._replace(findings=case.findings + image.findings)
