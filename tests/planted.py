"""Small synthetic DICOM series without fault, and a table of faults that can be planted into them."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import cos, radians, sin
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

from voxelgate.core.findings import Allow, FindingCode, Severity

ROOT = "1.2.826.0.1.3680043.10.1357"
"""Root of all UIDs made here, so that a test can tell that none is shown."""

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
PET_IMAGE = "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"

SLICES, ROWS, COLUMNS = 12, 32, 40
SPACING_MM, GAP_MM = 0.75, 2.5
ORIGIN_LPS_MM = (-15.0, -12.0, 100.0)

CANARY = "Zyxwvut^Kanari"
"""Stands where a patient's name could; no message may hold any part of it."""


def phantom_hu(index: int) -> np.ndarray:
    """Return one slice of air, soft tissue and bone, (rows, columns) int16 HU; no two slices are alike."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    from_centre = np.hypot((rows - ROWS / 2) / ROWS, (columns - COLUMNS / 2) / COLUMNS)
    values = np.full((ROWS, COLUMNS), -1000, np.int16)
    values[from_centre < 0.4] = 30 + index
    values[from_centre < 0.1] = 700 + index
    values[0, 0] = -990 + index
    return values


def ct_series(count: int = SLICES, series: int = 1) -> list[Dataset]:
    """Return axial CT slices from the feet upwards, as CT Image Storage demands them (PS3.3 A.3)."""
    return [_ct_slice(index, series) for index in range(count)]


def mr_series(count: int = SLICES, series: int = 2) -> list[Dataset]:
    """Return the same slices as MR images (PS3.3 A.4), without any rescaling."""
    return [_as_mr(dataset) for dataset in ct_series(count, series)]


def pet_series(count: int = SLICES, series: int = 3) -> list[Dataset]:
    """Return the same slices as PET images, each with a slope of its own."""
    found = []
    for index, dataset in enumerate(ct_series(count, series)):
        _of_class(dataset, PET_IMAGE, "PT")
        dataset.update({"RescaleSlope": f"{1 + index / 8}", "RescaleIntercept": "0", "Units": "BQML"})
        found.append(dataset)
    return found


def enhanced_series(count: int = SLICES, volumes: int = 1) -> list[Dataset]:
    """Return one enhanced multi-frame MR image of so many slices and volumes, with a slope for each frame."""
    slices = mr_series(count, series=4)
    dataset = slices[0]
    _of_class(dataset, ENHANCED_MR, "MR")
    places = [(part.ImagePositionPatient, volume) for part in slices for volume in range(volumes)]
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    measures.update({"PixelSpacing": dataset.PixelSpacing, "SliceThickness": "2.5", "SpacingBetweenSlices": "2.5"})
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Items([orientation]), Items([measures])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.PerFrameFunctionalGroupsSequence = Items(
        [_frame_groups(place, index // volumes + 1, volume + 1) for index, (place, volume) in enumerate(places)]
    )
    dataset.NumberOfFrames = len(places)
    dataset.PixelData = b"".join(part.PixelData for part in slices for _ in range(volumes))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "EchoTime"):
        del dataset[keyword]
    return [dataset]


def _frame_groups(position: Sequence[float], place: int, volume: int) -> Dataset:
    groups, content, plane, values, echo = (Dataset() for _ in range(5))
    content.update({"StackID": "1", "InStackPositionNumber": place, "TemporalPositionIndex": volume})
    plane.ImagePositionPatient = position
    values.update({"RescaleSlope": f"{1 + place / 4}", "RescaleIntercept": "0", "RescaleType": "US"})
    echo.EffectiveEchoTime = 30.0
    groups.FrameContentSequence, groups.PlanePositionSequence = Items([content]), Items([plane])
    groups.PixelValueTransformationSequence, groups.MREchoSequence = Items([values]), Items([echo])
    return groups


def _ct_slice(index: int, series: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.update(
        {
            "SpecificCharacterSet": "ISO_IR 100",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "SOPInstanceUID": f"{ROOT}.{series}.{index + 1}",
            "StudyDate": "20240102",
            "StudyTime": "101112",
            "AccessionNumber": "",
            "Manufacturer": "Planted",
            "ReferringPhysicianName": "",
            "PatientName": "Test^Phantom",
            "PatientID": "phantom-1",
            "PatientBirthDate": "19700101",
            "PatientSex": "O",
            "SliceThickness": "2.5",
            "KVP": "120",
            "EchoTime": None,
            "PatientPosition": "HFS",
            "StudyInstanceUID": f"{ROOT}.0",
            "SeriesInstanceUID": f"{ROOT}.{series}",
            "StudyID": "1",
            "SeriesNumber": series,
            "AcquisitionNumber": 1,
            "InstanceNumber": index + 1,
            "ImagePositionPatient": [*ORIGIN_LPS_MM[:2], ORIGIN_LPS_MM[2] + GAP_MM * index],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "FrameOfReferenceUID": f"{ROOT}.0.1",
            "PositionReferenceIndicator": "",
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": ROWS,
            "Columns": COLUMNS,
            "PixelSpacing": [SPACING_MM, SPACING_MM],
            "BitsAllocated": 16,
            "BitsStored": 12,
            "HighBit": 11,
            "PixelRepresentation": 0,
            "RescaleIntercept": "-1024",
            "RescaleSlope": "1",
            "RescaleType": "HU",
        }
    )
    del dataset["EchoTime"]
    dataset.PixelData = (phantom_hu(index) + 1024).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    _of_class(dataset, CT_IMAGE, "CT")
    return dataset


def _as_mr(dataset: Dataset) -> Dataset:
    _of_class(dataset, MR_IMAGE, "MR")
    for keyword in ("KVP", "RescaleSlope", "RescaleIntercept", "RescaleType"):
        del dataset[keyword]
    dataset.update(
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
            "ScanningSequence": "GR",
            "SequenceVariant": "SP",
            "ScanOptions": "",
            "MRAcquisitionType": "2D",
            "RepetitionTime": "500",
            "EchoTime": "10",
            "EchoTrainLength": "1",
            "SpacingBetweenSlices": str(GAP_MM),
            "AcquisitionMatrix": [0, ROWS, ROWS, 0],
        }
    )
    return dataset


def _of_class(dataset: Dataset, sop_class_uid: str, modality: str) -> None:
    dataset.SOPClassUID, dataset.Modality = sop_class_uid, modality
    dataset.file_meta.MediaStorageSOPClassUID = sop_class_uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def write(datasets: Iterable[Dataset], folder: Path, *, prefix: str = "IM") -> list[Path]:
    """Write data sets into a folder, one file each, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, dataset in enumerate(datasets, start=1):
        dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "")
        path = folder / f"{prefix}{number:04d}"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


Plant = Callable[[list[Dataset]], list[Dataset]]


@dataclass(frozen=True)
class Fault:
    """Something that can be wrong with a series, or that only looks so.

    Args:
        name: a sentence.
        plant: changes data sets and returns those of the faulty series.
        expected: code and severity of every finding; empty for a harmless variant.
        base: makes the series without fault.
        damage: what is done to the files afterwards.
        allow: what the audit is told to allow.
    """

    name: str
    plant: Plant
    expected: tuple[tuple[FindingCode, Severity], ...] = ()
    base: Callable[[], list[Dataset]] = ct_series
    damage: Callable[[list[Path]], None] = len
    allow: tuple[Allow, ...] = ()

    def write(self, folder: Path) -> list[Path]:
        """Write the faulty series."""
        paths = write(self.plant(self.base()), folder)
        self.damage(paths)
        return paths


def setting(keyword: str, value: object, *, on: Sequence[int] | None = None) -> Plant:
    """Return a plant that sets an attribute of all data sets or of some; a function gives each its own."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for index in range(len(datasets)) if on is None else on:
            chosen = value(index) if callable(value) else value
            datasets[index].update({keyword: deepcopy(chosen)})
        return datasets

    return plant


def deleting(*keywords: str, on: Sequence[int] | None = None) -> Plant:
    """Return a plant that takes attributes away."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for index in range(len(datasets)) if on is None else on:
            for keyword in keywords:
                del datasets[index][keyword]
        return datasets

    return plant


def raw(keyword: str, text: bytes, *, on: Sequence[int] = (4,)) -> Plant:
    """Return a plant that writes bytes as they are, which pydicom would refuse as a value."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for index in on:
            element = datasets[index][keyword]
            element._value = text.decode("latin-1")
        return datasets

    return plant


def chained(*plants: Plant) -> Plant:
    """Return a plant that does several things in turn."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for step in plants:
            datasets = step(datasets)
        return datasets

    return plant


def at_mm(*positions_mm: float) -> Plant:
    """Return a plant that moves the slices to these heights, and drops the rest."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for dataset, height_mm in zip(datasets, positions_mm, strict=False):
            dataset.ImagePositionPatient = [*ORIGIN_LPS_MM[:2], height_mm]
        return datasets[: len(positions_mm)]

    return plant


def moved(offsets_mm: Callable[[int], tuple[float, float, float]]) -> Plant:
    """Return a plant that moves each slice by some mm in LPS."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for index, dataset in enumerate(datasets):
            position = np.array(dataset.ImagePositionPatient, float) + offsets_mm(index)
            dataset.ImagePositionPatient = [float(f"{value:.6f}") for value in position]
        return datasets

    return plant


def without(*indices: int) -> Plant:
    """Return a plant that loses slices."""
    return lambda datasets: [dataset for index, dataset in enumerate(datasets) if index not in indices]


def tilted(angle_deg: float, *, tag: float | None = None, corrected: bool = False) -> Plant:
    """Return a plant that tilts the gantry about the row direction; the table still moves along z."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        normal = np.array((0, -sin(radians(angle_deg)), cos(radians(angle_deg))))
        for index, dataset in enumerate(datasets):
            dataset.ImageOrientationPatient = [1, 0, 0, 0, round(normal[2], 6), round(-normal[1], 6)]
            if corrected:
                dataset.ImagePositionPatient = [round(v, 6) for v in np.array(ORIGIN_LPS_MM) + GAP_MM * index * normal]
            if tag is not None:
                dataset.GantryDetectorTilt = str(tag)
        return datasets

    return plant


def repeated(times: int, keyword: str = "", values: Sequence[object] = ()) -> Plant:
    """Return a plant that puts several different images at each position, told apart by an attribute, or by nothing."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        found = []
        for number in range(times):
            for dataset in datasets:
                other = different(dataset, 100 * number)
                if keyword:
                    other.update({keyword: values[number]})
                found.append(other)
        return found

    return plant


def different(dataset: Dataset, number: int) -> Dataset:
    """Return another image at the same place; the same for number 0."""
    other = deepcopy(dataset)
    if number:
        other.SOPInstanceUID = f"{dataset.SOPInstanceUID}.{number}"
        other.InstanceNumber = dataset.InstanceNumber + number
        other.PixelData = (np.frombuffer(dataset.PixelData, "<u2") + 1).tobytes()
    return other


def with_canaries(datasets: list[Dataset]) -> list[Dataset]:
    """Write a canary into every text where names could stand; whatever fault there is stays what it was."""
    texts = (
        "PatientName PatientID StudyDescription SeriesDescription ProtocolName ImageComments InstitutionName "
        "StationName ReferringPhysicianName OperatorsName PatientComments AccessionNumber StudyID Manufacturer "
        "ContrastBolusAgent"
    )
    for dataset in datasets:
        for keyword in texts.split():
            dataset.update({keyword: f"{CANARY}{dataset.get(keyword, '')}"})
    return datasets


def interleaved(keyword: str, *values: object) -> Plant:
    """Return a plant that gives neighbouring slices the values in turn."""
    return setting(keyword, lambda index: values[index % len(values)])


def as_class(sop_class_uid: str, modality: str, *, keeps_pixels: bool = True) -> Plant:
    """Return a plant that turns images into objects of another kind."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for dataset in datasets:
            _of_class(dataset, sop_class_uid, modality)
            if not keeps_pixels:
                for keyword in ("Rows", "Columns", "PixelData", "ImagePositionPatient", "PhotometricInterpretation"):
                    del dataset[keyword]
        return datasets

    return plant


def private(group: int, creator: str, element: int, vr: str, values: Sequence[object]) -> Plant:
    """Return a plant that writes a vendor's element, one value a data set."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for dataset, value in zip(datasets, values, strict=True):
            dataset.private_block(group, creator, create=True).add_new(element, vr, value)
        return datasets

    return plant


def resized(rows: int, columns: int, *, on: Sequence[int] | None = None, spacing_mm: float = SPACING_MM) -> Plant:
    """Return a plant that makes images of another size."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for index in range(len(datasets)) if on is None else on:
            dataset = datasets[index]
            dataset.update({"Rows": rows, "Columns": columns, "PixelSpacing": [spacing_mm, spacing_mm]})
            dataset.PixelData = np.resize(np.frombuffer(dataset.PixelData, "<u2"), rows * columns).tobytes()
        return datasets

    return plant


def raw_padding(value: int) -> Plant:
    """Return a plant that writes padding as implicit encodings are read: as an unsigned number."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for dataset in datasets:
            dataset.add_new("PixelPaddingValue", "US", value)
        return datasets

    return plant


def encapsulated(transfer_syntax_uid: str, frame: bytes = b"\0" * 64) -> Plant:
    """Return a plant that says that the pixels are encoded; they are not, but headers do not tell."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for dataset in datasets:
            dataset.file_meta.TransferSyntaxUID = transfer_syntax_uid
            dataset.PixelData = encapsulate([frame])
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
        return datasets

    return plant


def cut_by(count: int) -> Callable[[list[Path]], None]:
    """Return damage that takes bytes off the end of the fourth file."""

    def damage(paths: list[Path]) -> None:
        paths[3].write_bytes(paths[3].read_bytes()[:-count])

    return damage


def with_bytes(old: bytes, new: bytes, *, on: Sequence[int] | None = None) -> Callable[[list[Path]], None]:
    """Return damage that changes some bytes of all files or of some."""

    def damage(paths: list[Path]) -> None:
        for index in range(len(paths)) if on is None else on:
            content = paths[index].read_bytes()
            assert old in content
            paths[index].write_bytes(content.replace(old, new))

    return damage


def in_parts(*sizes: int, uid: str = f"{ROOT}.4.0") -> Plant:
    """Return a plant that cuts one multi-frame image into the parts of a concatenation (PS3.3 C.7.6.16.2.2.4)."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        (whole,) = datasets
        frame_bytes = whole.Rows * whole.Columns * whole.BitsAllocated // 8
        parts, start = [], 0
        for number, size in enumerate(sizes, start=1):
            part = deepcopy(whole)
            part.PerFrameFunctionalGroupsSequence = Items(whole.PerFrameFunctionalGroupsSequence[start : start + size])
            part.PixelData = whole.PixelData[start * frame_bytes : (start + size) * frame_bytes]
            part.update({"SOPInstanceUID": f"{ROOT}.4.1.{number}", "NumberOfFrames": size, "InstanceNumber": number})
            part.file_meta.MediaStorageSOPInstanceUID = part.SOPInstanceUID
            part.update({"ConcatenationUID": uid, "InConcatenationNumber": number})
            part.update({"InConcatenationTotalNumber": len(sizes), "ConcatenationFrameOffsetNumber": start})
            parts.append(part)
            start += size
        return parts

    return plant


def in_series_of_their_own(datasets: list[Dataset]) -> list[Dataset]:
    """Give every image a series UID of its own."""
    return setting("SeriesInstanceUID", lambda index: f"{ROOT}.1.{index + 1}")(datasets)


def longer_pixels(times: float) -> Plant:
    """Return a plant that makes pixel data of all images shorter or longer than their size says."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for dataset in datasets:
            dataset.PixelData = (dataset.PixelData * 4)[: int(len(dataset.PixelData) * times)]
        return datasets

    return plant


def _padded(datasets: list[Dataset], count: int) -> list[Dataset]:
    for dataset in datasets:
        dataset.PixelData = dataset.PixelData + bytes(count)
    return datasets


def _blackened(datasets: list[Dataset], rows: int) -> list[Dataset]:
    for dataset in datasets:
        dataset.PixelData = dataset.PixelData[: -2 * COLUMNS * rows] + bytes(2 * COLUMNS * rows)
    return datasets


def _in_frames(sequence: str, keyword: str, values: Callable[[int], object]) -> Plant:
    def plant(datasets: list[Dataset]) -> list[Dataset]:
        for index, groups in enumerate(datasets[0].PerFrameFunctionalGroupsSequence):
            if sequence not in groups:
                groups.update({sequence: Items([Dataset()])})
            groups[sequence][0].update({keyword: values(index)})
        return datasets

    return plant


def _float_pixels(datasets: list[Dataset]) -> list[Dataset]:
    for dataset in datasets:
        dataset.FloatPixelData = np.frombuffer(dataset.PixelData, "<u2").astype("<f4").tobytes()
        dataset.update({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31})
        del dataset.PixelData
    return datasets


def in_syntax(transfer_syntax_uid: str) -> Callable[[list[Path]], None]:
    """Return damage that writes another transfer syntax over that of the files, which stay explicit little endian."""

    def damage(paths: list[Path]) -> None:
        for path in paths:
            named = transfer_syntax_uid.encode().ljust(20, b"\0")
            path.write_bytes(path.read_bytes().replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x14\0" + named, 1))

    return damage


def copied(**changes: object) -> Plant:
    """Return a plant that adds a copy of every image with the same pixels but other attributes."""

    def plant(datasets: list[Dataset]) -> list[Dataset]:
        copies = deepcopy(datasets)
        for dataset in copies:
            dataset.update(changes)
        return [*datasets, *copies]

    return plant


def _fewer_groups(datasets: list[Dataset]) -> list[Dataset]:
    del datasets[0].PerFrameFunctionalGroupsSequence[5:]
    return datasets


def _two_files(datasets: list[Dataset]) -> list[Dataset]:
    return [datasets[0], different(datasets[0], 1)]


def _modality_lut(datasets: list[Dataset]) -> list[Dataset]:
    for dataset in datasets:
        table = Dataset()
        table.update({"LUTDescriptor": [2, 0, 16], "ModalityLUTType": "HU"})
        table.add_new("LUTData", "OW", b"\0\0\1\0")
        dataset.ModalityLUTSequence = Items([table])
        del dataset.RescaleSlope, dataset.RescaleIntercept
    return datasets


REFUSE, WARN, NOTE = Severity.REFUSE, Severity.WARN, Severity.NOTE
SHORT = tuple(100 + 0.625 * index for index in range(SLICES))

FAULTS = (
    # whose images
    Fault("two patient IDs", setting("PatientID", "phantom-2", on=[3]), ((FindingCode.SEVERAL_PATIENTS, REFUSE),)),
    Fault(
        "two patient names", setting("PatientName", "Else^Someone", on=[3]), ((FindingCode.SEVERAL_PATIENTS, REFUSE),)
    ),
    Fault(
        "two birth dates", setting("PatientBirthDate", "19710101", on=[3]), ((FindingCode.SEVERAL_PATIENTS, REFUSE),)
    ),
    Fault("two studies", setting("StudyInstanceUID", f"{ROOT}.9", on=[3]), ((FindingCode.SEVERAL_STUDIES, REFUSE),)),
    Fault(
        "two frames of reference",
        setting("FrameOfReferenceUID", f"{ROOT}.9", on=[3, 4]),
        ((FindingCode.SEVERAL_FRAMES_OF_REFERENCE, REFUSE),),
    ),
    Fault("a series UID for each slice", in_series_of_their_own, ((FindingCode.SEVERAL_SERIES, REFUSE),)),
    Fault(
        "a series UID for each slice, to be merged",
        in_series_of_their_own,
        ((FindingCode.SEVERAL_SERIES, WARN),),
        allow=(Allow.MERGE_SERIES,),
    ),
    Fault(
        "a series UID for each slice, of which one is missing",
        chained(in_series_of_their_own, without(5)),
        ((FindingCode.SEVERAL_SERIES, REFUSE), (FindingCode.MISSING_SLICE, REFUSE)),
    ),
    Fault("an empty series UID", setting("SeriesInstanceUID", ""), ((FindingCode.BAD_UID, WARN),)),
    Fault("no frame of reference", deleting("FrameOfReferenceUID"), ((FindingCode.BAD_UID, WARN),)),
    Fault("a frame of reference on some", deleting("FrameOfReferenceUID", on=[2]), ((FindingCode.BAD_UID, WARN),)),
    Fault("a UID with a leading zero", raw("SOPInstanceUID", b"1.2.03.4"), ((FindingCode.BAD_UID, WARN),)),
    Fault("a UID of 65 characters", raw("SOPInstanceUID", b"1.2." + b"3" * 61), ((FindingCode.BAD_UID, WARN),)),
    Fault("a UID of letters", raw("SOPInstanceUID", CANARY.encode()), ((FindingCode.BAD_UID, WARN),)),
    Fault(
        "one UID at two places", setting("SOPInstanceUID", f"{ROOT}.7", on=[3, 8]), ((FindingCode.DUPLICATE_UID, WARN),)
    ),
    Fault(
        "one UID for two images at one place",
        lambda datasets: [*datasets, setting("SOPInstanceUID", f"{ROOT}.1.4")([different(datasets[3], 100)])[0]],
        ((FindingCode.DUPLICATE_POSITION, REFUSE), (FindingCode.DUPLICATE_UID, REFUSE)),
    ),
    # what kind of image
    Fault("a segmentation", as_class(SEGMENTATION, "SEG"), ((FindingCode.NOT_AN_IMAGE, REFUSE),)),
    Fault("a segmentation that says CT", as_class(SEGMENTATION, "CT"), ((FindingCode.NOT_AN_IMAGE, REFUSE),)),
    Fault(
        "a structure set",
        as_class("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT", keeps_pixels=False),
        ((FindingCode.NOT_AN_IMAGE, REFUSE),),
    ),
    Fault(
        "a report",
        as_class("1.2.840.10008.5.1.4.1.1.88.33", "SR", keeps_pixels=False),
        ((FindingCode.NOT_AN_IMAGE, REFUSE),),
    ),
    Fault(
        "a key object selection",
        as_class("1.2.840.10008.5.1.4.1.1.88.59", "KO", keeps_pixels=False),
        ((FindingCode.NOT_AN_IMAGE, REFUSE),),
    ),
    Fault(
        "a presentation state",
        as_class("1.2.840.10008.5.1.4.1.1.11.1", "PR", keeps_pixels=False),
        ((FindingCode.NOT_AN_IMAGE, REFUSE),),
    ),
    Fault(
        "an unknown object without pixels",
        as_class(f"{ROOT}.66", CANARY[:7].upper(), keeps_pixels=False),
        ((FindingCode.NOT_AN_IMAGE, REFUSE),),
    ),
    Fault("an ultrasound", as_class("1.2.840.10008.5.1.4.1.1.6.1", "US"), ((FindingCode.MODALITY, REFUSE),)),
    Fault("no modality", setting("Modality", ""), ((FindingCode.MODALITY, REFUSE),)),
    Fault(
        "a name for a modality", raw("Modality", CANARY.encode(), on=range(SLICES)), ((FindingCode.MODALITY, REFUSE),)
    ),
    Fault("two modalities", setting("Modality", "MR", on=[3]), ((FindingCode.MODALITY, REFUSE),)),
    *(
        Fault(
            f"a secondary capture {part}",
            as_class(f"{SECONDARY_CAPTURE}{part}", "CT"),
            ((FindingCode.SECONDARY_CAPTURE, REFUSE),),
        )
        for part in ("", ".1", ".2", ".3", ".4")
    ),
    Fault(
        "a screen save among slices",
        setting("ImageType", ["DERIVED", "SECONDARY", "SCREEN SAVE"], on=[11]),
        ((FindingCode.SECONDARY_CAPTURE, REFUSE),),
    ),
    Fault(
        "localizers only",
        setting("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        ((FindingCode.LOCALIZER, REFUSE),),
    ),
    Fault(
        "two localizers among slices",
        setting("ImageType", ["ORIGINAL", "PRIMARY", "REF_SURVIEW"], on=[0, 11]),
        ((FindingCode.LOCALIZER, REFUSE),),
    ),
    Fault(
        "a localizer that does not say so",
        setting("ImageOrientationPatient", [1, 0, 0, 0, 0, -1], on=[5]),
        ((FindingCode.LOCALIZER, REFUSE),),
    ),
    Fault(
        "colour",
        chained(setting("PhotometricInterpretation", "RGB"), setting("SamplesPerPixel", 3), longer_pixels(3)),
        ((FindingCode.COLOUR, REFUSE),),
    ),
    Fault("palette colours", setting("PhotometricInterpretation", "PALETTE COLOR"), ((FindingCode.PALETTE, REFUSE),)),
    Fault(
        "MONOCHROME1", setting("PhotometricInterpretation", "MONOCHROME1", on=[2]), ((FindingCode.MONOCHROME1, REFUSE),)
    ),
    Fault(
        "a name for a photometric interpretation",
        raw("PhotometricInterpretation", CANARY.encode()),
        ((FindingCode.BAD_VALUE, REFUSE),),
    ),
    Fault(
        "mosaics",
        setting("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]),
        ((FindingCode.MOSAIC, REFUSE),),
        mr_series,
    ),
    Fault(
        "mosaics by the vendor's count",
        private(0x19, "SIEMENS MR HEADER", 0x0A, "US", [36] * SLICES),
        ((FindingCode.MOSAIC, REFUSE),),
        mr_series,
    ),
    Fault("hidden mosaics", resized(6 * ROWS, 6 * ROWS, spacing_mm=3.3), ((FindingCode.MOSAIC, REFUSE),), mr_series),
    Fault(
        "hidden mosaics without a matrix",
        chained(resized(256, 256, spacing_mm=4.5), deleting("AcquisitionMatrix")),
        ((FindingCode.MOSAIC, REFUSE),),
        mr_series,
    ),
    Fault(
        "a classic image of several frames",
        lambda datasets: chained(setting("NumberOfFrames", 2), longer_pixels(2))(datasets[:1]),
        ((FindingCode.MULTI_FRAME, REFUSE),),
    ),
    Fault(
        "frames without places",
        deleting("PerFrameFunctionalGroupsSequence"),
        ((FindingCode.MULTI_FRAME, REFUSE),),
        enhanced_series,
    ),
    Fault("fewer places than frames", _fewer_groups, ((FindingCode.MULTI_FRAME, REFUSE),), enhanced_series),
    Fault("two multi-frame files", _two_files, ((FindingCode.MULTI_FRAME, REFUSE),), enhanced_series),
    Fault(
        "a concatenation without its first part",
        chained(in_parts(4, 4, 4), without(0)),
        ((FindingCode.CONCATENATION, REFUSE),),
        enhanced_series,
    ),
    Fault(
        "a concatenation without its last part",
        chained(in_parts(6, 6), without(1)),
        ((FindingCode.CONCATENATION, REFUSE),),
        enhanced_series,
    ),
    Fault(
        "a concatenation with a second image in its first part",
        lambda datasets: [*(parts := in_parts(6, 6)(datasets)), different(parts[0], 1)],
        ((FindingCode.CONCATENATION, REFUSE),),
        enhanced_series,
    ),
    Fault(
        "parts that say two totals",
        chained(in_parts(6, 6), setting("InConcatenationTotalNumber", 3, on=[1])),
        ((FindingCode.CONCATENATION, REFUSE),),
        enhanced_series,
    ),
    Fault(
        "parts whose frames overlap",
        chained(in_parts(6, 6), setting("ConcatenationFrameOffsetNumber", 5, on=[1])),
        ((FindingCode.CONCATENATION, REFUSE),),
        enhanced_series,
    ),
    Fault(
        "a part beyond the total",
        chained(in_parts(4, 4, 4), setting("InConcatenationTotalNumber", 2)),
        ((FindingCode.CONCATENATION, REFUSE),),
        enhanced_series,
    ),
    Fault(
        "parts of two concatenations",
        chained(in_parts(6, 6), setting("ConcatenationUID", f"{ROOT}.4.9", on=[1])),
        ((FindingCode.CONCATENATION, REFUSE),),
        enhanced_series,
    ),
    Fault(
        "parts without a total",
        chained(in_parts(6, 6), deleting("InConcatenationTotalNumber")),
        ((FindingCode.CONCATENATION, WARN), (FindingCode.SLOPE_PER_SLICE, NOTE)),
        enhanced_series,
    ),
    Fault("more frames than are told", longer_pixels(3), ((FindingCode.MULTI_FRAME, REFUSE),)),
    Fault("fewer columns than the pixels have", setting("Columns", COLUMNS - 4), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault(
        "fewer columns than the pixels have, and a black end",
        chained(setting("Columns", COLUMNS - 4), lambda datasets: _blackened(datasets, 8)),
        ((FindingCode.BAD_VALUE, REFUSE),),
    ),
    Fault("fewer bits than the highest one", setting("BitsStored", 8), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault(
        "two stacks",
        _in_frames("FrameContentSequence", "StackID", lambda index: str(index % 2)),
        ((FindingCode.SEVERAL_VOLUMES, REFUSE),),
        enhanced_series,
    ),
    Fault("a derived series", setting("ImageType", ["DERIVED", "SECONDARY", "MPR"]), ((FindingCode.DERIVED, NOTE),)),
    Fault("projections", setting("ImageType", ["DERIVED", "SECONDARY", "MIP"]), ((FindingCode.DERIVED, WARN),)),
    Fault("maps", setting("ImageType", ["DERIVED", "PRIMARY", "T1 MAP"]), ((FindingCode.DERIVED, WARN),), mr_series),
    Fault("renderings", setting("ImageType", ["DERIVED", "SECONDARY", "VRT"]), ((FindingCode.DERIVED, REFUSE),)),
    # which geometry
    Fault(
        "a position beyond any table", setting("ImagePositionPatient", [0, 0, 1e17]), ((FindingCode.BAD_VALUE, REFUSE),)
    ),
    Fault(
        "a position of 1e308 mm on the last slice",
        setting("ImagePositionPatient", [0, 0, 1.7e308], on=[SLICES - 1]),
        ((FindingCode.BAD_VALUE, REFUSE),),
    ),
    Fault("pixels of a nanometre", setting("PixelSpacing", ["1e-9", "1e-9"]), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault("pixels of 1e300 mm", setting("PixelSpacing", ["1e300", "1e300"]), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault("every second slice only", lambda datasets: datasets[::2], ((FindingCode.SPARSE_SLICES, WARN),)),
    Fault(
        "first and last slice only", lambda datasets: [datasets[0], datasets[-1]], ((FindingCode.SPARSE_SLICES, WARN),)
    ),
    Fault("no position", deleting("ImagePositionPatient", on=[4]), ((FindingCode.NO_POSITION, REFUSE),)),
    Fault("no orientation", deleting("ImageOrientationPatient"), ((FindingCode.NO_ORIENTATION, REFUSE),)),
    Fault("no pixel spacing", deleting("PixelSpacing", on=[4]), ((FindingCode.NO_PIXEL_SPACING, REFUSE),)),
    Fault(
        "a pixel spacing of 0", setting("PixelSpacing", [0, 0.75], on=[4]), ((FindingCode.NO_PIXEL_SPACING, REFUSE),)
    ),
    Fault("a pixel spacing below 0", setting("PixelSpacing", [0.75, -0.75]), ((FindingCode.NO_PIXEL_SPACING, REFUSE),)),
    Fault("a position of text", raw("ImagePositionPatient", b"0\\0\\here"), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault("a position of 2 numbers", raw("ImagePositionPatient", b"0\\5"), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault("a position without bounds", raw("ImagePositionPatient", b"0\\0\\inf"), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault("a position of digit groups", raw("ImagePositionPatient", b"0\\0\\1_10"), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault(
        "an orientation of 5 numbers",
        raw("ImageOrientationPatient", b"1\\0\\0\\0\\1"),
        ((FindingCode.BAD_VALUE, REFUSE),),
    ),
    Fault("a decimal comma", raw("PixelSpacing", b"0,75\\0,75"), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault("no rows", setting("Rows", 0, on=[4]), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault(
        "directions of length 0", setting("ImageOrientationPatient", [0] * 6), ((FindingCode.BAD_ORIENTATION, REFUSE),)
    ),
    Fault(
        "long directions",
        setting("ImageOrientationPatient", [1.1, 0, 0, 0, 1, 0]),
        ((FindingCode.BAD_ORIENTATION, REFUSE),),
    ),
    Fault(
        "directions off a right angle",
        setting("ImageOrientationPatient", [1, 0, 0, 0.1, 0.994987, 0]),
        ((FindingCode.BAD_ORIENTATION, REFUSE),),
    ),
    Fault(
        "half of the slices tilted",
        setting("ImageOrientationPatient", [1, 0, 0, 0, 0.995, 0.099875], on=range(6)),
        ((FindingCode.MIXED_ORIENTATIONS, REFUSE),),
    ),
    Fault(
        "a slice seen from the other side",
        setting("ImageOrientationPatient", [-1, 0, 0, 0, 1, 0], on=[4]),
        ((FindingCode.MIXED_ORIENTATIONS, REFUSE),),
    ),
    Fault("two sizes", resized(ROWS, COLUMNS - 8, on=[4]), ((FindingCode.MIXED_SIZES, REFUSE),)),
    Fault(
        "two pixel spacings", setting("PixelSpacing", [0.8, 0.8], on=[4]), ((FindingCode.MIXED_PIXEL_SPACINGS, REFUSE),)
    ),
    Fault("pixels that are not square", setting("PixelSpacing", [0.75, 0.5]), ((FindingCode.NON_SQUARE_PIXELS, NOTE),)),
    Fault("a single slice", lambda datasets: datasets[:1], ((FindingCode.SINGLE_SLICE, REFUSE),)),
    Fault("a missing slice", without(5), ((FindingCode.MISSING_SLICE, REFUSE),)),
    Fault("missing slices in two places", without(3, 6, 7), ((FindingCode.MISSING_SLICE, REFUSE),)),
    Fault("a missing slice, to be filled", without(5), ((FindingCode.MISSING_SLICE, WARN),), allow=(Allow.GAPS,)),
    Fault("a missing slice of three", at_mm(100, 105, 115), ((FindingCode.MISSING_SLICE, REFUSE),)),
    Fault(
        "a missing slice among rounded positions",
        chained(at_mm(*(round(value, 1) for value in SHORT)), without(5)),
        ((FindingCode.MISSING_SLICE, REFUSE), (FindingCode.ROUNDED_POSITIONS, WARN)),
    ),
    Fault(
        "a slice out of step",
        moved(lambda index: (0, 0, 0.5 * (index == 5))),
        ((FindingCode.NON_UNIFORM_SPACING, REFUSE),),
    ),
    Fault("two gaps", at_mm(100, 101, 102, 103, 104, 106.5, 109, 111.5), ((FindingCode.NON_UNIFORM_SPACING, REFUSE),)),
    Fault(
        "gaps that drift",
        at_mm(*(100 + index + 0.004 * index * abs(index - 60) for index in range(SLICES)), 300),
        ((FindingCode.NON_UNIFORM_SPACING, REFUSE),),
    ),
    Fault("rounded positions", at_mm(*(round(value, 1) for value in SHORT)), ((FindingCode.ROUNDED_POSITIONS, WARN),)),
    Fault(
        "slices beside the others",
        moved(lambda index: (5.0 * (index == 5), 0, 0)),
        ((FindingCode.SHIFTED_SLICES, REFUSE),),
    ),
    Fault("a tilt that is not written", tilted(14), ((FindingCode.GANTRY_TILT, REFUSE),)),
    Fault("a tilt that is written", tilted(-14, tag=-14), ((FindingCode.GANTRY_TILT, REFUSE),)),
    Fault("a tilt to be corrected", tilted(14), ((FindingCode.GANTRY_TILT, WARN),), allow=(Allow.TILT,)),
    Fault("half a degree of tilt", tilted(0.5), ((FindingCode.GANTRY_TILT, REFUSE),)),
    Fault(
        "a tilt and a missing slice, whatever is allowed",
        chained(tilted(14), without(5)),
        ((FindingCode.GANTRY_TILT, REFUSE), (FindingCode.MISSING_SLICE, REFUSE)),
        allow=(Allow.TILT, Allow.GAPS),
    ),
    Fault(
        "a tilt of uneven slices, though allowed",
        chained(tilted(14), moved(lambda index: (0, 0, 0.5 * (index == 5)))),
        ((FindingCode.NON_UNIFORM_SPACING, REFUSE), (FindingCode.GANTRY_TILT, REFUSE)),
        allow=(Allow.TILT,),
    ),
    Fault("a tilt that is only written", setting("GantryDetectorTilt", "14"), ((FindingCode.GANTRY_TILT, WARN),)),
    Fault("a tilt that was corrected", tilted(14, tag=14, corrected=True), ((FindingCode.GANTRY_TILT, NOTE),)),
    Fault(
        "a wrong spacing between slices",
        setting("SpacingBetweenSlices", "5"),
        ((FindingCode.SPACING_BETWEEN_SLICES, WARN),),
    ),
    Fault(
        "a wrong spacing between two slices",
        lambda datasets: setting("SpacingBetweenSlices", "1")(datasets[:2]),
        ((FindingCode.SPACING_BETWEEN_SLICES, WARN),),
    ),
    # how many volumes
    Fault("two echoes", repeated(2, "EchoTime", ["10", "20"]), ((FindingCode.SEVERAL_ECHOES, REFUSE),), mr_series),
    Fault("two b-values", repeated(2, "DiffusionBValue", [0.0, 800.0]), ((FindingCode.DIFFUSION, REFUSE),), mr_series),
    Fault(
        "two b-values of Siemens",
        chained(repeated(2), private(0x19, "SIEMENS MR HEADER", 0x0C, "IS", [0] * SLICES + [800] * SLICES)),
        ((FindingCode.DIFFUSION, REFUSE),),
        mr_series,
    ),
    Fault(
        "two b-values of GE",
        chained(
            repeated(2),
            private(0x43, "GEMS_PARM_01", 0x39, "IS", [[0, 8, 0, 0]] * SLICES + [[1000000800, 8, 0, 0]] * SLICES),
        ),
        ((FindingCode.DIFFUSION, REFUSE),),
        mr_series,
    ),
    Fault(
        "three temporal positions",
        repeated(3, "TemporalPositionIdentifier", [1, 2, 3]),
        ((FindingCode.SEVERAL_VOLUMES, REFUSE),),
        mr_series,
    ),
    Fault(
        "cardiac phases", repeated(2, "TriggerTime", ["0", "400"]), ((FindingCode.SEVERAL_VOLUMES, REFUSE),), mr_series
    ),
    Fault("two kernels", repeated(2, "ConvolutionKernel", ["B30f", "B70f"]), ((FindingCode.SEVERAL_VOLUMES, REFUSE),)),
    Fault("a time series that nothing tells", repeated(4), ((FindingCode.SEVERAL_VOLUMES, REFUSE),)),
    Fault(
        "doubled slices",
        lambda datasets: [*datasets, different(datasets[3], 100), different(datasets[8], 100)],
        ((FindingCode.DUPLICATE_POSITION, REFUSE),),
    ),
    Fault(
        "frames of a time series",
        lambda datasets: datasets,
        ((FindingCode.SEVERAL_VOLUMES, REFUSE), (FindingCode.SLOPE_PER_SLICE, NOTE)),
        lambda: enhanced_series(volumes=3),
    ),
    Fault(
        "frames of two b-values",
        _in_frames("MRDiffusionSequence", "DiffusionBValue", lambda index: 1000.0 * (index % 2)),
        ((FindingCode.DIFFUSION, REFUSE), (FindingCode.SLOPE_PER_SLICE, NOTE)),
        lambda: enhanced_series(volumes=2),
    ),
    Fault(
        "frames of two echoes",
        _in_frames("MREchoSequence", "EffectiveEchoTime", lambda index: 5.0 + index % 2),
        ((FindingCode.SEVERAL_ECHOES, REFUSE), (FindingCode.SLOPE_PER_SLICE, NOTE)),
        lambda: enhanced_series(volumes=2),
    ),
    Fault(
        "echoes in turn", interleaved("EchoTime", "10", "20"), ((FindingCode.MIXED_ACQUISITIONS, REFUSE),), mr_series
    ),
    Fault(
        "b-values in turn",
        interleaved("DiffusionBValue", 0.0, 800.0),
        ((FindingCode.MIXED_ACQUISITIONS, REFUSE),),
        mr_series,
    ),
    Fault("tube voltages in turn", interleaved("KVP", "80", "140"), ((FindingCode.MIXED_ACQUISITIONS, REFUSE),)),
    Fault(
        "repetition times in turn",
        interleaved("RepetitionTime", "500", "2000"),
        ((FindingCode.MIXED_ACQUISITIONS, REFUSE),),
        mr_series,
    ),
    Fault(
        "repetition times in turn that differ a little, as of two packages",
        interleaved("RepetitionTime", "3512.4", "3498.7"),
        ((FindingCode.MIXED_ACQUISITIONS, WARN),),
        mr_series,
    ),
    Fault(
        "flip angles in turn",
        interleaved("FlipAngle", "5", "20"),
        ((FindingCode.MIXED_ACQUISITIONS, REFUSE),),
        mr_series,
    ),
    Fault(
        "acquisition times in turn",
        interleaved("AcquisitionTime", "101112", "101242.5"),
        ((FindingCode.MIXED_ACQUISITIONS, REFUSE),),
    ),
    Fault(
        "times of their own that lie in two acquisitions",
        setting("AcquisitionDateTime", lambda index: f"202401021011{10 + 20 * (index % 2) + index / 2:04.1f}"),
        ((FindingCode.MIXED_ACQUISITIONS, REFUSE),),
    ),
    Fault(
        "acquisition times of three phases in turn",
        interleaved("AcquisitionTime", "101112", "101242", "101500"),
        ((FindingCode.MIXED_ACQUISITIONS, REFUSE),),
    ),
    Fault(
        "acquisition times in turn of MR volumes",
        chained(interleaved("AcquisitionTime", "101112", "101242"), setting("MRAcquisitionType", "3D")),
        ((FindingCode.MIXED_ACQUISITIONS, REFUSE),),
        mr_series,
    ),
    Fault(
        "content times in turn",
        interleaved("ContentTime", "101112", "101242"),
        ((FindingCode.MIXED_ACQUISITIONS, WARN),),
    ),
    Fault(
        "kernels in turn", interleaved("ConvolutionKernel", "B30f", "B70f"), ((FindingCode.MIXED_ACQUISITIONS, REFUSE),)
    ),
    Fault(
        "temporal positions in turn",
        interleaved("TemporalPositionIdentifier", 1, 2, 3),
        ((FindingCode.MIXED_ACQUISITIONS, REFUSE),),
        mr_series,
    ),
    Fault(
        "a second echo in the upper half",
        setting("EchoTime", "20", on=range(6, SLICES)),
        ((FindingCode.MIXED_ACQUISITIONS, WARN),),
        mr_series,
    ),
    Fault(
        "a b-value on the first slice",
        setting("DiffusionBValue", 800.0, on=[0]),
        ((FindingCode.MIXED_ACQUISITIONS, WARN),),
        mr_series,
    ),
    Fault(
        "another kernel on the last slice",
        setting("ConvolutionKernel", "B70f", on=[SLICES - 1]),
        ((FindingCode.MIXED_ACQUISITIONS, WARN),),
    ),
    Fault(
        "image types in turn",
        interleaved("ImageType", ["ORIGINAL", "PRIMARY", "IN_PHASE"], ["ORIGINAL", "PRIMARY", "OPP_PHASE"]),
        ((FindingCode.MIXED_ACQUISITIONS, WARN),),
        mr_series,
    ),
    Fault("acquisitions in turn", interleaved("AcquisitionNumber", 1, 2), ((FindingCode.MIXED_ACQUISITIONS, WARN),)),
    Fault(
        "copies with other pixel spacings",
        copied(PixelSpacing=[0.9, 0.9]),
        ((FindingCode.MIXED_PIXEL_SPACINGS, REFUSE), (FindingCode.DUPLICATE_UID, REFUSE)),
    ),
    Fault(
        "copies with bright and dark exchanged",
        copied(PhotometricInterpretation="MONOCHROME1"),
        ((FindingCode.MONOCHROME1, REFUSE),),
    ),
    Fault(
        "copies in another frame of reference",
        copied(FrameOfReferenceUID=f"{ROOT}.9"),
        ((FindingCode.SEVERAL_FRAMES_OF_REFERENCE, REFUSE),),
    ),
    # which values
    Fault("a Rescale Type of another quantity", setting("RescaleType", "Z_EFF", on=[3]), ((FindingCode.NOT_HU, WARN),)),
    Fault("floating point pixels", _float_pixels, ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault(
        "raw pixels in GE's private syntax",
        lambda datasets: datasets,
        ((FindingCode.UNDECODABLE, REFUSE),),
        damage=in_syntax("1.2.840.113619.5.2"),
    ),
    Fault(
        "raw pixels in a syntax with a name",
        lambda datasets: datasets,
        ((FindingCode.UNDECODABLE, REFUSE),),
        damage=in_syntax(CANARY),
    ),
    Fault("no rescaling of CT", deleting("RescaleSlope", "RescaleIntercept"), ((FindingCode.NO_RESCALE, REFUSE),)),
    Fault("no intercept of CT", deleting("RescaleIntercept", on=[4]), ((FindingCode.NO_RESCALE, REFUSE),)),
    Fault(
        "a rescaling of some MR images",
        chained(setting("RescaleSlope", "2", on=[1, 2]), setting("RescaleIntercept", "0", on=[1, 2])),
        ((FindingCode.NO_RESCALE, REFUSE),),
        mr_series,
    ),
    Fault(
        "no rescaling of PET",
        deleting("RescaleSlope", "RescaleIntercept"),
        ((FindingCode.NO_RESCALE, WARN),),
        pet_series,
    ),
    Fault("a slope of 0", setting("RescaleSlope", "0", on=[4]), ((FindingCode.BAD_RESCALE, REFUSE),)),
    Fault("a slope without bounds", raw("RescaleSlope", b"inf"), ((FindingCode.BAD_RESCALE, REFUSE),)),
    Fault("an intercept of text", raw("RescaleIntercept", CANARY.encode()), ((FindingCode.BAD_RESCALE, REFUSE),)),
    Fault("a slope below 0", setting("RescaleSlope", "-1"), ((FindingCode.BAD_RESCALE, WARN),)),
    Fault(
        "intercepts that differ", setting("RescaleIntercept", "-1000", on=[4]), ((FindingCode.SLOPE_PER_SLICE, WARN),)
    ),
    Fault("slopes of PET that differ", lambda datasets: datasets, ((FindingCode.SLOPE_PER_SLICE, NOTE),), pet_series),
    Fault("a table of values", _modality_lut, ((FindingCode.MODALITY_LUT, REFUSE),)),
    Fault("padding beyond the bits", setting("PixelPaddingValue", 63536), ((FindingCode.PADDING_VALUE, WARN),)),
    Fault(
        "a character set with a NUL in it",
        lambda datasets: datasets,
        ((FindingCode.CHARACTER_SET, WARN),),
        damage=with_bytes(b"ISO_IR 100", b"ISO_IR\x00100"),
    ),
    Fault(
        "a character set of rubbish in some",
        lambda datasets: datasets,
        ((FindingCode.CHARACTER_SET, WARN),),
        damage=with_bytes(b"ISO_IR 100", b"\t\0\x0c\0\r\xff\x0b\0\t\0", on=[2, 3]),
    ),
    Fault(
        "a character set that nobody knows",
        lambda datasets: datasets,
        ((FindingCode.CHARACTER_SET, WARN),),
        damage=with_bytes(b"ISO_IR 100", b"ISO_IR 999"),
    ),
    Fault("a thickness of text", raw("SliceThickness", CANARY.encode()), ((FindingCode.BAD_VALUE, WARN),)),
    Fault("12 bits allocated", setting("BitsAllocated", 12), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault("no bits stored", deleting("BitsStored"), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault("more bits stored than allocated", setting("BitsStored", 17), ((FindingCode.BAD_VALUE, REFUSE),)),
    Fault(
        "signed numbers in some", setting("PixelRepresentation", 1, on=[4]), ((FindingCode.MIXED_PIXEL_FORMATS, WARN),)
    ),
    Fault("more bits in some", setting("BitsStored", 16, on=[4]), ((FindingCode.MIXED_PIXEL_FORMATS, NOTE),)),
    Fault("a history of loss", setting("LossyImageCompression", "01", on=[4]), ((FindingCode.LOSSY, WARN),)),
    Fault("a lossy encoding", encapsulated("1.2.840.10008.1.2.4.50"), ((FindingCode.LOSSY, WARN),)),
    Fault(
        "compressed pixels that would fill the memory",
        chained(setting("Rows", 30_000), setting("Columns", 30_000), encapsulated("1.2.840.10008.1.2.4.90")),
        ((FindingCode.UNDECODABLE, REFUSE),),
    ),
    Fault("no pixels", deleting("PixelData", on=[4]), ((FindingCode.NO_PIXELS, REFUSE),)),
    Fault("pixels cut off by a byte", setting("Rows", ROWS), ((FindingCode.TRUNCATED, REFUSE),), damage=cut_by(1)),
    Fault("half of the pixels", longer_pixels(0.5), ((FindingCode.TRUNCATED, REFUSE),)),
    Fault(
        "encoded pixels that end at once",
        encapsulated("1.2.840.10008.1.2.4.90"),
        ((FindingCode.TRUNCATED, REFUSE),),
        damage=cut_by(80),
    ),
)
"""Every fault, with all that is to be found; nothing else may be."""

HARMLESS = (
    Fault("a clean CT", lambda datasets: datasets),
    Fault("a clean MR", lambda datasets: datasets, base=mr_series),
    Fault(
        "explicit elements under an implicit syntax", lambda datasets: datasets, damage=in_syntax("1.2.840.10008.1.2")
    ),
    Fault("a transfer syntax with a space", lambda datasets: datasets, damage=in_syntax("1.2.840.10008.1.2.1 ")),
    *(
        Fault(
            f"water and fat: {kind}",
            setting("ImageType", ["DERIVED", "PRIMARY", kind]),
            ((FindingCode.DERIVED, NOTE),),
            mr_series,
        )
        for kind in ("IN_PHASE", "OPP_PHASE", "IP")
    ),
    *(
        Fault(f"a character set spelled {name!r}", lambda datasets: datasets, damage=with_bytes(b"ISO_IR 100", name))
        for name in (b"ISO IR 100", b"ISO_IR 6\0 ", b"          ", b"latin_1   ", b"ISO_IR 192")
    ),
    Fault(
        "a concatenation of three parts, mixed and of several sizes",
        lambda datasets: in_parts(5, 3, 4)(datasets)[::-1],
        ((FindingCode.SLOPE_PER_SLICE, NOTE),),
        enhanced_series,
    ),
    Fault(
        "a concatenation of one part",
        in_parts(SLICES),
        ((FindingCode.SLOPE_PER_SLICE, NOTE),),
        enhanced_series,
    ),
    Fault(
        "a concatenation of single frames",
        in_parts(*[1] * SLICES),
        ((FindingCode.SLOPE_PER_SLICE, NOTE),),
        enhanced_series,
    ),
    Fault(
        "a part of a concatenation that came twice",
        lambda datasets: [*(parts := in_parts(6, 6)(datasets)), parts[1]],
        ((FindingCode.DUPLICATE_FILE, NOTE), (FindingCode.SLOPE_PER_SLICE, NOTE)),
        enhanced_series,
    ),
    Fault("a voltage in two spellings", interleaved("KVP", "120", "120.0", "1.2e2")),
    Fault("echo times in single precision", interleaved("EchoTime", "4.6", "4.6000001"), base=mr_series),
    Fault("a flip angle of four digits", interleaved("FlipAngle", "15", "15.01"), base=mr_series),
    Fault(
        "odd slices of MR acquired before the even ones",
        setting("AcquisitionTime", lambda index: f"1011{10 + 20 * (index % 2) + index / 2:04.1f}"),
        base=mr_series,
    ),
    Fault(
        "acquisition times that run with the table", setting("AcquisitionTime", lambda index: f"1011{10 + index}.25")
    ),
    Fault(
        "a content time of each slice, by chance",
        setting("ContentTime", lambda index: f"1011{10 + index * 7 % SLICES}"),
    ),
    Fault("acquisition times of two blocks", setting("AcquisitionTime", lambda index: f"10{11 + index // 6}00")),
    Fault("an acquisition time that is none", interleaved("AcquisitionTime", "101112", "")),
    Fault("pixel data that fill a block", lambda datasets: _padded(datasets, 512)),
    Fault("pixel data that fill so much that the columns could be more", lambda datasets: _padded(datasets, 640)),
    Fault("a Rescale Type of US", setting("RescaleType", "US")),
    Fault("a gap just below two thicknesses", setting("SliceThickness", "1.3")),
    Fault("a clean enhanced MR", lambda datasets: datasets, ((FindingCode.SLOPE_PER_SLICE, NOTE),), enhanced_series),
    Fault("two slices", lambda datasets: datasets[:2]),
    Fault("a patient without a name on some", setting("PatientName", "", on=[3, 4])),
    Fault("a name in other letters", setting("PatientName", "TEST^PHANTOM^^", on=[3, 4])),
    Fault("descending instance numbers", setting("InstanceNumber", lambda index: 100 - index)),
    Fault("no instance numbers", deleting("InstanceNumber")),
    Fault("positions that jitter", moved(lambda index: (1e-3 * (index % 2), 0, 4e-4 * (index % 3)))),
    Fault(
        "orientations that differ in the fifth digit",
        setting("ImageOrientationPatient", [1, 2e-5, 0, -2e-5, 1, 0], on=[4]),
    ),
    Fault("pixel spacings that differ in the fifth digit", setting("PixelSpacing", [0.75001, 0.75001], on=[4])),
    Fault("an oblique stack of six digits", tilted(20, corrected=True)),
    Fault("a gap under a larger thickness", setting("SliceThickness", "3")),
    Fault("a negative spacing between slices", setting("SpacingBetweenSlices", "-2.5"), base=mr_series),
    Fault("a tilt of 0", setting("GantryDetectorTilt", "0")),
    Fault(
        "a spacing between slices along the table",
        chained(tilted(14), setting("SpacingBetweenSlices", "2.5")),
        ((FindingCode.GANTRY_TILT, WARN),),
        allow=(Allow.TILT,),
    ),
    Fault("acquisitions one after another", setting("AcquisitionNumber", lambda index: 1 + (index > 5))),
    Fault(
        "repetition times that vary by chance",
        setting("RepetitionTime", lambda index: str(500 + index * 7 % 11)),
        base=mr_series,
    ),
    Fault("a trigger time for each slice", setting("TriggerTime", lambda index: str(index * 7 % 12)), base=mr_series),
    Fault("an image filled up to twice the matrix", resized(2 * ROWS, 2 * ROWS), base=mr_series),
    Fault("an image filled up to four times the matrix", resized(4 * ROWS, 4 * ROWS, spacing_mm=3.0), base=mr_series),
    Fault(
        "padding below 0, written as unsigned",
        chained(setting("PixelRepresentation", 1), setting("BitsStored", 16), raw_padding(63536)),
    ),
    Fault("padding within the bits", setting("PixelPaddingValue", 4095)),
    Fault("a slope of MR", chained(setting("RescaleSlope", "2"), setting("RescaleIntercept", "0")), base=mr_series),
    Fault("lossless JPEG 2000", encapsulated("1.2.840.10008.1.2.4.90")),
    Fault("pixel data with a byte of padding", longer_pixels(1.01)),
    Fault("a study date of text", raw("StudyDate", CANARY.encode())),
)
"""Variants that look like faults, with the only notes that they may give."""
