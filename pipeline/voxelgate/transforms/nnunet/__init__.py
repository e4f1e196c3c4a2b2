"""The preparation of images and labels that nnU-Net v2 does before its networks: the same float32 numbers, bit by bit.

Facts are those of nnunetv2 2.8.1 (`preprocessing/`); arithmetic is SciPy's, in the order in which nnU-Net calls it.
"""
