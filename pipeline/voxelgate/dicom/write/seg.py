"""Write a label map as DICOM Segmentation, binary or label map, and read it back by positions in mm before it counts.

highdicom writes (PS3.3 A.51); plain pydicom reads back: frames are placed by their own position, orientation, spacing
and segment number, whatever their order.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from voxelgate.core.errors import OutputError
from voxelgate.core.geometry import LPS_TO_RAS, Grid, triple
from voxelgate.core.terminology import Coding
from voxelgate.dicom.read.seg_frames import frame_affine, pixel_frames, plane_of, segment_of
from voxelgate.dicom.write.label_planes import LabelPlanes
from voxelgate.dicom.write.placeholders import have_same_voxels, image_placeholders
from voxelgate.dicom.write.rle import compress
from voxelgate.dicom.write.seg_kind import SegKind
from voxelgate.dicom.write.segmented import (
    SegmentedSeries,
    algorithm_item,
    code_item,
    identify_series,
    new_uid,
    published,
    read_back,
    save_dicom,
    series_arguments,
)
from voxelgate.dicom.write.sources import SourceImage, SourceSeries

Voxels = npt.NDArray[Any]

MOST_BINARY_SEGMENTS = 10
"""Above this the label map form is chosen: binary needs a plane of bits for each segment, and slows viewers down."""

SERIES_OFFSET = 1
"""Last two digits of the series number of a segmentation."""

LABELMAP = SegKind.LABELMAP.upper()
"""Segmentation Type of a label map."""

NOT_FOUND = "Looked for and not found"
"""Segment Description of a structure without voxels."""

MOST_COMMENT = 10_240
"""Length of Image Comments, VR LT (PS3.5 6.2)."""


@dataclass(frozen=True)
class Segment:
    """A structure that a segmentation describes.

    Args:
        number: Segment Number, which is the value in the label map.
        tracking_uid: Tracking UID, also of the measurements of this segment.
    """

    number: int
    tracking_uid: str


@dataclass(frozen=True)
class WrittenSeg:
    """A segmentation that was written: what a report needs to refer to it."""

    class_uid: str
    instance_uid: str
    series_uid: str
    segments: tuple[Segment, ...]


def write_seg(path: Path, segmented: SegmentedSeries, *, kind: SegKind | None = None) -> WrittenSeg:
    """Write the labels as DICOM Segmentation: under a temporary name, read back in mm, compared, renamed.

    Every structure of the table becomes a segment whose number is its label value. PS3.3 C.8.20.2 demands binary
    segments 1, 2, ... without a gap, so a structure that was not found is described too, has no frames, and says so.

    Args:
        path: of the file to be, in a folder that exists.
        segmented: labels, grid, names and source.
        kind: None chooses binary up to `MOST_BINARY_SEGMENTS` structures without a gap among their values, else a label
            map with RLE.

    Returns:
        What a structured report refers to.

    Raises:
        OutputError: no structure has voxels, one has no code, the grid is sheared, the file exists or cannot be
            written, or it reads back differently; then nothing is left behind.
    """
    segmented.refuse_nothing()
    if kind is None:
        has_gaps = len(segmented.table.foreground) < len(segmented.table.names) - 1
        is_small = len(segmented.table.foreground) <= MOST_BINARY_SEGMENTS
        kind = SegKind.BINARY if is_small and not has_gaps else SegKind.LABELMAP
    segments = tuple(Segment(value, new_uid()) for value in segmented.table.foreground)
    codings = {segment.number: segmented.table.coding(segment.number) for segment in segments}
    planes = _straight(segmented.planes())
    with published(path) as partial:
        dataset = _segmentation(
            segmented, planes, kind, [_segment_description(segmented, s, codings[s.number]) for s in segments]
        )
        save_dicom(dataset, partial)
        written = WrittenSeg(
            str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID), segments
        )
        del dataset
        _compare_segments(partial, path.name, segmented, segments)
    return written


def _straight(planes: LabelPlanes) -> LabelPlanes:
    """Return planes with axes at right angles, moved by less than the tolerance; headers round direction cosines."""
    linear = planes.affine_lps[:3, :3] / planes.spacing_mm
    left, _, right = np.linalg.svd(linear)
    affine = planes.affine_lps.copy()
    affine[:3, :3] = left @ right * planes.spacing_mm
    centre = (np.array(planes.voxels.shape) - 1) / 2
    affine[:3, 3] += (planes.affine_lps - affine)[:3, :3] @ centre
    shape = planes.voxels.shape
    moved = Grid(triple(shape), affine)
    if (difference := moved.difference(Grid(moved.shape, planes.affine_lps))) is not None:
        raise OutputError(
            f"the axes of the label map are not at right angles ({difference} from the nearest such grid), as a DICOM "
            "segmentation needs; resample it, or write RTSTRUCT."
        )
    return LabelPlanes(planes.voxels, affine)


def _segmentation(
    segmented: SegmentedSeries, planes: LabelPlanes, kind: SegKind, descriptions: list[highdicom.seg.SegmentDescription]
) -> Dataset:
    source = segmented.source
    seg = highdicom.seg.Segmentation(
        source_images=image_placeholders(source, planes),
        pixel_array=_segment_volume(segmented, planes),
        segmentation_type=kind.upper(),
        segment_descriptions=descriptions,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="SEGMENTATION",
        content_description=segmented.origin,
        **series_arguments(segmented, SERIES_OFFSET),
    )
    seg.ContentCreatorName = segmented.algorithm.annotator  # type 2; highdicom leaves it out (PS3.3 table 10-12)
    seg.ImageComments = segmented.comment[:MOST_COMMENT]
    identify_series(seg, segmented, "SEG")
    _name_parts(seg, source)
    _refer(seg, source, planes)
    if kind is SegKind.LABELMAP:
        compress(seg)
    source.stamp(seg, segmented.texts)
    return seg


def _name_parts(seg: Dataset, source: SourceSeries) -> None:
    """Name file and frame of each source image, in place, where highdicom took the parts of a concatenation for one."""
    if not source.is_multi_frame or len(source.instances) == 1:
        return
    for frame in seg.PerFrameFunctionalGroupsSequence:
        for derivation in frame.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                item.update(source.in_file_order[int(item.ReferencedFrameNumber) - 1].reference())
    referred = [image._replace(frame=None).reference() for image in source.instances]
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = referred


def _refer(seg: Dataset, source: SourceSeries, planes: LabelPlanes) -> None:
    """Name the source image of each frame, in place; highdicom names none at all where one plane of them has no image.

    That is so where missing slices were filled or the grid was resampled.
    """
    frames = seg.PerFrameFunctionalGroupsSequence
    if any(frame.DerivationImageSequence for frame in frames):
        return
    to_planes = np.linalg.inv(planes.affine_lps)[0]
    is_preserved = have_same_voxels(source, planes)
    images = planes.coinciding(source)
    for frame in frames:
        position = np.array([*map(float, frame.PlanePositionSequence[0].ImagePositionPatient), 1.0])
        if (image := images.get(round(float(to_planes @ position)))) is not None:
            frame.DerivationImageSequence = [_derivation(image, is_preserved=is_preserved)]


def _derivation(image: SourceImage, *, is_preserved: bool) -> Dataset:
    """Return an item of Derivation Image Sequence (PS3.3 C.7.6.16.2.6), as highdicom writes it."""
    derivation, item = Dataset(), image.reference()
    purpose = codes.cid7202.SourceImageForImageProcessingOperation
    item.PurposeOfReferenceCodeSequence = [highdicom.sr.CodedConcept.from_code(purpose)]
    item.SpatialLocationsPreserved = "YES" if is_preserved else "NO"
    derivation.DerivationCodeSequence = [highdicom.sr.CodedConcept.from_code(codes.cid7203.SegmentationImageDerivation)]
    derivation.SourceImageSequence = [item]
    return derivation


def _segment_volume(segmented: SegmentedSeries, planes: LabelPlanes) -> highdicom.Volume:
    """Return segment numbers as a volume; highdicom places a bare array by the order of the sources."""
    unsigned = np.uint8 if len(segmented.table.names) <= 256 else np.uint16
    return highdicom.Volume(
        planes.voxels.astype(unsigned, copy=False),
        planes.affine_lps,
        coordinate_system="PATIENT",
        frame_of_reference_uid=segmented.source.frame_of_reference_uid,
    )


def _segment_description(
    segmented: SegmentedSeries, segment: Segment, coding: Coding
) -> highdicom.seg.SegmentDescription:
    algorithm, name = segmented.algorithm, segmented.table.names[segment.number]
    description = highdicom.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=name,
        segmented_property_category=code_item(coding.category),
        segmented_property_type=code_item(coding.type),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues(algorithm.generation),
        algorithm_identification=algorithm_item(algorithm),
        tracking_id=name,
        tracking_uid=segment.tracking_uid,
        anatomic_regions=None if coding.region is None else [code_item(coding.region)],
        display_color=highdicom.color.CIELabColor.from_rgb(*segmented.colours[segment.number]),
    )
    if segment.number in segmented.absent:
        description.SegmentDescription = NOT_FOUND
    if coding.modifier is not None:
        type_item = description.SegmentedPropertyTypeCodeSequence[0]
        type_item.SegmentedPropertyTypeModifierCodeSequence = [code_item(coding.modifier)]
    if coding.region_modifier is not None:
        region_item = description.AnatomicRegionSequence[0]
        region_item.AnatomicRegionModifierSequence = [code_item(coding.region_modifier)]
    return description


def _compare_segments(path: Path, name: str, segmented: SegmentedSeries, segments: tuple[Segment, ...]) -> None:
    """Refuse a file that does not give back the labels, names and codes that were meant."""
    written = read_back(path)
    names = segmented.table.names
    meant = {s.number: (names[s.number], segmented.table.coding(s.number).type.value) for s in segments}
    found = {
        int(item.SegmentNumber): (str(item.SegmentLabel), str(item.SegmentedPropertyTypeCodeSequence[0].CodeValue))
        for item in written.SegmentSequence
        if not (written.SegmentationType == LABELMAP and item.SegmentNumber == 0)
    }
    if found != meant:
        raise OutputError(f"{name}: reads back with other segments; report this.")
    labels = _labels_of(written, segmented, name)
    if not all(map(np.array_equal, labels.T, segmented.labels.T)):  # plane by plane: twice as fast if the order differs
        raise OutputError(f"{name}: reads back with other labels; check the disk.")


def _labels_of(written: Dataset, segmented: SegmentedSeries, name: str) -> Voxels:
    """Rebuild the label map from frames that say where they lie; frames that were left out are background."""
    grid = segmented.grid
    labels = np.zeros(grid.shape, dtype=segmented.labels.dtype, order="F")  # a frame is then one piece of memory
    shared = written.SharedFunctionalGroupsSequence[0]
    to_voxels = np.linalg.inv(grid.affine) @ LPS_TO_RAS
    for frame, pixels in zip(written.PerFrameFunctionalGroupsSequence, pixel_frames(written), strict=True):
        plane = plane_of(labels, to_voxels @ frame_affine(frame, shared), pixels.shape, grid)
        if plane is None or (written.SegmentationType != LABELMAP and plane[pixels != 0].any()):
            raise OutputError(f"{name}: reads back with a frame in another place; report this.")
        if written.SegmentationType != LABELMAP:
            plane[pixels != 0] = segment_of(frame, shared)
        else:
            plane[...] = pixels
    return labels
