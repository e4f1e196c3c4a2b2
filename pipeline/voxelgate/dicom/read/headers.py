"""What one DICOM file says about its images, read without their pixels and without anything that names a patient."""

import struct
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import IO, Any, NamedTuple

from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from voxelgate.dicom.read.bounded import TooLargeError
from voxelgate.dicom.read.dicom_files import DICOM_MAGIC, FileRef
from voxelgate.dicom.read.header_values import HeaderValues, Vector, first_item
from voxelgate.dicom.read.padding import RawLayout, is_padding
from voxelgate.dicom.read.parsing import HeaderParser, PixelPlace

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".zip")
"""Endings of files that should be, or hold, DICOM: if they are not, something is lost."""

EMPTY_BYTES = 1024
"""Zeros at the start of a file that show that nothing was written into it; a preamble has 128."""

MOST_FRAMES = 20_000
"""Frames of a file that are looked at; a volume has some thousand slices at most."""

PRIVATE_B_VALUES = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C, "IS"),
    ("GEMS_PARM_01", 0x0043, 0x39, "IS"),
    ("Philips Imaging DD 001", 0x2001, 0x03, "FL"),
    ("Image Private Header", 0x0065, 0x09, "FD"),
)
"""Where Siemens, GE, Philips and United Imaging keep the b-value: private creator, group, element, type."""

GE_B_VALUE_OFFSET = 1_000_000_000
"""GE adds this to b-values in (0043,1039) of some directions."""

SIEMENS_MOSAIC_COUNT = ("SIEMENS MR HEADER", 0x0019, 0x0A, "US")
"""Number of images in a mosaic."""

ACQUISITION_SETTINGS = ("KVP", "ConvolutionKernel", "RepetitionTime", "InversionTime", "FlipAngle", "Modality", "Units")
"""What tells one acquisition or reconstruction from another, and is the same for all slices of it."""

PRIVATE_BLOCKS = range(0x10, 0x30)
"""Blocks of a group in which a vendor's elements are looked for (PS3.5 7.8.1); writers fill them from the first on."""

OVERLAYS = range(0x6000, 0x6020, 2)
"""Groups of overlay planes (PS3.3 C.9.2)."""

SHARED_GROUPS = "SharedFunctionalGroupsSequence"

_TEXTS = "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID PatientID PatientName "
_TEXTS += "PatientBirthDate Modality ImageType SeriesDescription PhotometricInterpretation LossyImageCompression "
_TEXTS += "ContrastBolusAgent RescaleType StackID ConcatenationUID MRAcquisitionType AcquisitionDate AcquisitionTime "
_TEXTS += "AcquisitionDateTime FrameAcquisitionDateTime ContentDate ContentTime SpecificCharacterSet "
_NUMBERS = "SeriesNumber InstanceNumber AcquisitionNumber Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated "
_NUMBERS += "BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit GantryDetectorTilt "
_NUMBERS += "AcquisitionMatrix ImagePositionPatient ImageOrientationPatient PixelSpacing RescaleSlope RescaleIntercept "
_NUMBERS += "SliceThickness SpacingBetweenSlices EchoTime EffectiveEchoTime DiffusionBValue TemporalPositionIdentifier "
_NUMBERS += "TemporalPositionIndex TriggerTime NominalCardiacTriggerDelayTime InConcatenationNumber "
_NUMBERS += "InConcatenationTotalNumber ConcatenationFrameOffsetNumber "
_SEQUENCES = "ContrastBolusAgentSequence ModalityLUTSequence SharedFunctionalGroupsSequence PlanePositionSequence "
_SEQUENCES += "PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence MREchoSequence "
_SEQUENCES += "FrameContentSequence CardiacSynchronizationSequence MRDiffusionSequence"

HEADER_TAGS = frozenset(
    (
        *map(Tag, (_TEXTS + _NUMBERS + _SEQUENCES).split()),
        *map(Tag, ACQUISITION_SETTINGS),
        *(group << 16 | element for group in OVERLAYS for element in (0x0100, 0x0102)),
        *(
            group << 16 | block << shift | element * (shift > 0)
            for _, group, element, _ in (*PRIVATE_B_VALUES, SIEMENS_MOSAIC_COUNT)
            for block in PRIVATE_BLOCKS
            for shift in (0, 8)
        ),
    )
)
"""All that is looked at in a header or in the groups of a frame; private creators and elements too."""

IMAGE_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "128", "128.1", "130")
)
"""CT, MR and PET images, also enhanced and legacy converted (PS3.4 table B.5-1)."""

STORAGE = "1.2.840.10008.5.1.4.1.1"
"""Root of the storage SOP classes (PS3.4 table B.5-1)."""

_NOT_IMAGES = "4.2 9 11 66 67 68 78 79 80 88 90 104 481.2 481.3 481.4 481.5 481.6 481.7 481.8"
NOT_IMAGE_CLASSES = tuple(f"{STORAGE}.{part}" for part in _NOT_IMAGES.split())
"""Spectra, waveforms, presentation states, segmentations, registrations, reports, documents, doses, plans and more."""

_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlane:
    """What is said about one image plane: a single-frame file, or one frame of a multi-frame file.

    Everything that is missing, empty or no number is None.

    Args:
        frame: index of the frame in its file, from 0.
        position_lps_mm: centre of the first pixel (Image Position Patient), 3 numbers.
        orientation_lps: directions of a row and of a column (Image Orientation Patient), 6 numbers.
        pixel_spacing_mm: between rows, then between columns (Pixel Spacing).
        slope: of the rescaling of stored values.
        intercept: of the rescaling.
        thickness_mm: Slice Thickness.
        spacing_between_slices_mm: Spacing Between Slices.
        echo_time_ms: (Effective) Echo Time.
        b_value: diffusion weighting in s/mm2, from the standard's tag or a vendor's.
        temporal_position: Temporal Position Identifier or Index.
        trigger_time_ms: Trigger Time, or nominal cardiac trigger delay.
        stack: Stack ID of a multi-frame image, or empty.
        rescale_type: what the rescaled values are (Rescale Type), in upper case, or empty.
        acquired_s: when its data were acquired (Frame Acquisition DateTime, Acquisition DateTime, Date and Time), in
            seconds since any day.
        made_s: when its pixels were made (Content Date and Time), in seconds since any day.
    """

    frame: int = 0
    position_lps_mm: Vector | None = None
    orientation_lps: Vector | None = None
    pixel_spacing_mm: Vector | None = None
    slope: float | None = None
    intercept: float | None = None
    thickness_mm: float | None = None
    spacing_between_slices_mm: float | None = None
    echo_time_ms: float | None = None
    b_value: float | None = None
    temporal_position: int | None = None
    trigger_time_ms: float | None = None
    stack: str = field(default="", repr=False)
    rescale_type: str = field(default="", repr=False)
    acquired_s: float | None = field(default=None, repr=False)
    made_s: float | None = field(default=None, repr=False)


class Concatenation(NamedTuple):
    """Which part of a multi-frame image a file is (PS3.3 C.7.6.16.2.2.4).

    Args:
        uid: what the parts share.
        number: of the part, from 1.
        total: number of parts, where it is said.
        offset: frames in the parts before it.
    """

    uid: str
    number: int | None
    total: int | None
    offset: int | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Header:
    """What one file says about its images; no text of it is shown by `repr`, since any may hold a patient's name.

    Args:
        file: where it is.
        size: bytes of the file.
        transfer_syntax_uid: how the pixels are encoded; empty if the meta header is missing.
        patient: hashes of patient ID, name and birth date; empty where the file has none.
        image_type: values of Image Type, in upper case.
        description: Series Description.
        is_lossy: whether the pixels have been compressed with loss at any time.
        has_contrast: whether a contrast agent is named.
        has_modality_lut: whether a table takes the place of slope and intercept.
        mosaic_count: images in a Siemens mosaic, from its private tag.
        acquisition_matrix: the four numbers of Acquisition Matrix.
        acquisition: other settings that all slices of a volume share, such as kV and kernel, as a hash.
        settings: the same one by one, in the order of `ACQUISITION_SETTINGS`; texts as hashes.
        is_3d: whether it says that its slices were acquired all at once (MR Acquisition Type).
        concatenation: which part it is of what several files of frames make, if it is one.
        overlay_bits: mask of the bits of Pixel Data that hold overlays.
        pixel_offset: byte at which the value of Pixel Data starts, or None without or where it is deflated.
        pixel_bytes: its length in bytes, -1 if encapsulated, None without pixel data.
        is_little_endian: byte order of the pixels.
        has_float_pixels: whether Float or Double Float Pixel Data stand in the place of Pixel Data.
        malformed: keywords of values that are not what their type demands.
        planes: one for each frame.
        is_padded: whether padding follows the pixels, which is why their data are longer than rows and columns say.
    """

    file: FileRef
    size: int
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    patient: tuple[str, str, str]
    modality: str
    image_type: tuple[str, ...]
    description: str
    series_number: int | None
    instance_number: int | None
    acquisition_number: int | None
    acquisition: str
    settings: tuple[float | str | None, ...]
    is_3d: bool
    concatenation: "Concatenation | None"
    rows: int | None
    columns: int | None
    frames: int
    samples_per_pixel: int | None
    photometric: str
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    pixel_representation: int | None
    padding_value: int | None
    padding_limit: int | None
    gantry_tilt_deg: float | None
    mosaic_count: float | None
    acquisition_matrix: Vector | None
    is_lossy: bool
    has_contrast: bool
    has_modality_lut: bool
    pixel_offset: int | None
    pixel_bytes: int | None
    is_little_endian: bool
    has_float_pixels: bool
    overlay_bits: int
    malformed: tuple[str, ...]
    planes: tuple[ImagePlane, ...]
    is_padded: bool = False

    def __repr__(self) -> str:
        return f"Header(instance {self.instance_number}: {self.rows} x {self.columns}, {self.frames} frames)"


DAMAGED = "damaged and cannot be read; send them again"


class UnreadableFileError(Exception):
    """A file is DICOM by its first bytes, or was named as such, but cannot be read.

    Args:
        reason: what files of its kind are, as the rest of a sentence.
    """

    def __init__(self, reason: str = DAMAGED) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreadableFile(NamedTuple):
    """A file that cannot be read, and what it is, as the rest of a sentence."""

    file: FileRef
    reason: str = DAMAGED


def read_header(file: FileRef) -> Header | None:
    """Read the header of a file, or return None if it is no DICOM.

    Call it inside `quiet_pydicom`; pydicom's warnings hold values.

    Raises:
        UnreadableFileError: the file is DICOM but damaged, is named like DICOM but is none, or cannot be opened.
    """
    try:
        with file.open() as stream:
            if _looks_like_dicom(stream):
                return _parse(file, stream)
    except UnreadableFileError:
        raise
    except TooLargeError as error:
        raise UnreadableFileError(f"not read, since a header {error.reason}; look where they come from") from error
    except Exception as error:  # pydicom raises nearly anything on damaged input
        raise UnreadableFileError from error
    if PurePath(file.member or file.path).suffix.lower() in DICOM_SUFFIXES:
        raise UnreadableFileError
    return None


def is_one_of(uid: str, classes: tuple[str, ...]) -> bool:
    """Return whether a SOP class is one of some, or of a family of them."""
    return uid in classes or uid.startswith(tuple(f"{name}." for name in classes))


def is_empty(file: FileRef) -> bool:
    """Return whether a file holds nothing, or only zeros, as a transfer leaves it that broke off."""
    with file.open() as stream:
        return not stream.read(EMPTY_BYTES).strip(b"\0")


def _looks_like_dicom(stream: IO[bytes]) -> bool:
    """Return whether a stream starts like DICOM: with a preamble, or right away with a group that comes first."""
    start = stream.read(132)
    stream.seek(0)
    if start[128:132] == DICOM_MAGIC:
        return True
    if len(start) < 16:
        return False
    group, element = struct.unpack("<HH", start[:4])
    if group == 0x0800 and start[4:6] in _SHORT_VRS:
        return True  # big endian
    length = struct.unpack("<I", start[4:8])[0]
    return group in (0x0002, 0x0008) and element < 0x1000 and (start[4:6] in _SHORT_VRS or length < 4096)


def _parse(file: FileRef, stream: IO[bytes]) -> Header | None:
    parser = HeaderParser(stream, HEADER_TAGS)
    dataset = parser.elements()
    values = HeaderValues(dataset)
    sop_class = values.text("SOPClassUID") or str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    if is_one_of(sop_class, NOT_IMAGE_CLASSES):
        return _header_of_parts(file, values, (sop_class, dataset), (_image_plane(values, 0),), PixelPlace(), parser)
    dataset.update(parser.further_elements())
    if not sop_class and not values.text("Modality") and "Rows" not in dataset:
        return _nothing_in(dataset)
    shared = HeaderValues(first_item(dataset, Tag(SHARED_GROUPS)), behind=values)
    groups = parser.frame_groups(_most_groups(values))
    planes = tuple(_image_plane(HeaderValues(group, behind=shared), index) for index, group in enumerate(groups))
    pixels = parser.pixel_place()
    is_deflated = dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    if pixels.length is None and not is_deflated and _is_cut_off(dataset, sop_class, parser.end, file.size):
        raise UnreadableFileError
    header = _header_of_parts(file, values, (sop_class, dataset), planes or (_image_plane(values, 0),), pixels, parser)
    return replace(header, is_padded=True) if _is_padded(header, stream) else header


def _is_padded(header: Header, stream: IO[bytes]) -> bool:
    """Return whether raw pixel data are longer than the header says because padding follows them."""
    numbers = (header.rows or 0, header.columns or 0, (header.bits_allocated or 0) // 8, header.frames)
    if header.pixel_offset is None or not header.pixel_bytes or header.pixel_bytes < 0 or min(numbers) < 1:
        return False
    layout = RawLayout(*numbers)
    if layout.pixel_bytes not in (1, 2, 4) or not layout.bytes + 1 < header.pixel_bytes < 2 * layout.bytes:
        return False
    return is_padding(stream, header.pixel_offset, header.pixel_bytes, layout)


def _most_groups(values: HeaderValues) -> int:
    """Return how many groups of frames to read: one more than there are frames, so that too many are seen.

    Raises:
        TooLargeError: there are too many frames.
    """
    frames = values.integer("NumberOfFrames")
    if frames is not None and frames < 1:
        values.malformed.add("NumberOfFrames")
    if frames is not None and frames > MOST_FRAMES:
        raise TooLargeError(f"says that it has {frames} frames, more than the {MOST_FRAMES} of any volume")
    return max(frames or 1, 1) + 1


def _header_of_parts(
    file: FileRef,
    values: HeaderValues,
    found: tuple[str, FileDataset],
    planes: tuple[ImagePlane, ...],
    pixels: PixelPlace,
    parser: HeaderParser,
) -> Header:
    """Put together what was found: values, SOP class and data set, planes and the place of the pixels."""
    sop_class, dataset = found
    if parser.has_bad_character_set:
        values.malformed.add("SpecificCharacterSet")
    return Header(
        file=file,
        size=file.size,
        transfer_syntax_uid=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        sop_class_uid=sop_class,
        sop_instance_uid=values.text("SOPInstanceUID"),
        study_uid=values.text("StudyInstanceUID"),
        series_uid=values.text("SeriesInstanceUID"),
        frame_of_reference_uid=values.text("FrameOfReferenceUID"),
        patient=(values.hashed("PatientID"), values.hashed("PatientName"), values.hashed("PatientBirthDate")),
        modality=values.text("Modality").upper(),
        image_type=tuple(part.strip().upper() for part in values.text("ImageType").split("\\") if part.strip()),
        description=values.decoded("SeriesDescription"),
        series_number=values.integer("SeriesNumber"),
        instance_number=values.integer("InstanceNumber"),
        acquisition_number=values.integer("AcquisitionNumber"),
        acquisition=values.hashed(*ACQUISITION_SETTINGS),
        settings=tuple(map(values.number_or_hash, ACQUISITION_SETTINGS)),
        is_3d=values.text("MRAcquisitionType").upper() == "3D",
        concatenation=_concatenation(values),
        rows=values.integer("Rows"),
        columns=values.integer("Columns"),
        frames=max(values.integer("NumberOfFrames") or 1, 1),
        samples_per_pixel=values.integer("SamplesPerPixel"),
        photometric=values.text("PhotometricInterpretation").upper(),
        bits_allocated=values.integer("BitsAllocated"),
        bits_stored=values.integer("BitsStored"),
        high_bit=values.integer("HighBit"),
        pixel_representation=values.integer("PixelRepresentation"),
        padding_value=values.integer("PixelPaddingValue"),
        padding_limit=values.integer("PixelPaddingRangeLimit"),
        gantry_tilt_deg=values.number("GantryDetectorTilt"),
        mosaic_count=values.private_number(*SIEMENS_MOSAIC_COUNT),
        acquisition_matrix=values.numbers("AcquisitionMatrix", 4),
        is_lossy=values.text("LossyImageCompression") == "01",
        has_contrast=bool(values.text("ContrastBolusAgent")) or "ContrastBolusAgentSequence" in dataset,
        has_modality_lut="ModalityLUTSequence" in dataset,
        pixel_offset=pixels.offset,
        pixel_bytes=pixels.length,
        is_little_endian=parser.is_little_endian,
        has_float_pixels=pixels.is_float,
        overlay_bits=_overlay_bits(values),
        malformed=tuple(sorted(values.malformed)),
        planes=planes,
    )


def _concatenation(values: HeaderValues) -> Concatenation | None:
    uid = values.text("ConcatenationUID")
    keywords = ("InConcatenationNumber", "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber")
    return Concatenation(uid, *map(values.integer, keywords)) if uid else None


def _overlay_bits(values: HeaderValues) -> int:
    """Return a mask of the bits beside the values of the pixels that hold overlays (PS3.3 C.9.2, retired)."""
    bits = 0
    for group in OVERLAYS:
        allocated, position = (values.own_number(group << 16 | element) for element in (0x0100, 0x0102))
        if allocated is not None and position is not None and allocated > 1:
            bits |= 1 << int(position)
    return bits


def _nothing_in(dataset: Dataset) -> Header | None:
    """Return None for a file without any trace of an image, that only looked like DICOM.

    Raises:
        UnreadableFileError: it starts with the preamble of DICOM, so it was one.
    """
    if getattr(dataset, "preamble", None):
        raise UnreadableFileError
    return None


def _is_cut_off(dataset: Dataset, sop_class_uid: str, end: int | None, size: int) -> bool:
    """Return whether a file without pixel data ends within its header; pydicom reads what is there without a word."""
    return (sop_class_uid in IMAGE_CLASSES and "Rows" not in dataset) or end not in (None, size)


def image_planes(dataset: Dataset) -> tuple[ImagePlane, ...]:
    """Return what a whole header says about its image planes, one for each frame; call it inside `quiet_pydicom`.

    A frame's own groups stand before the shared ones.
    """
    values = HeaderValues(dataset)
    shared = HeaderValues(first_item(dataset, Tag(SHARED_GROUPS)), behind=values)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    planes = tuple(_image_plane(HeaderValues(group, behind=shared), index) for index, group in enumerate(groups))
    return planes or (_image_plane(values, 0),)


def _image_plane(values: HeaderValues, frame: int) -> ImagePlane:
    return ImagePlane(
        frame=frame,
        position_lps_mm=values.numbers("ImagePositionPatient", 3, inside="PlanePositionSequence"),
        orientation_lps=values.numbers("ImageOrientationPatient", 6, inside="PlaneOrientationSequence"),
        pixel_spacing_mm=values.numbers("PixelSpacing", 2, inside="PixelMeasuresSequence"),
        slope=values.number("RescaleSlope", inside="PixelValueTransformationSequence"),
        intercept=values.number("RescaleIntercept", inside="PixelValueTransformationSequence"),
        thickness_mm=values.number("SliceThickness", inside="PixelMeasuresSequence"),
        spacing_between_slices_mm=values.number("SpacingBetweenSlices", inside="PixelMeasuresSequence"),
        echo_time_ms=_either(values.number("EchoTime"), values.number("EffectiveEchoTime", inside="MREchoSequence")),
        b_value=_b_value(values),
        temporal_position=_either(
            values.integer("TemporalPositionIdentifier"),
            values.integer("TemporalPositionIndex", inside="FrameContentSequence"),
        ),
        trigger_time_ms=_either(
            values.number("TriggerTime"),
            values.number("NominalCardiacTriggerDelayTime", inside="CardiacSynchronizationSequence"),
        ),
        stack=values.text("StackID", inside="FrameContentSequence"),
        rescale_type=values.text("RescaleType", inside="PixelValueTransformationSequence").upper(),
        acquired_s=_either(
            values.seconds("FrameAcquisitionDateTime", inside="FrameContentSequence"),
            values.seconds("AcquisitionDateTime"),
            values.seconds("AcquisitionDate", "AcquisitionTime"),
        ),
        made_s=values.seconds("ContentDate", "ContentTime"),
    )


def _b_value(values: HeaderValues) -> float | None:
    standard = values.number("DiffusionBValue", inside="MRDiffusionSequence")
    vendors = (values.private_number(*place) for place in PRIVATE_B_VALUES)
    found = _either(standard, *vendors)
    return None if found is None else found % GE_B_VALUE_OFFSET


def _either(*found: Any) -> Any:
    return next((value for value in found if value is not None), None)
