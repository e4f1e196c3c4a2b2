"""Which image to annotate next, and how proposals compare with what annotators made of them."""

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from voxelgate.apps.label.ids import check_tag
from voxelgate.apps.label.image_store import ImageStore, is_in_other_hands
from voxelgate.apps.label.infer_task import InferTask, refuse_beyond_memory
from voxelgate.apps.label.uncertainty import disagreement, mean_dice, uncertainty
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.dice import dice_of_labels
from voxelgate.core.errors import InputError, UsageError
from voxelgate.images.volumes import read_volume
from voxelgate.inference.threads import in_network_thread
from voxelgate.segmentation.cases import Case

logger = logging.getLogger(__name__)

MOST_MEASURED = 8
"""Images that one request measures; the annotator waits. The rest come with the next requests, and nothing is lost."""

Measure = Callable[[Case, InferTask], float]
Request = Mapping[str, Any]


def measure_uncertainty(case: Case, task: InferTask) -> float:
    """Return how much a result differs from that of the mirrored image."""
    with task.turn:
        refuse_beyond_memory(case, task.bundle())
        return in_network_thread(uncertainty, case, task.bundle())


def measure_disagreement(case: Case, task: InferTask) -> float:
    """Return how much the version in use and the one before differ.

    Raises:
        UsageError: there is one version only.
    """
    previous = task.versions.previous
    if previous is None:
        raise UsageError("the model has no earlier version to disagree with; train first, or choose by uncertainty.")
    with task.turn:
        earlier = open_bundle(task.versions.path(previous))
        refuse_beyond_memory(case, task.bundle())
        return in_network_thread(disagreement, case, task.bundle(), earlier)


def open_images(request: Request, store: ImageStore) -> list[str]:
    """Return the images to annotate, sorted: without label map, readable as far as is known, and in nobody's hands.

    What others were given a short while ago comes only when nothing else is left, so that two annotators do not do one
    image twice; who asks at the same moment is told apart by `ImageStore.hand_out`.
    """
    facts = {image_id: store.get_image_info(image_id) for image_id in sorted(store.get_unlabeled_images())}
    usable = [image_id for image_id, known in facts.items() if not known.get("refused")]
    return [
        image_id for image_id in usable if not is_in_other_hands(facts[image_id], request.get("client_id"))
    ] or usable


def by_name(image_ids: Sequence[str]) -> list[str]:
    """Return images in the order of names."""
    return sorted(image_ids)


def by_chance(image_ids: Sequence[str]) -> list[str]:
    """Return images in any order."""
    return random.SystemRandom().sample(image_ids, len(image_ids))


class Ordered(Strategy):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Choose an image without asking the model; one whose header cannot be read is passed over.

    Args:
        order: puts ids into an order.
        description: for clients.
    """

    def __init__(self, order: Callable[[Sequence[str]], list[str]], description: str) -> None:
        super().__init__(description)
        self.order = order

    def __call__(self, request: Request, datastore: ImageStore) -> dict[str, Any] | None:
        """Return the id of an image, or None where every image is annotated or unreadable."""
        left = self.order(open_images(request, datastore))
        while chosen := datastore.hand_out(left, request.get("client_id"), request["strategy"]):
            try:
                datastore.image_grid(chosen)
            except InputError as error:
                _refuse(chosen, error, datastore)
                left.remove(chosen)
            else:
                return {"id": chosen}
        return None


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
        self._turn = Lock()  # who waits for it finds measured what another has just measured

    def __call__(self, request: Request, datastore: ImageStore) -> dict[str, Any] | None:
        """Return the id of an image and its doubt, or None where every image is annotated or unreadable."""
        left = open_images(request, datastore)
        with self._turn:
            doubts = self._doubts(left, datastore)
        ranked = sorted(doubts, key=lambda image_id: doubts[image_id], reverse=True)
        unknown = [image_id for image_id in left if image_id not in doubts and not _is_refused(image_id, datastore)]
        chosen = datastore.hand_out([*ranked, *unknown], request.get("client_id"), request["strategy"])
        return None if chosen is None else {"id": chosen, self.key: doubts.get(chosen)}

    def _doubts(self, image_ids: Sequence[str], datastore: ImageStore) -> dict[str, float]:
        """Return the doubts that are known, and some more."""
        fingerprint = self.task.bundle().fingerprint
        doubts: dict[str, float] = {}
        unknown = []
        for image_id in image_ids:
            kept = datastore.get_image_info(image_id).get(self.key, {})
            if kept.get("fingerprint") == fingerprint:
                doubts[image_id] = kept["doubt"]
            else:
                unknown.append(image_id)
        left = MOST_MEASURED
        for image_id in unknown:
            if left > 0 and (doubt := self._measured(image_id, fingerprint, datastore)) is not None:
                doubts[image_id] = doubt
                left -= 1
        return doubts

    def _measured(self, image_id: str, fingerprint: str, datastore: ImageStore) -> float | None:
        """Measure an image and keep the result; None if it cannot be read."""
        try:
            doubt = self.measure(datastore.case(image_id), self.task)
        except InputError as error:
            _refuse(image_id, error, datastore)
            return None
        datastore.update_image_info(image_id, {self.key: {"fingerprint": fingerprint, "doubt": doubt}})
        return doubt


class DiceScoring(ScoringMethod):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Compare proposals with submitted label maps, structure by structure; MONAI Label's own multiplies label values.

    Args:
        task: the model, for the names of the structures.
    """

    def __init__(self, task: InferTask) -> None:
        super().__init__("Dice of proposals against what annotators submitted")
        self.task = task

    def __call__(self, request: Request, datastore: ImageStore) -> dict[str, float]:
        """Return the mean Dice of each image that has both label maps, and keep it with the image."""
        meant_tag = check_tag(request.get("y", DefaultLabelTag.FINAL.value))
        found_tag = check_tag(request.get("y_pred", DefaultLabelTag.ORIGINAL.value))
        table = self.task.bundle().labels
        scores = {}
        for image_id in sorted(datastore.list_images()):
            paths = [datastore.get_label_uri(image_id, tag) for tag in (found_tag, meant_tag)]
            if all(path and Path(path).is_file() for path in paths):
                found, meant = (read_volume(Path(path))[0] for path in paths)
                dices = dice_of_labels(found, meant, table)
                scores[image_id] = mean_dice(dices.values())
                known = {name: dice for name, dice in dices.items() if not math.isnan(dice)}  # JSON has no NaN
                datastore.update_image_info(image_id, {"dice": scores[image_id], "dice_of": known})
        return scores


def _is_refused(image_id: str, store: ImageStore) -> bool:
    return bool(store.get_image_info(image_id).get("refused"))


def _refuse(image_id: str, error: InputError, store: ImageStore) -> None:
    logger.warning("an image was passed over: %s", error)
    store.update_image_info(image_id, {"refused": str(error)})
