"""Propose label maps for many images; an image that cannot be read ends nothing but itself."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from voxelgate.core.errors import InputError, VoxelgateError

logger = logging.getLogger(__name__)


class BatchTask(BatchInferTask):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Go through the images one by one, on the device that the bundle chooses: MONAI Label's own wants GPUs."""

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., Mapping[str, Any]]
    ) -> dict[str, int]:
        """Save a proposal for each image; return how many have one. Why another cannot be read is kept with it."""
        image_ids = sorted(self.get_images(request, datastore))
        most = int(request.get("max_batch_size", 0))
        wanted = image_ids[:most] if most > 0 else image_ids
        refused = 0
        for image_id in wanted:
            try:
                infer({**request, "image": image_id, "save_label": True}, datastore)
                if datastore.get_image_info(image_id).get("refused"):
                    datastore.update_image_info(image_id, {"refused": ""})
            except VoxelgateError as error:
                refused += 1
                logger.warning("an image got no proposal: %s", error)
                if isinstance(error, InputError):
                    datastore.update_image_info(image_id, {"refused": str(error)})
        logger.warning("%d of %d images have a proposal", len(wanted) - refused, len(wanted))
        return {"done": len(wanted) - refused, "refused": refused}
