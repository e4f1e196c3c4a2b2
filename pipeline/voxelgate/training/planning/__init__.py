"""From the facts of a data set to a bundle: `survey` the data, `plan` the numbers, `write_bundle` the configs."""

from voxelgate.datasets.survey import Fingerprint, StructureFacts, Survey, survey
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.planning.plan import Augmentation, Budget, Cleaning, Device, Intensity, Plan, Training
from voxelgate.training.planning.rules import plan, read_overrides

__all__ = [
    "Augmentation",
    "Budget",
    "Cleaning",
    "Device",
    "Fingerprint",
    "Intensity",
    "Plan",
    "StructureFacts",
    "Survey",
    "Training",
    "plan",
    "read_overrides",
    "survey",
    "write_bundle",
]
