"""What one DICOM file says about its images, read without their pixels and without anything that names a patient."""

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath
from typing import IO, Any

from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from voxelgate.dicom.read.dicom_files import DICOM_MAGIC, FileRef

PIXEL_DATA_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
"""Pixel Data, Float Pixel Data and Double Float Pixel Data (PS3.3 C.7.6.24)."""

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".zip")
"""Endings of files that should be, or hold, DICOM: if they are not, something is lost."""

EMPTY_BYTES = 1024
"""Zeros at the start of a file that show that nothing was written into it; a preamble has 128."""

UNDEFINED_LENGTH = 0xFFFFFFFF
"""Length of pixel data that are encapsulated, frame by frame (PS3.5 A.4)."""

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

IMAGE_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "128", "128.1", "130")
)
"""CT, MR and PET images, also enhanced and legacy converted (PS3.4 table B.5-1)."""

_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"UN")
_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)

_BINARY_FORMATS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}

Vector = tuple[float, ...]
Element = DataElement | RawDataElement


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
        pixel_offset: byte at which the value of Pixel Data starts, or None without or where it is deflated.
        pixel_bytes: its length in bytes, -1 if encapsulated, None without pixel data.
        is_little_endian: byte order of the pixels.
        has_float_pixels: whether Float or Double Float Pixel Data stand in the place of Pixel Data.
        malformed: keywords of values that are not what their type demands.
        planes: one for each frame.
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
    malformed: tuple[str, ...]
    planes: tuple[ImagePlane, ...]

    def __repr__(self) -> str:
        return f"Header(instance {self.instance_number}: {self.rows} x {self.columns}, {self.frames} frames)"


class UnreadableFileError(Exception):
    """A file is DICOM by its first bytes, or was named as such, but cannot be read."""


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
    except Exception as error:  # pydicom raises nearly anything on damaged input
        raise UnreadableFileError from error
    if PurePath(file.member or file.path).suffix.lower() in DICOM_SUFFIXES:
        raise UnreadableFileError
    return None


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
    dataset = dcmread(stream, stop_before_pixels=True, force=True)
    values = _Values(dataset)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    sop_class = values.text("SOPClassUID") or str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    if not sop_class and not values.text("Modality") and "Rows" not in dataset:
        return _nothing_in(dataset)
    offset, length, is_float = _pixels(stream, dataset, syntax)
    size = file.size
    if length is None and syntax != DeflatedExplicitVRLittleEndian and _is_cut_off(dataset, sop_class, size):
        raise UnreadableFileError
    frames, planes = _frames(dataset, values)
    return Header(
        file=file,
        size=size,
        transfer_syntax_uid=syntax,
        sop_class_uid=sop_class,
        sop_instance_uid=values.text("SOPInstanceUID"),
        study_uid=values.text("StudyInstanceUID"),
        series_uid=values.text("SeriesInstanceUID"),
        frame_of_reference_uid=values.text("FrameOfReferenceUID"),
        patient=(values.hashed("PatientID"), values.hashed("PatientName"), values.hashed("PatientBirthDate")),
        modality=values.text("Modality").upper(),
        image_type=tuple(part.strip().upper() for part in values.text("ImageType").split("\\") if part.strip()),
        description=values.text("SeriesDescription"),
        series_number=values.integer("SeriesNumber"),
        instance_number=values.integer("InstanceNumber"),
        acquisition_number=values.integer("AcquisitionNumber"),
        acquisition=values.hashed(*ACQUISITION_SETTINGS),
        rows=values.integer("Rows"),
        columns=values.integer("Columns"),
        frames=frames,
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
        pixel_offset=offset,
        pixel_bytes=length,
        is_little_endian=bool(dataset.original_encoding[1]),
        has_float_pixels=is_float,
        malformed=tuple(sorted(values.malformed)),
        planes=planes,
    )


def _nothing_in(dataset: Dataset) -> Header | None:
    """Return None for a file without any trace of an image, that only looked like DICOM.

    Raises:
        UnreadableFileError: it starts with the preamble of DICOM, so it was one.
    """
    if getattr(dataset, "preamble", None):
        raise UnreadableFileError
    return None


def _is_cut_off(dataset: Dataset, sop_class_uid: str, size: int) -> bool:
    """Return whether a file without pixel data ends within its header; pydicom reads what is there without a word."""
    if sop_class_uid in IMAGE_CLASSES and "Rows" not in dataset:
        return True
    elements: list[Element | None] = [dataset.get_item(tag) for tag in dataset.keys()]  # noqa: SIM118 - decodes none
    if any(element is not None and element.VR == "SQ" and isinstance(element, DataElement) for element in elements):
        return False  # a sequence without a length of its own may be the last
    ends = [element.value_tell + element.length for element in elements if isinstance(element, RawDataElement)]
    return max(ends, default=0) != size


def _pixels(stream: IO[bytes], dataset: Dataset, syntax: str) -> tuple[int | None, int | None, bool]:
    """Return offset and length of the pixel data, in front of which pydicom stopped, and whether they are floats."""
    if syntax == DeflatedExplicitVRLittleEndian:
        return None, -1 if "Rows" in dataset else None, False
    head = stream.read(12)
    is_implicit, is_little = dataset.original_encoding
    order = "<" if is_little else ">"
    if len(head) < 8:
        return None, None, False
    group, element = struct.unpack(f"{order}HH", head[:4])
    tag = group << 16 | element
    if tag not in PIXEL_DATA_TAGS:
        return None, None, False
    at = stream.tell() - len(head)
    if (
        head[4:6] in _LONG_VRS and len(head) == 12
    ):  # whatever the meta header says: lengths are even, and these would be odd ones
        offset, length = at + 12, struct.unpack(f"{order}I", head[8:12])[0]
    elif is_implicit:
        offset, length = at + 8, struct.unpack(f"{order}I", head[4:8])[0]
    else:
        offset, length = at + 8, struct.unpack(f"{order}H", head[6:8])[0]
    return offset, -1 if length == UNDEFINED_LENGTH else length, tag != PIXEL_DATA_TAGS[0]


def image_planes(dataset: Dataset) -> tuple[ImagePlane, ...]:
    """Return what a header says about its image planes, one for each frame; call it inside `quiet_pydicom`."""
    return _frames(dataset, _Values(dataset))[1]


def _frames(dataset: Dataset, values: "_Values") -> tuple[int, tuple[ImagePlane, ...]]:
    """Return the number of frames, and what is said of each; a frame's own groups stand before the shared ones."""
    frames = values.integer("NumberOfFrames")
    if frames is not None and frames < 1:
        values.malformed.add("NumberOfFrames")
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    planes = tuple(
        _image_plane(_Values(group, shared, dataset, malformed=values.malformed), index)
        for index, group in enumerate(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    )
    return max(frames or 1, 1), planes or (_image_plane(values, 0),)


def _image_plane(values: "_Values", frame: int) -> ImagePlane:
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
    )


def _b_value(values: "_Values") -> float | None:
    standard = values.number("DiffusionBValue", inside="MRDiffusionSequence")
    vendors = (values.private_number(*place) for place in PRIVATE_B_VALUES)
    found = _either(standard, *vendors)
    return None if found is None else found % GE_B_VALUE_OFFSET


def _either(*found: Any) -> Any:
    return next((value for value in found if value is not None), None)


def _first(sequence: Sequence[Dataset] | None) -> Dataset:
    return sequence[0] if sequence else Dataset()


class _Values:
    """Values of a data set, or of a frame's groups, the shared groups and the data set behind them.

    Texts and numbers are taken from the bytes as they stand, since pydicom's own conversion warns with the value in
    the text, and takes twice the time.

    Args:
        datasets: where to look, in this order.
        malformed: keywords of bad values are added here.
    """

    def __init__(self, *datasets: Dataset, malformed: set[str] | None = None) -> None:
        self.datasets = datasets
        self.malformed: set[str] = set() if malformed is None else malformed

    def text(self, keyword: str, *, inside: str = "") -> str:
        """Return a text, stripped; empty if missing."""
        return _as_text(self._element(keyword, inside))

    def hashed(self, *keywords: str) -> str:
        """Return a hash of texts, regardless of case and spacing; empty if all are."""
        texts = [" ".join(self.text(keyword).replace("^", " ").casefold().split()) for keyword in keywords]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] if any(texts) else ""

    def numbers(self, keyword: str, count: int, *, inside: str = "") -> Vector | None:
        """Return `count` finite numbers, or None."""
        element = self._element(keyword, inside)
        try:
            found = _as_numbers(element)
        except (ValueError, struct.error):
            found = (math.nan,)
        if not found:
            return None
        if len(found) != count or not all(math.isfinite(value) for value in found):
            self.malformed.add(keyword)
            return None
        return found

    def number(self, keyword: str, *, inside: str = "") -> float | None:
        """Return the only number, or None."""
        found = self.numbers(keyword, 1, inside=inside)
        return None if found is None else found[0]

    def integer(self, keyword: str, *, inside: str = "") -> int | None:
        """Return the only number, if it is whole, or None."""
        found = self.number(keyword, inside=inside)
        if found is not None and found != int(found):
            self.malformed.add(keyword)
            return None
        return None if found is None else int(found)

    def private_number(self, creator: str, group: int, element: int, vr: str) -> float | None:
        """Return the first number of a private element, or None; implicit encodings do not say its type `vr`."""
        for dataset in self.datasets:
            tag = _private_tag(dataset, creator, group, element)
            if tag is not None and tag in dataset:
                try:
                    found = next(iter(_as_numbers(dataset.get_item(tag), vr)), math.nan)
                except (ValueError, struct.error):
                    return None
                return found if math.isfinite(found) else None
        return None

    def _element(self, keyword: str, inside: str) -> Element | None:
        tag = _tag(keyword)
        for dataset in self.datasets:
            place = _first(dataset[_tag(inside)].value) if inside and _tag(inside) in dataset else dataset
            if tag in place:
                return place.get_item(tag)
        return None


def _private_tag(dataset: Dataset, creator: str, group: int, element: int) -> int | None:
    """Return the tag of a private element; its block is where the creator's name stands (PS3.5 7.8.1)."""
    tags = dataset.keys()
    blocks = [tag & 0xFF for tag in tags if tag >> 16 == group and 0x10 <= tag & 0xFFFF <= 0xFF]
    named = (block for block in blocks if _as_text(dataset.get_item(group << 16 | block)) == creator)
    return next((group << 16 | block << 8 | element for block in named), None)


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def _as_text(element: Element | None) -> str:
    if element is None or element.value is None:
        return ""
    if isinstance(element.value, bytes):
        return element.value.decode("latin-1").strip(" \0")
    if isinstance(element.value, MultiValue):
        return "\\".join(str(part) for part in element.value)
    return str(element.value).strip()


def _as_numbers(element: Element | None, private_vr: str = "") -> Vector:
    """Return all numbers of an element.

    Raises:
        ValueError: it holds none.
    """
    if element is None or element.value is None:
        return ()
    if not isinstance(element.value, bytes):
        several = isinstance(element.value, Iterable) and not isinstance(element.value, str)
        return tuple(float(part) for part in (element.value if several else (element.value,)))
    code = _BINARY_FORMATS.get(_vr(element, private_vr))
    if code is not None:
        order = "<" if isinstance(element, RawDataElement) and element.is_little_endian else ">"
        return tuple(float(part) for (part,) in struct.iter_unpack(f"{order}{code}", element.value))
    text = element.value.decode("latin-1").strip(" \0")
    if "_" in text:
        raise ValueError("an underscore, which Python's numbers may have")
    return tuple(float(part) for part in text.split("\\")) if text else ()


def _vr(element: Element, private_vr: str) -> str:
    """Return the type of an element, from the dictionary where the encoding does not say it."""
    if element.VR not in (None, "UN"):
        return str(element.VR)
    if private_vr:
        return private_vr
    vr = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "UN"
    return vr.split(" ", maxsplit=1)[0]
