"""Small nnU-Net folders that are written here, without nnU-Net: plans, data set and checkpoints of random weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from voxelgate.bundle.frame import Config

Json = dict[str, Any]

UNET = "dynamic_network_architectures.architectures.unet."
TRAINED = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def architecture(dims: int = 3, features: Sequence[int] = (4, 6)) -> Json:
    levels = len(features)
    return {
        "network_class_name": f"{UNET}PlainConvUNet",
        "arch_kwargs": {
            "n_stages": levels,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims for _ in features],
            "strides": [[1] * dims, *([2] * dims for _ in features[1:])],
            "n_conv_per_stage": [2] * levels,
            "n_conv_per_stage_decoder": [2] * (levels - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(dims: int = 3) -> Json:
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 12, 20][-dims:],
        "spacing": [1.0, 0.9, 0.8][-dims:],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": dict(resampling),
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": architecture(dims),
    }


def plans(**changes: Any) -> Json:
    """Return `plans.json`; `changes` are of the configuration `3d_fullres`."""
    return {
        "dataset_name": "Dataset001_Blobs",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"max": 900.0, "mean": 90.5, "std": 45.25, "percentile_00_5": -20.0, "percentile_99_5": 240.0}
        },
        "configurations": {"2d": configuration(2), "3d_fullres": configuration() | changes},
    }


def data_set(**changes: Any) -> Json:
    labels = {"background": 0, "liver": 1, "tumour": 2}
    return {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"} | changes


def network(config: Config, seed: int = 0) -> torch.nn.Module:
    """Return a network with random weights, also where an untrained one has zeros."""
    torch.manual_seed(seed)
    built: torch.nn.Module = ConfigParser({"network_def": config}).get_parsed_content("network_def")
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return built


def checkpoint(state: Mapping[str, torch.Tensor], **changes: Any) -> Json:
    """Return what nnU-Net saves, with the second names of its weights."""
    weights = {f"decoder.{name}": value for name, value in state.items() if name.startswith("encoder.")} | dict(state)
    places = {".conv.": ".all_modules.0.", ".norm.": ".all_modules.1."}
    for name in list(weights):
        for place, alias in places.items():
            if place in name:
                weights[name.replace(place, alias)] = weights[name]
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None,
        "current_epoch": 1000,
        "init_args": {"plans": {}, "configuration": "3d_fullres", "fold": 0, "dataset_json": {}},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    } | changes


def write_folder(folder: Path, *, plans: Json, data_set: Json, checkpoints: Mapping[str, Json]) -> Path:
    """Write a folder of one configuration; checkpoints by their place, such as `fold_0/checkpoint_final.pth`."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(data_set), encoding="utf-8")
    for place, document in checkpoints.items():
        (folder / place).parent.mkdir(exist_ok=True)
        torch.save(document, folder / place)
    return folder


NETWORK: Json = {
    "_target_": "voxelgate.PlainConvUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 6],
    "strides": [[2, 2, 2]],
    "encoder_blocks": [2, 2],
    "decoder_blocks": [2],
}
"""What `plans` describes for `data_set`."""


def write_data_set(root: Path, document: Json | None = None, **changes: Any) -> Path:
    """Write a folder `DatasetNNN_NAME` with one fold of one configuration; `changes` are of its plans."""
    saved = document or checkpoint(network(NETWORK).state_dict())
    root.mkdir(parents=True)
    files = {"fold_0/checkpoint_final.pth": saved}
    write_folder(root / TRAINED, plans=plans(**changes), data_set=data_set(), checkpoints=files)
    return root
