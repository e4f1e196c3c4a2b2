"""What is sealed and verified of a bundle: its files, and nothing that is none."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.threshold_bundle import make_threshold_bundle
from voxelgate.bundle.checksums import CHECKSUMS, seal, verify
from voxelgate.core.errors import BundleError
from voxelgate.core.files import MOST_TEXT_BYTES


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_TEXT_BYTES + 1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    make_threshold_bundle(root)
    seal(root)
    return root


@pytest.mark.parametrize("make", [make_pipe, make_endless, Path.mkdir])
@pytest.mark.parametrize("name", ["models/x.pt", "configs/x.json"])
@pytest.mark.parametrize("use", [seal, verify])
def test_what_is_a_pipe_a_device_or_a_folder_is_refused_at_once_and_named(
    bundle: Path, make: Callable[[Path], None], name: str, use: Callable[[Path], str]
) -> None:
    make(bundle / name)

    with pytest.raises(BundleError, match=rf"^bundle: {name} (cannot be read .(is no file|Is a directory)|is a link)"):
        use(bundle)


@pytest.mark.parametrize("name", ["scripts", "scripts/a.py", "models", "models/model.pt", "configs", "plan.json"])
def test_files_that_lie_behind_a_link_are_refused_though_they_are_the_same(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "a.py").touch()
    (bundle / "plan.json").write_text("{}", encoding="utf-8")
    seal(bundle)
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")

    for use in (verify, seal):
        with pytest.raises(BundleError, match=rf"^bundle: {name} is a link, .* \(`cp -rL`\)$"):
            use(bundle)


def test_a_link_to_a_bundle_is_a_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(bundle)

    assert verify(tmp_path / "linked") == verify(bundle)


@pytest.mark.parametrize("make", [make_pipe, make_endless, make_huge])
@pytest.mark.parametrize("name", [CHECKSUMS, "configs/metadata.json"])
def test_texts_of_a_bundle_that_never_end_are_refused_at_once(
    bundle: Path, make: Callable[[Path], None], name: str
) -> None:
    (bundle / name).unlink()
    make(bundle / name)

    with pytest.raises(BundleError, match=Path(name).name):
        verify(bundle)


@pytest.mark.parametrize("text", ["5", "null", "[1]", "[" * 100_000, "{", ""])
@pytest.mark.parametrize("name", [CHECKSUMS, "configs/metadata.json"])
def test_texts_of_a_bundle_that_are_no_json_objects_are_refused_in_a_sentence(
    bundle: Path, name: str, text: str
) -> None:
    (bundle / name).write_text(text, encoding="utf-8")

    with pytest.raises(BundleError, match="restore the bundle"):
        verify(bundle)
