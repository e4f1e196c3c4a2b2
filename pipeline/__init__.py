"""Train, check and run 3D medical image segmentation as MONAI bundles."""
