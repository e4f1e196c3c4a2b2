"""From the facts of a data set to a bundle: `fingerprint` the data, `plan` the numbers, `write` the configs."""

from pipeline.planning.plan import Augmentation, Fingerprint, Intensity, Plan, Training, fingerprint, plan
from pipeline.planning.write import write_bundle

__all__ = ["Augmentation", "Fingerprint", "Intensity", "Plan", "Training", "fingerprint", "plan", "write_bundle"]
