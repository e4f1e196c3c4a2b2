"""Small DICOM files for tests: a CT stack in any transfer syntax, classic or enhanced."""

from collections.abc import Callable, Sequence
from pathlib import Path

import gdcm
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    generate_uid,
)

from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.dicom_files import FileRef
from voxelgate.dicom.read.headers import Header, read_header

GDCM_SYNTAXES = {
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGExtended12Bit: gdcm.TransferSyntax.JPEGExtendedProcess2_4,
}


def image(stored: np.ndarray, *, bits: int | None = None, vr: str = "OW", **more: object) -> Dataset:
    """Return one CT image, explicit little endian; `more` are further elements by keyword."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.7"
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "SECRET-ID", "SECRET^NAME", "19010203"
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    dataset["PixelData"].VR = vr
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return dataset


def stack(stored: np.ndarray, *, gap_mm: float = 2.0, **more: object) -> list[Dataset]:
    """Return a series of single images along the patient's axis, (K, J, I)."""
    return [
        image(plane, ImagePositionPatient=[-10.5, -20.25, 5 + gap_mm * k], InstanceNumber=k + 1, **more)
        for k, plane in enumerate(stored)
    ]


def enhanced(stored: np.ndarray, slopes: Sequence[float], intercepts: Sequence[float]) -> Dataset:
    """Return one multi-frame CT file with a rescale of its own for each frame."""
    dataset = image(stored)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        delattr(dataset, keyword)
    shared = Dataset()
    shared.PlaneOrientationSequence = Items([_with(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])])
    shared.PixelMeasuresSequence = Items([_with(PixelSpacing=[1, 1], SliceThickness=2)])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.PerFrameFunctionalGroupsSequence = Items()
    for k, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True)):
        frame = Dataset()
        frame.PlanePositionSequence = Items([_with(ImagePositionPatient=[0, 0, 2.0 * k])])
        rescale = _with(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")
        frame.PixelValueTransformationSequence = Items([rescale])
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    return dataset


def write(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a data set in a transfer syntax; compression goes through pydicom's encoders or GDCM."""
    with quiet_pydicom():
        if syntax in GDCM_SYNTAXES:
            dataset.save_as(path, enforce_file_format=True)
            _transcode_gdcm(path, GDCM_SYNTAXES[syntax])
            return path
        if syntax.startswith("1.2.840.10008.1.2.4") or syntax == "1.2.840.10008.1.2.5":
            encoder = "pyjpegls" if syntax == JPEGLSLossless else "pylibjpeg"
            dataset.compress(syntax, encoding_plugin=encoder, generate_instance_uid=False)
        elif syntax == "1.2.840.10008.1.2.2":
            size = dataset.BitsAllocated // 8
            words = np.frombuffer(dataset.PixelData, f"<u{max(size, 2)}")  # OW: bytes are swapped in pairs
            dataset.PixelData = words.byteswap().tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, enforce_file_format=True)
    return path


def write_all(datasets: Sequence[Dataset], folder: Path, name: Callable[[int], str] = "{}.dcm".format) -> Path:
    """Write a series, uncompressed."""
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        write(dataset, folder / name(number))
    return folder


def header_of(path: Path, member: str = "") -> Header:
    """Return the header of a file that is DICOM."""
    with quiet_pydicom():
        header = read_header(FileRef(path, member))
    assert header is not None
    return header


def with_pixel_data(path: Path, content: bytes) -> Path:
    """Replace the encoded pixel data of a file."""
    dataset = dcmread(path)
    dataset.PixelData = content
    dataset.save_as(path)
    return path


def _with(**values: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _transcode_gdcm(path: Path, syntax: int) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
