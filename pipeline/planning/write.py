"""From a plan to the files of a MONAI bundle: numbers come from the plan, the structure of the configs stands here."""

import json
import os
import shutil
import tempfile
from importlib.metadata import distribution
from math import radians
from pathlib import Path
from typing import Any

from pipeline.errors import OutputError
from pipeline.manifest import Modality
from pipeline.planning.docs import LOGGING_CONF, data_licence, readme
from pipeline.planning.plan import Plan

Config = dict[str, Any]

IMPORTS = ["$import torch"]
PACKAGES = ("torch", "monai", "numpy", "nibabel", "SimpleITK", "scikit-image", "pytorch-ignite", "tensorboard")
DEVICE = "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"
LOSSES = {
    "dice_ce": {
        "_target_": "DiceCELoss", "softmax": True, "to_onehot_y": True, "include_background": False
    },
    "dice_bce": {
        "_target_": "DiceCELoss", "sigmoid": True, "to_onehot_y": True, "include_background": True
    },
    "dice_focal": {
        "_target_": "DiceFocalLoss", "softmax": True, "to_onehot_y": True, "include_background": True
    },
}  # fmt: skip
GAMMA_RANGE = (0.7, 1.5)
"""Range of nnU-Net's gamma augmentation (batchgenerators `GammaTransform`)."""

CONTRAST_FACTOR = 0.25
SHIFT_OFFSET = 0.2
ELASTIC_SIGMA_VOX = (6.0, 9.0)
ELASTIC_MAGNITUDE_VOX = (40.0, 120.0)


def write_bundle(plan: Plan, root: Path) -> None:
    """Write every file of a bundle but its weights; all of them appear at once, or none.

    Args:
        plan: the numbers.
        root: folder to make; must not exist.

    Raises:
        OutputError: `root` exists.
    """
    if root.exists():
        raise OutputError(f"{root} exists already; name another folder, or remove it first")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as partial:
        folder = Path(partial) / root.name
        for name, text in bundle_files(plan).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "models").mkdir()
        shutil.move(os.fspath(folder), root)


def bundle_files(plan: Plan) -> dict[str, str]:
    """Return the text of every generated file by its path in the bundle; README and weights come from the training."""
    configs = {
        "train": train_config(plan),
        "inference": inference_config(plan),
        "evaluate": evaluate_config(plan),
        "multi_gpu_train": multi_gpu_config(),
        "metadata": metadata(plan),
    }
    return {
        "plan.json": plan.to_json(),
        **{f"configs/{name}.json": json.dumps(config, indent=2) + "\n" for name, config in configs.items()},
        "configs/logging.conf": LOGGING_CONF,
        "docs/README.md": readme(plan),
        "docs/data_license.txt": data_licence(plan),
        "LICENSE": distribution("voxelgate").read_text("licenses/LICENSE") or "Apache-2.0\n",
    }


def inference_config(plan: Plan) -> Config:
    """Return `inference.json`: segment every volume of a folder, each on its own grid."""
    return {
        "imports": [*IMPORTS, "$from pathlib import Path", "$from pipeline.segment import find_volumes"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "data": "$[{'image': str(image)} for image, _ in find_volumes([Path(@dataset_dir)])]",
        "device": DEVICE,
        "network_def": _network(plan),
        "network": "$@network_def.to(@device, memory_format=torch.channels_last_3d)",
        "preprocessing": {"_target_": "Compose", "transforms": _read(["image"]) + _prepare(plan, ["image"])},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": _inferer(plan),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "uint8",
                    "resample": False,
                    "separate_folder": False,
                    "writer": "pipeline.volumes.LabelMapWriter",
                }
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def train_config(plan: Plan) -> Config:
    """Return `train.json`; everything a user may want to change stands at its top level."""
    pace = plan.training
    return {
        "imports": [
            *IMPORTS,
            "$from pipeline.manifest import datalist",
            "$from pipeline.inference.runtime import choose_precision",
            "$from pipeline.inference.runtime import keep_large_buffers",
            "$from pipeline.inference.runtime import needs_scaler",
            "$from pipeline.handlers import start_process_group",
        ],
        "bundle_root": ".",
        "manifest": "manifest.json",
        "data_root": None,
        "fold": 0,
        "output_dir": "$@bundle_root + '/training'",
        "model_path": "$@bundle_root + '/models/model.pt'",
        "resume": False,
        "device": DEVICE,
        "precision": "auto",
        "precision_used": "$choose_precision(@device, @precision)",
        "workers": 0,
        "seed": pace.seed,
        "epochs": pace.epochs,
        "steps_per_epoch": pace.steps_per_epoch,
        "batch_size": pace.batch_size,
        "learning_rate": pace.learning_rate,
        "warmup_steps": pace.warmup_steps,
        "validate_every": pace.validate_every,
        "patience": pace.patience,
        "cache_rate": 1.0,
        "network_def": _network(plan),
        "network": "$@network_def.to(@device, memory_format=torch.channels_last_3d)",
        "train_network": "@network",
        "averaged": {
            "_target_": "torch.optim.swa_utils.AveragedModel",
            "model": "@network",
            "multi_avg_fn": f"$torch.optim.swa_utils.get_ema_multi_avg_fn({pace.average_decay})",
            "use_buffers": True,
        },
        "loss": {"_target_": "DeepSupervisionLoss", "loss": LOSSES[pace.loss]},
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": "$@train_network.parameters()",
            "lr": "@learning_rate",
            "weight_decay": pace.weight_decay,
        },
        "lr_scheduler": {
            "_target_": "monai.optimizers.WarmupCosineSchedule",
            "optimizer": "@optimizer",
            "warmup_steps": "@warmup_steps",
            "t_total": "$@epochs * @steps_per_epoch",
            "warmup_multiplier": 0.01,
        },
        "train": _train_section(plan),
        "validate": _validate_section(plan),
        "initialize": ["$keep_large_buffers()", "$monai.utils.set_determinism(seed=@seed)"],
        "run": ["$@train#trainer.run()"],
    }


def _train_section(plan: Plan) -> Config:
    keys = ["image", "label"]
    return {
        "deterministic_transforms": [
            *_read(keys),
            *_prepare(plan, keys),
            {"_target_": "pipeline.transforms.ForegroundIndicesd", "label_key": "label"},
        ],
        "random_transforms": _augmentation(plan),
        "preprocessing": {
            "_target_": "Compose",
            "transforms": "$@train#deterministic_transforms + @train#random_transforms",
        },
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$datalist(@manifest, data_root=@data_root, fold=@fold, part='training')",
            "transform": "@train#preprocessing",
            "cache_rate": "@cache_rate",
            "num_workers": 2,
            "progress": False,
        },
        "sampler": {
            "_target_": "pipeline.handlers.ShardedRandomSampler",
            "cases": "$len(@train#dataset)",
            "samples": "$@steps_per_epoch * @batch_size",
            "seed": "@seed",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@train#dataset",
            "batch_size": "@batch_size",
            "sampler": "@train#sampler",
            "num_workers": "@workers",
        },
        "inferer": {
            "_target_": "pipeline.inference.runtime.MixedPrecisionInferer",
            "precision": "@precision_used",
        },
        "keep_best": {
            "_target_": "pipeline.handlers.KeepBest",
            "path": "@model_path",
            "network": "$@averaged.module",
            "validator": "@validate#evaluator",
            "patience": "@patience",
        },
        "handlers": _train_handlers(),
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@epochs",
            "epoch_length": "@steps_per_epoch",
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@train_network",
            "loss_function": "@loss",
            "optimizer": "@optimizer",
            "inferer": "@train#inferer",
            "train_handlers": "@train#handlers",
            "decollate": False,
            "amp": "$needs_scaler(@precision_used)",
        },
    }


def _train_handlers() -> list[Config | str]:
    return [
        {
            "_target_": "pipeline.handlers.SeedEpochs",
            "seed": "@seed",
            "sampler": "@train#sampler",
            "transform": "@train#preprocessing",
        },
        {"_target_": "pipeline.handlers.StopOnBadLoss"},
        {"_target_": "LrScheduleHandler", "lr_scheduler": "@lr_scheduler", "print_lr": False, "epoch_level": False},
        {"_target_": "pipeline.handlers.UpdateAverage", "averaged": "@averaged", "network": "@network"},
        {
            "_target_": "ValidationHandler",
            "validator": "@validate#evaluator",
            "epoch_level": True,
            "interval": "@validate_every",
        },
        "@train#keep_best",
        {
            "_target_": "TensorBoardStatsHandler",
            "log_dir": "$@output_dir + '/events'",
            "tag_name": "train_loss",
            "output_transform": "$lambda output: output['loss'].item()",
        },
        {"_target_": "pipeline.handlers.ShowProgress", "validator": "@validate#evaluator"},
        {
            "_target_": "pipeline.handlers.ResumeState",
            "path": "$@output_dir + '/state.pt'",
            "objects": {
                "network": "@network",
                "averaged": "@averaged",
                "optimizer": "@optimizer",
                "lr_scheduler": "@lr_scheduler",
                "keep_best": "@train#keep_best",
            },
            "identity": {
                "fold": "@fold",
                "seed": "@seed",
                "epochs": "@epochs",
                "steps_per_epoch": "@steps_per_epoch",
                "batch_size": "@batch_size",
                "learning_rate": "@learning_rate",
                "precision": "$str(@precision_used)",
            },
            "resume": "@resume",
        },
    ]


def _validate_section(plan: Plan) -> Config:
    return {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": _read(["image", "label"]) + _prepare(plan, ["image"]),
        },
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$datalist(@manifest, data_root=@data_root, fold=@fold, part='validation')",
            "transform": "@validate#preprocessing",
            "cache_rate": "@cache_rate",
            "num_workers": 2,
            "progress": False,
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@validate#dataset",
            "batch_size": 1,
            "num_workers": 0,
        },
        "inferer": _inferer(plan) | {"flip_axes": []},
        "postprocessing": {
            "_target_": "AsDiscreted",
            "keys": ["pred", "label"],
            "to_onehot": len(plan.labels),
        },
        "key_metric": {
            "val_mean_dice": {
                "_target_": "MeanDice",
                "include_background": False,
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            }
        },
        "handlers": [
            {
                "_target_": "TensorBoardStatsHandler",
                "log_dir": "$@output_dir + '/events'",
                "iteration_log": False,
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@validate#dataloader",
            "network": "$@averaged.module",
            "inferer": "@validate#inferer",
            "postprocessing": "@validate#postprocessing",
            "key_val_metric": "@validate#key_metric",
            "val_handlers": "@validate#handlers",
        },
    }


def evaluate_config(plan: Plan) -> Config:
    """Return `evaluate.json`, laid over `train.json`: measure the weights on the validation cases of a fold."""
    return {
        "validate#inferer": _inferer(plan),
        "validate#handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "@model_path",
                "load_dict": {"model": "$@averaged.module"},
                "map_location": "@device",
            },
            "@score_cases",
        ],
        "score_cases": {
            "_target_": "pipeline.evaluation.ScoreCases",
            "path": "$@output_dir + '/scores.csv'",
            "names": plan.label_table.to_mapping(),
        },
        "run": ["$@validate#evaluator.run()"],
    }


def multi_gpu_config() -> Config:
    """Return `multi_gpu_train.json`, laid over `train.json` and started by torchrun; gloo where there is no GPU."""
    return {
        "device": "$start_process_group()",
        "train_network": {
            "_target_": "torch.nn.parallel.DistributedDataParallel",
            "module": "@network",
            "device_ids": "$None if @device.type == 'cpu' else [@device]",
        },
        "initialize": ["$keep_large_buffers()", "$@device", "$monai.utils.set_determinism(seed=@seed)"],
        "run": ["$@train#trainer.run()", "$torch.distributed.destroy_process_group()"],
    }


def metadata(plan: Plan) -> Config:
    """Return `metadata.json` after MONAI's schema."""
    size = list(plan.patch_vox)
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": plan.version,
        "changelog": {plan.version: "first version"},
        "monai_version": _installed("monai"),
        "pytorch_version": _installed("torch").split("+", maxsplit=1)[0],
        "numpy_version": _installed("numpy"),
        "required_packages_version": {
            name: _installed(name) for name in ("nibabel", "SimpleITK", "pytorch-ignite", "tensorboard")
        },
        "supported_apps": {"voxelgate": _installed("voxelgate")},
        "name": plan.name,
        "task": plan.description,
        "description": plan.description,
        "authors": "the voxelgate developers",
        "copyright": "Copyright (c) the voxelgate developers",
        "data_source": plan.data.get("name", ""),
        "data_type": "nibabel",
        "intended_use": "Research only; not a medical device.",
        "references": [text for text in (plan.data.get("reference", ""),) if text],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if plan.modality is Modality.CT else "magnitude",
                    "modality": plan.modality.value,
                    "num_channels": 1,
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [0, 1] if plan.intensity.low_hu is not None else [-5, 5],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(plan.labels),
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [0, len(plan.labels) - 1],
                    "is_patch_data": True,
                    "channel_def": plan.label_table.to_mapping(),
                }
            },
        },
    }


def _read(keys: list[str]) -> list[Config]:
    return [
        {"_target_": "LoadImaged", "keys": keys, "reader": "pipeline.volumes.VolumeReader"},
        {"_target_": "EnsureChannelFirstd", "keys": keys},
    ]


def _prepare(plan: Plan, keys: list[str]) -> list[Config]:
    """Return the way to the network grid and its values; the only place it stands, for training and inference."""
    return [
        {"_target_": "Orientationd", "keys": keys, "axcodes": "RAS", "labels": None},
        {
            "_target_": "pipeline.transforms.ResampleToSpacingd",
            "keys": keys,
            "spacing_mm": list(plan.spacing_mm),
            "mode": ["nearest" if key == "label" else "bilinear" for key in keys],
        },
        _intensity(plan),
    ]


def _intensity(plan: Plan) -> Config:
    if plan.intensity.low_hu is None:
        return {"_target_": "pipeline.transforms.NormalizeImaged", "keys": "image"}
    return {
        "_target_": "pipeline.transforms.WindowHUd",
        "keys": "image",
        "low_hu": plan.intensity.low_hu,
        "high_hu": plan.intensity.high_hu,
    }


def _augmentation(plan: Plan) -> list[Config]:
    change, both = plan.augmentation, ["image", "label"]
    modes = ["bilinear", "nearest"]
    steps: list[Config] = [
        {
            "_target_": "pipeline.transforms.RandBalancedPatchd",
            "keys": both,
            "label_key": "label",
            "patch_vox": list(plan.patch_vox),
            "foreground_probability": plan.training.foreground_probability,
        },
        {
            "_target_": "pipeline.transforms.RandSideSafeFlipd",
            "keys": both,
            "label_key": "label",
            "axes": ["sagittal"],
            "side_pairs": [list(pair) for pair in plan.label_table.side_pairs],
            "unpaired_sides": list(plan.label_table.unpaired_sides),
            "prob": change.flip_sagittal,
        },
        {
            "_target_": "RandAffined",
            "keys": both,
            "prob": change.affine,
            "rotate_range": [round(radians(change.rotation_deg), 4)] * 3,
            "scale_range": [change.scaling] * 3,
            "mode": modes,
            "padding_mode": "zeros",
        },
        {
            "_target_": "Rand3DElasticd",
            "keys": both,
            "prob": change.elastic,
            "sigma_range": list(ELASTIC_SIGMA_VOX),
            "magnitude_range": list(ELASTIC_MAGNITUDE_VOX),
            "mode": modes,
            "padding_mode": "zeros",
        },
        {"_target_": "RandGaussianNoised", "keys": "image", "prob": change.noise, "std": change.noise_sd},
        {"_target_": "RandAdjustContrastd", "keys": "image", "prob": change.gamma, "gamma": list(GAMMA_RANGE)},
        {"_target_": "RandScaleIntensityd", "keys": "image", "prob": change.contrast, "factors": CONTRAST_FACTOR},
        {"_target_": "RandShiftIntensityd", "keys": "image", "prob": change.contrast, "offsets": SHIFT_OFFSET},
    ]
    probabilities = (1.0, change.flip_sagittal, change.affine, change.elastic, change.noise, change.gamma)
    drawn = (*probabilities, change.contrast, change.contrast)
    kept = [step for step, prob in zip(steps, drawn, strict=True) if prob > 0]
    return [*kept, {"_target_": "ToTensord", "keys": both, "track_meta": False}]


def _network(plan: Plan) -> Config:
    return {
        "_target_": "pipeline.networks.AttentionUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": len(plan.labels),
        "channels": list(plan.channels),
        "strides": [list(stride) for stride in plan.strides],
        **plan.network,
    }


def _inferer(plan: Plan) -> Config:
    is_flipped = plan.flip_test and plan.is_mirrored
    return {
        "_target_": "pipeline.inference.sliding_window.RestoringSlidingWindowInferer",
        "roi_size": list(plan.window_vox),
        "overlap": plan.overlap,
        "flip_axes": [0] if is_flipped else [],
        "side_pairs": [list(pair) for pair in plan.label_table.side_pairs] if is_flipped else [],
    }


def _installed(name: str) -> str:
    return distribution(name).version
