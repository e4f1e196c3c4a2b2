"""The report of a run: one HTML page that shows every case, and needs nothing but itself."""

from voxelgate.segmentation.page.build import REPORT_NAME, write_page

__all__ = ["REPORT_NAME", "write_page"]
