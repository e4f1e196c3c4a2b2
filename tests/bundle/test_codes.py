"""Codes of a bundle's structures: proposed by name, written, sealed; and what `seal` does not let pass."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.threshold_bundle import make_threshold_bundle
from voxelgate.apps.cli.main import app
from voxelgate.bundle.checksums import CHECKSUMS, seal, verify
from voxelgate.bundle.codes import propose_codes, write_codes
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.shipped import shipped_bundles
from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.terminology import find_coding

NAMES = {"0": "background", "1": "Kidney, left", "2": "anterior"}


def changed(root: Path, **parts: object) -> Path:
    path = root / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts), encoding="utf-8")
    return root


@pytest.mark.parametrize("root", shipped_bundles().values(), ids=lambda root: root.name)
def test_every_structure_of_a_shipped_bundle_has_its_code_in_the_metadata(root: Path) -> None:
    table = Metadata.read(root).labels

    assert [value for value, _ in table.codings] == list(table.foreground)


def test_the_table_is_asked_by_name_in_any_order_of_words_and_names_what_is_similar(tmp_path: Path) -> None:
    kidney, anterior = propose_codes(make_threshold_bundle(tmp_path / "b", NAMES))

    assert kidney.coding == find_coding("left kidney")
    assert (anterior.coding, anterior.similar) == (None, ("anterior hippocampus",))
    assert str(kidney) == '1 Kidney, left: (64033007, SCT, "Kidney"), (7771000, SCT, "Left")'
    assert str(anterior) == "2 anterior: no code; the table has anterior hippocampus"


def test_what_is_called_otherwise_in_the_table_is_written_and_the_bundle_is_sealed_anew(tmp_path: Path) -> None:
    root = make_threshold_bundle(tmp_path / "b", NAMES)
    before = verify(root)

    fingerprint = write_codes(root, propose_codes(root, {"anterior": "hippocampus anterior"}))

    assert verify(root) == fingerprint != before
    assert Metadata.read(root).labels.coding(2) == find_coding("anterior hippocampus")
    assert write_codes(root, propose_codes(root)) == fingerprint  # the bundle's own codes count


def test_a_bundle_that_was_altered_gets_neither_codes_nor_a_seal(tmp_path: Path) -> None:
    root = changed(make_threshold_bundle(tmp_path / "b", NAMES), version="6.6.6")

    with pytest.raises(BundleError, match="changed since the bundle was sealed"):
        write_codes(root, propose_codes(root))
    assert "label_codes" not in Metadata.read(root).document


def test_a_bundle_that_was_never_sealed_gets_codes_and_no_seal(tmp_path: Path) -> None:
    root = make_threshold_bundle(tmp_path / "b", NAMES)
    (root / CHECKSUMS).unlink()

    assert write_codes(root, propose_codes(root)) == ""
    assert not (root / CHECKSUMS).exists()


@pytest.mark.parametrize(
    ("known_as", "sentence"),
    [
        ({"posterior": "liver"}, "posterior: is no structure of b; its structures are Kidney, left, anterior"),
        ({"anterior": "kidny left"}, "kidny left: is no name of the table of codes, which has kidney left"),
    ],
)
def test_a_wrong_name_is_refused_with_those_that_are_there(
    tmp_path: Path, known_as: dict[str, str], sentence: str
) -> None:
    root = make_threshold_bundle(tmp_path / "b", NAMES)

    with pytest.raises(UsageError, match=sentence):
        propose_codes(root, known_as)


def test_the_command_writes_what_it_finds_and_says_what_is_missing(tmp_path: Path) -> None:
    root = make_threshold_bundle(tmp_path / "b", NAMES)

    first = CliRunner().invoke(app, ["bundle", "codes", str(root)])
    second = CliRunner().invoke(app, ["bundle", "codes", str(root), "--as", "anterior=anterior hippocampus"])

    assert (first.exit_code, second.exit_code) == (1, 0)
    assert "2 anterior: no code; the table has anterior hippocampus" in first.output
    assert "anterior hippocampus" in first.output
    assert set(Metadata.read(root).document["label_codes"]) == {"1", "2"}
    verify(root)


def test_a_shipped_bundle_is_not_written_into() -> None:
    found = CliRunner().invoke(app, ["bundle", "codes", "hippocampus_mri_segmentation"])

    assert isinstance(found.exception, UsageError)


CODE = {"value": "64033007", "scheme": "SCT", "meaning": "Kidney"}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"label_codes": {"1": {"category": CODE}}}, "a coding needs type"),
        ({"label_codes": {"7": {"category": CODE, "type": CODE}}}, "codes belong to label values"),
        ({"label_codes": {"1": {"category": CODE, "type": {**CODE, "value": 64033007}}}}, "a part of a code"),
        ({"label_codes": [1]}, "label"),
        ({"series_rule": {"modality": "CT", "thickness": 3}}, "series_rule"),
        ({"series_rule": 3}, "series_rule"),
        ({"trained_on": {"extent_mm": [[1, 2]]}}, "extent_mm"),
        ({"trained_on": {"structures": {"spleen": {"volume_ml": [1, 2, 3]}}}}, "spleen, which is no structure"),
        ({"eval_metrics": {"mean_dice": 88.0}}, "mean_dice must lie between 0 and 1"),
        ({"eval_metrics": {"mean_dice": "good"}}, "eval_metrics"),
        ({"version": ""}, "name and version"),
        ({"network_data_format": {"inputs": {"image": {"num_channels": 2, "channel_def": {"0": "a"}}}}}, "channel"),
        ({"network_data_format": {"outputs": []}}, "labels"),
        ({"network_data_format": []}, "network_data_format"),
    ],
)
def test_seal_refuses_metadata_of_which_a_part_is_unfit(tmp_path: Path, parts: dict[str, object], words: str) -> None:
    root = changed(make_threshold_bundle(tmp_path / "b", NAMES), **parts)
    sealed = (root / CHECKSUMS).read_text()

    with pytest.raises(BundleError, match=words) as caught:
        seal(root)

    assert "\n" not in str(caught.value)
    assert (root / CHECKSUMS).read_text() == sealed


def test_seal_names_every_unfit_part(tmp_path: Path) -> None:
    unfit = {"eval_metrics": {"mean_dice": 7}, "series_rule": 3, "label_codes": {"9": {}}}

    with pytest.raises(BundleError) as caught:
        seal(changed(make_threshold_bundle(tmp_path / "b", NAMES), **unfit))

    assert all(part in str(caught.value) for part in ("mean_dice", "series_rule", "codes belong"))
