"""The pass of nnU-Net v2 over a volume and back to the source grid, voxel for voxel, in memory for a row of windows."""
