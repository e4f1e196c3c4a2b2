"""nnU-Net folders of several networks as bundles: cascades, ensembles, and the folder's own postprocessing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.imports.nnunet_files import Json, checkpoint, data_set, network, plans, write_folder
from voxelgate.bundle.imports.imported import Imported, ImportOptions
from voxelgate.bundle.imports.nnunet import read_nnunet
from voxelgate.bundle.imports.plans import read_plans
from voxelgate.bundle.imports.source import opened_source
from voxelgate.core.errors import BundleError, InputError, UsageError

LOW, FULL, SECOND = (f"nnUNetTrainer__nnUNetPlans__3d_{name}" for name in ("lowres", "fullres", "cascade_fullres"))
FILE = "postprocessing.json"
KEEP = "remove_all_but_largest_component_from_segmentation"


def cascade_plans() -> Json:
    document = plans()
    full = document["configurations"]["3d_fullres"]
    low = copy.deepcopy(full) | {"spacing": [2.0, 2.0, 2.0], "next_stage": "3d_cascade_fullres"}
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    document["configurations"] |= {"3d_lowres": low, "3d_cascade_fullres": second}
    return document


def add(root: Path, folder: str, *, folds: tuple[int, ...] = (0,), **changes: Any) -> Path:
    """Write a folder of one configuration with random weights below a data set, and return that of the data set."""
    name = folder.rpartition("__")[2]
    documents = {"plans": cascade_plans(), "data_set": data_set()} | changes
    config = read_plans(documents["plans"], "").configuration(name, 1).network
    channels = 3 if name == "3d_cascade_fullres" else 1
    checkpoints = {}
    for fold in folds:
        state = network(config | {"in_channels": channels, "out_channels": 3}, fold).state_dict()
        told = {"plans": {}, "configuration": name, "fold": fold, "dataset_json": {}}
        checkpoints[f"fold_{fold}/checkpoint_final.pth"] = checkpoint(state, init_args=told)
    write_folder(root / "Dataset001_Blobs" / folder, **documents, checkpoints=checkpoints)
    return root / "Dataset001_Blobs"


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def imported(path: Path, **options: Any) -> Imported:
    with opened_source(path) as source:
        return read_nnunet(source, ImportOptions(**options))


def test_a_cascade_has_the_networks_of_both_stages(tmp_path: Path) -> None:
    add(tmp_path, LOW, folds=(0, 1))
    add(tmp_path, SECOND, folds=(0, 1))

    found = imported(tmp_path / "Dataset001_Blobs", configurations=("3d_cascade_fullres",))

    first, second = found.inferer["first"], found.inferer["second"]
    assert found.inferer["_target_"] == "voxelgate.CascadeInferer"
    assert (first["networks"], second["networks"]) == ([0, 1], [2, 3])
    assert first["preprocessing"]["spacing"] == [2.0, 2.0, 2.0]
    assert second["preprocessing"]["previous"] == {"key": "previous", "foreground": [1, 2]}
    assert [one["in_channels"] for one in found.network_def["modules"]] == [1, 1, 3, 3]
    assert [step["_target_"] for step in found.preparation] == ["voxelgate.OrderDicomd"]
    assert found.state["2.encoder.stages.0.0.convs.0.conv.weight"].shape[1] == 3
    assert {f"{folder}/plans.json" for folder in (LOW, SECOND)} <= set(found.source_files)
    assert f"source/{SECOND}/plans.json" in found.extra_files


def test_the_folds_of_each_stage_of_a_cascade_are_told(tmp_path: Path) -> None:
    add(tmp_path, LOW, folds=(0, 1))
    add(tmp_path, SECOND)

    found = imported(tmp_path / "Dataset001_Blobs", configurations=("3d_cascade_fullres",))

    stages = "nnUNetTrainer, 3d_cascade_fullres, 1 fold, after nnUNetTrainer, 3d_lowres, 2 folds"
    assert found.description == f"liver, tumour in CT, by nnU-Net ({stages})."
    assert found.findings == ("3d_lowres: folds 0, 1 are averaged, of 2 there.",)


def test_a_cascade_without_its_first_stage_is_refused(tmp_path: Path) -> None:
    root = add(tmp_path, SECOND)

    with pytest.raises(InputError, match=f"needs {LOW}, which is missing"):
        imported(root)
    with pytest.raises(InputError, match="needs the first, 3d_lowres; import the folder of the data set"):
        imported(root / SECOND)


def test_a_first_stage_of_other_labels_is_refused(tmp_path: Path) -> None:
    regions = {"background": 0, "liver": [1, 2, 3], "tumour": [2, 3], "core": [3]}
    add(tmp_path, LOW, data_set=data_set(labels=regions, regions_class_order=[1, 2, 3]))
    root = add(tmp_path, SECOND)

    with pytest.raises(BundleError, match=f"{LOW}: is no first stage of {SECOND}"):
        imported(root, configurations=("3d_cascade_fullres",))


def test_two_configurations_are_averaged(tmp_path: Path) -> None:
    add(tmp_path, LOW, folds=(0, 1))
    root = add(tmp_path, FULL)

    found = imported(root, configurations=("3d_lowres", "3d_fullres"))

    assert found.name == "Dataset001_Blobs_3d_lowres_3d_fullres"
    assert found.inferer["_target_"] == "voxelgate.EnsembleInferer"
    assert [part["networks"] for part in found.inferer["members"]] == [[0, 1], [2]]
    assert [part["preprocessing"]["spacing"] for part in found.inferer["members"]] == [[2, 2, 2], [1, 0.9, 0.8]]
    assert len(found.network_def["modules"]) == 3
    assert [one["configuration"] for one in found.origin["networks"]] == ["3d_lowres", "3d_fullres"]


def test_a_cascade_is_averaged_as_a_whole(tmp_path: Path) -> None:
    for folder in (LOW, FULL):
        add(tmp_path, folder)
    root = add(tmp_path, SECOND)

    found = imported(root, configurations=("3d_fullres", "3d_cascade_fullres"))

    full, cascade = found.inferer["members"]
    assert (full["networks"], cascade["networks"]) == ([0], [1, 2])
    assert cascade["inferer"]["_target_"] == "voxelgate.CascadeInferer"
    assert (cascade["inferer"]["first"]["networks"], cascade["inferer"]["second"]["networks"]) == ([0], [1])


def information(*configurations: str) -> Json:
    models = [
        {"configuration": name, "trainer": "nnUNetTrainer", "plans_identifier": "nnUNetPlans"}
        for name in configurations
    ]
    return {"best_model_or_ensemble": {"selected_model_or_models": models}}


def test_what_the_data_set_says_to_predict_best_is_taken(tmp_path: Path) -> None:
    add(tmp_path, LOW)
    root = add(tmp_path, FULL)
    write(root / "inference_information.json", information("3d_lowres", "3d_fullres"))

    found = imported(root)

    assert found.inferer["_target_"] == "voxelgate.EnsembleInferer"
    assert found.findings[0].endswith(f"inference_information.json says that {LOW} and {FULL} predict best; taken so.")
    assert imported(root, configurations=("3d_lowres",)).inferer["_target_"] == "voxelgate.NnUNetInferer"


@pytest.mark.parametrize("best", [information("3d_lowres"), {}, {"best_model_or_ensemble": 3}])
def test_what_is_not_there_is_not_taken_for_the_best(tmp_path: Path, best: Json) -> None:
    root = add(tmp_path, FULL)
    write(root / "inference_information.json", best)

    assert imported(root).inferer["patch_size"] == [16, 12, 20]


def test_models_of_other_structures_are_not_averaged(tmp_path: Path) -> None:
    add(tmp_path, LOW, data_set=data_set(labels={"background": 0, "liver": 1, "spleen": 2}))
    root = add(tmp_path, FULL)

    with pytest.raises(BundleError, match=f"{FULL}: labels, channels or reader are others than those of {LOW}"):
        imported(root, configurations=("3d_lowres", "3d_fullres"))


def stated(*labels: Any) -> Json:
    return {
        "postprocessing_fns": [KEEP] * len(labels),
        "postprocessing_kwargs": [{"labels_or_regions": one} for one in labels],
        "input_folder": {},
    }


def test_postprocessing_is_that_of_the_folds_that_are_averaged(tmp_path: Path) -> None:
    root = add(tmp_path, FULL, folds=(0, 1))
    write(root / FULL / "crossval_results_folds_0_1" / FILE, stated([1, 2], 2))
    write(root / FULL / "crossval_results_folds_0" / FILE, stated())

    found = imported(root, applies_postprocessing=True)

    assert found.cleaning == [{"_target_": "voxelgate.KeepComponentsd", "keys": "pred", "groups": [[1, 2], [2]]}]
    assert f"{FULL}/crossval_results_folds_0_1/{FILE}" in found.source_files
    assert imported(root, applies_postprocessing=True, folds=("0",)).cleaning == []
    assert imported(root).cleaning == []


def test_postprocessing_of_an_ensemble_is_its_own(tmp_path: Path) -> None:
    add(tmp_path, LOW)
    root = add(tmp_path, FULL)
    write(root / "ensembles" / f"ensemble___{LOW}___{FULL}___0" / FILE, stated(1))

    found = imported(root, configurations=("3d_fullres", "3d_lowres"), applies_postprocessing=True)

    assert found.cleaning[0]["groups"] == [[1]]


def test_postprocessing_that_is_not_stated_is_refused(tmp_path: Path) -> None:
    root = add(tmp_path, FULL, folds=(0, 1))
    write(root / FULL / "crossval_results_folds_0" / FILE, stated())

    with pytest.raises(UsageError, match=rf"states none for folds 0, 1; it has {FULL}/crossval_results_folds_0/{FILE}"):
        imported(root, applies_postprocessing=True)


def test_a_pickle_of_postprocessing_is_not_opened(tmp_path: Path) -> None:
    root = add(tmp_path, FULL)
    write(root / FULL / "crossval_results_folds_0" / "postprocessing.pkl", "not a pickle")

    with pytest.raises(InputError, match="has a pickle but no postprocessing"):
        imported(root, applies_postprocessing=True)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (stated() | {"postprocessing_fns": ["os.system"]}, "not as many functions as arguments"),
        (stated(1) | {"postprocessing_fns": ["os.system"]}, "asks for 'os.system', only remove_all"),
        (stated(0), "has arguments"),
        (stated([]), "has arguments"),
        (stated("liver"), "has arguments"),
        (stated(1) | {"postprocessing_kwargs": [{"labels_or_regions": 1, "background_label": 2}]}, "has arguments"),
        (stated(1) | {"postprocessing_kwargs": [None]}, "has arguments None"),
        ({}, "not as many functions as arguments"),
    ],
)
def test_postprocessing_of_another_make_is_refused(tmp_path: Path, document: Json, said: str) -> None:
    root = add(tmp_path, FULL)
    write(root / FULL / "crossval_results_folds_0" / FILE, document)

    with pytest.raises((InputError, BundleError), match=said):
        imported(root, applies_postprocessing=True)
