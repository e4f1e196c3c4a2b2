"""Bundles of the zoo in our terms: the 14 real configs where they are at hand, and small ones made here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from tests.imports.odd_documents import refusals
from tests.imports.zoo_bundles import (
    ARGMAX,
    IMAGE,
    INVERSE,
    NETWORK,
    PREPROCESSING,
    SAVE,
    SIGMOID,
    SOFTMAX,
    THRESHOLD,
    compose,
    imported_from,
    write_search_code,
    write_zoo_bundle,
    zoo_bundle,
    zoo_config,
    zoo_metadata,
)
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.imports.weights import read_arrays
from voxelgate.bundle.imports.zoo import input_size_of
from voxelgate.bundle.imports.zoo_chain import Chain, read_chain
from voxelgate.bundle.imports.zoo_documents import read_foreign_config
from voxelgate.bundle.imports.zoo_faithful import read_own_chain
from voxelgate.bundle.imports.zoo_labels import channels_of, labels_of
from voxelgate.bundle.imports.zoo_networks import network_of
from voxelgate.bundle.imports.zoo_references import ZooConfig
from voxelgate.bundle.imports.zoo_scripts import Scripts, known_scripts, scripts_of
from voxelgate.core.errors import BundleError, InputError, UsageError

IN_GRID = ["Orientationd", "voxelgate.FlatSpacingd", "ScaleIntensityRanged"]
SOFT = ["softmax", "invert", "argmax"]
BRATS = {"threshold": 0.5, "regions": [[2, 4], [0, 1], [1, 2]]}
RENAL = {"threshold": 0.5, "regions": [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5]]}
LARGEST = {"_target_": "KeepLargestConnectedComponent", "applied_labels": [1, 2]}
TRANSLATIONS: dict[str, tuple[str, int, list[str], list[Any], int]] = {
    "spleen_ct_segmentation": ("UNet", 1, IN_GRID, SOFT, 2),
    "swin_unetr_btcv_segmentation": ("SwinUNETR", 1, ["voxelgate.HeaderSizesd", *IN_GRID], SOFT, 14),
    "wholeBody_ct_segmentation": (
        "SegResNet",
        1,
        ["Orientationd", "voxelgate.FlatSpacingd", "NormalizeIntensityd", "ScaleIntensityd"],
        ["softmax", "argmax", "invert_nearest"],
        105,
    ),
    "multi_organ_segmentation": ("DiNTS", 1, IN_GRID, SOFT, 8),
    "pancreas_ct_dints_segmentation": ("DiNTS", 1, IN_GRID, SOFT, 3),
    "pediatric_abdominal_ct_segmentation": (
        "DynUNet",
        1,
        ["voxelgate.HeaderSizesd", *IN_GRID, "CropForegroundd"],
        SOFT,
        4,
    ),
    "prostate_mri_anatomy": (
        "UNet",
        1,
        ["Orientationd", "voxelgate.FlatSpacingd", "ScaleIntensityd", "NormalizeIntensityd"],
        ["argmax", LARGEST, "invert_nearest"],
        3,
    ),
    "renalStructures_UNEST_segmentation": ("UNesT", 1, IN_GRID, SOFT, 4),
    "wholeBrainSeg_Large_UNEST_segmentation": ("UNesT", 1, ["NormalizeIntensityd"], SOFT, 133),
    "brats_mri_segmentation": ("SegResNet", 4, ["NormalizeIntensityd"], ["sigmoid", "invert", BRATS], 4),
    "renalStructures_CECT_segmentation": ("SegResNet", 3, IN_GRID, ["invert", "sigmoid", RENAL], 6),
    "spleen_deepedit_annotation": (
        "DynUNet",
        1,
        ["Orientationd", "ScaleIntensityRanged", "Resized", "voxelgate.AppendZerosd"],
        SOFT,
        2,
    ),
    "ventricular_short_axis_3label": ("UNet", 1, ["ScaleIntensityd"], SOFT, 4),
}


def chain_of(config: dict[str, Any], classes: int = 3) -> Chain:
    return read_chain(ZooConfig(config, "configs/inference.json", lambda _: {}), classes, {})


def steps_of(*steps: dict[str, Any]) -> list[Any]:
    return chain_of(zoo_config(postprocessing=compose([*steps, SAVE]))).inferer["steps"]


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_each_bundle_of_the_zoo_is_translated(name: str, tmp_path: Path) -> None:
    root = zoo_bundle(name, tmp_path)
    write_search_code(root / "models" / "search_code_18590.pt")
    network, channels, preparation, steps, labels = TRANSLATIONS[name]

    with opened_source(root) as source:
        path = source.path(source.matching(r"configs/inference\.(json|yaml)")[0])
        config = ZooConfig(read_foreign_config(path), path.name, lambda name: read_arrays(source, name[2:]))
        scripts = scripts_of(source, trusted=True)
        known = known_scripts(source)
    built, classes, _ = network_of(config.value("network_def"), "network_def", scripts)
    chain = read_chain(config, classes, known)
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    table, _ = labels_of(metadata, classes, chain.merges, {})

    assert built["_target_"].rpartition(".")[2] == network
    assert [step["_target_"] for step in chain.preparation] == preparation
    assert chain.inferer["steps"] == steps
    assert len(channels_of(metadata, chain.images, built["in_channels"] - chain.clicks)) == channels
    assert len(table.to_mapping()) == labels
    assert not any(name.startswith("label_") for name in table.names)


def test_regions_of_brats_keep_their_values_and_the_names_of_their_channels(tmp_path: Path) -> None:
    metadata = json.loads((zoo_bundle("brats_mri_segmentation", tmp_path) / "configs" / "metadata.json").read_text())

    table, findings = labels_of(metadata, 3, [(2, 4), (0, 1), (1, 2)], {})
    renamed, silent = labels_of(metadata, 3, [(2, 4), (0, 1), (1, 2)], {1: "NCR", 2: "ED", 4: "ET"})

    assert table.to_mapping() == {"0": "background", "1": "Tumor core", "2": "Whole tumor", "4": "Enhancing tumor"}
    assert "4 (Enhancing tumor), 1 (Tumor core), 2 (Whole tumor)" in findings[0]
    assert renamed.to_mapping() == {"0": "background", "1": "NCR", "2": "ED", "4": "ET"}
    assert silent == ()


def test_a_bundle_that_asks_for_prompts_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"vista3d132 segments what points or class numbers name .* no prompts"):
        imported_from(zoo_bundle("vista3d", tmp_path))


def test_a_bundle_is_read_with_all_that_it_says_of_itself(tmp_path: Path) -> None:
    found = imported_from(write_zoo_bundle(tmp_path / "organs"))

    assert (found.name, found.version, found.description) == ("organs", "0.4.2", "Finds organs.")
    assert (found.modality, found.channels, found.spatial_shape) == ("CT", ("image",), (16, 16, 16))
    assert found.labels.names == ("background", "liver", "spleen")
    assert found.licence == "MIT License"
    assert found.metadata == {"authors": "somebody"}
    assert found.findings == (
        "It names packages that are not installed: nothing-that-is-here; most serve its training.",
    )
    assert found.network_def["_target_"] == "monai.networks.nets.UNet"
    assert [step["_target_"] for step in found.preparation] == IN_GRID
    assert found.inferer == {
        "_target_": "voxelgate.ChainInferer",
        "steps": SOFT,
        "roi_size": [16, 16, 16],
        "overlap": 0.5,
        "sw_batch_size": 2,
    }
    assert set(found.source_files) == {
        "configs/inference.json",
        "configs/metadata.json",
        "models/model.pt",
        "LICENSE",
    }


@pytest.mark.parametrize(
    ("inferer", "size"),
    [
        ({"_target_": "SimpleInferer"}, (96, 96, 96)),
        ({"_target_": "SlidingWindowInferer", "roi_size": [16, 16, -1]}, (16, 16, 96)),
        ({"_target_": "SlidingWindowInferer", "roi_size": 32}, (32, 32, 32)),
        ({"_target_": "SliceInferer", "roi_size": [64, -1], "spatial_dim": 2}, (64, 96)),
    ],
)
def test_a_window_of_which_nothing_is_said_gets_a_size_that_networks_take(
    inferer: dict[str, Any], size: tuple[int, ...]
) -> None:
    assert input_size_of(chain_of(zoo_config(inferer=inferer))) == size


def test_yaml_is_read_as_json_is(tmp_path: Path) -> None:
    root = write_zoo_bundle(tmp_path / "organs", yaml.safe_dump(zoo_config()), name="inference.yaml")

    assert imported_from(root).inferer == imported_from(write_zoo_bundle(tmp_path / "same")).inferer


def test_another_config_of_the_bundle_is_read_by_its_name(tmp_path: Path) -> None:
    root = write_zoo_bundle(tmp_path / "organs")
    other = zoo_config(inferer={"_target_": "SimpleInferer"})
    (root / "configs" / "inference_whole.yaml").write_text(yaml.safe_dump(other))

    assert "roi_size" not in imported_from(root, configurations=("inference_whole",)).inferer
    with pytest.raises(UsageError, match=r"--configuration nothing: expected one of inference, inference_whole"):
        imported_from(root, configurations=("nothing",))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([ARGMAX, INVERSE], ["argmax", "invert_nearest"]),
        ([SOFTMAX, ARGMAX, INVERSE | {"nearest_interp": True}], ["softmax", "argmax", "invert_nearest"]),
        ([INVERSE, SOFTMAX, ARGMAX], ["invert", "softmax", "argmax"]),
        ([SOFTMAX | {"softmax": [True]}, INVERSE, ARGMAX | {"to_onehot": None}], SOFT),
        ([SOFTMAX, ARGMAX], ["softmax", "argmax", "invert_nearest"]),
    ],
)
def test_the_order_of_the_steps_after_the_network_is_kept(steps: list[dict[str, Any]], expected: list[str]) -> None:
    assert steps_of(*steps) == expected


TWO = {"keys": ["t1", "t2"]}
JOINED = {"_target_": "ConcatItemsd", **TWO, "name": "image"}


def of_two(*steps: dict[str, Any]) -> Chain:
    """Return the chain of a bundle that reads two images, takes some steps, and then joins them."""
    read = [{"_target_": "LoadImaged", **TWO}, {"_target_": "EnsureChannelFirstd", **TWO}]
    return chain_of(zoo_config(preprocessing=compose([*read, *steps, JOINED])))


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "NormalizeIntensityd", "nonzero": True},
        {"_target_": "ScaleIntensityd", "minv": -1.0, "maxv": 1.0},
        {"_target_": "ScaleIntensityRangePercentilesd", "lower": 1, "upper": 99, "b_min": 0, "b_max": 1},
        {"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 99, "b_min": 0, "b_max": 1},
    ],
    ids=lambda step: step["_target_"],
)
def test_images_that_are_joined_later_are_each_changed_by_their_own_values(step: dict[str, Any]) -> None:
    dark, bright = torch.rand(1, 5, 6, 7), 100 * torch.rand(1, 5, 6, 7) + 50
    steps = ConfigParser(
        {"own": compose([{**step, **TWO}, JOINED]), "ours": compose([*of_two({**step, **TWO}).preparation])}
    )

    own = steps.get_parsed_content("own")({"t1": dark.clone(), "t2": bright.clone()})["image"]

    assert torch.equal(steps.get_parsed_content("ours")({"image": torch.cat([dark, bright])})["image"], own)


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "CropForegroundd", "source_key": "t1"},
        {"_target_": "NormalizeIntensityd", "subtrahend": 5.0},
    ],
    ids=lambda step: step["_target_"],
)
def test_what_is_asked_of_one_image_before_it_is_joined_is_refused(step: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=rf"{step['_target_']} looks at each of several images"):
        of_two({**step, **TWO})


def test_label_numbers_are_never_interpolated_and_that_is_said() -> None:
    chain = chain_of(zoo_config(postprocessing=compose([ARGMAX, INVERSE, SAVE])))

    assert chain.inferer["steps"] == ["argmax", "invert_nearest"]
    assert "nearest neighbour instead" in chain.findings[0]


def test_one_region_is_a_label_where_it_is_above_the_threshold() -> None:
    config = zoo_config(postprocessing=compose([SIGMOID, INVERSE, THRESHOLD, SAVE]))

    assert chain_of(config, 1).inferer["steps"] == ["sigmoid", "invert", {"threshold": 0.5, "regions": [[0, 1]]}]
    with pytest.raises(BundleError, match="leaves 3 regions, and no step says which wins"):
        chain_of(config, 3)


@pytest.mark.parametrize(
    "text",
    [
        "$lambda x: __import__('os').system('touch hacked')",
        "$lambda x: torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 3))",
        "$lambda x: torch.where(x[[0]] > 1, 1, 0)",
        "$lambda x: torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)) or hacked()",
    ],
)
def test_a_function_of_any_other_form_is_refused_and_not_run(text: str) -> None:
    with pytest.raises(BundleError, match="is none that is known here, and foreign functions are never run"):
        steps_of(SIGMOID, INVERSE, THRESHOLD, {"_target_": "Lambdad", "keys": "pred", "func": text})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"preprocessing": compose([*PREPROCESSING, {"_target_": "os.system", "command": "x"}])},
            "os.system is no step",
        ),
        ({"preprocessing": compose([*PREPROCESSING, {"_target_": "RandFlipd", **IMAGE}])}, "RandFlipd is no step"),
        (
            {"preprocessing": compose([*PREPROCESSING, {"_target_": "Spacingd", "keys": "other"}])},
            "apart from the others",
        ),
        ({"preprocessing": {"_target_": "os.system"}}, "expected a Compose of transforms, found os.system"),
        ({"preprocessing": "$os.system('x')"}, "'os.system' is not called here"),
        ({"inferer": {"_target_": "PatchInferer"}}, "PatchInferer is no inferer that can be translated"),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": 16, "with_coord": True}}, "asked for with_coord"),
        ({"postprocessing": compose([SOFTMAX, INVERSE, SAVE])}, "ends without labels"),
        ({"postprocessing": compose([SOFTMAX, INVERSE, ARGMAX | {"to_onehot": 3}])}, "asked for to_onehot"),
        (
            {"postprocessing": compose([SOFTMAX, {"_target_": "subprocess.run", "args": "x"}])},
            "subprocess.run is no step",
        ),
        ({"postprocessing": compose([SOFTMAX | {"keys": "image"}, INVERSE, ARGMAX])}, "Activationsd is no step"),
        ({"network_def": {"_target_": "os.system", "command": "touch hacked"}}, "os.system is no network of MONAI"),
        ({"network_def": {"_target_": "torch.hub.load", "repo_or_dir": "x"}}, "torch.hub.load is no network"),
        ({"network_def": "$__import__('os').system('touch hacked')"}, "is not called here"),
        ({"network_def": NETWORK | {"act": {"_target_": "os.system", "command": "x"}}}, "neither number, plain text"),
        ({"network_def": NETWORK | {"act": "$@run"}}, "run#0 is the expression"),
        ({"network_def": NETWORK | {"act": "$'$' + '__import__'"}}, "neither number, plain text"),
        ({"network_def": NETWORK | {"out_channels": "many"}}, "does not say how many channels it gives"),
        ({"network_def": NETWORK | {"channels": [4]}}, "cannot be built"),
        (
            {"checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/../../x.pt'"}},
            "outside",
        ),
        ({"checkpointloader": {"_target_": "CheckpointLoader", "load_path": "/etc/passwd"}}, "lies outside"),
    ],
)
def test_what_is_not_understood_is_refused_in_a_sentence_and_nothing_runs(
    changes: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_zoo_bundle(tmp_path / "organs", zoo_config(**changes))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    with pytest.raises(BundleError, match=reason) as caught:
        imported_from(root)

    assert "\n" not in str(caught.value)
    assert list((tmp_path / "empty").iterdir()) == []


ODD = [None, -1, 0.5, "", [], [1], [["a"]], {"a": 1}, "$torch.float32", "$torch.load('a')['k']", "$lambda x: 1"]
OF_TWO = compose([{"_target_": "LoadImaged", **TWO, "reader": "ITKReader"}, JOINED, {"_target_": "Spacingd", **IMAGE}])
SLICES = {"_target_": "SliceInferer", "roi_size": [8, 8], "spatial_dim": 2, "overlap": 0.5}


@pytest.mark.parametrize("read", [read_chain, lambda config, *_: read_own_chain(config, Scripts({}))])
@pytest.mark.parametrize(
    "changes",
    [{}, {"preprocessing": OF_TWO, "inferer": SLICES}, {"postprocessing": compose([SIGMOID, INVERSE, THRESHOLD])}],
    ids=["one image", "two images in slices", "regions"],
)
def test_whatever_stands_in_a_chain_it_is_read_or_refused_in_one_sentence(
    changes: dict[str, Any], read: Callable[..., Chain]
) -> None:
    chain = {
        key: value for key, value in zoo_config(**changes).items() if key.endswith(("processing", "inferer", "key"))
    }

    def look(document: dict[str, Any]) -> None:
        config = ZooConfig(document, "configs/inference.json", lambda _: {"k": np.zeros((2, 2))})
        input_size_of(read(config, 3, {}))

    said = refusals(look, chain, ODD)

    assert len(said) > 100
    assert [one for one in said if "\n" in one or len(one) > 600] == []


def test_weights_of_another_network_are_refused_without_room_for_what_the_config_asks(tmp_path: Path) -> None:
    root = write_zoo_bundle(tmp_path / "organs", zoo_config(network_def=NETWORK | {"channels": [10**6, 10**6]}))

    with pytest.raises(InputError, match=r"models/model.pt: \d+ of \d+ weights are not those of the network"):
        imported_from(root)


def test_weights_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    root = write_zoo_bundle(tmp_path / "organs")
    (root / "models" / "model.pt").unlink()
    (root / "large_files.yml").write_text("large_files: []\n")

    with pytest.raises(InputError, match=r"models/model.pt is missing; large_files.yml says where to get it"):
        imported_from(root)


def test_weights_within_a_checkpoint_of_a_training_are_found(tmp_path: Path) -> None:
    root = write_zoo_bundle(tmp_path / "organs")
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    torch.save({"model": state, "epoch": 3}, root / "models" / "model.pt")

    assert imported_from(root).state.keys() == state.keys()


@pytest.mark.parametrize(
    ("output", "told", "expected"),
    [
        ({"channel_def": None, "label_def": {"0": "background", "1": "a", "2": "b"}}, {}, ("background", "a", "b")),
        ({"channel_def": {"0": "background", "2": "b"}}, {}, ("background", "label_1", "b")),
        ({"channel_def": "nothing"}, {}, ("background", "label_1", "label_2")),
        ({}, {2: "lien"}, ("background", "liver", "lien")),
    ],
)
def test_names_stay_with_their_values(
    output: dict[str, Any], told: dict[int, str], expected: tuple[str, ...], tmp_path: Path
) -> None:
    root = write_zoo_bundle(tmp_path / "organs", metadata=zoo_metadata(**output))

    found = imported_from(root, label_values=told)

    assert found.labels.names == expected
    assert any("--labels" in finding for finding in found.findings) == ("label_1" in expected)


def test_a_name_for_a_value_that_never_comes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--labels 7: the bundle writes 0, 1, 2; name these"):
        imported_from(write_zoo_bundle(tmp_path / "organs"), label_values={7: "heart"})


def test_arguments_that_a_network_no_longer_takes_are_left_out_and_told() -> None:
    config, classes, findings = network_of(
        {"_target_": "SwinUNETR", "img_size": 96, "in_channels": 1, "out_channels": 14}, "network_def", Scripts({})
    )

    assert config == {"_target_": "monai.networks.nets.SwinUNETR", "in_channels": 1, "out_channels": 14}
    assert classes == 14
    assert "no longer takes img_size" in findings[0]


def test_a_faithful_import_keeps_the_components_of_the_bundle(tmp_path: Path) -> None:
    found = imported_from(write_zoo_bundle(tmp_path / "organs"), is_faithful=True)

    assert [step["_target_"] for step in found.preparation] == [
        "Orientationd",
        "Spacingd",
        "ScaleIntensityRanged",
        "EnsureTyped",
    ]
    assert found.inferer["_target_"] == "voxelgate.InvertingInferer"
    assert found.inferer["inferer"]["_target_"] == "SlidingWindowInferer"
    steps = found.inferer["postprocessing"]["transforms"]
    assert [step["_target_"] for step in steps] == ["Activationsd", "Invertd", "AsDiscreted"]
    assert steps[1]["transform"] == "@preprocessing"


def test_a_faithful_import_takes_steps_that_cannot_be_translated_and_no_others(tmp_path: Path) -> None:
    smoothed = {"_target_": "GaussianSmoothd", **IMAGE, "sigma": 1.0}
    root = write_zoo_bundle(tmp_path / "smooth", zoo_config(preprocessing=compose([*PREPROCESSING, smoothed])))
    hostile = {"_target_": "monai.transforms.SaveClassificationd", **IMAGE}
    other = write_zoo_bundle(tmp_path / "other", zoo_config(preprocessing=compose([*PREPROCESSING, hostile])))

    assert imported_from(root, is_faithful=True).preparation[-1] == {
        "_target_": "GaussianSmoothd",
        "keys": "image",
        "sigma": 1.0,
    }
    with pytest.raises(BundleError, match="SaveClassificationd is no component of MONAI that may be named"):
        imported_from(other, is_faithful=True)


def test_a_faithful_import_whose_values_nobody_knows_asks_for_their_names(tmp_path: Path) -> None:
    config = zoo_config(postprocessing=compose([SIGMOID, INVERSE, THRESHOLD, SAVE]))
    root = write_zoo_bundle(tmp_path / "organs", config)

    with pytest.raises(BundleError, match="do not say which values come out"):
        imported_from(root, is_faithful=True)
    assert imported_from(root, is_faithful=True, label_values={3: "a"}).labels.to_mapping() == {
        "0": "background",
        "3": "a",
    }
