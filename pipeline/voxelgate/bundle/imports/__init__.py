"""Models that others trained, made into bundles: nnU-Net and TotalSegmentator folders, MONAI bundles, TorchScript."""
