"""What every bundle that is written here has around its network: the frame of its configs and of its metadata."""

from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from typing import Any

from voxelgate.core.labels import LabelTable
from voxelgate.images.spec import ONE_VOLUME, ImageSpec

Config = dict[str, Any]

IMPORTS = ("$import torch",)
DEVICE = "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"

CHANNELS_LAST = "$@network_def.to(@device, memory_format=torch.channels_last_3d)"
"""How a network of three axes runs fastest on a CPU; sums are in another order than in PyTorch's usual format."""

AS_IT_IS = "$@network_def.to(@device)"

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def image_reading_steps(images: ImageSpec) -> list[Config]:
    """Return the steps from the files of an image to a channel-first volume."""
    reader = "voxelgate.VolumeReader" if len(images.channels) == 1 else "voxelgate.ChannelsReader"
    return [
        {"_target_": "LoadImaged", "keys": ["image"], "reader": reader},
        {"_target_": "EnsureChannelFirstd", "keys": ["image"]},
    ]


def inference_config_around(
    network_def: Config,
    preprocessing: Sequence[Config],
    inferer: Config,
    postprocessing: Sequence[Config],
    images: ImageSpec,
    *,
    network: str = CHANNELS_LAST,
) -> Config:
    """Return `inference.json`: segment every volume of a folder, each on its own grid.

    Args:
        network_def: the network without weights.
        preprocessing: all steps for the image, the reading ones first.
        inferer: gives labels on the grid of the file.
        postprocessing: all steps for `pred`, `saving_step` last.
        images: what an image consists of.
        network: expression that brings the network to the device.
    """
    finding, rule = ["$from voxelgate import find_cases"], ""
    if images != ONE_VOLUME:
        finding, rule = [*finding, "$from voxelgate import image_spec_of"], ", images=image_spec_of(@bundle_root)"
    return {
        "imports": [*IMPORTS, "$from pathlib import Path", *finding],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "data": f"$[{{'image': case.files}} for case in find_cases([Path(@dataset_dir)]{rule})]",
        "device": DEVICE,
        "network_def": network_def,
        "network": network,
        "preprocessing": {"_target_": "Compose", "transforms": list(preprocessing)},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose", "transforms": list(postprocessing)},
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


def saving_step(images: ImageSpec, label_type: str = "uint8") -> Config:
    """Return the step that saves label maps, of voxels of a type."""
    return {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_dtype": label_type,
        "resample": False,
        "separate_folder": False,
        **({"output_ext": ".png"} if images.is_picture else {}),
        "writer": "voxelgate.LabelMapWriter",
    }


def versions_here() -> Config:
    """Return which packages a bundle was written with, as `metadata.json` states them."""
    return {
        "monai_version": installed_version("monai"),
        "pytorch_version": installed_version("torch").split("+", maxsplit=1)[0],
        "numpy_version": installed_version("numpy"),
        "required_packages_version": {
            name: installed_version(name) for name in ("nibabel", "SimpleITK", "pytorch-ignite", "tensorboard")
        },
        "supported_apps": {"voxelgate": installed_version("voxelgate")},
    }


def data_format(
    image: Mapping[str, Any], labels: LabelTable, channels: Sequence[str], spatial_shape: Sequence[int]
) -> Config:
    """Return `network_data_format` of `metadata.json`.

    Args:
        image: `format`, `modality` and `value_range` of the input.
        labels: of the output.
        channels: of the input.
        spatial_shape: of a patch.
    """
    return {
        "inputs": {
            "image": {
                "type": "image",
                "format": image["format"],
                "modality": image["modality"],
                "num_channels": len(channels),
                "spatial_shape": list(spatial_shape),
                "dtype": "float32",
                "value_range": image["value_range"],
                "is_patch_data": True,
                "channel_def": {str(index): name for index, name in enumerate(channels)},
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "num_channels": len(labels.names),
                "spatial_shape": list(spatial_shape),
                "dtype": "float32",
                "value_range": [0, len(labels.names) - 1],
                "is_patch_data": True,
                "channel_def": labels.to_mapping(),
            }
        },
    }


def installed_version(name: str) -> str:
    """Return the version of an installed package."""
    return distribution(name).version
