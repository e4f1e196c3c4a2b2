"""MONAI Label's inference task, done by the pipeline: the very result of `voxelgate segment`."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from monai.transforms import Compose
from monailabel.tasks.infer.bundle import BundleInferTask

from voxelgate.apps.label.model_versions import ModelVersions
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.core.errors import InputError, VoxelgateError
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.core.verdict import Require
from voxelgate.dicom.read.series import Series
from voxelgate.images.volumes import read_grid
from voxelgate.inference.memory import available_bytes
from voxelgate.inference.threads import in_network_thread
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.report import CaseReport, CaseStatus
from voxelgate.segmentation.segment import segment_case
from voxelgate.transforms.spatial import ResampleToSpacingd

BYTES_PER_VOX = 16
"""What a voxel of the network grid takes at least: two float32, before and after resampling, and scores of classes."""


class Proposal(NamedTuple):
    """What came of an image, and the version of the model that made it; another may be in use by now."""

    report: CaseReport
    version: int


class InferTask(BundleInferTask):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Propose a label map with the version of a model that is in use.

    What clients see comes from `BundleInferTask`; what runs is `segmentation.segment`, since MONAI Label's own
    chain loads weights without strictness, and on a CPU only if asked. One image is worked on at a time.

    Args:
        versions: of the model.
    """

    def __init__(self, versions: ModelVersions) -> None:
        super().__init__(str(versions.current_path), {}, load_strict=True)
        self.versions = versions
        self.turn: AbstractContextManager[bool] = Lock()
        """To be held by whoever runs the model."""

    def info(self) -> dict[str, Any]:
        """Return what a client shows of the model: labels with their numbers and colours, and the version in use."""
        colours_of = colours_by_name(self.bundle().labels)
        return {**super().info(), "number": self.versions.current, "label_colors": colours_of}

    def config(self) -> dict[str, Any]:
        """Return what a client may choose."""
        return {"device": self._config["device"]}

    def bundle(self, device: str | None = None) -> Bundle:
        """Return the bundle of the version in use; `open_bundle` keeps it in memory."""
        return open_bundle(self.versions.current_path, device)

    def propose(self, case: Case, folder: Path, outputs: Sequence[Output] = (Output.NIFTI,)) -> Proposal:
        """Segment an image into a folder, as the command line does.

        Raises:
            InputError: the image was refused.
            VoxelgateError: it failed for another reason.
        """
        with self.turn:
            version = self.versions.current
            bundle = open_bundle(self.versions.path(version))
            options = Options(tuple(outputs), require=Require.ANY)  # a bad proposal is still one to correct
            refuse_beyond_memory(case, bundle)
            report = in_network_thread(segment_case, case, bundle, folder, options)  # requests come in any thread
        if report.status is CaseStatus.REJECTED:
            raise InputError(" ".join(map(str, report.findings)))
        if report.status is CaseStatus.FAILED:
            raise VoxelgateError(" ".join(map(str, report.findings)))
        return Proposal(report, version)


def refuse_beyond_memory(case: Case, bundle: Bundle) -> None:
    """Refuse an image that resampling would make larger than the memory that is free: it would end the server.

    A voxel size that is wrong by a factor of ten makes a volume a thousand times as large.

    Raises:
        InputError: it is refused, or cannot be read.
    """
    steps = bundle.preprocessing.transforms if isinstance(bundle.preprocessing, Compose) else ()
    spacings = [step.spacing_mm for step in steps if isinstance(step, ResampleToSpacingd)]
    grid = case.image.grid if isinstance(case.image, Series) else None if case.image is None else read_grid(case.image)
    if grid is None or not spacings:
        return
    voxels = math.prod(grid.shape) * math.prod(grid.spacing_mm) / math.prod(spacings[-1])
    if voxels * BYTES_PER_VOX > available_bytes(torch.device("cpu")):
        found, wanted = (" x ".join(f"{gap:g}" for gap in gaps) for gaps in (grid.spacing_mm, spacings[-1]))
        raise InputError(
            f"{case.case_id}: {voxels:.2g} voxels once those of {found} mm are resampled to {wanted} mm, more than the "
            "memory of the server holds; check the voxel size."
        )


def colours_by_name(table: LabelTable) -> dict[str, list[int]]:
    """Return the colour of each structure, three numbers from 0 to 255."""
    return {table.names[value]: list(colour) for value, colour in structure_colours(table).items()}


def facts_of(proposal: Proposal, task: InferTask) -> dict[str, Any]:
    """Return what a client is told of a proposal, as JSON."""
    report = proposal.report
    return {
        "label_names": task.labels,
        "label_colors": colours_by_name(task.bundle().labels),
        "volumes_ml": dict(report.volumes_ml),
        "findings": list(map(str, report.findings)),
        "quality": report.quality and asdict(report.quality),
        "version": proposal.version,
        "bundle_sha256": report.bundle_sha256,
        "seconds": dict(report.seconds),
    }
