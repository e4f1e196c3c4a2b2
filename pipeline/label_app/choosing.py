"""Which image to annotate next, and how proposals compare with what annotators made of them."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from pipeline.bundle import open_bundle
from pipeline.cases import Case
from pipeline.errors import UsageError, VoxelgateError
from pipeline.label_app.doubt import dice_of, disagreement, mean_dice, uncertainty
from pipeline.label_app.infer_task import InferTask
from pipeline.label_app.names import check_tag
from pipeline.volumes import read_volume

logger = logging.getLogger(__name__)

MOST_MEASURED = 8
"""Images that one request measures; the annotator waits. The rest come with the next requests, and nothing is lost."""

Measure = Callable[[Case, InferTask], float]


def measure_uncertainty(case: Case, task: InferTask) -> float:
    """Return how much a result differs from that of the mirrored image."""
    return uncertainty(case, task.bundle())


def measure_disagreement(case: Case, task: InferTask) -> float:
    """Return how much the version in use and the one before differ.

    Raises:
        UsageError: there is one version only.
    """
    previous = task.versions.previous
    if previous is None:
        raise UsageError("the model has no earlier version to disagree with; train first, or choose by uncertainty.")
    return disagreement(case, task.bundle(), open_bundle(task.versions.path(previous)))


class MostDoubtful(Strategy):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Choose the image of which the model is least sure, of those that are not annotated.

    What was measured is kept with the image, for the version of the model that is in use.

    Args:
        key: name of the measure in the image's facts.
        measure: gives 0 for sure to 1.
        task: the model.
        description: for clients.
    """

    def __init__(self, key: str, measure: Measure, task: InferTask, description: str) -> None:
        super().__init__(description)
        self.key, self.measure, self.task = key, measure, task

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:  # noqa: ARG002  # MONAI Label's interface
        """Return the id of an image and its doubt, or None where every image is annotated or unreadable."""
        fingerprint = self.task.bundle().fingerprint
        doubts: dict[str, float] = {}
        left = MOST_MEASURED
        for image_id in sorted(datastore.get_unlabeled_images()):
            kept = datastore.get_image_info(image_id).get(self.key, {})
            if kept.get("fingerprint") == fingerprint:
                doubts[image_id] = kept["doubt"]
            elif left > 0:
                left -= 1
                doubts |= self._measured(image_id, fingerprint, datastore)
        known = {image_id: doubt for image_id, doubt in doubts.items() if doubt >= 0}
        if not known:
            return None
        chosen = max(known, key=lambda image_id: known[image_id])
        return {"id": chosen, self.key: known[chosen]}

    def _measured(self, image_id: str, fingerprint: str, datastore: Any) -> dict[str, float]:
        """Measure an image and keep the result; one that cannot be read counts as -1, and is not tried again."""
        try:
            doubt = self.measure(datastore.case(image_id), self.task)
        except UsageError:
            raise
        except VoxelgateError as error:
            logger.warning("an image was passed over: %s", error)
            doubt = -1.0
        datastore.update_image_info(image_id, {self.key: {"fingerprint": fingerprint, "doubt": doubt}})
        return {image_id: doubt}


class DiceScoring(ScoringMethod):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Compare proposals with submitted label maps, structure by structure; MONAI Label's own multiplies label values.

    Args:
        task: the model, for the names of the structures.
    """

    def __init__(self, task: InferTask) -> None:
        super().__init__("Dice of proposals against what annotators submitted")
        self.task = task

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, float]:
        """Return the mean Dice of each image that has both label maps, and keep it with the image."""
        meant_tag = check_tag(request.get("y", DefaultLabelTag.FINAL))
        found_tag = check_tag(request.get("y_pred", DefaultLabelTag.ORIGINAL))
        table = self.task.bundle().labels
        scores = {}
        for image_id in sorted(datastore.list_images()):
            paths = [datastore.get_label_uri(image_id, tag) for tag in (found_tag, meant_tag)]
            if all(path and Path(path).is_file() for path in paths):
                found, meant = (read_volume(Path(path))[0] for path in paths)
                dices = dice_of(found, meant, table)
                scores[image_id] = mean_dice(dices.values())
                known = {name: dice for name, dice in dices.items() if not math.isnan(dice)}  # JSON has no NaN
                datastore.update_image_info(image_id, {"dice": scores[image_id], "dice_of": known})
        return scores
