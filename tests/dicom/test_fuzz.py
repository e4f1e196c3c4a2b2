"""Whatever happens to the bytes of a series, it is read, warned of or refused; nothing raises, nothing ends."""

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from tests import planted
from tests.dicom_files import write
from voxelgate.core.findings import Finding, Severity
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_or_refuse

VARIANTS = 25
"""Of each kind of series in each encoding; several thousand were tried by hand."""

KINDS: dict[str, Callable[[], list[Dataset]]] = {
    "CT": lambda: planted.ct_series(4),
    "an enhanced MR": lambda: planted.enhanced_series(4),
    "a concatenation": lambda: planted.in_parts(2, 2)(planted.enhanced_series(4)),
}
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
)
LENGTHS = (b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_pydicom():
        yield


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a file with a byte changed, some lost, some more, another length, or no end."""
    at = chance.randrange(132, min(len(content), chance.choice((400, 1500, len(content)))))
    some = chance.randbytes(chance.randrange(1, 20))
    return chance.choice(
        (
            content[:at] + some[:1] + content[at + 1 :],
            content[:at] + content[at + len(some) :],
            content[:at] + some + content[at:],
            content[:at] + chance.choice(LENGTHS) + content[at + 4 :],
            content[:at],
        )
    )


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_series_is_read_or_refused_with_a_sentence(tmp_path: Path, kind: str, syntax: str) -> None:
    chance = random.Random(f"{kind} {syntax}")  # noqa: S311 - no secret
    whole = [write(one, tmp_path / f"{number}.dcm", syntax) for number, one in enumerate(KINDS[kind]())]
    original = cache(Path.read_bytes)
    for path in whole:
        original(path)
    for _ in range(VARIANTS):
        for path in whole:
            path.write_bytes(original(path))
        for _ in range(chance.choice((1, 1, 2))):
            path = chance.choice(whole)
            path.write_bytes(damaged(original(path), chance))
        found = scan_dicom(tmp_path)
        assert sum(len(series.files) for series in found) <= len(whole)
        for series in found:
            read = read_or_refuse(series)
            findings = (read,) if isinstance(read, Finding) else read.findings
            assert all(finding.message.endswith(".") for finding in findings)
            assert isinstance(read, Finding) != all(one.severity is not Severity.REFUSE for one in findings)
