"""However much a small file says that it holds, its header is read within bounds of memory and time, or refused."""

import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, EnhancedMRImageStorage, ExplicitVRLittleEndian

from tests import planted
from tests.dicom_files import header_of
from voxelgate.core.errors import InputError
from voxelgate.core.findings import FindingCode, Severity
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.bounded import MOST_HEADER_BYTES, MOST_VALUE_BYTES, BoundedStream, TooLargeError, inflated
from voxelgate.dicom.read.dicom_files import DICOMDIR_CLASS, list_files
from voxelgate.dicom.read.headers import MOST_FRAMES, UnreadableFileError
from voxelgate.dicom.read.series import scan_dicom

MOST_MEMORY = 150 * 2**20
MOST_SECONDS = 20.0
"""On a machine that does other things, too; each takes one or two."""


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr in (b"UI", b"OB") else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def long_head(group: int, number: int, vr: bytes, length: int) -> bytes:
    return struct.pack("<HH2sHI", group, number, vr, 0, length)


ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
START = element(8, 0x16, b"UI", EnhancedMRImageStorage.encode()) + element(8, 0x60, b"CS", b"MR")
IMAGE = b"".join(element(0x28, number, b"US", struct.pack("<H", value)) for number, value in ((0x10, 8), (0x11, 8)))
PRIVATE = element(0x7FDF, 0x10, b"LO", b"ACME")


def as_file(path: Path, body: bytes, syntax: str = ExplicitVRLittleEndian) -> Path:
    meta = element(2, 0x10, b"UI", syntax.encode())
    length = element(2, 0, b"UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + body)
    return path


def deflated(*parts: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(map(packer.compress, parts)) + packer.flush()


def deflated_bomb(path: Path) -> Path:
    size = 300 * 2**20
    body = deflated(START, IMAGE, PRIVATE, long_head(0x7FDF, 0x1001, b"OB", size), *[bytes(2**20)] * 300)
    return as_file(path, body, DeflatedExplicitVRLittleEndian)


def many_elements(path: Path) -> Path:
    groups = range(0x1001, 0x1001 + 2 * 1600, 2)
    body = b"".join(element(group, 0x1000 + number, b"LO", b"ab") for group in groups for number in range(250))
    return as_file(path, START + IMAGE + body)


def many_frames(path: Path) -> Path:
    frames = element(0x28, 8, b"IS", b"1000000")
    return as_file(path, START + frames + IMAGE + long_head(0x5200, 0x9230, b"SQ", 8_000_000) + ITEM * 1_000_000)


def many_shared_groups(path: Path) -> Path:
    return as_file(path, START + IMAGE + long_head(0x5200, 0x9229, b"SQ", 8_000_000) + ITEM * 1_000_000)


def long_name(path: Path) -> Path:
    name = long_head(0x10, 0x10, b"UT", 4 * MOST_VALUE_BYTES) + bytes(4 * MOST_VALUE_BYTES)
    return as_file(path, START + name + IMAGE)


def endless_items(path: Path) -> Path:
    return as_file(path, START + IMAGE + PRIVATE + long_head(0x7FDF, 0x1001, b"SQ", 0xFFFFFFFF) + ITEM * 400_000)


REFUSED = {
    deflated_bomb: "unpacks to more than 32 MiB before its pixel data",
    many_elements: "holds more elements than any scanner writes",
    many_frames: "says that it has 1000000 frames, more than the 20000 of any volume",
    many_shared_groups: "holds an element of more than 1 MiB",
    long_name: "holds an element of more than 1 MiB",
    endless_items: "holds more elements than any scanner writes",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_header_that_holds_too_much_is_refused_soon(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "a.dcm")
    start_s = time.process_time()
    with quiet_pydicom(), pytest.raises(UnreadableFileError, match=REFUSED[make]):
        header_of(path)
    assert time.process_time() - start_s < MOST_SECONDS


def test_a_bomb_takes_no_more_memory_than_a_large_header(tmp_path: Path) -> None:
    path = deflated_bomb(tmp_path / "a.dcm")
    tracemalloc.start()
    with quiet_pydicom(), pytest.raises(UnreadableFileError):
        header_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_MEMORY


def test_the_reason_stands_in_one_sentence_beside_that_of_other_files(tmp_path: Path) -> None:
    many_frames(tmp_path / "a.dcm")
    many_frames(tmp_path / "b.dcm")
    (tmp_path / "c.dcm").write_bytes(bytes(128) + b"DICM")
    (series,) = scan_dicom(tmp_path)
    assert {finding.code for finding in series.findings} == {FindingCode.UNREADABLE_FILE}
    second, first = (finding.message for finding in series.findings)
    assert (
        first
        == "2 DICOM files are not read, since a header says that it has 1000000 frames, more than the 20000 "
        + ("of any volume; look where they come from.")
    )
    assert second == "a DICOM file is damaged and cannot be read; send them again."


def test_more_groups_than_frames_are_not_gone_through(tmp_path: Path) -> None:
    body = START + IMAGE + long_head(0x5200, 0x9230, b"SQ", 8_000_000) + ITEM * 1_000_000
    header = header_of(as_file(tmp_path / "a.dcm", body))
    assert len(header.planes) == 2
    (series,) = scan_dicom(tmp_path)
    assert [finding.code for finding in series.findings if finding.severity is Severity.REFUSE] == [
        FindingCode.MULTI_FRAME
    ]


def test_elements_that_nobody_asks_for_may_be_as_long_as_they_like(tmp_path: Path) -> None:
    (dataset,) = planted.ct_series(1)
    block = dataset.private_block(0x0029, "ACME", create=True)
    block.add_new(1, "OB", bytes(8 * MOST_VALUE_BYTES))
    (path,) = planted.write([dataset], tmp_path)
    tracemalloc.start()
    header = header_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (header.rows, header.columns) == (planted.ROWS, planted.COLUMNS)
    assert peak < MOST_VALUE_BYTES


def test_a_sparse_file_without_pixels_is_not_read_into_memory(tmp_path: Path) -> None:
    size = 3 * 2**30
    path = as_file(tmp_path / "a.dcm", START + IMAGE + PRIVATE + long_head(0x7FDF, 0x1001, b"OB", size))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    tracemalloc.start()
    header = header_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.pixel_bytes is None
    assert peak < MOST_VALUE_BYTES


def test_as_many_frames_as_a_volume_may_have_are_read(tmp_path: Path) -> None:
    frames = element(0x28, 8, b"IS", str(MOST_FRAMES).encode())
    groups = long_head(0x5200, 0x9230, b"SQ", 8 * MOST_FRAMES) + ITEM * MOST_FRAMES
    assert len(header_of(as_file(tmp_path / "a.dcm", START + frames + IMAGE + groups)).planes) == MOST_FRAMES


def test_what_is_inflated_is_whole_or_ends_at_the_limit() -> None:
    packed = deflated(b"abc" * 1000)
    found, is_whole = inflated(BytesIO(packed), MOST_HEADER_BYTES)
    assert (found.read(), is_whole) == (b"abc" * 1000, True)
    found, is_whole = inflated(BytesIO(packed), 100)
    assert (found.read(), is_whole) == ((b"abc" * 34)[:100], False)


@pytest.mark.parametrize("count", [-1, MOST_VALUE_BYTES + 1])
def test_a_bounded_stream_never_reads_all_there_is(count: int) -> None:
    with pytest.raises(TooLargeError):
        BoundedStream(BytesIO(b"")).read(count)


def dicomdir_of(folder: Path, records: bytes) -> Path:
    body = long_head(0x0004, 0x1220, b"SQ", len(records)) + records
    path = as_file(folder / "DICOMDIR", body)
    named = element(2, 2, b"UI", DICOMDIR_CLASS.encode())
    meta = element(2, 0x10, b"UI", ExplicitVRLittleEndian.encode())
    length = element(2, 0, b"UL", struct.pack("<I", len(named + meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + named + meta + body)
    return path


def test_a_dicomdir_of_a_million_records_is_refused_soon(tmp_path: Path) -> None:
    path = dicomdir_of(tmp_path, ITEM * 1_000_000)
    start_s = time.process_time()
    with pytest.raises(InputError, match="the DICOMDIR is damaged or too large; give its folder instead"):
        list_files(path)
    assert time.process_time() - start_s < MOST_SECONDS
