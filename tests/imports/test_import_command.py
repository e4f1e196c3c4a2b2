"""`voxelgate import`: what it asks, what it refuses before any weights are read, and what is said of the result."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from voxelgate.bundle.imports import readers
from voxelgate.bundle.imports.imported import Imported, ImportOptions
from voxelgate.bundle.imports.label_codes import read_label_codes
from voxelgate.bundle.imports.source import ImportSource, Kind
from voxelgate.bundle.metadata import Metadata
from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.terminology import find_coding


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, imported: Imported) -> list[ImportOptions]:
    """Let the reader of one configuration return a small model; return what it was asked."""
    seen: list[ImportOptions] = []

    def read(source: ImportSource, options: ImportOptions) -> Imported:
        assert source.kind is Kind.NNUNET_CONFIGURATION
        seen.append(options)
        return imported

    monkeypatch.setattr(readers, "READERS", {Kind.NNUNET_CONFIGURATION: read})
    return seen


Asked = list[ImportOptions]


def test_without_out_a_bundle_is_kept_and_found_by_its_name(run: Run, kept: Path, folder: Path, asked: Asked) -> None:
    result = run("import", folder, "--name", "my blob!", "--licence", "CC BY 4.0")

    assert result.returncode == 0, result.stderr
    for sentence in (
        f"{folder.name}: nnU-Net folder of one configuration",
        "my_blob 1.0.0: Finds a kidney and a blob.",
        "2 labels: left kidney, blob; takes CT (CT)",
        "no code is known for blob; DICOM SEG and SR need one: --codes",
        "licence: CC BY 4.0",
        f"{kept / 'my_blob'}: sealed, sha256 ",
    ):
        assert sentence in result.stdout
    listed = run("bundle", "list").stdout
    assert f"my_blob 1.0.0: Finds a kidney and a blob. ({kept / 'my_blob'})" in listed
    described = run("bundle", "describe", "my_blob").stdout
    assert "imported from the nnU-Net folder of one configuration" in described
    assert "licence: CC BY 4.0" in described
    assert run("bundle", "codes", "my_blob", "--as", "blob=liver").returncode == 0
    assert len(asked) == 1


def test_a_name_that_is_taken_is_refused_before_the_model_is_read(
    run: Run, kept: Path, folder: Path, asked: Asked
) -> None:
    assert run("import", folder, "--name", "my blob").returncode == 0

    result = run("import", folder, "--name", "my blob")

    assert result.returncode == 1
    assert f"{kept / 'my_blob'}: exists already; pass --overwrite" in result.stderr
    assert len(asked) == 1


def test_every_option_reaches_the_reader(run: Run, tmp_path: Path, folder: Path, asked: Asked) -> None:
    options = "--configuration 2d,3d_fullres --folds 0,2 --checkpoint best --dicom-order lps --postprocessing"

    assert run("import", folder, "--out", tmp_path / "b", *options.split()).returncode == 0

    assert asked == [
        ImportOptions(
            configurations=("2d", "3d_fullres"),
            folds=("0", "2"),
            checkpoint="best",
            dicom_order=asked[0].dicom_order,
            applies_postprocessing=True,
        )
    ]
    assert asked[0].dicom_order == "LPS"


def test_a_licence_of_the_source_counts_before_the_given_one(
    run: Run, tmp_path: Path, folder: Path, imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    licensed = replace(imported, licence="Apache-2.0")
    monkeypatch.setattr(readers, "READERS", {Kind.NNUNET_CONFIGURATION: lambda *_: licensed})

    said = run("import", folder, "--out", tmp_path / "b", "--licence", "mine").stdout

    assert "its own files state the licence Apache-2.0, so --licence is passed over" in said
    assert Metadata.read(tmp_path / "b").licence == "Apache-2.0"


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_codes_of_a_file_are_those_of_the_bundle(
    run: Run, tmp_path: Path, folder: Path, asked: Asked, suffix: str
) -> None:
    text = "label,known_as,code,meaning\nblob,,10200004,Liver\n1,right kidney,,\n"
    liver = {"category": {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"}}
    liver["type"] = {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    if suffix == ".json":
        text = json.dumps({"blob": liver, "1": "right kidney"})
    (tmp_path / f"codes{suffix}").write_text(text)

    assert run("import", folder, "--out", tmp_path / "b", "--codes", tmp_path / f"codes{suffix}").returncode == 0

    labels = Metadata.read(tmp_path / "b").labels
    assert labels.coding(1) == find_coding("right kidney")
    assert str(labels.coding(2)) == '(10200004, SCT, "Liver")'
    assert asked[0].codes.keys() == {"blob", "1"}


@pytest.mark.parametrize(
    ("name", "text", "error", "reason"),
    [
        ("c.json", "{", InputError, "no table of codes"),
        ("c.json", "[1]", InputError, "holds a list"),
        ("c.json", '{"blob": "nothing such"}', InputError, "no name of the table of codes"),
        ("c.json", '{"blob": {"type": 1}}', InputError, "the code of blob cannot be used"),
        ("c.csv", "name,code\nblob,1\n", InputError, "expected the columns label"),
        ("c.csv", "label,known_as\nblob,liver\nblob,spleen\n", InputError, "stands in it twice"),
        ("c.csv", "label,code,meaning\nblob,,Liver\n", InputError, "the code of blob cannot be used"),
    ],
)
def test_a_file_of_no_codes_is_refused(
    tmp_path: Path, name: str, text: str, error: type[Exception], reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=reason):
        read_label_codes(tmp_path / name)


def test_a_code_of_no_label_is_refused_and_nothing_written(
    run: Run, tmp_path: Path, folder: Path, asked: Asked
) -> None:
    (tmp_path / "codes.csv").write_text("label,known_as\nliver,liver\n")

    result = run("import", folder, "--out", tmp_path / "b", "--codes", "codes.csv")

    assert result.returncode == 2
    assert "--codes: liver is no label of this model, which has left kidney, blob" in result.stderr
    assert not (tmp_path / "b").exists()
    assert asked


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"trusts_code": True}, Kind.NNUNET_DATA_SET, "--trust-code means nothing"),
        ({"folds": ("0",)}, Kind.MONAI_BUNDLE, "--folds means nothing for a MONAI bundle"),
        ({"configurations": ("2d",)}, Kind.TORCHSCRIPT, "--configuration means nothing"),
        ({"trusts_code": True}, Kind.TORCHSCRIPT, "--trust-code means nothing"),
    ],
)
def test_an_option_of_another_kind_is_refused(options: dict[str, Any], kind: Kind, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ImportOptions(**options).refuse_others(kind)


def test_an_order_that_the_model_never_sees_is_refused(
    run: Run, tmp_path: Path, folder: Path, imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = replace(imported, preparation=imported.preparation[1:])
    monkeypatch.setattr(readers, "READERS", {Kind.NNUNET_CONFIGURATION: lambda *_: turned})

    result = run("import", folder, "--out", tmp_path / "b", "--dicom-order", "LPS")

    assert result.returncode == 2
    assert "--dicom-order LPS: this model brings images into an order of its own; leave it out." in result.stderr
    assert not (tmp_path / "b").exists()


def test_of_several_data_sets_one_must_be_named(run: Run, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder.parent, folder.parents[1] / "Dataset005_Other")

    result = run("import", folder.parents[1], "--out", tmp_path / "b")

    assert result.returncode == 1
    assert "results: holds Dataset004_Blob, Dataset005_Other, of which each is a model; name one" in result.stderr


def test_what_was_imported_is_not_imported_again(run: Run, folder: Path, tmp_path: Path, asked: Asked) -> None:
    assert run("import", folder, "--out", tmp_path / "b").returncode == 0

    result = run("import", tmp_path / "b", "--out", tmp_path / "c")

    assert "InputError: b: is a bundle of this program already; use it as it is." in result.stderr
    assert len(asked) == 1
