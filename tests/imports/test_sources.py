"""What can be imported is recognised, everything else is refused in a sentence, and no link leads out of it."""

import shutil
from pathlib import Path

import pytest

from voxelgate.bundle.imports.source import Kind, opened_source
from voxelgate.core.errors import InputError


def kind_of(path: Path) -> Kind:
    with opened_source(path) as source:
        return source.kind


def test_an_nnunet_folder_is_known_by_its_plans_at_each_level(folder: Path) -> None:
    assert kind_of(folder) is Kind.NNUNET_CONFIGURATION
    assert kind_of(folder.parent) is Kind.NNUNET_DATA_SET
    assert kind_of(folder.parents[1]) is Kind.NNUNET_DATA_SET
    shutil.copytree(folder.parent, folder.parents[1] / "Dataset005_Other")
    assert kind_of(folder.parents[1]) is Kind.NNUNET_RESULTS


def test_an_exported_zip_is_what_its_folder_is(folder: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "exported"), "zip", folder.parents[1])

    with opened_source(Path(packed)) as source:
        assert source.kind is Kind.NNUNET_DATA_SET
        assert source.name == "exported.zip"
        assert source.matching(r".*/checkpoint_.*") == (f"{folder.name}/fold_0/checkpoint_final.pth",)
        unpacked = source.root
    assert not unpacked.exists()


def test_a_monai_bundle_is_known_by_its_metadata_also_within_one_folder(tmp_path: Path) -> None:
    (tmp_path / "zoo" / "spleen" / "configs").mkdir(parents=True)
    (tmp_path / "zoo" / "spleen" / "configs" / "metadata.json").write_text("{}")

    assert kind_of(tmp_path / "zoo") is Kind.MONAI_BUNDLE


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("plans.pkl", "nnU-Net v1"),
        ("checkpoint_final.pth", "one fold of nnU-Net; name the folder above"),
        ("data.pkl", "weights alone"),
        ("scan.nii.gz", "no model that can be imported"),
    ],
)
def test_what_is_none_is_refused_with_what_it_is(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / name).write_text("x")

    with pytest.raises(InputError, match=f"given: .*{reason}"):
        kind_of(tmp_path / "given")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_folder_of_nnunet_without_a_file_that_says_what_it_is_is_refused_with_its_name(
    folder: Path, level: int
) -> None:
    (folder / "dataset.json").unlink()
    given = (folder, *folder.parents)[level]

    with pytest.raises(InputError, match=r"^[^:]*: dataset\.json is missing.* copy them too\.$"):
        kind_of(given)

    (folder / "plans.json").unlink()
    with pytest.raises(InputError, match=r"^[^:]*: plans\.json and dataset\.json are missing"):
        kind_of(given)


def test_a_shipped_bundle_needs_no_import(repository_bundle: Path) -> None:
    with pytest.raises(InputError, match="is a bundle of this program already"):
        kind_of(repository_bundle)


def test_what_is_not_there_and_what_is_no_zip_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")

    with pytest.raises(InputError, match="neither a file nor a folder"):
        kind_of(tmp_path / "missing")
    with pytest.raises(
        InputError, match=r"notes\.txt: is no zip and no TorchScript file, or cannot be read; name an nnU-Net v2 folder"
    ):
        kind_of(tmp_path / "notes.txt")


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    (folder / "plans.json").unlink()
    (folder / "plans.json").symlink_to(tmp_path / "secret.json")
    (folder / "fold_1").symlink_to(tmp_path)

    with opened_source(folder) as source:
        assert not source.matching("fold_1/.*")
        with pytest.raises(InputError, match=r"plans\.json is a link that leads out of it"):
            source.json("plans.json")


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "fold_0" / "checkpoint_best.pth").symlink_to("checkpoint_final.pth")

    with opened_source(folder) as source:
        assert source.path("fold_0/checkpoint_best.pth").name == "checkpoint_final.pth"


def test_a_file_that_is_missing_or_no_json_object_is_named(folder: Path) -> None:
    (folder / "dataset.json").write_text("[1]")
    with opened_source(folder) as source:
        with pytest.raises(InputError, match=r"has no fold_7/x\.pth"):
            source.path("fold_7/x.pth")
        with pytest.raises(InputError, match=r"dataset\.json holds a list"):
            source.json("dataset.json")
        (folder / "dataset.json").write_text("{")
        with pytest.raises(InputError, match=r"dataset\.json is no JSON"):
            source.json("dataset.json")
