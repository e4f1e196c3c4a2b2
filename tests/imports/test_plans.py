"""What plans and data sets of nnU-Net say, and what is refused in them."""

import json
import math
from typing import Any

import pytest

from tests.imports.nnunet_files import UNET, architecture, configuration, data_set, plans
from tests.imports.odd_documents import refusals
from voxelgate.bundle.imports.data_set import DataSet, read_data_set
from voxelgate.bundle.imports.plans import Configuration, read_plans
from voxelgate.core.errors import BundleError

Json = dict[str, Any]


def read(document: Json, name: str = "3d_fullres", channels: int = 1, norm: str | None = None) -> Configuration:
    return read_plans(document, "plans.json").configuration(name, channels, norm=norm)


def labelled(**changes: Any) -> DataSet:
    return read_data_set(data_set(**changes), "dataset.json")


def with_network(**changes: Any) -> Json:
    arch = architecture()
    arch["arch_kwargs"] |= changes
    return plans(architecture=arch)


# --- plans --------------------------------------------------------------------------------------------------------


def test_a_configuration_says_what_inference_needs() -> None:
    found = read(plans())

    assert (found.patch_size, found.spacing) == ((16, 12, 20), (1.0, 0.9, 0.8))
    assert found.normalization == (
        {
            "scheme": "CTNormalization",
            "mean": 90.5,
            "std": 45.25,
            "percentile_00_5": -20.0,
            "percentile_99_5": 240.0,
        },
    )
    assert found.resampling["probabilities"]["order"] == 1
    assert found.network == {
        "_target_": "voxelgate.PlainConvUNet",
        "spatial_dims": 3,
        "channels": [4, 6],
        "strides": [[2, 2, 2]],
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "encoder_blocks": [2, 2],
        "decoder_blocks": [2],
        "norm": "instance",
        "conv_bias": True,
        "negative_slope": 0.01,
    }


def test_numbers_for_all_levels_stand_for_a_number_for_each() -> None:
    short = with_network(kernel_sizes=3, n_conv_per_stage=2, n_conv_per_stage_decoder=2)

    assert read(short).network == read(plans()).network


def test_a_configuration_inherits_what_it_does_not_say_itself() -> None:
    document = plans()
    document["configurations"] |= {
        "a": {"inherits_from": "3d_fullres", "spacing": [2.0, 2.0, 2.0], "batch_size": 4},
        "b": {"inherits_from": "a", "patch_size": [8, 8, 8]},
    }

    found = read(document, "b")

    assert (found.name, found.spacing, found.patch_size) == ("b", (2.0, 2.0, 2.0), (8, 8, 8))
    assert found.network == read(document).network


def test_a_configuration_that_inherits_from_itself_is_refused() -> None:
    document = plans()
    document["configurations"] |= {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}

    with pytest.raises(BundleError, match="the configuration a inherits from itself"):
        read(document, "a")


def test_configurations_that_nobody_asks_for_are_not_looked_at() -> None:
    document = plans()
    document["configurations"] |= {"2d": None, "3d_lowres": {"patch_size": "large"}}

    assert read(document).name == "3d_fullres"
    with pytest.raises(BundleError, match="the configuration 2d is no record"):
        read(document, "2d")


def test_a_parent_that_is_not_there_is_named() -> None:
    document = plans()
    document["configurations"]["a"] = {"inherits_from": "3d_fuller"}

    with pytest.raises(BundleError, match="has no configuration '3d_fuller'; it has 2d, 3d_fullres, a"):
        read(document, "a")


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_plans_from_before_version_2_4_tell_the_same_network(name: str) -> None:
    arch = architecture()
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    arch["network_class_name"] = UNET + name
    arch["arch_kwargs"][blocks] = arch["arch_kwargs"].pop("n_conv_per_stage")
    old = configuration()
    del old["architecture"]
    old |= {
        "UNet_class_name": name,
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [2, 2],
        "n_conv_per_stage_decoder": [2],
        "num_pool_per_axis": [1, 1, 1],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    }
    document = plans(architecture=arch)
    document["configurations"]["old"] = old

    assert read(document, "old").network == read(document).network


def test_intensities_of_old_plans_stand_under_another_name() -> None:
    document = plans()
    document["foreground_intensity_properties_by_modality"] = document.pop(
        "foreground_intensity_properties_per_channel"
    )

    assert read(document).normalization == read(plans()).normalization


def test_resampling_that_very_old_plans_leave_out_is_that_of_nnunet() -> None:
    document = plans()
    for name in list(document["configurations"]["3d_fullres"]):
        if name.startswith("resampling"):
            del document["configurations"]["3d_fullres"][name]

    assert read(document).resampling == read(plans()).resampling


def test_a_trainer_may_set_another_norm() -> None:
    assert read(plans(), norm="batch").network["norm"] == "batch"


def test_relu_is_a_slope_of_zero_and_dropout_is_told() -> None:
    found = read(with_network(nonlin="torch.nn.ReLU", dropout_op="torch.nn.Dropout3d", dropout_op_kwargs={"p": 0.2}))

    assert found.network["negative_slope"] == 0
    assert found.has_dropout


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"network_class_name": "dynamic_network_architectures.architectures.primus.Primus", "n_stages": None},
            "network_class_name is 'Primus', expected 'PlainConvUNet' or 'ResidualEncoderUNet'",
        ),
        ({"network_class_name": "evil.PlainConvUNet"}, "network_class_name is 'evil.PlainConvUNet'"),
    ],
)
def test_other_networks_are_refused_by_their_class(changes: Json, sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        read(plans(architecture=architecture() | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nonlin_first": True}, "nonlin_first of the network is True"),
        ({"block": "dynamic_network_architectures.building_blocks.residual.BottleneckD"}, "block .*BottleneckD"),
        ({"bottleneck_channels": 8}, "bottleneck_channels of the network is 8"),
        ({"stem_channels": 8}, "stem_channels of the network is 8"),
        ({"squeeze_excitation": True}, "squeeze_excitation"),
        ({"conv_op": "torch.nn.modules.conv.Conv2d"}, "conv_op"),
        ({"norm_op": "torch.nn.modules.normalization.GroupNorm"}, "norm of the network is torch.*GroupNorm"),
        ({"norm_op_kwargs": {"eps": 1e-3, "affine": True}}, "eps 0.001"),
        ({"norm_op_kwargs": None}, "affine False"),
        ({"norm_op_kwargs": {"affine": True, "track_running_stats": True}}, "track_running_stats True"),
        ({"nonlin": "torch.nn.GELU"}, "activation of the network is torch.nn.GELU"),
        ({"strides": [[2, 2, 2], [2, 2, 2]]}, "first stride"),
        ({"n_conv_per_stage": None}, "how many blocks"),
        ({"features_per_stage": [10**9, 6]}, r"features_per_stage\[0\] is 1000000000"),
        ({"features_per_stage": []}, "features_per_stage"),
        ({"n_conv_per_stage": [10**9, 2]}, r"n_conv_per_stage\[0\]"),
        ({"kernel_sizes": [[3, 3, -3], [3, 3, 3]]}, r"kernel_sizes\[0\]\[2\] is -3"),
        ({"n_stages": 1e300}, "n_stages"),
    ],
)
def test_parts_of_a_network_that_cannot_be_matched_are_named(changes: Json, sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        read(with_network(**changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch_size": [10**9, 16, 16]}, r"patch_size\[0\] is 1000000000"),
        ({"patch_size": [8192, 8192, 8192]}, "a patch of 8192 x 8192 x 8192 voxels"),
        ({"patch_size": [-16, 16, 16]}, r"patch_size\[0\] is -16"),
        ({"patch_size": [True, 16, 16]}, r"patch_size\[0\] is True"),
        ({"patch_size": [16, 16]}, "not as many axes"),
        ({"spacing": [math.nan, 1.0, 1.0]}, r"spacing\[0\] is nan"),
        ({"spacing": [0.0, 1.0, 1.0]}, r"spacing\[0\] is 0.0"),
        ({"spacing": "1.0"}, "spacing"),
        ({"normalization_schemes": ["MyNormalization"]}, "MyNormalization.*expected .*CTNormalization"),
        ({"normalization_schemes": []}, "normalises 0 channels, but dataset.json names 1"),
        ({"use_mask_for_norm": [False, True]}, "normalises 1 channels"),
        ({"preprocessor_name": "MyPreprocessor"}, "preprocessor_name is 'MyPreprocessor'"),
        ({"resampling_fn_data": "my_resampling"}, "resampling_fn_data is 'my_resampling'"),
        ({"resampling_fn_data_kwargs": {"order": 9}}, "order is 9"),
        ({"resampling_fn_data_kwargs": {"mode": "edge"}}, "mode"),
    ],
)
def test_settings_that_cannot_be_matched_are_named(changes: Json, sentence: str) -> None:
    with pytest.raises(BundleError, match=f"configuration 3d_fullres.*{sentence}"):
        read(plans(**changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"transpose_forward": [0, 1, 1]}, "do not undo each other"),
        ({"transpose_forward": [1, 2, 0]}, "do not undo each other"),
        (
            {"image_reader_writer": "Tiff3DIO"},
            "image_reader_writer is 'Tiff3DIO', expected 'SimpleITKIO'",
        ),
        ({"label_manager": "MyLabels"}, "label_manager is 'MyLabels'"),
        ({"foreground_intensity_properties_per_channel": {}}, "intensities of channel 0"),
        ({"configurations": []}, "configurations"),
    ],
)
def test_what_holds_for_all_configurations_is_checked_too(changes: Json, sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        read(plans() | changes)


def test_whatever_stands_in_plans_they_are_read_or_refused_in_one_sentence() -> None:
    document = plans()
    del document["configurations"]["2d"]

    said = refusals(read, document)

    assert len(said) > 300
    assert [one for one in said if "\n" in one or len(one) > 600] == []


def test_whatever_stands_in_a_data_set_it_is_read_or_refused_in_one_sentence() -> None:
    regions = {"background": 0, "a": [1, 2], "b": 2}

    said = [
        sentence
        for document in (data_set(), data_set(labels=regions, regions_class_order=[1, 2]))
        for sentence in refusals(lambda odd: read_data_set(odd, "dataset.json"), document)
    ]

    assert len(said) > 100
    assert [one for one in said if "\n" in one or len(one) > 600] == []


# --- data sets ----------------------------------------------------------------------------------------------------


def test_labels_stand_at_their_values() -> None:
    found = labelled(labels={"background": 0, "tumour": 2, "liver": 1})

    assert found.labels.names == ("background", "liver", "tumour")
    assert (found.regions, found.heads, found.foreground) == (None, 3, (1, 2))


def test_values_may_be_written_as_texts() -> None:
    assert labelled(labels={"background": "0", "liver": "1"}) == labelled(labels={"background": 0, "liver": 1})


def test_the_ignored_label_has_no_head() -> None:
    found = labelled(labels={"background": 0, "liver": 1, "ignore": 2})

    assert found.labels.names == ("background", "liver")
    assert found.heads == 2


def test_regions_have_the_values_that_their_order_gives_them() -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}

    found = labelled(labels=labels, regions_class_order=[2, 1, 3])

    assert found.labels.names == ("background", "core", "whole", "enhancing")
    assert (found.regions, found.heads, found.foreground) == ((2, 1, 3), 3, (1, 2, 3))


def test_a_list_of_one_value_is_no_region() -> None:
    assert labelled(labels={"background": 0, "liver": [1]}).regions is None


def test_names_that_stand_twice_get_their_value() -> None:
    assert labelled(labels={"background": 0, "Liver": 1, "liver": 2}).labels.names == (
        "background",
        "Liver (1)",
        "liver (2)",
    )


@pytest.mark.parametrize(
    ("names", "modality"),
    [
        (["CT"], "CT"),
        (["T1", "T2"], "MRI"),
        (["FLAIR", "t1_post"], "MRI"),
        (["PET"], "PET"),
        (["CT", "PET"], "unknown"),
        (["zscore"], "unknown"),
    ],
)
def test_names_of_channels_tell_the_modality(names: list[str], modality: str) -> None:
    assert labelled(channel_names={str(n): name for n, name in enumerate(names)}).modality == modality


def test_channels_of_old_data_sets_are_called_modalities() -> None:
    document = data_set(modality={"0": "MRI", "1": "T2"})
    del document["channel_names"]

    assert read_data_set(document, "dataset.json").channels == ("MRI", "T2")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": {"liver": 1}}, "name no 'background' with the value 0"),
        ({"labels": {"background": 1, "liver": 0}}, "name no 'background' with the value 0"),
        ({"labels": {"background": 0, "liver": 2}}, "without a gap"),
        ({"labels": {"background": 0}}, "without a gap"),
        ({"labels": {"background": 0, "liver": 10**9}}, "labels"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order has 0 values for 2 regions"),
        ({"channel_names": {}}, "channel_names"),
        ({"channel_names": {"1": "CT"}}, "not numbered 0, 1, 2"),
    ],
)
def test_a_data_set_that_says_too_little_is_refused(changes: Json, sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        labelled(**changes)


def test_what_is_read_is_json_again() -> None:
    found = read(plans())

    assert json.loads(json.dumps([found.network, dict(found.resampling), list(found.normalization)]))
