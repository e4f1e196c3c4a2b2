"""Train, check and run 3D medical image segmentation as MONAI bundles."""

import logging

# MONAI says at import that an optional GPU decoder is absent; nobody here misses it, and it would head every output.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
