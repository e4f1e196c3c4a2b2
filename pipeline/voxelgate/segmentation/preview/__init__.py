"""Small pictures of a case and its labels in three planes, for the report page."""

from voxelgate.segmentation.preview.cells import LONGEST_PX, Sketch, sketch
from voxelgate.segmentation.preview.file import Preview, read_preview
from voxelgate.segmentation.preview.write import labels_as_shown, write_preview

__all__ = ["LONGEST_PX", "Preview", "Sketch", "labels_as_shown", "read_preview", "sketch", "write_preview"]
