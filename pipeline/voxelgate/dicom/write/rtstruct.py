"""Write a label map as RT Structure Set, and fill its outlines again before it counts.

pydicom writes it (highdicom has no such object; rt-utils writes numbers that are too long): PS3.3 A.19. Outlines run
along pixel edges, see `outlines`; what is read back are the mm of the file, filled on the grid of the labels.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from scipy import ndimage

from voxelgate.core.errors import OutputError
from voxelgate.core.geometry import LPS_TO_RAS, triple
from voxelgate.core.terminology import ANATOMICAL_STRUCTURE, Coding
from voxelgate.dicom.write.label_planes import LabelPlanes
from voxelgate.dicom.write.outlines import filled, outlines
from voxelgate.dicom.write.segmented import (
    MANUFACTURER,
    MOST_CHARACTERS,
    SOFTWARE_VERSION,
    SegmentedSeries,
    algorithm_item,
    code_item,
    identify_series,
    new_uid,
    published,
    read_back,
    save_dicom,
)
from voxelgate.dicom.write.sources import SourceSeries

Points = npt.NDArray[np.float64]

SERIES_OFFSET = 2
"""Last two digits of the series number of a structure set."""

DECIMALS = 4
"""Of a contour point in mm: far below a voxel, and a DS of at most 16 characters up to ten metres (PS3.5 6.2)."""

MOST_NUMBER_CHARACTERS = 16
"""Length of a DS (PS3.5 6.2)."""

MOST_DESCRIPTION = 1024
"""Length of Structure Set Description, VR ST (PS3.5 6.2)."""

STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, retired, which RT Referenced Study Sequence still names (PS3.3 C.8.8.5)."""

CONTOUR_DATA = Tag("ContourData")


def write_rtstruct(path: Path, segmented: SegmentedSeries) -> None:
    """Write the labels as RT Structure Set: under a temporary name, read back in mm, filled, compared, renamed.

    Each structure with voxels becomes a ROI, numbered by its label value; codes are written where they are known.
    Contours refer to the image that lies in their plane, or to none where the grid was resampled.

    Args:
        path: of the file to be, in a folder that exists.
        segmented: labels, grid, names and source; a sheared grid is fine.

    Raises:
        OutputError: no structure has voxels, the file exists or cannot be written, or it reads back differently; then
            nothing is left behind.
    """
    segmented.refuse_nothing()
    planes = segmented.planes()
    with published(path) as partial:
        save_dicom(_structure_set(segmented, planes), partial)
        _compare_outlines(partial, path.name, segmented)


def _structure_set(segmented: SegmentedSeries, planes: LabelPlanes) -> Dataset:
    source, algorithm, now = segmented.source, segmented.algorithm, datetime.now().astimezone()
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # a DS of an explicit VR ends at 64 KiB
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, new_uid()
    dataset.SeriesInstanceUID, dataset.Modality = new_uid(), "RTSTRUCT"
    dataset.SeriesNumber, dataset.InstanceNumber = source.derived_series_number(SERIES_OFFSET), 1
    identify_series(dataset, segmented, "RTSTRUCT")
    dataset.OperatorsName = algorithm.annotator
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, algorithm.name
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = SOFTWARE_VERSION, algorithm.fingerprint
    dataset.InstanceCreationDate = dataset.StructureSetDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.StructureSetTime = now.strftime("%H%M%S")
    dataset.StructureSetLabel = "CORRECTED" if algorithm.is_corrected else "AUTO_SEGMENTED"
    dataset.StructureSetName = dataset.SeriesDescription
    dataset.StructureSetDescription = segmented.comment[:MOST_DESCRIPTION]
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = source.frame_of_reference_uid, ""
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    dataset.StructureSetROISequence = [_roi(segmented, value) for value in segmented.present]
    dataset.ROIContourSequence = _all_contours(segmented, planes)
    dataset.RTROIObservationsSequence = [_observation(segmented, value) for value in segmented.present]
    source.stamp(dataset, segmented.texts)
    return dataset


def _frame_of_reference(source: SourceSeries) -> Dataset:
    series, study, frame_of_reference = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ContourImageSequence = [image._replace(frame=None).reference() for image in source.instances]
    study.ReferencedSOPClassUID = STUDY_CLASS
    study.ReferencedSOPInstanceUID = source.study_uid
    study.RTReferencedSeriesSequence = [series]
    frame_of_reference.FrameOfReferenceUID = source.frame_of_reference_uid
    frame_of_reference.RTReferencedStudySequence = [study]
    return frame_of_reference


def _roi(segmented: SegmentedSeries, value: int) -> Dataset:
    algorithm, roi = segmented.algorithm, Dataset()
    roi.ROINumber = value
    roi.ReferencedFrameOfReferenceUID = segmented.source.frame_of_reference_uid
    roi.ROIName = segmented.table.names[value]
    roi.ROIGenerationAlgorithm = algorithm.generation
    roi.ROIGenerationDescription = f"{algorithm.name} {algorithm.version}"[:MOST_CHARACTERS].rstrip()
    roi.ROIDerivationAlgorithmIdentificationSequence = algorithm_item(algorithm)
    return roi


def _observation(segmented: SegmentedSeries, value: int) -> Dataset:
    observation, coding = Dataset(), segmented.table.find_coding(value)
    observation.ObservationNumber = value
    observation.ReferencedROINumber = value
    is_organ = coding is not None and coding.category.value == ANATOMICAL_STRUCTURE
    observation.RTROIInterpretedType = "ORGAN" if is_organ else ""
    observation.ROIInterpreter = ""
    if coding is not None:
        observation.SegmentedPropertyCategoryCodeSequence = [code_item(coding.category)]
        observation.RTROIIdentificationCodeSequence = [_identification(coding)]
    return observation


def _identification(coding: Coding) -> Dataset:
    item = code_item(coding.type)
    if coding.modifier is not None:
        item.SegmentedPropertyTypeModifierCodeSequence = [code_item(coding.modifier)]
    return item


def _all_contours(segmented: SegmentedSeries, planes: LabelPlanes) -> list[Dataset]:
    references = {plane: image.reference() for plane, image in planes.coinciding(segmented.source).items()}
    boxes = ndimage.find_objects(planes.voxels)
    rois = []
    for value in segmented.present:
        roi = Dataset()
        roi.ROIDisplayColor = list(segmented.colours[value])
        roi.ReferencedROINumber = value
        roi.ContourSequence = list(_contours(planes, value, boxes[value - 1], references))
        rois.append(roi)
    return rois


def _contours(
    planes: LabelPlanes, value: int, box: tuple[slice, slice, slice], references: dict[int, Dataset]
) -> Iterator[Dataset]:
    """Yield the contours of one structure, found in the box that holds it."""
    corner = np.array([side.start for side in box], dtype=np.float64)
    for number, (plane, edges) in enumerate(outlines(planes.voxels[box] == value), start=1):
        index = np.insert(edges, 0, plane, axis=1) + corner
        contour = Dataset()
        if int(index[0, 0]) in references:
            contour.ContourImageSequence = [references[int(index[0, 0])]]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(index)
        contour.ContourNumber = number
        contour[CONTOUR_DATA] = _decimals(index @ planes.affine_lps[:3, :3].T + planes.affine_lps[:3, 3])
        yield contour


def _decimals(points_lps_mm: Points) -> RawDataElement:
    """Return points as the bytes of a DS, for pydicom spends some microseconds on each number it is given."""
    rounded = np.round(points_lps_mm, DECIMALS).ravel() + 0.0  # no minus zero
    text = "\\".join([f"{number:.{DECIMALS}f}" for number in rounded.tolist()])
    value = text.encode("ascii") + b" " * (len(text) % 2)
    return RawDataElement(CONTOUR_DATA, "DS", len(value), value, 0, True, True)  # noqa: FBT003 - a named tuple of pydicom


def _compare_outlines(path: Path, name: str, segmented: SegmentedSeries) -> None:
    """Refuse a file whose outlines do not give back the voxels of each structure, and no others."""
    written = read_back(path)
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in written.StructureSetROISequence}
    if names != {value: segmented.table.names[value] for value in segmented.present}:
        raise OutputError(f"{name}: reads back with other structures; report this.")
    to_voxels = np.linalg.inv(segmented.grid.affine) @ LPS_TO_RAS
    for roi in written.ROIContourSequence:
        value = int(roi.ReferencedROINumber)
        contours = [_points(contour) @ to_voxels[:3, :3].T + to_voxels[:3, 3] for contour in roi.ContourSequence]
        if not _fills(contours, segmented, value):
            raise OutputError(f"{name}: outlines of {names[value]} do not fill its voxels; write DICOM SEG.")


def _points(contour: Dataset) -> Points:
    """Return the points of a contour, (n, 3) LPS mm.

    Raises:
        ValueError: a number is longer than DICOM allows, or there are not three for each point.
    """
    numbers = contour.get_item(CONTOUR_DATA).value.split(b"\\")
    if max(map(len, numbers)) > MOST_NUMBER_CHARACTERS:
        raise ValueError("a number is too long")
    return np.array(numbers, dtype=np.float64).reshape(int(contour.NumberOfContourPoints), 3)


def _fills(contours: Sequence[Points], segmented: SegmentedSeries, value: int) -> bool:
    """Return whether contours, as voxel index, surround each voxel of a structure once and no other voxel."""
    points = np.concatenate(contours)
    low = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, segmented.grid.shape)
    box: Any = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
    counts = filled([contour - low for contour in contours], triple(map(int, high - low)))
    if counts is None:
        return False
    is_meant = segmented.labels[box] == value
    return int(is_meant.sum()) == segmented.counts[value] and np.array_equal(counts, is_meant)
