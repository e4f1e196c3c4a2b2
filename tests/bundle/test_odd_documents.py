"""Documents of a bundle that hold anything but what they should are refused in one sentence."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from voxelgate.bundle.checksums import CHECKSUMS, verify
from voxelgate.core.errors import BundleError

DEEP = b"[" * 100_000 + b"]" * 100_000
ODD = (b"", b"5", b"null", b"[1]", b'"x"', b"[[1, 2, 3]]", DEEP, b"\xff\xfe", b"{", b'{"a": 1, "a": 2}', b"\x00" * 9)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Copy the small files of a shipped bundle."""
    return Path(shutil.copytree(REPOSITORY / "bundles" / "hippocampus_mri_segmentation", tmp_path / "bundle"))


@pytest.mark.parametrize("content", ODD, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("name", [CHECKSUMS, "configs/metadata.json"])
def test_a_document_of_another_form_is_refused_in_a_sentence(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)

    with pytest.raises(BundleError) as refused:
        verify(bundle)

    assert "\n" not in str(refused.value)
