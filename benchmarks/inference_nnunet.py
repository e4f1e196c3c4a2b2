"""nnU-Net's predictor as a contender of `inference.py`: in an environment of its own, which is made the first time.

Its defaults are kept (reader, normalisation, resampling, Gaussian windows that overlap by half) but mirroring, which
none of the others does. Its `PlainConvUNet` has the channels of the other networks and random weights.
"""

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from benchmarks.inference_clock import CLOCKS, Stopwatch, resident_mib

VERSION = "2.8.1"
WINDOW = (128, 128, 128)
"""What nnU-Net plans for CT at this spacing."""

SPACING_MM = (1.5, 1.5, 1.5)
CHANNELS = [16, 32, 64, 128, 256]
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def python_of(cache: Path) -> str:
    """Return the Python of an environment with nnU-Net and this environment's PyTorch."""
    folder = cache / f"nnunet-{VERSION}"
    python = folder / "bin" / "python"
    if not python.exists():
        import torch  # noqa: PLC0415  # of the environment that makes the other

        venv.create(folder, with_pip=True)
        wanted = [f"torch=={torch.__version__.partition('+')[0]}", f"nnunetv2=={VERSION}"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, stdout=sys.stderr)
    return str(python)


def plans(classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return plans and data set description as nnU-Net's planner would write them."""
    levels = len(CHANNELS)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": levels,
            "features_per_stage": CHANNELS,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * levels,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
            "n_conv_per_stage": [2] * levels,
            "n_conv_per_stage_decoder": [2] * (levels - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    full = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(WINDOW),
        "spacing": list(SPACING_MM),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_seg_kwargs": RESAMPLING | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": RESAMPLING | {"order": 1},
        "architecture": architecture,
    }
    soft_tissue = {"mean": 40.0, "std": 150.0, "percentile_00_5": -500.0, "percentile_99_5": 500.0}
    made = {
        "dataset_name": "benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": full},
        "foreground_intensity_properties_per_channel": {"0": soft_tissue},
        "label_manager": "LabelManager",
    }
    labels = {"background": 0} | {f"structure {value}": value for value in range(1, classes)}
    return made, {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}


def predict(image: Path, out: Path, classes: int, watch: Stopwatch) -> None:
    """Do what `nnUNetv2_predict` does for one file, stage by stage in one process."""
    import torch  # noqa: PLC0415  # of nnU-Net's environment, as all below
    from nnunetv2.inference.export_prediction import (  # noqa: PLC0415
        convert_predicted_logits_to_segmentation_with_correct_shape as to_segmentation,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: PLC0415
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # noqa: PLC0415
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: PLC0415

    made, dataset = plans(classes)
    manager = PlansManager(made)
    configuration = manager.get_configuration("3d_fullres")
    net = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        classes,
        deep_supervision=False,
    )
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        net.eval(), manager, configuration, [net.state_dict()], dataset, "nnUNetTrainer", None
    )
    reader = manager.image_reader_writer_class()
    with watch.stage("read"):
        voxels, properties = reader.read_images([str(image)])
    with watch.stage("preprocess"):
        data, _, properties = configuration.preprocessor_class(verbose=False).run_case_npy(
            voxels, None, properties, manager, configuration, dataset
        )
    with watch.stage("network"):
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    with watch.stage("restore"):
        labels = to_segmentation(
            logits,
            manager,
            configuration,
            predictor.label_manager,
            properties,
            num_threads_torch=torch.get_num_threads(),
        )
    with watch.stage("write"):
        reader.write_seg(labels, str(out / image.name), properties)


def main() -> None:
    """Run once and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    asked, _ = parser.parse_known_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    watch, before_mib = Stopwatch(CLOCKS[asked.clock]), resident_mib("VmRSS")
    predict(asked.image, asked.out, asked.classes, watch)
    seconds = watch.seconds | {"total": sum(watch.seconds.values())}
    taken = {"seconds": seconds, "peaks_mib": watch.peaks_mib, "libraries_mib": before_mib, "streamed_vox": []}
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
