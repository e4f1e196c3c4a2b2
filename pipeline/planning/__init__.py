"""From the facts of a data set to a bundle: `survey` the data, `plan` the numbers, `write_bundle` the configs."""

from pipeline.planning.fingerprint import Fingerprint, StructureFacts, Survey, survey
from pipeline.planning.plan import plan, read_overrides
from pipeline.planning.records import Augmentation, Budget, Cleaning, Device, Intensity, Plan, Training
from pipeline.planning.write import write_bundle

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
