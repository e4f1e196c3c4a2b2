"""Result folders that nnU-Net itself makes: its trainer builds, trains for some steps, and saves small networks.

Needs nnunetv2 (`make import-test`): import this after `pytest.importorskip("nnunetv2")`.
"""

import contextlib
import copy
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):  # nnU-Net says something where one is missing
    os.environ.setdefault(_name, os.devnull)

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainers  # noqa: E402, N813
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name  # noqa: E402

from tests.imports.nnunet_files import UNET, Json, architecture  # noqa: E402

PLANS = "nnUNetPlans"
FULL = "3d_fullres"
LOW = "3d_lowres"
CASCADE = "3d_cascade_fullres"
FLAT = "2d"


@dataclass(frozen=True)
class Kind:
    """What is special about a folder; everything else is as nnU-Net plans it for CT or MRI.

    Args:
        configurations: what to train, in this order; a cascade comes after its first stage.
        labels: as in dataset.json.
        channels: names of the channels.
        folds: trained, each from another seed.
        trainer: name of the trainer class.
        mirroring: axes that the checkpoint allows.
        change: what changes the plans.
        regions_order: as in dataset.json; for labels that are lists.
    """

    configurations: tuple[str, ...] = (FULL,)
    labels: Mapping[str, Any] = field(default_factory=lambda: {"background": 0, "blob": 1, "core": 2})
    channels: tuple[str, ...] = ("MRI",)
    folds: tuple[int | str, ...] = (0,)
    trainer: str = "nnUNetTrainer"
    mirroring: tuple[int, ...] | None = (0, 1, 2)
    change: Callable[[Json], None] | None = None
    regions_order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Folder:
    """A folder `DatasetNNN_NAME` of results.

    Args:
        path: of the folder.
        kind: what it holds.
    """

    path: Path
    kind: Kind

    def of(self, configuration: str = "") -> Path:
        """Return the folder of one configuration, the last that was trained by default."""
        name = configuration or self.kind.configurations[-1]
        return self.path / f"{self.kind.trainer}__{PLANS}__{name}"


def kinds() -> dict[str, Kind]:
    """Return every kind of folder by its name."""
    regions = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    return {
        "plain": Kind(),
        "residual": Kind(change=_residual, folds=(0, 1)),
        "batch_norm": Kind(trainer="nnUNetTrainerBN", mirroring=None),
        "two_d": Kind((FLAT,), mirroring=(0, 1)),
        "cascade": Kind((LOW, CASCADE)),
        "regions_ignore": Kind(labels=regions, regions_order=(1, 2)),
        "two_channels": Kind(channels=("T1", "T2"), mirroring=(0, 2)),
        "folds": Kind(folds=(0, 1, "all"), mirroring=(1,)),
        "transposed": Kind(change=_transposed, mirroring=(0, 2)),
        "anisotropic_ct": Kind(channels=("CT",), change=_anisotropic, mirroring=None),
        "old_plans": Kind(change=_old),
        "inherits": Kind(("3d_fullres_fine",), change=_inherits),
        "no_mirroring": Kind(trainer="nnUNetTrainerNoMirroring", mirroring=None),
    }


def make_folder(root: Path, kind: str | Kind, *, name: str = "Dataset001_Blobs", steps: int = 60) -> Folder:
    """Let nnU-Net train a folder of this kind below `root`.

    Args:
        root: stands for `nnUNet_results`; it is made.
        kind: its name, or what is special about it.
        name: of the data set.
        steps: of training for each network.
    """
    wanted = kinds()[kind] if isinstance(kind, str) else kind
    plans, dataset = _plans(wanted, name), _dataset(wanted)
    for configuration in wanted.configurations:
        for number, fold in enumerate(wanted.folds):
            _train(root, wanted, (copy.deepcopy(plans), copy.deepcopy(dataset)), (configuration, fold), steps, number)
    return Folder(root / name, wanted)


def make_images(root: Path, channels: int = 1, *, seed: int = 0) -> dict[str, tuple[Path, ...]]:
    """Write images that each are a difficulty of their own, and return the files of their channels by case.

    Args:
        root: folder of the files `CASE_0000.nii.gz`; it is made.
        channels: of each image.
        seed: of their voxels.
    """
    root.mkdir(parents=True, exist_ok=True)
    turn = np.linalg.qr(np.array([[0.96, 0.2, -0.1], [-0.22, 0.95, 0.15], [0.12, -0.12, 0.98]]))[0]
    turn *= np.sign(np.diag(turn))
    cases = {
        "isotropic": ((40, 36, 32), np.diag([1.0, 1.0, 1.0])),
        "fine": ((41, 45, 37), np.diag([0.75, 0.75, 1.0])),
        "thick": ((44, 40, 11), np.diag([0.8, 0.8, 4.0])),
        "oblique": ((36, 34, 30), turn @ np.diag([0.9, 1.1, 1.3])),
        "flipped": ((34, 38, 30), np.diag([-1.1, -0.9, 1.2])),
        "turned": ((30, 34, 38), np.array([[0.0, 0.0, 1.1], [-0.9, 0.0, 0.0], [0.0, 1.2, 0.0]])),
        "small": ((14, 12, 9), np.diag([1.0, 1.0, 1.0])),
        "zero_border": ((44, 42, 36), np.diag([1.0, 1.0, 1.0])),
    }
    found = {}
    for number, (case, (shape, turned)) in enumerate(cases.items()):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turned, (-20.0, 13.0, 7.5)
        paths = []
        for channel in range(channels):
            voxels, _ = _picture(np.random.default_rng([seed, number, channel]), shape)
            if case == "zero_border":
                voxels[:6], voxels[:, -9:], voxels[..., :4] = 0, 0, 0
            image = nib.Nifti1Image(np.round(voxels * 100).astype(np.int16), affine)
            image.set_qform(affine, 1)
            image.set_sform(affine, 1)
            paths.append(root / f"{case}_{channel:04d}.nii.gz")
            nib.save(image, paths[-1])
        found[case] = tuple(paths)
    return found


def predict(
    folder: Path,
    files: Sequence[Path],
    *,
    folds: Sequence[int | str] | None = None,
    step_size: float = 0.5,
    mirroring: bool = True,
    previous: np.ndarray | None = None,
    probabilities: bool = False,
) -> Any:
    """Return what nnU-Net itself predicts, in this process, with as many threads as PyTorch has.

    Args:
        folder: `TRAINER__PLANS__CONFIGURATION`.
        files: of the channels of one image.
        folds: to average; all but `fold_all` by default.
        step_size: of the windows.
        mirroring: as the checkpoint allows it.
        previous: labels (k, j, i) of the first stage of a cascade.
        probabilities: return them too.

    Returns:
        Labels (k, j, i) on the grid of the file; with probabilities a pair.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(
            tile_step_size=step_size, use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), None if folds is None else tuple(folds))
        reader = predictor.plans_manager.image_reader_writer_class()
        voxels, properties = reader.read_images([str(path) for path in files])
        return predictor.predict_single_npy_array(
            voxels, properties, None if previous is None else previous[None].astype(np.float32), None, probabilities
        )


def _picture(rng: np.random.Generator, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with blobs, and labels: 1 blob, 2 its core."""
    smooth = gaussian_filter(rng.normal(size=shape), 3)
    smooth /= smooth.std()
    labels = (smooth > 0.5).astype(np.int64) + (smooth > 1.2)
    return smooth + 0.3 * rng.normal(size=shape) + 3, labels


def _dataset(kind: Kind) -> Json:
    order = {} if kind.regions_order is None else {"regions_class_order": list(kind.regions_order)}
    channels = {str(number): name for number, name in enumerate(kind.channels)}
    return {"channel_names": channels, "labels": dict(kind.labels), "numTraining": 4, "file_ending": ".nii.gz", **order}


def _plans(kind: Kind, name: str) -> Json:
    intensities = {"max": 900.0, "mean": 350.0, "median": 340.0, "min": -200.0, "std": 120.0}
    intensities |= {"percentile_00_5": 20.0, "percentile_99_5": 640.0}
    channels = range(len(kind.channels))
    plans: Json = {
        "dataset_name": name,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [36, 36, 36],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): dict(intensities) for channel in channels},
        "configurations": {
            FULL: _configuration(kind, [1.0, 1.0, 1.0], [24, 20, 28], 3),
            FLAT: _configuration(kind, [1.0, 1.0], [24, 28], 2),
            LOW: _configuration(kind, [1.6, 1.6, 1.6], [16, 20, 16], 3) | {"next_stage": CASCADE},
            CASCADE: {"inherits_from": FULL, "previous_stage": LOW},
        },
    }
    if kind.change is not None:
        kind.change(plans)
    return plans


def _configuration(kind: Kind, spacing: list[float], patch: list[int], dims: int) -> Json:
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    ct = all(name == "CT" for name in kind.channels)
    return {
        "data_identifier": f"{PLANS}_{dims}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [36.0] * dims,
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization" if ct else "ZScoreNormalization"] * len(kind.channels),
        "use_mask_for_norm": [False] * len(kind.channels),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": architecture(dims, (8, 12, 16)),
        "batch_dice": False,
    }


def _residual(plans: Json) -> None:
    architecture = plans["configurations"][FULL]["architecture"]
    architecture["network_class_name"] = f"{UNET}ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = [1, 2, 2]
    del architecture["arch_kwargs"]["n_conv_per_stage"]
    architecture["arch_kwargs"]["n_conv_per_stage_decoder"] = [1, 1]


def _transposed(plans: Json) -> None:
    plans["transpose_forward"], plans["transpose_backward"] = [2, 0, 1], [1, 2, 0]


def _anisotropic(plans: Json) -> None:
    fine = plans["configurations"][FULL]
    fine["spacing"], fine["patch_size"] = [3.5, 0.9, 0.9], [8, 28, 32]
    arch = fine["architecture"]["arch_kwargs"]
    arch["kernel_sizes"], arch["strides"] = [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def _old(plans: Json) -> None:
    """Write what was written before version 2.4."""
    fine = plans["configurations"][FULL]
    arch = fine.pop("architecture")["arch_kwargs"]
    fine |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 8,
        "unet_max_num_features": 20,
        "n_conv_per_stage_encoder": arch["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arch["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": arch["strides"],
        "conv_kernel_sizes": arch["kernel_sizes"],
    }
    plans["configurations"] = {FULL: fine}


def _inherits(plans: Json) -> None:
    plans["configurations"]["3d_fullres_bs4"] = {"inherits_from": FULL, "batch_size": 4}
    plans["configurations"]["3d_fullres_fine"] = {"inherits_from": "3d_fullres_bs4", "spacing": [0.9, 0.8, 1.1]}


def _train(
    root: Path, kind: Kind, files: tuple[Json, Json], place: tuple[str, int | str], steps: int, seed: int
) -> None:
    plans, dataset = files
    configuration, fold = place
    torch.manual_seed(seed)
    trainers.nnUNet_results = _Set(str(root))
    trainers.nnUNet_preprocessed = _Set(str(root / ".preprocessed"))
    with contextlib.redirect_stdout(io.StringIO()):
        build = recursive_find_trainer_class_by_name(kind.trainer)
        plans_given = plans | {"continue_training": False}
        trainer = build(plans_given, configuration, fold, dataset, torch.device("cpu"))
        trainer.enable_deep_supervision = False
        _build(trainer)
        for batch in _batches(trainer, steps, seed):
            trainer.train_step(batch)
        trainer.inference_allowed_mirroring_axes = kind.mirroring
        folder = Path(trainer.output_folder)
        trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    (folder.parent / "plans.json").write_text(json.dumps(plans, indent=1))
    (folder.parent / "dataset.json").write_text(json.dumps(dataset, indent=1))


def _build(trainer: Any) -> None:
    """Do what `initialize` does, but for the data set, which nobody has."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels  # noqa: PLC0415

    trainer.num_input_channels = determine_num_input_channels(
        trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json
    )
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager,
        trainer.configuration_manager,
        trainer.num_input_channels,
        trainer.label_manager.num_segmentation_heads,
        False,
    )
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss = trainer._build_loss()
    trainer.network.train()


def _batches(trainer: Any, steps: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    patch = trainer.configuration_manager.patch_size
    manager = trainer.label_manager
    channels = len(trainer.dataset_json["channel_names"])
    for _ in range(steps):
        pairs = [_picture(rng, patch) for _ in range(2)]
        images = np.stack([np.stack([(image - 3) / 1.1] * channels) for image, _ in pairs])
        labels = np.stack([labels for _, labels in pairs])
        further = trainer.num_input_channels - channels
        if further:  # one-hot labels of the first stage
            images = np.concatenate([images, *(labels[:, None] == value for value in range(1, 1 + further))], axis=1)
        target = labels[:, None]
        if manager.has_regions:
            regions = [np.isin(labels, region) for region in manager.foreground_regions]
            target = (
                np.stack([*regions, labels == manager.ignore_label], axis=1)
                if manager.has_ignore_label
                else (np.stack(regions, axis=1))
            )
        yield {"data": torch.from_numpy(images).float(), "target": torch.from_numpy(target.astype(np.int16))}


class _Set(str):
    """A folder of nnU-Net's, which since 2.6 knows whether it was set."""

    __slots__ = ()

    def is_set(self) -> bool:
        """Return True."""
        return True
