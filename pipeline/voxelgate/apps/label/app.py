"""The MONAI Label app: one model for each bundle, with the pipeline behind every task."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from voxelgate.apps.label.batch_task import BatchTask
from voxelgate.apps.label.ids import check_tag
from voxelgate.apps.label.image_store import ImageStore
from voxelgate.apps.label.infer_task import InferTask, facts_of
from voxelgate.apps.label.model_versions import CURRENT, MODELS, ModelVersions
from voxelgate.apps.label.next_image import (
    DiceScoring,
    MostDoubtful,
    Ordered,
    by_chance,
    by_name,
    measure_disagreement,
    measure_uncertainty,
)
from voxelgate.apps.label.pacs_store import PacsStore
from voxelgate.apps.label.proposals import PROPOSALS, Proposals
from voxelgate.apps.label.sessions import ImageSessions
from voxelgate.apps.label.train_task import TrainTask
from voxelgate.core.errors import InputError
from voxelgate.segmentation.output_names import Output

COPIES = "pacs"
"""Folder of the app with the series that were copied from a PACS, and their label maps."""


class VoxelgateApp(MONAILabelApp):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Every model below `app_dir`, on the studies of a folder or a PACS.

    Args:
        app_dir: work folder; `MODELS` in it was filled by `server`.
        studies: folder of images, or the address of a DICOMweb server.
        conf: `most_mib` in it is the largest upload, packed or not: some KiB of gzip can hold a volume that fills any
            memory.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        logging.getLogger().setLevel(logging.WARNING)  # MONAI Label and its libraries log ids and names at INFO, and
        logging.getLogger("monailabel").setLevel(logging.ERROR)  # where it warns, too
        logging.getLogger("voxelgate").setLevel(logging.INFO)
        roots = sorted(path.parent for path in (Path(app_dir) / MODELS).glob(f"*/{CURRENT}"))
        self.tasks = {root.name: InferTask(ModelVersions(root)) for root in roots}
        self.first = self.tasks[roots[0].name]
        self.proposals = Proposals(Path(app_dir) / PROPOSALS)
        self.most_bytes = int(conf["most_mib"]) * 2**20
        super().__init__(app_dir, studies, dict(conf), name="voxelgate", description="Segmentation bundles.")

    def init_datastore(self) -> Datastore:
        """Return the images, from a folder or a PACS, with every label map checked on its way in."""
        if not self.studies.startswith(("http://", "https://")):
            return ImageStore(Path(self.studies), self.first.bundle().labels)
        return PacsStore(self.studies, Path(self.app_dir) / COPIES, self.first.bundle)

    def init_infers(self) -> dict[str, InferTask]:
        """Return the models."""
        return self.tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return a training for each model whose bundle says how it is trained."""
        trainers = {name: TrainTask(task.versions, self.proposals) for name, task in self.tasks.items()}
        return {name: trainer for name, trainer in trainers.items() if trainer.is_valid()}

    def init_strategies(self) -> dict[str, Any]:
        """Return the ways to choose the next image."""
        return {
            "first": Ordered(by_name, "The first image by name"),
            "random": Ordered(by_chance, "An image by chance"),
            "uncertainty": MostDoubtful(
                "uncertainty", measure_uncertainty, self.first, "The image whose mirror image gives another result"
            ),
            "disagreement": MostDoubtful(
                "disagreement", measure_disagreement, self.first, "The image on which the last two versions differ most"
            ),
        }

    def init_scoring_methods(self) -> dict[str, DiceScoring]:
        """Return the ways to compare label maps."""
        return {"dice": DiceScoring(self.first)}

    def init_batch_infer(self) -> BatchTask:
        """Return the way to go through many images."""
        return BatchTask()

    def task(self, model: str) -> InferTask:
        """Return a model.

        Raises:
            InputError: there is none of that name.
        """
        if model not in self.tasks:
            raise InputError(f"there is no such model, only {', '.join(self.tasks)}.")
        return self.tasks[model]

    def check_trainable(self, model: str) -> None:
        """Do nothing if a model can be trained.

        Raises:
            InputError: there is none of that name, or its bundle does not say how it is trained.
        """
        self.task(model)
        if model not in self._trainers:
            raise InputError(f"{model} has no configs/train.json, so it cannot be trained.")

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Save a proposal for an image of the datastore; a path is no id here, unlike in MONAI Label.

        Raises:
            InputError: there is no such model or image, or the image was refused.
        """
        store: ImageStore = datastore or self.datastore()
        task, image_id = self.task(request["model"]), request["image"]
        tag = check_tag(request.get("label_tag", DefaultLabelTag.ORIGINAL))
        with tempfile.TemporaryDirectory() as folder:
            proposal = task.propose(store.case(image_id), Path(folder))
            facts = facts_of(proposal, task)
            label_map = Path(proposal.report.outputs[Output.NIFTI])
            self.proposals.keep(image_id, label_map)
            label_id = store.save_label(image_id, str(label_map), tag, {"model": request["model"], "params": facts})
        return {"label": label_id, "tag": tag, "file": None, "params": facts}

    def _load_sessions(self, load: bool = False) -> ImageSessions:  # noqa: ARG002, FBT001, FBT002  # MONAI Label's interface
        return ImageSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY)

    def _download_dcmqi_tools(self) -> None:
        """Download nothing: SEG is written by `voxelgate.dicom.write.seg`."""
