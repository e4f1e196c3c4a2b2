"""Stands in for pydicom-seg, whose newest release needs NumPy 1; SEG is written by `voxelgate.dicom.write.seg` instead.

`monailabel/datastore/utils/convert.py` imports the module, and uses it only to read label maps from a PACS.
"""

from typing import NoReturn


class MultiClassReader:
    """Refuses to read DICOM SEG."""

    def read(self, _: object) -> NoReturn:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("pydicom-seg is not installed; label maps are kept by the server that took them.")
