"""MONAI Label's training task, done by `training_round`: it publishes what is better, and nothing else."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list, name_to_device

from voxelgate.apps.label.model_versions import ModelVersions
from voxelgate.apps.label.training_round import Annotated, Pace, train_round
from voxelgate.images.volumes import volume_stem

logger = logging.getLogger(__name__)


class TrainTask(BundleTrainTask):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Train the version in use on what was annotated.

    Args:
        versions: of the model.
    """

    def __init__(self, versions: ModelVersions) -> None:
        super().__init__(str(versions.current_path), {})
        self.versions = versions

    def config(self) -> dict[str, Any]:
        """Return what a client may choose, with the defaults."""
        pace = Pace()
        return {"device": device_list(), "max_epochs": pace.epochs, "val_split": pace.val_split}

    def stats(self) -> dict[str, Any]:
        """Return how the version in use was measured, in the words that OHIF shows."""
        origin = self.versions.origin(self.versions.current)
        return {"version": self.versions.current} | ({} if origin.dice is None else {"best_metric": origin.dice})

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, compare, and put the better version into use; return what came of it."""
        pace = Pace(
            int(request.get("max_epochs", Pace.epochs)),
            float(request.get("val_split", Pace.val_split)),
            name_to_device(request.get("device", "")),
        )
        cases = [
            Annotated(volume_stem(Path(row["image"])), Path(row["image"]), Path(row["label"]))
            for row in self._fetch_datalist(request, datastore)
        ]
        done = train_round(self.versions, cases, pace)
        logger.warning("%s", done.sentence())
        return {"version": done.version, "dice": done.origin.dice, "parent_dice": done.origin.parent_dice}
