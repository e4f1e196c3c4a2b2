"""Train, check and run 3D medical image segmentation as MONAI bundles."""

import voxelgate.core.process as _process  # noqa: F401 - settings that PyTorch reads when it is loaded
