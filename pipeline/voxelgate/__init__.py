"""Train, check and run 3D medical image segmentation as MONAI bundles.

What users and configs may name is listed in `__init__.pyi`, and only that is stable; a name is imported on first use.

>>> import voxelgate as vg
>>> vg.Grid((4, 4, 4), [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]).spacing_mm
(2.0, 2.0, 2.0)
"""

import lazy_loader

import voxelgate.core.process  # noqa: F401 - before anything loads PyTorch

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
