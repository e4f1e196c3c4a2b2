"""Stands in for `timm`, which needs torchvision; nnU-Net imports it for networks that no test runs."""
