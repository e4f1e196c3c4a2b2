"""Headers with nothing but what highdicom reads, so that no odd value of the source can stop it or leak through it."""

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from voxelgate.dicom.audit.planes import SAME_ORIENTATION_TOLERANCE, SAME_SPACING_TOLERANCE
from voxelgate.dicom.write.label_planes import LabelPlanes
from voxelgate.dicom.write.sources import TYPE_2_ATTRIBUTES, SourceSeries

LOSSY_ATTRIBUTES = ("LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio")
"""Once lossy, for ever lossy: what derives from such an image says so too (PS3.3 C.7.6.1.1.5)."""


def placeholder(source: SourceSeries, class_uid: str, instance_uid: str, series_uid: str) -> Dataset:
    """Return a header of an instance of the source's study: who it is, and empty attributes of patient and study."""
    header = Dataset()
    for keyword in TYPE_2_ATTRIBUTES:
        setattr(header, keyword, "")
    header.StudyInstanceUID = source.study_uid
    header.SeriesInstanceUID = series_uid
    header.FrameOfReferenceUID = source.frame_of_reference_uid
    header.SOPClassUID = class_uid
    header.SOPInstanceUID = instance_uid
    header.__dict__["SOPInstanceUID"] = instance_uid  # highdicom asks every image for every plane: half a second
    header.Modality = str(source.header.get("Modality") or "OT")
    return header


def image_placeholders(source: SourceSeries, planes: LabelPlanes) -> list[Dataset]:
    """Return headers of the source images: one for each, or one with all frames in the order of the files.

    Images whose voxels are those of a plane get exactly the geometry of the plane, for highdicom matches them by
    position, with a tolerance of its own.
    """
    matched = planes.coinciding(source) if have_same_voxels(source, planes) else {}
    positions = {image: planes.position_lps_mm(plane) for plane, image in matched.items()}
    orientation, spacing_mm = source.orientation, source.spacing_mm
    if matched:
        orientation, spacing_mm = _orientation(planes), planes.spacing_mm[1:]
    headers = [
        placeholder(source, image.class_uid, image.instance_uid, source.series_uid) for image in source.instances
    ]
    for header in headers:
        header.Rows, header.Columns = source.size
        for keyword in LOSSY_ATTRIBUTES:
            if keyword in source.header:
                header[keyword] = source.header[keyword]
    frames = [_position_item(positions.get(image, image.position_lps_mm)) for image in source.in_file_order]
    oriented, measured = _oriented(orientation), _measures_item(spacing_mm, planes.spacing_mm[0])
    if source.is_multi_frame:
        _fill_multi_frame(headers[0], frames, oriented, measured)
        return headers[:1]
    for header, frame in zip(headers, frames, strict=True):
        for part in (frame, oriented, measured):
            header.update(part)
    return headers


def decimal_string(value: float) -> DSfloat:
    """Return a number that takes at most 16 characters as Decimal String (PS3.5 6.2)."""
    return DSfloat(float(value), auto_format=True)


def have_same_voxels(source: SourceSeries, planes: LabelPlanes) -> bool:
    """Return whether the planes have the rows and columns of the images, up to which planes there are."""
    if planes.voxels.shape[1:] != source.size:
        return False
    if not np.allclose(planes.spacing_mm[1:], source.spacing_mm, rtol=SAME_SPACING_TOLERANCE, atol=0):
        return False
    inverse = np.linalg.inv(planes.affine_lps)
    corners = np.array([image.position_lps_mm for image in source.images]) @ inverse[:3, :3].T + inverse[:3, 3]
    is_in_corner = np.abs(corners[:, 1:]).max() < 0.25
    is_parallel = np.allclose(_orientation(planes), source.orientation, rtol=0, atol=SAME_ORIENTATION_TOLERANCE)
    return bool(is_in_corner and is_parallel)


def _orientation(planes: LabelPlanes) -> tuple[float, ...]:
    cosines = planes.affine_lps[:3, :3] / planes.spacing_mm
    return (*cosines[:, 2].tolist(), *cosines[:, 1].tolist())


def _position_item(position_lps_mm: Sequence[float]) -> Dataset:
    item = Dataset()
    item.ImagePositionPatient = [decimal_string(value) for value in position_lps_mm]
    return item


def _oriented(cosines: Sequence[float]) -> Dataset:
    item = Dataset()
    item.ImageOrientationPatient = [decimal_string(value) for value in cosines]
    return item


def _measures_item(spacing_mm: Sequence[float], between_slices_mm: float) -> Dataset:
    item = Dataset()
    item.PixelSpacing = [decimal_string(value) for value in spacing_mm]
    item.SliceThickness = item.SpacingBetweenSlices = decimal_string(between_slices_mm)
    return item


def _fill_multi_frame(header: Dataset, frames: Sequence[Dataset], oriented: Dataset, measured: Dataset) -> None:
    shared = Dataset()
    shared.PlaneOrientationSequence = [oriented]
    shared.PixelMeasuresSequence = [measured]
    header.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for frame in frames:
        group = Dataset()
        group.PlanePositionSequence = [frame]
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = groups
    header.NumberOfFrames = len(groups)
