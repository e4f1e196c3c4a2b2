"""Settings of the whole process, made when this module is imported: before PyTorch is, which reads them only once."""

import logging
import os

# MONAI says at import that an optional GPU decoder is absent; nobody here misses it, and it would head every output.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

# Threads of libgomp, which PyTorch brings and which reads this when it is loaded, spin at barriers for milliseconds.
# Beside another busy program that made networks of two threads 18 times slower; with fifty thousand turns it is 6.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")

# oneDNN keeps a kernel for each size of a convolution, 1024 of them; volumes of ever other sizes only fill memory so.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
