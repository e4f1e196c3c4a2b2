"""MONAI Label's training task, done by `training_round`: it publishes what is better, and nothing else."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list, name_to_device

from voxelgate.apps.label.model_versions import ModelVersions
from voxelgate.apps.label.proposals import Proposals
from voxelgate.apps.label.training_round import Annotated, Pace, train_round
from voxelgate.bundle.metadata import Metadata

logger = logging.getLogger(__name__)


class TrainTask(BundleTrainTask):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Train the version in use on what was annotated.

    Args:
        versions: of the model.
        proposals: of all models.
    """

    def __init__(self, versions: ModelVersions, proposals: Proposals) -> None:
        super().__init__(str(versions.current_path), {})
        self.versions = versions
        self.proposals = proposals

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
        cases = [self._annotated(image_id, datastore) for image_id in sorted(datastore.get_labeled_images())]
        done = train_round(self.versions, cases, pace)
        logger.warning("%s", done.sentence())
        return {"version": done.version, "dice": done.origin.dice, "parent_dice": done.origin.parent_dice}

    def _annotated(self, image_id: str, datastore: Datastore) -> Annotated:
        label = Path(datastore.get_label_uri(image_id, DefaultLabelTag.FINAL.value))
        table = Metadata.read(self.versions.current_path).labels
        is_proposal = self.proposals.holds(image_id, label, table)
        return Annotated(image_id, Path(datastore.get_image_uri(image_id)), label, is_proposal)
