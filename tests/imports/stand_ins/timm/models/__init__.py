"""Stands in for `timm.models`."""
