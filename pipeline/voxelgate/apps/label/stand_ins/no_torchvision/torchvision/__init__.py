"""Stands in for torchvision, which MONAI Label 0.8.5 imports for pictures of training that nothing here makes."""
