"""Small pictures of a case and its labels in three planes, for the report page."""

from pipeline.preview.cells import LONGEST_PX, Sketch, sketch
from pipeline.preview.webp import Preview, read_preview
from pipeline.preview.writing import labels_as_shown, write_preview

__all__ = ["LONGEST_PX", "Preview", "Sketch", "labels_as_shown", "read_preview", "sketch", "write_preview"]
