"""Documents of a bundle that hold anything but what they should are refused in one sentence."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import REPOSITORY
from voxelgate.bundle.checksums import CHECKSUMS, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.core.errors import BundleError

DEEP = b"[" * 100_000 + b"]" * 100_000
ODD = (b"", b"5", b"null", b"[1]", b'"x"', b"[[1, 2, 3]]", DEEP, b"\xff\xfe", b"{", b'{"a": 1, "a": 2}', b"\x00" * 9)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PARTS = ("name", "version", "network_data_format", "series_rule", "trained_on", "label_codes")
READ = ("modality", "series_rule", "image_spec", "expected", "labels")
STATED = (REPOSITORY / "bundles" / "hippocampus_mri_segmentation" / "configs" / "metadata.json").read_text()


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


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(PARTS), value=ANYTHING)
def test_metadata_with_any_value_are_read_or_refused_in_a_sentence(bundle: Path, part: str, value: Any) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(STATED) | {part: value}))

    with suppress(BundleError):
        read = Metadata.read(bundle)
        assert isinstance(read.name, str)
        for one in READ:
            getattr(read, one)
