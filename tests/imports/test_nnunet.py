"""nnU-Net folders as bundles: what is chosen in them, what is read of their checkpoints, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import CastToTyped

from tests.imports.nnunet_files import TRAINED, Json, checkpoint, configuration, data_set, network, plans, write_folder
from voxelgate.bundle.imports.imported import Imported, ImportOptions
from voxelgate.bundle.imports.nnunet import read_nnunet
from voxelgate.bundle.imports.plans import read_plans
from voxelgate.bundle.imports.readers import read_model
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.images.file_facts import FileFacts, StoredOrder
from voxelgate.transforms.io import as_image

FINAL = "fold_0/checkpoint_final.pth"
ENDS = {"in_channels": 1, "out_channels": 3}


def state(seed: int = 0, name: str = "3d_fullres", norm: str | None = None) -> dict[str, torch.Tensor]:
    config = read_plans(plans(), "").configuration(name, 1, norm=norm).network
    return network(config | ENDS, seed).state_dict()


def folder(root: Path, *, name: str = TRAINED, files: dict[str, Json] | None = None, **changes: Any) -> Path:
    """Write a folder of one configuration below a data set, and return that of the data set."""
    documents = {"plans": plans(), "data_set": data_set()} | changes
    checkpoints = {FINAL: checkpoint(state())} if files is None else files
    write_folder(root / "Dataset001_Blobs" / name, **documents, checkpoints=checkpoints)
    return root / "Dataset001_Blobs"


def imported(path: Path, **options: Any) -> Imported:
    with opened_source(path) as source:
        return read_nnunet(source, ImportOptions(**options))


def test_a_folder_of_one_configuration_becomes_configs_and_weights(tmp_path: Path) -> None:
    found = imported(folder(tmp_path) / TRAINED)

    assert found.name == "Dataset001_Blobs_3d_fullres"
    assert found.description == "liver, tumour in CT, by nnU-Net (nnUNetTrainer, 3d_fullres, 1 fold)."
    assert (found.labels.names, found.channels, found.modality) == (("background", "liver", "tumour"), ("CT",), "CT")
    assert found.network_def["_target_"] == "voxelgate.PlainConvUNet"
    assert [step["_target_"] for step in found.preparation] == ["voxelgate.OrderDicomd", "voxelgate.NnUNetPreprocessd"]
    assert found.inferer == {
        "_target_": "voxelgate.NnUNetInferer",
        "patch_size": [16, 12, 20],
        "spacing": [1.0, 0.9, 0.8],
        "mirror_axes": [0, 1, 2],
        "regions": None,
        "resampling": plans()["configurations"]["3d_fullres"]["resampling_fn_probabilities_kwargs"]
        | {"function": "resample_data_or_seg_to_shape"},
    }
    assert found.origin["trainer"] == "nnUNetTrainer"
    assert found.source_files == ("dataset.json", "plans.json", FINAL)


@pytest.mark.parametrize(
    ("stated", "asked", "licence", "is_told"),
    [
        ({"licence": "CC-BY-SA 4.0"}, "", "CC-BY-SA 4.0", True),
        ({"license": "CC0", "licence": " "}, "", "CC0", True),
        ({"licence": "CC0"}, "Apache-2.0", "Apache-2.0", False),
        ({"licence": ["CC0"]}, "", "not stated", False),
    ],
)
def test_the_licence_is_that_of_the_data_set_where_none_is_given(
    tmp_path: Path, stated: Json, asked: str, licence: str, *, is_told: bool
) -> None:
    root = folder(tmp_path)
    (root / TRAINED / "dataset.json").write_text(json.dumps(data_set(**stated)), encoding="utf-8")

    with opened_source(root) as source:
        found = read_model(source, ImportOptions(licence=asked))

    assert found.licence == licence
    assert any("licence" in finding for finding in found.findings) == is_told


def test_the_weights_are_those_of_the_checkpoint_without_their_second_names(tmp_path: Path) -> None:
    expected = state()

    found = imported(folder(tmp_path, files={FINAL: checkpoint(expected)}))

    assert set(found.state) == set(expected)
    assert all(torch.equal(found.state[name], expected[name]) for name in expected)


def test_folds_are_networks_of_a_list_in_the_order_in_which_nnunet_finds_them(tmp_path: Path) -> None:
    states = {f"fold_{fold}/checkpoint_final.pth": checkpoint(state(fold)) for fold in (2, 0)}
    states["fold_all/checkpoint_final.pth"] = checkpoint(state(7))

    found = imported(folder(tmp_path, files=states))

    assert found.network_def["_target_"] == "torch.nn.ModuleList"
    assert found.origin["folds"] == ["0", "2"]
    for place, fold in enumerate((0, 2)):
        head = "decoder.seg_layers.0.weight"
        assert torch.equal(found.state[f"{place}.{head}"], state(fold)[head])
    assert found.findings == ("3d_fullres: folds 0, 2 are averaged, of 3 there.",)


def test_the_network_of_all_cases_is_taken_where_it_is_asked_for_or_alone(tmp_path: Path) -> None:
    both = {f"fold_{fold}/checkpoint_final.pth": checkpoint(state()) for fold in ("0", "all")}
    alone = {"fold_all/checkpoint_final.pth": checkpoint(state())}

    assert imported(folder(tmp_path / "a", files=both), folds=("all",)).origin["folds"] == ["all"]
    assert imported(folder(tmp_path / "b", files=alone)).origin["folds"] == ["all"]


def test_the_best_checkpoint_is_another_one(tmp_path: Path) -> None:
    files = {FINAL: checkpoint(state(0)), "fold_0/checkpoint_best.pth": checkpoint(state(1))}
    head = "decoder.seg_layers.0.weight"

    found = imported(folder(tmp_path, files=files), checkpoint="best")

    assert torch.equal(found.state[head], state(1)[head])


def test_where_the_wanted_checkpoint_is_missing_the_other_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path, files={"fold_0/checkpoint_best.pth": checkpoint(state())})

    with pytest.raises(InputError, match=r"no fold with a checkpoint_final\.pth; there are others: --checkpoint best"):
        imported(path)
    with pytest.raises(InputError, match=r"no fold with a checkpoint_final\.pth; copy it again"):
        imported(folder(tmp_path / "without", files={}))


@pytest.mark.parametrize(("trainer", "is_told"), [("nnUNetTrainer_250epochs_NoMirroring", False), ("MyTrainer", True)])
def test_what_is_taken_for_granted_of_a_trainer_is_told(tmp_path: Path, trainer: str, *, is_told: bool) -> None:
    found = imported(folder(tmp_path, files={FINAL: checkpoint(state(), trainer_name=trainer)}))

    assert any(trainer in finding for finding in found.findings) == is_told


def test_without_mirroring_in_the_checkpoint_there_is_none(tmp_path: Path) -> None:
    files = {FINAL: checkpoint(state(), inference_allowed_mirroring_axes=None)}

    assert imported(folder(tmp_path, files=files)).inferer["mirror_axes"] == []


def test_the_trainer_with_batch_norms_has_them(tmp_path: Path) -> None:
    files = {FINAL: checkpoint(state(norm="batch"), trainer_name="nnUNetTrainerBN")}

    assert imported(folder(tmp_path, files=files)).network_def["norm"] == "batch"


def test_the_configuration_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    init = {"configuration": "2d"}
    files = {FINAL: checkpoint(state(name="2d"), init_args=init, inference_allowed_mirroring_axes=(0, 1))}

    found = imported(folder(tmp_path, name="nnUNetTrainer__nnUNetPlans__2d", files=files))

    assert found.network_def["spatial_dims"] == 2
    assert found.spatial_shape == (12, 20)


def test_of_several_configurations_the_full_resolution_is_taken_and_the_others_named(tmp_path: Path) -> None:
    other = "nnUNetTrainer__nnUNetPlans__2d"
    folder(tmp_path, name=other)

    found = imported(folder(tmp_path))

    assert found.findings == (f"Dataset001_Blobs holds {other}, {TRAINED}; {TRAINED} was taken.",)


def test_a_configuration_is_named_by_itself_or_by_its_folder(tmp_path: Path) -> None:
    folder(tmp_path, name="nnUNetTrainer__nnUNetPlans__3d_lowres")
    path = folder(tmp_path)

    for name in ("3d_lowres", "nnUNetTrainer__nnUNetPlans__3d_lowres"):
        assert imported(path, configurations=(name,)).findings[0].endswith("3d_lowres was taken.")


@pytest.mark.parametrize(
    ("reader", "steps"),
    [
        ("NibabelIO", ["voxelgate.OrderDicomd", "voxelgate.NnUNetPreprocessd"]),
        ("NibabelIOWithReorient", ["voxelgate.NnUNetPreprocessd"]),
        ("SimpleITKIOWithReorient", ["voxelgate.NnUNetPreprocessd"]),
    ],
)
def test_the_order_of_dicom_series_counts_where_the_reader_does_not_turn_images(
    tmp_path: Path, reader: str, steps: list[str]
) -> None:
    found = imported(folder(tmp_path, plans=plans() | {"image_reader_writer": reader}))

    assert [step["_target_"] for step in found.preparation] == steps
    assert found.preparation[-1]["reader"] == reader


def test_a_model_of_pictures_takes_their_colours_from_one_file(tmp_path: Path) -> None:
    colours, flat = {"0": "R", "1": "G", "2": "B"}, configuration(2)
    flat |= {"normalization_schemes": ["RGBTo01Normalization"] * 3, "use_mask_for_norm": [False] * 3}
    document = plans(**flat) | {"image_reader_writer": "NaturalImage2DIO"}
    weights = network(read_plans(document, "").configuration("3d_fullres", 3).network | ENDS | {"in_channels": 3})
    files = {FINAL: checkpoint(weights.state_dict(), inference_allowed_mirroring_axes=None)}

    found = imported(folder(tmp_path, plans=document, data_set=data_set(channel_names=colours), files=files))

    assert (found.modality, found.channels) == ("PICTURE", ("red", "green", "blue"))
    assert [step["_target_"] for step in found.preparation] == ["voxelgate.NnUNetPreprocessd"]


def test_the_order_of_dicom_series_can_be_chosen(tmp_path: Path) -> None:
    found = imported(folder(tmp_path), dicom_order=StoredOrder.LPS)

    assert found.preparation[0]["axcodes"] == "LPS"


def test_plans_are_kept_and_lists_of_images_are_not(tmp_path: Path) -> None:
    document = data_set(dataset={"Miller": {"images": ["Miller_0000.nii.gz"]}}, name="Blobs")

    kept = imported(folder(tmp_path, data_set=document)).extra_files

    assert json.loads(kept[f"source/{TRAINED}/plans.json"]) == plans()
    assert json.loads(kept[f"source/{TRAINED}/dataset.json"])["name"] == "Blobs"
    assert b"Miller" not in kept[f"source/{TRAINED}/dataset.json"]


def bundle(root: Path) -> Bundle:
    with opened_source(folder(root)) as source:
        write_imported(root / "bundle", read_nnunet(source, ImportOptions()), source)
    return open_bundle(root / "bundle", device="cpu")


def test_an_imported_bundle_gives_labels_on_the_grid_of_any_image(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(50, 60, (17, 15, 12)).astype(np.int16)
    affine = np.array([[0.0, 1.3, 0.0, 5.0], [-0.9, 0.0, 0.0, 7.0], [0.0, 0.0, 2.1, 9.0], [0.0, 0.0, 0.0, 1.0]])

    found = bundle(tmp_path).segment((voxels, affine))

    assert found.labels.shape == voxels.shape
    assert set(np.unique(found.labels)) <= {0, 1, 2}
    assert set(found.volumes_ml) == {"liver", "tumour"}


@pytest.mark.parametrize("is_dicom", [False, True])
def test_a_ct_of_16_bits_is_prepared_as_it_is_without_a_copy_of_32(tmp_path: Path, is_dicom: bool) -> None:
    opened, facts = bundle(tmp_path), FileFacts(is_dicom=is_dicom)
    voxels = np.random.default_rng(0).normal(50, 60, (1, 17, 15, 12)).astype(np.int16)
    grid = Grid((17, 15, 12), np.diag([-0.9, -1.3, 2.1, 1.0]))

    stored, converted = (opened.prepare(as_image(one, grid, facts)) for one in (voxels, voxels.astype(np.float32)))

    assert not any(isinstance(step, CastToTyped) for step in opened.preprocessing.transforms)
    assert stored.dtype == torch.float32
    assert torch.equal(stored, converted)


def test_an_image_of_which_nothing_would_be_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="less than half a voxel"):
        bundle(tmp_path).segment((np.arange(64, dtype=np.int16).reshape(8, 8, 1), np.diag([1.0, 1.0, 0.4, 1.0])))


# --- refused ------------------------------------------------------------------------------------------------------


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state().items() if key != name}


HEAD = "decoder.seg_layers.0.weight"


def other_networks() -> Iterator[tuple[dict[str, torch.Tensor], str]]:
    yield without(HEAD), f"{HEAD} is missing"
    yield state() | {HEAD: torch.zeros(5, 4, 1, 1, 1)}, f"{HEAD} is 5 x 4 x 1 x 1 x 1, expected 3 x 4 x 1 x 1 x 1"
    yield state() | {"encoder.attention.weight": torch.zeros(1)}, "'encoder.attention.weight' belongs to no part of it"
    yield state(norm="batch"), "running_mean' belongs to no part of it"


@pytest.mark.parametrize(("weights", "sentence"), list(other_networks()))
def test_weights_of_another_network_are_refused_with_the_first_that_does_not_fit(
    tmp_path: Path, weights: dict[str, torch.Tensor], sentence: str
) -> None:
    with pytest.raises(BundleError, match=f"its weights are not those of the network in the plans .*{sentence}"):
        imported(folder(tmp_path, files={FINAL: checkpoint(weights)}))


@pytest.mark.parametrize("trainer", ["nnUNet_Primus_M_Trainer", "nnUNetTrainerUMambaBot", "STUNetTrainer_base"])
def test_trainers_with_networks_of_their_own_are_refused_by_name(tmp_path: Path, trainer: str) -> None:
    with pytest.raises(BundleError, match=f"was trained by {trainer}"):
        imported(folder(tmp_path, files={FINAL: checkpoint(state(), trainer_name=trainer)}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer_name": None}, "says neither trainer nor configuration"),
        ({"init_args": None}, "says neither trainer nor configuration"),
        ({"init_args": {"configuration": "3d_lowres"}}, "has no configuration '3d_lowres'"),
        ({"inference_allowed_mirroring_axes": (0, 3)}, r"allows mirroring along \(0, 3\)"),
        ({"inference_allowed_mirroring_axes": (0, 0)}, "allows mirroring along"),
        ({"inference_allowed_mirroring_axes": "012"}, "allows mirroring along"),
        ({"inference_allowed_mirroring_axes": (True,)}, "allows mirroring along"),
    ],
)
def test_a_checkpoint_that_says_something_else_is_refused(tmp_path: Path, changes: Json, sentence: str) -> None:
    with pytest.raises((BundleError, InputError), match=sentence):
        imported(folder(tmp_path, files={FINAL: checkpoint(state(), **changes)}))


def test_a_network_that_cannot_be_built_is_refused_before_its_weights_are(tmp_path: Path) -> None:
    document = plans()
    document["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["kernel_sizes"] = [[3] * 3] * 3

    with pytest.raises(BundleError, match="2 levels need 2 kernel sizes"):
        imported(folder(tmp_path, plans=document))


def test_a_fold_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--folds 3: a checkpoint_final\.pth is in fold_0; choose"):
        imported(folder(tmp_path), folds=("3",))


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fold with a checkpoint_best"):
        imported(folder(tmp_path), checkpoint="best")


def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--configuration 2d: Dataset001_Blobs holds {TRAINED}"):
        imported(folder(tmp_path), configurations=("2d",))


def test_a_folder_of_one_configuration_holds_no_other(tmp_path: Path) -> None:
    path = folder(tmp_path) / TRAINED

    assert imported(path, configurations=("3d_fullres",)).name == "Dataset001_Blobs_3d_fullres"
    with pytest.raises(UsageError, match="--configuration 2d: nnUNetTrainer__"):
        imported(path, configurations=("2d",))


def test_settings_that_no_component_follows_are_refused(tmp_path: Path) -> None:
    document = plans(resampling_fn_probabilities_kwargs={"is_seg": False, "order": 3})

    with pytest.raises(BundleError, match=r"configuration 3d_fullres: .*splines of order 3 and 0"):
        imported(folder(tmp_path, plans=document))


def test_several_trainers_of_one_configuration_must_be_told_apart(tmp_path: Path) -> None:
    folder(tmp_path, name="nnUNetTrainerDA5__nnUNetPlans__3d_fullres")

    with pytest.raises(UsageError, match="say which one is meant with --configuration"):
        imported(folder(tmp_path))
