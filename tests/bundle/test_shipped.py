"""Bundles that come with the package are found by name, never in place of a folder of the user's, and only read."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Run
from voxelgate.bundle import shipped
from voxelgate.bundle.shipped import find_bundle, find_own_bundle, folder_of_kept, kept_bundles, shipped_bundles
from voxelgate.core.errors import BundleError, UsageError

NAME = "hippocampus_mri_segmentation"
ROOT = REPOSITORY / "bundles" / NAME


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_bundle_of_the_checkout_is_shipped() -> None:
    assert shipped_bundles() == {path.name: path for path in sorted((REPOSITORY / "bundles").iterdir())}


def test_the_bundles_of_the_package_come_before_those_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "packaged" / NAME / "configs")
    monkeypatch.setattr(shipped, "PACKAGED", tmp_path / "packaged")

    assert shipped_bundles() == {NAME: tmp_path / "packaged" / NAME}


def test_a_name_is_a_shipped_bundle_from_any_folder() -> None:
    assert find_bundle(NAME) == ROOT


def test_a_name_of_nothing_shipped_is_a_folder_of_the_current_one(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert find_bundle("mine") == Path("mine")


def test_a_name_of_both_is_refused_and_both_are_named(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UsageError) as refused:
        find_bundle(NAME)
    for fact in (str(ROOT), str(tmp_path / NAME), f"./{NAME}"):
        assert fact in str(refused.value)


def test_a_text_with_a_separator_and_a_path_are_a_folder(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert find_bundle(f"./{NAME}").absolute() == tmp_path / NAME
    assert find_bundle(f"{NAME}/").absolute() == tmp_path / NAME
    assert find_bundle(Path(NAME)) == Path(NAME)


def test_beside_the_shipped_bundles_a_name_means_one_thing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY / "bundles")
    assert find_bundle(NAME) == Path(NAME)


def test_a_file_of_that_name_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("mine", encoding="utf-8")
    assert find_bundle(NAME) == ROOT


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT, tmp_path / "kept" / "mine")
    monkeypatch.setenv("VOXELGATE_BUNDLES", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_a_kept_bundle_is_found_by_its_name_and_may_be_written_into(kept: Path) -> None:
    assert kept_bundles() == {"mine": kept / "mine"}
    assert find_bundle("mine") == find_own_bundle("mine") == kept / "mine"


def test_a_kept_bundle_with_the_name_of_another_is_told_apart(kept: Path, tmp_path: Path) -> None:
    (kept / "mine").rename(kept / NAME)
    with pytest.raises(UsageError) as refused:
        find_bundle(NAME)
    for fact in (str(ROOT), str(kept / NAME), "the whole path of the one you mean"):
        assert fact in str(refused.value)
    (tmp_path / "theirs").mkdir()
    (kept / NAME).rename(kept / "theirs")
    with pytest.raises(UsageError, match=r"write the whole path .* or \./theirs"):
        find_bundle("theirs")


def test_bundles_are_kept_in_the_users_folder_of_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VOXELGATE_BUNDLES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert folder_of_kept() == tmp_path / "data" / "voxelgate" / "bundles"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert folder_of_kept() == Path.home() / ".local" / "share" / "voxelgate" / "bundles"


def test_a_kept_bundle_that_is_damaged_does_not_hide_the_others(run: Run, kept: Path) -> None:
    shutil.copytree(kept / "mine", kept / "other")
    (kept / "mine" / "configs" / "metadata.json").write_text("{")

    lines = run("bundle", "list").stdout.splitlines()

    assert f"other 0.4.0: Segments the anterior and posterior hippocampus in MRI volumes. ({kept / 'other'})" in lines
    assert any(line.startswith("mine cannot be used: ") for line in lines)


def test_an_unknown_name_is_answered_with_the_shipped_ones() -> None:
    with pytest.raises(BundleError, match=r"nothing_such is neither .* head_neck_ct_segmentation, hippocampus_mri"):
        find_bundle("nothing_such")


def test_a_shipped_bundle_is_not_written_into() -> None:
    with pytest.raises(UsageError, match=f"{NAME} came with the program and is only read; copy {ROOT}"):
        find_own_bundle(NAME)


def test_a_bundle_of_the_installed_package_is_not_written_into_by_path_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "PACKAGED", REPOSITORY / "bundles")
    for own in (ROOT, str(ROOT), ROOT / "models"):
        with pytest.raises(UsageError, match="only read"):
            find_own_bundle(own)


def test_who_works_in_a_checkout_names_the_folder_to_write_into_it() -> None:
    assert find_own_bundle(str(ROOT)) == ROOT


@pytest.mark.parametrize(
    "arguments", [("bundle", "seal", NAME), ("bundle", "export", NAME, "--to", "onnx")], ids=["seal", "export"]
)
def test_a_command_that_writes_refuses_a_shipped_bundle(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert f"UsageError: {NAME} came with the program and is only read" in result.stderr


def test_a_command_takes_a_bundle_by_name(run: Run) -> None:
    result = run("bundle", "describe", NAME)
    assert result.returncode == 0
    assert "parameters" in result.stdout


def test_the_list_names_every_shipped_bundle_with_what_it_segments(run: Run) -> None:
    lines = run("bundle", "list").stdout.splitlines()
    assert len(lines) == len(shipped_bundles())
    assert f"{NAME} 0.4.0: Segments the anterior and posterior hippocampus in MRI volumes." in lines
