"""MONAI bundles: opened, sealed, verified, run, exported; the only door to monai.bundle."""
