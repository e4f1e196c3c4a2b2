"""From the facts of a data set and a budget to a plan: numbers, each with its reason."""

from voxelgate.training.planning.plan import Augmentation, Budget, Cleaning, Device, Intensity, Plan, Training
from voxelgate.training.planning.rules import plan, read_overrides

__all__ = [
    "Augmentation",
    "Budget",
    "Cleaning",
    "Device",
    "Intensity",
    "Plan",
    "Training",
    "plan",
    "read_overrides",
]
