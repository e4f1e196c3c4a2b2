"""The pass over prepared images against nnU-Net's own predictor and export: every voxel, every bit of the logits."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.inference.prepared_images import Prepared
from voxelgate.inference.nnunet.nnunet_inferer import NnUNetInferer
from voxelgate.networks import PlainConvUNet, ResidualEncoderUNet
from voxelgate.transforms.nnunet.resample import Resampling, ResamplingFunction

MISSING = "needs nnU-Net, in the environment that `make import-test` builds"
predicting = pytest.importorskip(
    "nnunetv2.inference.predict_from_raw_data",
    reason=MISSING,
)
exporting = pytest.importorskip("nnunetv2.inference.export_prediction", reason=MISSING)
handling = pytest.importorskip(
    "nnunetv2.utilities.plans_handling.plans_handler",
    reason=MISSING,
)

pytestmark = pytest.mark.peers

LAST_BIT = 2.0**-23
"""PyTorch's softmax rounds otherwise where a vector register is not full, which depends on the size of the array."""

TORCH = {"function": "resample_torch_fornnunet"}
PLAIN = Prepared((22, 30, 33), (1.0, 0.8, 0.7), (16, 20, 25), ((0, 22), (3, 30), (1, 31)))
FINER = Prepared((40, 40, 30), (0.9, 0.7, 0.8), (31, 19, 22), ((2, 39), (0, 40), (4, 30)))
COARSER = Prepared((9, 14, 20), (3.0, 2.5, 2.0), (20, 25, 30), ((0, 9), (2, 14), (0, 20)))
SMALL = Prepared((10, 9, 33), (1.0, 1.0, 1.0), (7, 9, 25), ((0, 10), (0, 9), (0, 33)))
APART = Prepared((9, 30, 33), (5.0, 0.8, 0.7), (14, 20, 25), ((0, 9), (3, 30), (1, 31)))
TRANSPOSED = Prepared((22, 30, 33), (1.0, 0.8, 4.7), (16, 20, 25), ((0, 33), (3, 20), (1, 29)), (2, 0, 1), 2)
LARGE = Prepared((40, 100, 90), (1.0, 0.8, 0.7), (30, 52, 47), ((0, 40), (3, 100), (1, 88)))
SAME = Prepared((20, 22, 25), (1.0, 1.0, 1.0), (18, 20, 25), ((1, 19), (2, 22), (0, 25)))


def networks(count: int, channels: int, heads: int, dims: int = 3) -> nn.ModuleList:
    torch.manual_seed(count + heads)
    kinds = [PlainConvUNet, ResidualEncoderUNet]
    kind = kinds[heads % 2]
    made = [kind(in_channels=channels, out_channels=heads, spatial_dims=dims, channels=(8, 12)) for _ in range(count)]
    for network in made:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            example = torch.randn(1, channels, *(16, 16, 16)[:dims])
            network.head.bias -= network(example).flatten(2).mean(dim=(0, 2))  # or one class is everywhere
    return nn.ModuleList(made).eval()


def theirs(
    prepared: Prepared,
    folds: nn.ModuleList,
    inferer: NnUNetInferer,
    labels: dict[str, Any],
    *,
    regions: list[int] | None,
) -> tuple[Any, Any]:
    """Return the logits and the segmentation of nnU-Net."""
    configuration = {
        "patch_size": list(inferer.patch_size),
        "spacing": list(inferer.spacing),
        "resampling_fn_probabilities": str(inferer.resampling.function),
        "resampling_fn_probabilities_kwargs": arguments_of(inferer.resampling),
        "architecture": {},
    }
    forward = list(prepared.forward)
    plans = handling.PlansManager({
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "configurations": {"it": configuration},
        "label_manager": "LabelManager",
    })  # fmt: skip
    description = {"labels": labels, **({"regions_class_order": regions} if regions else {})}
    predictor = predicting.nnUNetPredictor(
        tile_step_size=inferer.step_size,
        use_mirroring=bool(inferer.mirror_axes),
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    manager = plans.get_configuration("it")
    predictor.manual_initialization(
        folds[0], plans, manager, [{k: v.clone() for k, v in one.state_dict().items()} for one in folds],
        description, "nnUNetTrainer", inferer.mirror_axes or None,
    )  # fmt: skip
    first = {k: v.clone() for k, v in folds[0].state_dict().items()}
    logits = predictor.predict_logits_from_preprocessed_data(prepared.image().as_tensor()[0].float())
    folds[0].load_state_dict(first)
    found = exporting.convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.clone(), plans, manager, plans.get_label_manager(description), prepared.properties,
        return_probabilities=True, num_threads_torch=torch.get_num_threads(),
    )  # fmt: skip
    plain = exporting.convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, manager, plans.get_label_manager(description), prepared.properties,
        num_threads_torch=torch.get_num_threads(),
    )  # fmt: skip
    return plain, found[1]


def arguments_of(how: Resampling) -> dict[str, Any]:
    """Return the arguments that plans have."""
    if how.function is ResamplingFunction.NONE:
        return {}
    splines = {"order": how.order, "order_z": how.order_z} if how.function is ResamplingFunction.DEFAULT else {}
    return {"is_seg": False, "force_separate_z": how.force_separate_z, **splines}


def numbered(count: int) -> dict[str, Any]:
    return {"background": 0, **{f"structure {index}": index for index in range(1, count)}}


@pytest.mark.parametrize(
    ("prepared", "folds", "heads", "settings"),
    [
        (PLAIN, 1, 3, {}),
        (PLAIN, 2, 4, {"mirror_axes": (0, 1, 2)}),
        (FINER, 1, 5, {"step_size": 0.8}),
        (COARSER, 3, 2, {}),
        (SMALL, 1, 3, {"mirror_axes": (1,)}),
        (APART, 2, 3, {"spacing": (3.2, 1.2, 0.9)}),
        (
            APART,
            1,
            4,
            {"resampling": {"function": "resample_data_or_seg_to_shape", "order": 1, "force_separate_z": False}},
        ),
        (TRANSPOSED, 1, 3, {"mirror_axes": (0, 2)}),
        (TRANSPOSED, 1, 2, {"spacing": (1.0, 1.5, 9.0)}),
        (SAME, 1, 3, {}),
        (PLAIN, 1, 61, {}),
        (PLAIN, 1, 40, {"mirror_axes": (2,)}),
        (PLAIN, 1, 4, {"resampling": TORCH}),
        (LARGE, 1, 3, {"resampling": TORCH, "patch_size": (16, 32, 32)}),
        (APART, 1, 5, {"resampling": TORCH, "spacing": (3.2, 1.2, 0.9)}),
        (APART, 1, 2, {"resampling": TORCH | {"force_separate_z": False}}),
        (TRANSPOSED, 2, 3, {"resampling": TORCH, "spacing": (1.0, 1.5, 9.0)}),
        (TRANSPOSED, 1, 3, {"resampling": TORCH}),
        (SAME, 1, 3, {"resampling": TORCH}),
        (SAME, 1, 3, {"resampling": {"function": "no_resampling_hack"}}),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_labels_and_probabilities_are_those_of_nnunet(
    prepared: Prepared, folds: int, heads: int, settings: dict[str, Any], threads: int
) -> None:
    torch.set_num_threads(threads)
    made = networks(folds, prepared.channels, heads)
    inferer = NnUNetInferer(**{"patch_size": (8, 12, 16), "spacing": (1.3, 1.2, 1.1), **settings})
    segmentation, probabilities = theirs(prepared, made, inferer, numbered(heads), regions=None)
    ours = inferer(prepared.image(), made).numpy()[0, 0].transpose(2, 1, 0)
    assert len(np.unique(segmentation)) > 1
    assert np.count_nonzero(ours != segmentation) == 0
    asked = NnUNetInferer(
        **{"patch_size": (8, 12, 16), "spacing": (1.3, 1.2, 1.1), "probabilities_of": range(heads), **settings}
    )
    found = asked(prepared.image(), made).numpy()[0].transpose(0, 3, 2, 1)
    assert np.abs(found - probabilities).max() <= LAST_BIT


@pytest.mark.parametrize("prepared", [PLAIN, COARSER, APART])
@pytest.mark.parametrize("resampling", [None, TORCH])
def test_regions_are_those_of_nnunet(prepared: Prepared, resampling: dict[str, str] | None) -> None:
    made = networks(1, 1, 3)
    settings = {"patch_size": (8, 12, 16), "spacing": (1.3, 1.2, 1.1), "regions": (1, 3, 2), "resampling": resampling}
    inferer = NnUNetInferer(**settings)
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inside": [2], "ignore": 4}
    segmentation, probabilities = theirs(prepared, made, inferer, labels, regions=[1, 3, 2])
    ours = inferer(prepared.image(), made).numpy()[0, 0].transpose(2, 1, 0)
    assert len(np.unique(segmentation)) == 4
    assert np.count_nonzero(ours != segmentation) == 0
    asked = NnUNetInferer(**settings, probabilities_of=(0, 1, 2))
    found = asked(prepared.image(), made).numpy()[0].transpose(0, 3, 2, 1)
    assert np.abs(found - probabilities).max() <= LAST_BIT


@pytest.mark.parametrize("mirror_axes", [(), (0, 1)])
def test_slices_are_those_of_nnunet(mirror_axes: tuple[int, ...]) -> None:
    prepared = Prepared((9, 30, 33), (5.0, 0.8, 0.7), (7, 20, 25), ((1, 8), (3, 30), (1, 31)))
    made = networks(2, 1, 3, dims=2)
    inferer = NnUNetInferer(patch_size=(12, 32), spacing=(1.2, 0.9), mirror_axes=mirror_axes)
    segmentation, _ = theirs(prepared, made, inferer, numbered(3), regions=None)
    ours = inferer(prepared.image(), made).numpy()[0, 0].transpose(2, 1, 0)
    assert len(np.unique(segmentation)) == 3
    assert np.count_nonzero(ours != segmentation) == 0
