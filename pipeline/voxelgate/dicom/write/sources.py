"""The series that a label map was made from: which images it has, where they lie, and whose they are.

How the images lie is for the audit to judge: what it calls usable can be written. What else DICOM demands of a derived
object is checked here once. Every message counts images instead of naming values, for a header belongs to a patient.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID

from voxelgate.core.errors import OutputError
from voxelgate.core.findings import refusals
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.headers import image_planes
from voxelgate.dicom.read.parsing import whole_header
from voxelgate.dicom.read.series import Series

LIBRARY_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What pydicom and highdicom raise on values they do not like; their texts may quote the values."""

UTF_8 = "ISO_IR 192"
"""Specific Character Set of UTF-8 (PS3.3 C.12.1.1.2)."""

TYPE_2_ATTRIBUTES = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyID",
    "StudyTime",
)
"""Attributes of patient and study that every object has, empty if unknown (PS3.3 C.7.1.1, C.7.2.1)."""

FURTHER_ATTRIBUTES = (
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSponsorName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointDescription",
    "ClinicalTrialTimePointID",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "IssuerOfPatientID",
    "LongitudinalTemporalInformationModified",
    "PatientAge",
    "PatientIdentityRemoved",
    "PatientSize",
    "PatientWeight",
    "StudyDescription",
)
"""Attributes of the same modules that are kept where the source has them; free-text comments are not among them."""

_SERIES_UIDS = {
    "StudyInstanceUID": "study instance UID",
    "SeriesInstanceUID": "series instance UID",
    "FrameOfReferenceUID": "frame of reference UID",
}
_IMAGE_UIDS = {"SOPInstanceUID": "SOP instance UID", "SOPClassUID": "SOP class UID"}


class SourceImage(NamedTuple):
    """An image of the source series: an instance, or one frame of a multi-frame instance.

    `frame` counts from 1 and is None for a classic image; `position_lps_mm` is the centre of the first voxel.
    """

    class_uid: str
    instance_uid: str
    frame: int | None
    position_lps_mm: tuple[float, float, float]

    def reference(self) -> Dataset:
        """Return an item that refers to it (PS3.3 table 10-3)."""
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = self.class_uid, self.instance_uid
        if self.frame is not None:
            item.ReferencedFrameNumber = self.frame
        return item


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The images of one series, sorted along their normal; made by `from_headers`.

    Args:
        header: attributes of the first image, for patient and study.
        images: sorted along the normal; the order in which the headers were given does not matter.
        orientation: direction cosines of a row and of a column, LPS (Image Orientation (Patient)).
        spacing_mm: between rows, between columns (Pixel Spacing).
        size: rows, columns.
    """

    header: Dataset
    images: tuple[SourceImage, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def from_headers(cls, headers: Sequence[Dataset]) -> "SourceSeries":
        """Sort the headers of a series; orientation, spacing and size are those of the first header.

        Args:
            headers: all classic images of a series in any order, or one enhanced multi-frame image or its parts,
                without pixels; of a series that the audit calls usable: they differ by no more than it tolerates.

        Raises:
            OutputError: no header; a UID that DICOM demands is missing, invalid or not shared; an image occurs twice;
                or one has no position, orientation, spacing or size.
        """
        with quiet_pydicom():
            return cls._from_headers(headers)

    @classmethod
    def _from_headers(cls, headers: Sequence[Dataset]) -> "SourceSeries":
        if not headers:
            raise OutputError("the source series has no images; DICOM objects are written for DICOM series only.")
        _check_uids(headers)
        try:
            images = [image for header in headers for image in _images_of(header)]
            size = int(headers[0].Rows), int(headers[0].Columns)
        except LIBRARY_ERRORS:
            raise OutputError(
                "an image of the source series has no usable position, orientation or pixel spacing, which DICOM "
                "objects need; send the series again."
            ) from None
        first = image_planes(headers[0])[0]
        orientation = first.orientation_lps or ()
        between_rows_mm, between_columns_mm = first.pixel_spacing_mm or (0.0, 0.0)
        normal = np.cross(orientation[:3], orientation[3:])
        images.sort(key=lambda image: (float(normal @ image.position_lps_mm), image.instance_uid, image.frame or 0))
        by_uid = {str(header.SOPInstanceUID): header for header in headers}
        return cls(
            by_uid[images[0].instance_uid], tuple(images), orientation, (between_rows_mm, between_columns_mm), size
        )

    @property
    def is_multi_frame(self) -> bool:
        """Return whether the images are frames, of one instance or of the parts of a concatenation."""
        return self.images[0].frame is not None

    @property
    def study_uid(self) -> str:
        """Return the study instance UID."""
        return str(self.header.StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        """Return the series instance UID."""
        return str(self.header.SeriesInstanceUID)

    @property
    def frame_of_reference_uid(self) -> str:
        """Return the UID of the coordinate system in mm."""
        return str(self.header.FrameOfReferenceUID)

    @property
    def instances(self) -> tuple[SourceImage, ...]:
        """Return one image for each instance: all images, or a frame of each."""
        return tuple({image.instance_uid: image for image in reversed(self.images)}.values())[::-1]

    @property
    def in_file_order(self) -> tuple[SourceImage, ...]:
        """Return frames as they lie in their files, one file after the other; classic images along the normal."""
        files = {image.instance_uid: number for number, image in enumerate(self.instances)}
        return tuple(sorted(self.images, key=lambda image: (files[image.instance_uid], image.frame or 0)))

    def derived_series_number(self, offset: int) -> int:
        """Return a series number for a derived object: a hundred times that of the source plus `offset` (1 to 99)."""
        try:
            number = int(self.header.get("SeriesNumber") or 0)
        except LIBRARY_ERRORS:
            number = 0
        return 100 * min(max(number, 0), 9_999_999) + offset

    def stamp(self, derived: Dataset, texts: Sequence[str]) -> None:
        """Give a derived object the patient and study of the source, and the character set that its texts need.

        Names keep their bytes: the character set of the source stays, unless our own texts are not ASCII; then the
        whole object is UTF-8.

        Args:
            derived: changed in place, before it is written for the first time.
            texts: every text of `derived` that does not come from the source.
        """
        for keyword in TYPE_2_ATTRIBUTES + FURTHER_ATTRIBUTES:
            if keyword in derived:
                delattr(derived, keyword)
            if keyword in self.header:
                derived[keyword] = copy.deepcopy(self.header[keyword])
            elif keyword in TYPE_2_ATTRIBUTES:
                setattr(derived, keyword, "")
        derived.StudyInstanceUID = self.study_uid
        if "SpecificCharacterSet" in derived:
            del derived.SpecificCharacterSet
        character_set = self.header.get("SpecificCharacterSet") if all(map(str.isascii, texts)) else UTF_8
        if character_set:
            derived.SpecificCharacterSet = character_set


def source_of(series: Series) -> SourceSeries:
    """Read the headers of a series again, this time with all that a derived object takes over.

    Raises:
        OutputError: the audit refused the series, or as for `SourceSeries.from_headers`.
    """
    if refused := refusals(series.findings):
        raise OutputError(f"{series.series_id}: {refused[0]}")
    headers = []
    with quiet_pydicom():
        for header in series.headers:
            with header.file.open() as stream:
                headers.append(whole_header(stream))
        return SourceSeries.from_headers(headers)


def _check_uids(headers: Sequence[Dataset]) -> None:
    for keyword, words in {**_SERIES_UIDS, **_IMAGE_UIDS}.items():
        values = [str(header.get(keyword) or "") for header in headers]
        unfit = sum(not (value and UID(value).is_valid) for value in values)
        if unfit:
            raise OutputError(
                f"{unfit} of {len(headers)} source images have no valid {words}, so no DICOM object can refer to them; "
                "export the series again with its identifiers, or write NIfTI."
            )
        if keyword in _SERIES_UIDS and len(set(values)) > 1:
            raise OutputError(
                f"the source images have {len(set(values))} different {words}s, expected one; give one series alone."
            )
    if len({str(header.SOPInstanceUID) for header in headers}) != len(headers):
        raise OutputError("two source images share one SOP instance UID; remove the copies from the series.")
    are_parts = len({str(header.get("ConcatenationUID") or header.SOPInstanceUID) for header in headers}) == 1
    if not are_parts and any("PerFrameFunctionalGroupsSequence" in header for header in headers):
        raise OutputError("the source series has several multi-frame images, expected one; give one of them alone.")


def _images_of(header: Dataset) -> list[SourceImage]:
    """Return the images of an instance, each with its place.

    Raises:
        ValueError: one does not say where it lies.
    """
    is_multi_frame = "PerFrameFunctionalGroupsSequence" in header
    images = []
    for number, plane in enumerate(image_planes(header), start=1):
        if not (plane.position_lps_mm and plane.orientation_lps and plane.pixel_spacing_mm):
            raise ValueError("an image without a place")
        x_mm, y_mm, z_mm = plane.position_lps_mm
        frame = number if is_multi_frame else None
        images.append(SourceImage(str(header.SOPClassUID), str(header.SOPInstanceUID), frame, (x_mm, y_mm, z_mm)))
    return images
