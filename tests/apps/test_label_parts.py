"""What the label server is made of, without a server: names, submitted labels, versions, rounds, doubts, the guard."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.threshold_bundle import make_threshold_bundle
from voxelgate.apps.label import patience
from voxelgate.apps.label.environment import child_environment
from voxelgate.apps.label.folder_contents import said_of_folder
from voxelgate.apps.label.guard import JSON_BYTES, Guard, Message, Receive, Scope, Send
from voxelgate.apps.label.ids import check_id, check_tag, is_id
from voxelgate.apps.label.label_formats import LabelFormat, converted
from voxelgate.apps.label.label_names import LABEL_NAMES, remember_label_names
from voxelgate.apps.label.model_versions import CURRENT, SCRATCH_PREFIX, ModelVersions, Origin, import_bundle
from voxelgate.apps.label.patience import Bodies, Body, BodyError
from voxelgate.apps.label.proposals import MOST_KEPT, Proposals
from voxelgate.apps.label.server import prepare_server
from voxelgate.apps.label.serving import Serving
from voxelgate.apps.label.submitted import read_submitted, segments_of
from voxelgate.apps.label.training_round import (
    SPLITS,
    Annotated,
    DealtCases,
    Pace,
    split_cases,
    train_round,
    validation_dices,
)
from voxelgate.apps.label.uncertainty import disagreement, label_map, mean_dice, uncertainty
from voxelgate.bundle.checksums import WEIGHTS, seal
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.check_manifest import image_content
from voxelgate.datasets.manifest import ManifestCase
from voxelgate.images.volumes import read_grid, read_volume, write_label_map
from voxelgate.segmentation.cases import Case
from voxelgate.training.seen import DIGITS, Seen, read_seen, write_seen

TABLE = LabelTable(("background", "liver", "spleen"))
AFFINE = np.array([[-1.0, 0.0, 0.0, 9.0], [0.0, 0.9, -0.5, 4.0], [0.0, 0.5, 0.9, 2.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((6, 5, 4), AFFINE)
LABELS = np.zeros(GRID.shape, np.uint8)
LABELS[1:3, 1:4, 1:3] = 1
LABELS[4, 2, 2] = 2


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


# --- names --------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="aZ0_ä.,-+ /\\%\0\n~", max_size=12))
def test_an_id_that_is_taken_is_one_visible_file_name_of_its_folder(text: str) -> None:
    if is_id(text):
        path = Path("/studies") / f"{text}.nii.gz"
        assert path.parent == Path("/studies")
        assert path.resolve().parent == Path("/studies")
        assert not path.name.startswith(".")
        assert "\0" not in text
        assert len(path.name.encode()) < 256


@pytest.mark.parametrize("text", ["case_1", "CT 2.left (new)", "1.2.840.10008.1", "größe", "a+b=c,d@e-f"])
def test_usual_names_are_ids(text: str) -> None:
    assert check_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "..", "../x", "a/b", "a\\b", ".hidden", "a..b", " a", "a\n", "a\0", "%2e%2e", "x" * 201]
)
def test_what_could_name_another_file_is_no_id(text: str) -> None:
    with pytest.raises(InputError, match="no plain name"):
        check_id(text)


@pytest.mark.parametrize("text", ["", "..", "../x", "a b", "-a", "a.b", "final\n", "x" * 65])
def test_a_tag_is_a_plain_word(text: str) -> None:
    assert check_tag("final_2") == "final_2"
    with pytest.raises(InputError, match="such as final"):
        check_tag(text)


# --- submitted label maps -----------------------------------------------------------------------------------------


def test_a_label_map_on_the_grid_of_its_image_is_taken_as_it_is(tmp_path: Path) -> None:
    found = read_submitted(save(tmp_path / "a.nii.gz", LABELS.astype(np.float32)), GRID, TABLE)

    np.testing.assert_array_equal(found, LABELS)
    assert found.dtype == np.uint8


def test_names_decide_what_the_values_of_a_client_mean(tmp_path: Path) -> None:
    only_spleen = save(tmp_path / "a.nii.gz", (LABELS == 2).astype(np.uint8))

    found = read_submitted(only_spleen, GRID, TABLE, [{"name": "Spleen", "idx": 1}])

    np.testing.assert_array_equal(found, np.where(LABELS == 2, 2, 0))
    np.testing.assert_array_equal(read_submitted(only_spleen, GRID, TABLE, [{"name": "spleen"}]), found)


def test_raw_voxels_of_ohif_are_read_first_index_fastest(tmp_path: Path) -> None:
    (tmp_path / "label.bin").write_bytes(LABELS.tobytes(order="F"))
    (tmp_path / "short.bin").write_bytes(LABELS.tobytes(order="F")[1:])

    np.testing.assert_array_equal(read_submitted(tmp_path / "label.bin", GRID, TABLE), LABELS)
    with pytest.raises(InputError, match="119 bytes, expected one for each of 120 voxels"):
        read_submitted(tmp_path / "short.bin", GRID, TABLE)


@pytest.mark.parametrize(
    ("voxels", "affine", "segments", "message"),
    [
        (LABELS, np.eye(4), (), "grid of its image: corners"),
        (LABELS[1:], AFFINE, (), "grid of its image: shape"),
        (LABELS * np.float32(0.5), AFFINE, (), "whole numbers"),
        (LABELS * np.int16(-1), AFFINE, (), "whole numbers"),
        (LABELS * 2, AFFINE, (), r"holds 4, expected 0 \(background\), 1 \(liver\), 2 \(spleen\)"),
        (LABELS, AFFINE, [{"name": "liver"}], r"holds 2, expected 0 \(background\), 1 \(liver\)"),
        (LABELS, AFFINE, [{"name": "liver"}, {"name": "kidney"}], "segment 2 .* no name that the model knows"),
        (LABELS, AFFINE, [{"name": "liver", "idx": 2}, {"name": "spleen", "idx": 2}], "a number of its own"),
        (LABELS, AFFINE, [{"name": "liver", "idx": 10**11}], "a number of its own"),
        (LABELS, AFFINE, [{"name": "liver", "idx": True}], "a number of its own"),
        (LABELS, AFFINE, [{"name": "liver", "idx": -1}], "a number of its own"),
        (np.full(GRID.shape, np.nan, np.float32), AFFINE, (), "whole numbers"),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(
    tmp_path: Path, voxels: np.ndarray, affine: np.ndarray, segments: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_submitted(save(tmp_path / "a.nii.gz", voxels, affine), GRID, TABLE, segments)


@pytest.mark.parametrize("said", [5, "liver", {"name": "liver"}, ["liver"], [["liver"]]])
def test_what_is_no_list_of_segments_is_refused(said: object) -> None:
    assert segments_of(None) == ()
    assert segments_of([{"name": "liver"}]) == [{"name": "liver"}]
    with pytest.raises(InputError, match="no list of segments"):
        segments_of(said)


def test_label_maps_keep_their_meaning(tmp_path: Path) -> None:
    other = LabelTable(("background", "spleen", "liver"))
    remember_label_names(tmp_path, other, has_maps=False)
    remember_label_names(tmp_path, TABLE, has_maps=False)
    remember_label_names(tmp_path, TABLE, has_maps=True)

    with pytest.raises(UsageError, match="are of 1 liver, 2 spleen, but the model knows 1 spleen, 2 liver"):
        remember_label_names(tmp_path, other, has_maps=True)
    assert json.loads((tmp_path / LABEL_NAMES).read_text(encoding="utf-8")) == TABLE.to_mapping()


@pytest.mark.parametrize("wanted", list(LabelFormat))
def test_a_label_map_keeps_its_voxels_and_its_place_in_every_format(tmp_path: Path, wanted: LabelFormat) -> None:
    write_label_map(tmp_path / "label.nii.gz", LABELS, GRID, like=None)

    found = converted(tmp_path / "label.nii.gz", wanted)

    assert found.name.endswith(wanted)
    labels, grid = read_volume(found)
    np.testing.assert_array_equal(labels, LABELS)
    assert grid.agrees(GRID, 1e-4)


# --- versions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_threshold_bundle(tmp_path / "bright_ct")


def candidate_of(versions: ModelVersions, scale: float = 2.0) -> Path:
    """Return a sealed candidate with other weights."""
    shutil.copytree(versions.current_path, folder := versions.scratch())
    weights = torch.load(folder / WEIGHTS, weights_only=True)
    torch.save({name: scale * tensor for name, tensor in weights.items()}, folder / WEIGHTS)
    seal(folder)
    return folder


def test_a_bundle_that_is_given_becomes_the_first_version_once(models: Path, bundle: Path) -> None:
    versions = import_bundle(bundle, models)

    assert import_bundle(bundle, models) == versions
    assert (versions.numbers(), versions.current, versions.previous) == ([1], 1, None)
    assert open_bundle(versions.current_path).fingerprint == open_bundle(bundle).fingerprint


def test_a_trained_version_stays_in_use_when_the_server_starts_again(models: Path, bundle: Path) -> None:
    versions = import_bundle(bundle, models)
    versions.use(versions.add(candidate_of(versions), Origin(parent=1, dice=0.9, parent_dice=0.8)))
    (versions.root / f"{SCRATCH_PREFIX}left").mkdir()

    again = import_bundle(bundle, models)

    assert (again.current, again.previous) == (2, 1)
    assert again.origin(2).dice == 0.9
    assert not list(versions.root.glob(f"{SCRATCH_PREFIX}*"))


def test_another_bundle_of_the_name_is_a_version_of_its_own_and_comes_into_use(
    models: Path, bundle: Path, tmp_path: Path
) -> None:
    import_bundle(bundle, models)
    newer = make_threshold_bundle(tmp_path / "newer", version="2.0.0")

    versions = import_bundle(newer, models)

    assert (versions.numbers(), versions.current) == ([1, 2], 2)


def test_a_bundle_of_the_name_with_other_labels_is_no_version(models: Path, bundle: Path, tmp_path: Path) -> None:
    import_bundle(bundle, models)
    other = make_threshold_bundle(tmp_path / "other", {"0": "background", "1": "tibia"})

    with pytest.raises(UsageError, match=r"versions of bright_ct with other labels.*another folder with --work"):
        import_bundle(other, models)
    assert ModelVersions(models / "bright_ct").numbers() == [1]


def test_an_earlier_version_can_be_used_again_and_no_other_number(models: Path, bundle: Path) -> None:
    versions = import_bundle(bundle, models)
    versions.use(versions.add(candidate_of(versions), Origin(parent=1)))

    versions.use(1)

    assert versions.current_path.name == "1"
    with pytest.raises(InputError, match="has the versions 1, 2, not 3"):
        versions.use(3)


def test_a_version_whose_files_changed_is_not_used(models: Path, bundle: Path) -> None:
    versions = import_bundle(bundle, models)
    versions.add(candidate_of(versions), Origin(parent=1))
    (versions.path(2) / WEIGHTS).write_bytes(b"other")

    with pytest.raises(BundleError, match="changed since the bundle was sealed"):
        versions.use(2)
    assert versions.current == 1


def test_a_bundle_that_is_not_sealed_is_not_imported(models: Path, bundle: Path) -> None:
    (bundle / "configs" / "inference.json").write_text("{}", encoding="utf-8")

    with pytest.raises(BundleError, match="changed since"):
        import_bundle(bundle, models)
    assert not models.exists()


# --- rounds -------------------------------------------------------------------------------------------------------


def annotated(count: int) -> list[Annotated]:
    return [Annotated(f"case_{number}", Path(f"{number}.nii.gz"), Path(f"l{number}.nii.gz")) for number in range(count)]


def ids(cases: Iterable[Annotated]) -> set[str]:
    return {case.image_id for case in cases}


@pytest.mark.slow
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.floats(0.1, 0.6))
def test_no_case_ever_changes_from_training_to_validation_or_back(grown: list[int], share: float) -> None:
    with TemporaryDirectory() as folder:
        splits: list[DealtCases] = []
        for count in accumulate(grown):
            with suppress(InputError):
                splits.append(split_cases(ModelVersions(Path(folder)), annotated(count), share))
                assert not ids(splits[-1].training) & ids(splits[-1].validation)
                assert ids(splits[-1].training) | ids(splits[-1].validation) == ids(annotated(count))
    for earlier, later in pairwise(splits):
        assert ids(earlier.training) <= ids(later.training)
        assert ids(earlier.validation) <= ids(later.validation)


def test_the_share_that_validates_is_kept_while_cases_come_and_never_one_case_alone(tmp_path: Path) -> None:
    for count, validating in ((5, 3), (10, 3), (23, 5)):
        assert len(split_cases(ModelVersions(tmp_path), annotated(count), 0.2).validation) == validating


@pytest.mark.parametrize(
    ("count", "share", "left"),
    [(0, 0.2, "0 to train on and 0"), (2, 0.2, "0 to train on and 2"), (3, 0.9, "0 to .* 3")],
)
def test_a_round_with_too_few_cases_to_train_or_to_validate_on_is_refused_in_a_sentence(
    tmp_path: Path, count: int, share: float, left: str
) -> None:
    with pytest.raises(InputError, match=f"leave {left} to validate on.*annotate more images"):
        split_cases(ModelVersions(tmp_path), annotated(count), share)
    assert not (tmp_path / SPLITS).exists()


def test_proposals_that_nobody_changed_train_and_measure_nothing(tmp_path: Path) -> None:
    cases = annotated(8)
    taken_over = [case._replace(is_proposal=True) for case in cases]

    split = split_cases(ModelVersions(tmp_path), [*taken_over[:4], *cases[4:]], 0.5)

    assert ids(split.validation) < ids(cases[4:])
    assert ids(split.training) > ids(taken_over[:4])
    with pytest.raises(
        InputError, match=r"8 annotated images, 8 of them proposals that nobody changed, leave .* and 0 to val"
    ):
        split_cases(ModelVersions(tmp_path), taken_over, 0.5)


def test_a_case_that_validates_is_left_out_while_its_label_map_is_a_proposal(tmp_path: Path) -> None:
    first = split_cases(ModelVersions(tmp_path), annotated(12), 0.5)
    taken_over = first.validation[0]._replace(is_proposal=True)
    others = [case for case in annotated(12) if case.image_id != taken_over.image_id]

    again = split_cases(ModelVersions(tmp_path), [taken_over, *others], 0.5)

    assert taken_over.image_id not in ids(again.validation) | ids(again.training)
    assert ids(split_cases(ModelVersions(tmp_path), annotated(12), 0.5).validation) == ids(first.validation)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"val_split": 0.0}, {"val_split": 1.0}])
def test_a_pace_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected at least 1 epoch"):
        Pace(**wrong)


BIAS_OF = {"right": 0.0, "blind": -9.0, "wide": 0.2}
"""Bias of the class femur: with 0 it begins at 150 HU, with -9 nowhere, with 0.2 below soft tissue."""


def taught_bundle(root: Path, start: str, learns: str, *, meanwhile: str = "") -> Path:
    """Make a bundle whose weights are `start`, and whose training, which takes no time, makes them `learns`.

    Args:
        root: folder to make.
        start: a key of `BIAS_OF`.
        learns: another.
        meanwhile: an expression that is evaluated during the training.
    """
    make_threshold_bundle(root)
    weights = torch.load(root / WEIGHTS, weights_only=True)
    weights["bias"][1] = BIAS_OF[start]
    torch.save(weights, root / WEIGHTS)
    learnt = (
        "{**torch.load(@init_weights, weights_only=True), 'bias': torch.tensor([0.5, " + str(BIAS_OF[learns]) + "])}"
    )
    config = {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "cpu",
        "epochs": 1,
        "init_weights": None,
        "train": {"dataset": {"data": []}},
        "validate": {"dataset": {"data": []}},
        "run": [f"$torch.save({learnt}, @bundle_root + '/models/model.pt')", *([f"${meanwhile}"] if meanwhile else [])],
    }
    (root / "configs" / "train.json").write_text(json.dumps(config), encoding="utf-8")
    seal(root)
    return root


def femurs(folder: Path, count: int = 6) -> list[Annotated]:
    """Write images with a bright box in soft tissue, and the label maps of the boxes."""
    cases = []
    for number in range(count):
        image = np.random.default_rng(number).normal(40, 5, size=(9, 9, 9))
        label = np.zeros(image.shape, np.uint8)
        label[number : number + 3, 2:6, 3:7] = 1
        paths = [folder / kind / f"{number}.nii.gz" for kind in ("images", "labels")]
        save(paths[0], (image + 600.0 * label).astype(np.float32))
        save(paths[1], label)
        cases.append(Annotated(f"case_{number}", *paths))
    return cases


def test_a_round_that_makes_the_model_better_is_put_into_use(tmp_path: Path, models: Path) -> None:
    versions = import_bundle(taught_bundle(tmp_path / "b", "blind", "right"), models)

    done = train_round(versions, femurs(tmp_path), Pace(epochs=1, val_split=0.5))

    assert (done.version, versions.current, versions.previous) == (2, 2, 1)
    assert (done.origin.parent_dice, done.origin.dice) == (0.0, 1.0)
    assert (done.origin.training_cases, done.origin.validation_cases) == (3, 3)
    assert (done.origin.better_cases, done.origin.worse_cases) == (3, 0)
    assert "on 3 cases, better on 3, worse on 0: version 2 is in use" in done.sentence()


def test_a_model_is_not_locked_in_by_its_own_proposals(tmp_path: Path, models: Path) -> None:
    versions = import_bundle(taught_bundle(tmp_path / "b", "wide", "right"), models)
    cases = femurs(tmp_path, 9)
    proposals = Proposals(tmp_path / "proposals")
    table = open_bundle(versions.current_path).labels
    for case in cases[:5]:
        found = label_map(Case(case.image_id, case.image), open_bundle(versions.current_path))
        write_label_map(case.label, found, read_grid(case.image), overwrite=True)
        proposals.keep(case.image_id, case.label)
    known = [case._replace(is_proposal=proposals.holds(case.image_id, case.label, table)) for case in cases]

    done = train_round(versions, known, Pace(epochs=1, val_split=0.3))

    assert [case.is_proposal for case in known] == [True] * 5 + [False] * 4
    assert (done.version, versions.current) == (2, 2)


def test_what_a_bundle_was_trained_on_before_measures_it_only_where_others_lack(
    tmp_path: Path, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given_bundle, cases = taught_bundle(tmp_path / "b", "blind", "right"), femurs(tmp_path, 8)
    content = [image_content(ManifestCase("x", case.image, None, "x", None))[:DIGITS] for case in cases]
    write_seen(given_bundle, Seen(images=frozenset(content[:4])))
    seal(given_bundle)
    versions = import_bundle(given_bundle, models)

    done = train_round(versions, cases, Pace(epochs=1, val_split=0.5))

    assert (done.origin.training_cases, done.origin.validation_cases) == (4, 4)
    assert read_seen(versions.path(2)).images == frozenset(content[:4])
    assert "were seen" not in caplog.text
    (versions.root / SPLITS).unlink()
    train_round(versions, cases[:6], Pace(epochs=1, val_split=0.5))
    assert "1 of those that measure were seen when the bundle was made" in caplog.text


def test_one_case_alone_does_not_lift_a_version_over_all_others(tmp_path: Path, models: Path) -> None:
    versions = import_bundle(taught_bundle(tmp_path / "b", "right", "wide"), models)
    cases = femurs(tmp_path, 7)
    wide = open_bundle(taught_bundle(tmp_path / "wide", "wide", "wide"))
    found = label_map(Case("x", cases[0].image), wide)
    write_label_map(cases[0].label, found, read_grid(cases[0].image), overwrite=True)
    parts = {case.image_id: "validation" if place < 6 else "training" for place, case in enumerate(cases)}
    (versions.root / SPLITS).write_text(json.dumps(parts), encoding="utf-8")

    done = train_round(versions, cases, Pace(epochs=1, val_split=0.8))

    assert (done.origin.better_cases, done.origin.worse_cases) == (1, 5)
    assert (done.version, versions.current) == (None, 1)


def test_a_label_map_counts_as_a_proposal_but_for_a_slip_of_the_brush(tmp_path: Path) -> None:
    proposals = Proposals(tmp_path / "proposals")
    proposed = np.zeros((20, 20, 20), np.uint8)
    proposed[4:16, 4:16, 4:16] = 1
    slipped, corrected = proposed.copy(), proposed.copy()
    slipped[4, 4, 4] = 0
    corrected[4] = 0
    proposals.keep("case_1", save(tmp_path / "proposed.nii.gz", proposed))
    proposals.keep("case_1", save(tmp_path / "later.nii.gz", proposed[::-1] * 0))

    held = {
        name: proposals.holds("case_1", save(tmp_path / f"{name}.nii.gz", voxels), TABLE)
        for name, voxels in {"same": proposed, "slipped": slipped, "corrected": corrected}.items()
    }

    assert held == {"same": True, "slipped": True, "corrected": False}
    assert not proposals.holds("case_2", tmp_path / "same.nii.gz", TABLE)
    proposals.forget("case_1")
    assert not proposals.holds("case_1", tmp_path / "same.nii.gz", TABLE)


def test_of_each_image_some_proposals_are_kept(tmp_path: Path) -> None:
    proposals, path = Proposals(tmp_path / "proposals"), save(tmp_path / "a.nii.gz", LABELS)
    for _ in range(MOST_KEPT + 2):
        proposals.keep("case_1", path)

    assert len(list((tmp_path / "proposals" / "case_1").iterdir())) == MOST_KEPT


@pytest.mark.parametrize(("start", "learns"), [("right", "blind"), ("right", "wide"), ("right", "right")])
def test_a_round_that_makes_nothing_better_leaves_the_model_as_it_was(
    tmp_path: Path, models: Path, start: str, learns: str
) -> None:
    versions = import_bundle(taught_bundle(tmp_path / "b", start, learns), models)

    done = train_round(versions, femurs(tmp_path), Pace(epochs=1, val_split=0.5))

    assert done.version is None
    assert (versions.numbers(), versions.current) == ([1], 1)
    assert not list(versions.root.glob(f"{SCRATCH_PREFIX}*"))
    assert "version 1 stays in use" in done.sentence()


def writes(path: Path, content: bytes) -> str:
    return f"__import__('pathlib').Path({str(path)!r}).write_bytes({content!r})"


def test_a_round_sees_the_label_maps_as_they_were_when_it_began(tmp_path: Path, models: Path) -> None:
    cases = femurs(tmp_path)
    half_written = "[" + ", ".join(writes(case.label, b"half") for case in cases) + "]"
    versions = import_bundle(taught_bundle(tmp_path / "b", "blind", "right", meanwhile=half_written), models)

    done = train_round(versions, cases, Pace(epochs=1, val_split=0.5))

    assert (done.version, done.origin.dice) == (2, 1.0)


def test_a_version_that_somebody_chose_during_a_round_stays_in_use(tmp_path: Path, models: Path) -> None:
    chosen = writes(models / "bright_ct" / CURRENT, b"1")
    versions = import_bundle(taught_bundle(tmp_path / "b", "blind", "right", meanwhile=chosen), models)
    versions.use(versions.add(candidate_of(versions), Origin(parent=1)))

    done = train_round(versions, femurs(tmp_path), Pace(epochs=1, val_split=0.5))

    assert (done.version, done.is_used, versions.current) == (3, False, 1)
    assert "version 3 is kept, but another was put into use meanwhile" in done.sentence()


def test_a_round_removes_what_a_round_that_was_stopped_left_behind(tmp_path: Path, models: Path) -> None:
    versions = import_bundle(taught_bundle(tmp_path / "b", "blind", "right"), models)
    versions.scratch().mkdir()

    train_round(versions, femurs(tmp_path), Pace(epochs=1, val_split=0.5))

    assert not list(versions.root.glob(f"{SCRATCH_PREFIX}*"))


@pytest.mark.parametrize(
    ("voxels", "message"),
    [(np.zeros((9, 9, 8), np.uint8), "case_2: .*grid"), (np.full((9, 9, 9), 7), "case_2: .*holds 7")],
)
def test_a_label_map_that_nobody_submitted_is_checked_before_it_is_trained_on(
    tmp_path: Path, models: Path, voxels: np.ndarray, message: str
) -> None:
    versions = import_bundle(taught_bundle(tmp_path / "b", "blind", "right"), models)
    cases = femurs(tmp_path)
    save(cases[2].label, voxels.astype(np.uint8))

    with pytest.raises(InputError, match=message):
        train_round(versions, cases, Pace(epochs=1, val_split=0.5))


def test_a_round_that_fails_leaves_the_model_as_it_was(tmp_path: Path, models: Path) -> None:
    versions = import_bundle(taught_bundle(tmp_path / "b", "blind", "right"), models)
    cases = femurs(tmp_path)
    cases[1].image.write_bytes(b"damaged")
    cases[2].image.write_bytes(b"damaged")
    cases[3].image.write_bytes(b"damaged")

    with pytest.raises(InputError):
        train_round(versions, cases, Pace(epochs=1, val_split=0.5))

    assert (versions.numbers(), versions.current) == ([1], 1)
    assert not list(versions.root.glob(f"{SCRATCH_PREFIX}*"))


# --- doubts -------------------------------------------------------------------------------------------------------


def test_what_neither_map_holds_does_not_lower_the_mean_dice() -> None:
    assert mean_dice([0.5, float("nan"), 1.0]) == 0.75
    assert mean_dice([float("nan")]) == 1.0


def test_versions_disagree_where_their_results_differ(tmp_path: Path) -> None:
    right, blind = (open_bundle(taught_bundle(tmp_path / name, name, name)) for name in ("right", "blind"))
    (annotated_case,) = femurs(tmp_path, 1)
    case = Case("case", annotated_case.image)

    assert disagreement(case, right, right) == 0.0
    assert disagreement(case, right, blind) == 1.0
    np.testing.assert_array_equal(label_map(case, right), read_volume(annotated_case.label)[0])
    assert validation_dices(right, [annotated_case]) == [1.0]


def test_a_model_that_sees_no_sides_is_certain_and_one_that_does_is_not(tmp_path: Path) -> None:
    certain = open_bundle(taught_bundle(tmp_path / "right", "right", "right"))
    (one,) = femurs(tmp_path, 1)
    case = Case("case", one.image)

    assert uncertainty(case, certain) == 0.0
    assert uncertainty(case, replace(certain, network=LeftOnly(certain.network))) > 0.5


def test_an_image_in_which_nothing_is_found_is_the_most_doubtful(tmp_path: Path) -> None:
    blind = open_bundle(taught_bundle(tmp_path / "blind", "blind", "blind"))
    (one,) = femurs(tmp_path, 1)
    case = Case("case", one.image)

    assert uncertainty(case, blind) == 1.0
    assert disagreement(case, blind, blind) == 1.0


def test_what_is_validated_is_cleaned_as_a_proposal_is(tmp_path: Path) -> None:
    right = open_bundle(taught_bundle(tmp_path / "right", "right", "right"))
    (one,) = femurs(tmp_path, 1)

    assert not label_map(Case("case", one.image), replace(right, cleaning=lambda labels: labels * 0)).any()


class LeftOnly(torch.nn.Module):
    """A network that knows the first half of an axis only."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.network(image).clone()
        logits[:, 1, logits.shape[2] // 2 :] = -9
        return logits


# --- the guard ----------------------------------------------------------------------------------------------------


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 when the whole body has come."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def status(path: str = "/info/", query: str = "", body: tuple[bytes, ...] = (b"",), **headers: str) -> int:
    """Send a request through a guard; return the status of its answer."""
    chunks = [{"body": chunk, "more_body": place < len(body) - 1} for place, chunk in enumerate(body)]
    sent: list[Message] = []

    async def receive() -> Message:
        return chunks.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    named = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    pairs = [(name.encode(), value.encode()) for name, value in named.items()]
    scope = {"type": "http", "path": path, "query_string": query.encode(), "headers": pairs}
    guard = Guard(echo, 2 * JSON_BYTES, ("127.0.0.1", "::1"), ("http://viewer:3000",))
    asyncio.run(guard(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return int(sent[0]["status"])


def test_an_honest_request_passes_the_guard() -> None:
    assert status() == 200
    assert status(query="image=case_1&tag=final&output=all") == 200
    assert status(host="[::1]:8000") == 200
    assert status(origin="http://127.0.0.1:8000") == 200
    assert status(origin="http://viewer:3000") == 200
    assert status(body=(b"x" * JSON_BYTES, b"y" * JSON_BYTES), content_type="multipart/form-data; boundary=x") == 200


@pytest.mark.parametrize(
    ("expected", "request_"),
    [
        (400, {"path": "/proxy/dicom/../system"}),
        (400, {"path": "/proxy/dicom/a\\..\\b"}),
        (400, {"path": "/proxy/dicom/..;x/system"}),
        (400, {"path": "/proxy/dicom/%2e%2e/system"}),
        (400, {"query": "image=..%2Fx"}),
        (400, {"query": "image=a&image=%2Fetc%2Fpasswd"}),
        (400, {"query": "tag=..%2F..%2Fx"}),
        (400, {"query": "session_id=..%2Fx"}),
        (403, {"origin": "http://evil.example"}),
        (403, {"origin": "null"}),
        (421, {"host": "evil.example"}),
        (421, {"host": ""}),
        (413, {"content_length": str(JSON_BYTES + 1)}),
        (413, {"content_length": str(2 * JSON_BYTES + 1), "content_type": "multipart/form-data"}),
        (413, {"content_length": "-1"}),
        (413, {"body": (b"x" * JSON_BYTES, b"y")}),
        (413, {"body": (b"x" * JSON_BYTES,) * 3, "content_type": "multipart/form-data"}),
    ],
)
def test_what_no_annotator_sends_is_answered_by_4xx(expected: int, request_: dict[str, Any]) -> None:
    assert status(**request_) == expected


def test_an_app_that_answers_a_cut_body_in_its_own_way_still_says_413() -> None:
    async def careless(_: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
        except Exception:  # noqa: BLE001 - as FastAPI does where it reads a form
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"bad form"})

    sent: list[Message] = []

    async def receive() -> Message:
        return {"body": bytes(JSON_BYTES + 1)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(Guard(careless, 2 * JSON_BYTES)(scope, receive, send))

    assert sent[0]["status"] == 413
    assert len(sent) == 2


def answered(guard: Guard, receive: Receive, **headers: str) -> list[Message]:
    """Send an upload through a guard; return what it answers."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    named = {"content-type": "multipart/form-data; boundary=x", "content-length": "9", **headers}
    pairs = [(name.encode(), value.encode()) for name, value in named.items()]
    scope = {"type": "http", "method": "PUT", "path": "/session/", "query_string": b"", "headers": pairs}
    asyncio.run(guard(scope, receive, send))
    return sent


async def never() -> Message:
    await asyncio.Event().wait()
    return {}


def test_strangers_are_refused_before_a_byte_of_what_they_send_is_read() -> None:
    def check(authorization: str) -> tuple[int, str, dict[str, str]] | None:
        return None if authorization == "Bearer good" else (401, "log in.", {"WWW-Authenticate": "Basic"})

    async def once() -> Message:
        return {"body": b"something"}

    guard = Guard(echo, JSON_BYTES, check_login=check)

    start, _ = answered(guard, never, authorization="Bearer bad")
    assert start["status"] == 401
    assert (b"www-authenticate", b"Basic") in start["headers"]
    assert answered(guard, once, authorization="Bearer good")[0]["status"] == 200
    assert answered(guard, never)[0]["status"] == 401


def test_every_answer_forbids_pages_to_ask_other_hosts_and_refusals_close_the_connection() -> None:
    async def once() -> Message:
        return {"body": b"something"}

    taken = dict(answered(Guard(echo, JSON_BYTES), once)[0]["headers"])
    refused = dict(answered(Guard(echo, 1), once)[0]["headers"])

    for headers in (taken, refused):
        assert headers[b"content-security-policy"].startswith(b"default-src 'self'")
        assert headers[b"x-content-type-options"] == b"nosniff"
    assert refused[b"connection"] == b"close"


def test_a_body_that_comes_too_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SILENCE_S", 0.2)
    chunks = [b"x"] * 100

    async def dripping() -> Message:
        await asyncio.sleep(0.02)
        return {"body": chunks.pop(), "more_body": True}

    for receive in (never, dripping):
        start, body = answered(Guard(echo, JSON_BYTES), receive)
        assert start["status"] == 408
        assert b"too slowly" in body["body"]
    assert len(chunks) > 50


def test_a_silent_body_gives_its_place_to_another_and_one_that_comes_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "MOST_BODIES", 2)
    monkeypatch.setattr(patience, "SILENT_S", 0.2)

    async def busy() -> Message:
        await asyncio.sleep(0.01)
        return {"body": b"x", "more_body": True}

    async def all_of_them() -> list[BodyError | None]:
        bodies, receives = Bodies(), (never, busy, never, never)
        held: list[Body] = []

        async def hold(body: Body, receive: Receive) -> None:
            with suppress(BodyError), bodies.place_for(body):
                while True:
                    await body.next(receive)

        tasks = []
        for receive, wait_s in zip(receives, (0, 0.4, 0, 0), strict=True):
            held.append(Body(JSON_BYTES, is_announced=True))
            tasks.append(asyncio.create_task(hold(held[-1], receive)))
            await asyncio.sleep(wait_s)
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [body.refusal for body in held]

    silent, coming, third, fourth = asyncio.run(all_of_them())

    assert silent is not None
    assert silent.status == 408
    assert (coming, third) == (None, None)
    assert fourth is not None
    assert fourth.status == 503


# --- what the processes of the server see -------------------------------------------------------------------------


def test_a_process_of_the_server_sees_no_secret_and_no_foreign_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DICOMWEB_PASSWORD", "DICOMWEB_USERNAME", "DATASTORE_API_KEY"):
        monkeypatch.setenv(f"MONAI_LABEL_{name}", "secret")
    for name in ("AWS_SECRET_ACCESS_KEY", "ANYTHING", "CUDA_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("https_proxy", "http://ann:secret@proxy")
    monkeypatch.setenv("no_proxy", "pacs")
    monkeypatch.setenv("MONAI_LABEL_STUDIES", "/studies")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "here", "/there", ""]))

    found = child_environment(["/stand_in"])

    assert not any("secret" in value for value in found.values())
    assert (found["MONAI_LABEL_STUDIES"], found["no_proxy"], found["PYTHONSAFEPATH"]) == ("/studies", "pacs", "1")
    assert found["PYTHONPATH"].split(os.pathsep)[1:] == ["/stand_in", "/there"]
    assert (Path(found["PYTHONPATH"].split(os.pathsep)[0]) / "voxelgate" / "__init__.py").is_file()


def test_a_secret_that_is_hidden_is_gone_from_what_the_system_shows() -> None:
    code = (
        "import os; from voxelgate.apps.label.environment import hide_secrets; hide_secrets(); "
        "print(os.environ.get('MONAI_LABEL_DICOMWEB_PASSWORD'), open('/proc/self/environ').read().count('quiet'))"
    )
    environment = {**child_environment(), "MONAI_LABEL_DICOMWEB_PASSWORD": "quiet", "MONAI_LABEL_STUDIES": "/studies"}

    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert said.stdout.split() == ["None", "0"]


def test_what_of_a_folder_is_not_served_is_counted_by_kind_with_what_to_do(tmp_path: Path) -> None:
    for name in (
        "a.nii.gz",
        "b.dcm",
        "c.mgz",
        "d.mgz",
        "labels/final/a.nii.gz",
        ".hidden",
        "sub/e.nii.gz",
        "sub/f.DCM",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(tmp_path / "pipe")

    said = said_of_folder(tmp_path, 1, (".nii.gz", ".nrrd"), ("labels",))

    assert said[0] == f"1 images of {tmp_path} are served"
    assert said[1].endswith(": 2 .mgz, 3 DICOM, 1 files without a suffix, 1 images in sub-folders")
    assert "give its address as --studies" in said[2]
    assert len(said) == 3


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    first, second = said_of_folder(tmp_path, 0, (".nii.gz",), ())

    assert first.startswith("0 images")
    assert second.startswith("there is nothing to annotate yet: put .nii.gz files into")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_server_that_make_started_is_told_to_end_when_make_is(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[2] / "Makefile", tmp_path)
    server, told = tmp_path / ".venv-label" / "bin" / "voxelgate", tmp_path / "told"
    server.parent.mkdir(parents=True)
    server.write_text(
        f"#!/bin/sh\ntrap 'touch {told}; exit' TERM\ntouch {told}.begun\nfor n in $(seq 300); do sleep 0.1; done\n"
    )
    server.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", "constraints-label.txt", ".venv-label/.ready"):
        (tmp_path / name).touch()

    with subprocess.Popen(["make", "label", "STUDIES=here"], cwd=tmp_path, stdout=subprocess.DEVNULL) as make:
        wait_until((tmp_path / "told.begun").exists)
        make.terminate()
    wait_until(told.exists)


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(200):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it does not happen")


# --- what may be served -------------------------------------------------------------------------------------------


def test_the_server_listens_to_this_machine_unless_asked(tmp_path: Path) -> None:
    serving = Serving((tmp_path,), str(tmp_path), tmp_path / "work")

    assert serving.host == "127.0.0.1"
    assert serving.is_loopback
    assert not replace(serving, host="0.0.0.0").is_loopback  # noqa: S104 - what is asked for
    assert not replace(serving, host="server.example").is_loopback


def test_annotators_log_in_wherever_other_machines_reach_the_server(tmp_path: Path) -> None:
    serving = Serving((tmp_path,), str(tmp_path), tmp_path / "work")

    assert not serving.asks_login
    assert replace(serving, host="192.0.2.1").asks_login
    assert replace(serving, login=True).asks_login
    assert not replace(serving, host="192.0.2.1", login=False).asks_login


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bundles": ()}, "no bundle is given"),
        ({"studies": "/nowhere"}, "is no folder"),
        ({"port": 0}, "is no port"),
        ({"studies": "http://ann:secret@pacs:8042/dicom-web"}, "holds a name or password, which .* would see"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        replace(Serving((tmp_path,), str(tmp_path), tmp_path / "work"), **wrong)
    assert "secret" not in str(refused.value)


def test_models_with_other_labels_are_not_served_together(tmp_path: Path, bundle: Path) -> None:
    other = make_threshold_bundle(tmp_path / "other", {"0": "background", "1": "liver"})

    with pytest.raises(UsageError, match="other segments other structures than bright_ct"):
        prepare_server(Serving((bundle, other), str(tmp_path), tmp_path / "work"))


def test_a_bundle_without_codes_is_refused_for_a_pacs_before_anybody_has_annotated(tmp_path: Path) -> None:
    bundle = make_threshold_bundle(tmp_path / "uncoded", {"0": "background", "1": "something bright"})

    with pytest.raises(BundleError, match="uncoded: no code is known for something bright, and label maps go back"):
        prepare_server(Serving((bundle,), "http://127.0.0.1:1/dicom-web", tmp_path / "work"))
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "work").exists()
