"""Stored values come out of every transfer syntax bit by bit, or not at all."""

import contextlib
import os
import pickle
import struct
import sys
import zipfile
from collections import deque
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from openjpeg.utils import encode_array
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.dicom_files import enhanced, header_of, image, stack, with_pixel_data, write
from voxelgate.core.findings import FindingCode
from voxelgate.core.workers import ProcessPool
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read import decoding, pixels
from voxelgate.dicom.read.decoding import PixelError, stored_pixels
from voxelgate.dicom.read.pixels import read_stack
from voxelgate.dicom.read.stack import in_order, slices_of

RAW = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
SIZE = (36, 45)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_pydicom():
        yield


def values(bits: int, kind: str, size: tuple[int, ...] = SIZE) -> np.ndarray:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if kind == "i" else (0, 2**bits)
    dtype = f"{kind}{1 if bits <= 8 else 2 if bits <= 16 else 4}"
    noise = np.random.default_rng(bits).integers(low, high, size=size)
    noise[..., : size[-1] // 2] = low + 1  # flat parts, as outside of a patient
    return noise.astype(dtype)


def smooth(bits: int) -> np.ndarray:
    i, j = np.meshgrid(np.arange(64), np.arange(48))
    return ((np.sin(i / 9) * np.cos(j / 7) + 1) / 2 * (2**bits - 1)).astype("u2" if bits > 8 else "u1")


@pytest.mark.parametrize("syntax", RAW, ids=lambda uid: uid.name)
@pytest.mark.parametrize(("bits", "kind"), [(8, "u"), (8, "i"), (12, "u"), (12, "i"), (16, "u"), (16, "i"), (32, "i")])
def test_raw_values_are_exact(tmp_path: Path, syntax: str, bits: int, kind: str) -> None:
    stored = values(bits, kind)
    found = stored_pixels(header_of(write(image(stored, bits=bits), tmp_path / "a", syntax)))
    assert found.dtype == stored.dtype
    assert np.array_equal(found, stored)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
@pytest.mark.parametrize(("bits", "kind"), [(8, "u"), (8, "i"), (12, "u"), (12, "i"), (16, "u"), (16, "i")])
def test_lossless_values_are_exact(tmp_path: Path, syntax: str, bits: int, kind: str) -> None:
    stored = values(bits, kind)
    found = stored_pixels(header_of(write(image(stored, bits=bits), tmp_path / "a", syntax)))
    assert found.dtype == stored.dtype
    assert np.array_equal(found, stored)


def test_jpeg_extended_of_12_bits_is_close(tmp_path: Path) -> None:
    stored = smooth(12)
    path = write(image(stored, bits=12), tmp_path / "a", JPEGExtended12Bit)
    assert dcmread(path).file_meta.TransferSyntaxUID == JPEGExtended12Bit
    found = stored_pixels(header_of(path))
    assert np.abs(found.astype(int) - stored).max() < 60  # of 4095; quantised with loss
    assert found.max() > 3900


@pytest.mark.parametrize("frame", [0, 1, 2])
@pytest.mark.parametrize("kind", ["u", "i"])
def test_bytes_in_big_endian_words_are_put_right_for_odd_frames_too(tmp_path: Path, frame: int, kind: str) -> None:
    stored = values(8, kind, (3, 5, 7))
    header = header_of(write(image(stored), tmp_path / "a", ExplicitVRBigEndian))
    assert np.array_equal(stored_pixels(header, frame), stored[frame])


def test_bytes_in_big_endian_that_are_no_words_are_left_alone(tmp_path: Path) -> None:
    stored = values(8, "u", (4, 6))
    dataset = image(stored)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    assert np.array_equal(stored_pixels(header_of(tmp_path / "a")), stored)


@pytest.mark.parametrize("kind", ["u", "i"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLosslessSV1, JPEG2000Lossless])
def test_an_overlay_in_the_unused_bits_does_not_count(tmp_path: Path, syntax: str, kind: str) -> None:
    stored = values(12, kind)
    overlay = (stored.view("u2") & 0x0FFF) | np.where(np.arange(SIZE[1]) % 3 == 0, 0x9000, 0).astype("u2")
    path = with_bits_stored(write(image(overlay.view(stored.dtype), bits=16), tmp_path / "a", syntax), 12)
    dataset = dcmread(path)
    for group, position in ((0x6000, 12), (0x6002, 15)):
        dataset.add_new(group << 16 | 0x0100, "US", 16)
        dataset.add_new(group << 16 | 0x0102, "US", position)
    dataset.save_as(path)
    assert np.array_equal(stored_pixels(header_of(path)), stored)


def with_bits_stored(path: Path, bits: int) -> Path:
    """Say that fewer bits are in use than are."""
    dataset = dcmread(path)
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("kind", ["u", "i"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_values_of_more_bits_than_bits_stored_are_never_cut_off(tmp_path: Path, syntax: str, kind: str) -> None:
    stored = np.full(SIZE, 24, f"{kind}2")
    stored[3:6, 4:9] = 2224
    path = with_bits_stored(write(image(stored), tmp_path / "a", syntax), 11)
    with pytest.raises(PixelError, match="15 of its 1620 pixels use more bits than the 11 of Bits Stored") as caught:
        stored_pixels(header_of(path))
    assert caught.value.code is FindingCode.BAD_VALUE


@pytest.mark.parametrize("value", [0xFFFF, 0x8000, 0x0800])
def test_padding_beyond_bits_stored_is_never_taken_for_tissue(tmp_path: Path, value: int) -> None:
    stored = np.full(SIZE, 24, "u2")
    stored[0] = value
    path = with_bits_stored(write(image(stored, PixelPaddingValue=value), tmp_path / "a"), 11)
    with pytest.raises(PixelError, match="Bits Stored"):
        stored_pixels(header_of(path))


def test_an_overlay_that_the_header_does_not_name_is_refused(tmp_path: Path) -> None:
    stored = values(12, "u") | np.where(np.arange(SIZE[1]) % 3 == 0, 0xF000, 0).astype("u2")
    with pytest.raises(PixelError, match="Bits Stored"):
        stored_pixels(header_of(with_bits_stored(write(image(stored), tmp_path / "a"), 12)))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_negative_values_may_be_extended_or_not(tmp_path: Path, syntax: str) -> None:
    stored = np.arange(-800, 820, dtype="i2").reshape(SIZE)
    for cells in (stored, (stored.view("u2") & 0x0FFF).view("i2")):
        path = with_bits_stored(write(image(cells), tmp_path / "a", syntax), 12)
        assert np.array_equal(stored_pixels(header_of(path)), stored)


def rle_frame(stored: np.ndarray, extra: bytes = b"", end: bytes = b"", last: int = 0) -> bytes:
    """Return an RLE frame of 16 bits in literal runs; `extra` stands behind each segment, `last` bytes in its runs."""
    segments = []
    for plane in (stored.view("u1").reshape(-1, 2)[:, 1], stored.view("u1").reshape(-1, 2)[:, 0]):
        content = plane.tobytes() + b"\7" * last
        runs = [content[at : at + 100] for at in range(0, len(content), 100)]
        packed = b"".join(bytes([len(run) - 1]) + run for run in runs) + extra
        segments.append(packed + b"\0" * (len(packed) % 2))
    return struct.pack("<16I", 2, 64, 64 + len(segments[0]), *[0] * 13) + b"".join(segments) + end


@pytest.mark.parametrize(
    "padding",
    [
        {"extra": b"\0\7"},
        {"extra": b"\0\0"},
        {"extra": b"\x80" * 5},
        {"extra": bytes(33)},
        {"end": bytes(30)},
        {"end": bytes(4000)},
        {"last": 1},
    ],
)
def test_what_follows_a_whole_rle_segment_is_padding(tmp_path: Path, padding: dict[str, object]) -> None:
    stored = values(16, "u")
    path = write(image(stored), tmp_path / "a", RLELossless)
    frame = rle_frame(stored, **padding)
    found = stored_pixels(header_of(with_pixel_data(path, encapsulate([frame]))))
    assert np.array_equal(found, stored)


@pytest.mark.parametrize("padding", [{"last": 2}, {"last": 60}, {"extra": b"\x05abcdef"}, {"extra": b"\x81\0" * 9}])
def test_more_pixels_than_the_image_has_are_no_padding(tmp_path: Path, padding: dict[str, object]) -> None:
    stored = values(16, "u")
    path = write(image(stored), tmp_path / "a", RLELossless)
    with pytest.raises(PixelError, match="unpack to more than 1620 pixels"):
        stored_pixels(header_of(with_pixel_data(path, encapsulate([rle_frame(stored, **padding)]))))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("padding", [b"\0", bytes(200), bytes(5000), b"\xff" * 300, b"\0" + b" " * 99, b"\0\1" * 20])
def test_what_follows_the_end_of_a_codestream_is_padding(tmp_path: Path, syntax: str, padding: bytes) -> None:
    stored = values(12, "u", (64, 80))
    path = write(image(stored, bits=12), tmp_path / "a", syntax)
    padded = encapsulate([codestream_of(path).rstrip(b"\0") + padding])
    assert np.array_equal(stored_pixels(header_of(with_pixel_data(path, padded))), stored)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless], ids=lambda uid: uid.name)
def test_what_follows_the_end_and_is_no_padding_is_told_as_that(tmp_path: Path, syntax: str) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    longer = encapsulate([codestream_of(path).rstrip(b"\0") + b"\1\2" * 60])
    with pytest.raises(PixelError, match="other bytes than padding follow") as caught:
        stored_pixels(header_of(with_pixel_data(path, longer)))
    assert caught.value.code is FindingCode.UNDECODABLE


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("padding", [b"", bytes(200), bytes(range(1, 200))])
def test_a_codestream_that_breaks_off_before_its_padding_is_truncated(
    tmp_path: Path, syntax: str, padding: bytes
) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    broken = encapsulate([codestream_of(path).rstrip(b"\0")[:-40] + padding])
    with pytest.raises(PixelError, match="end too early"):
        stored_pixels(header_of(with_pixel_data(path, broken)))


@pytest.mark.parametrize("precision", [12, 16])
@pytest.mark.parametrize("header_kind", ["u", "i"])
@pytest.mark.parametrize("stream_kind", ["u", "i"])
def test_jpeg_2000_with_another_sign_than_its_header_is_read_as_the_header_says(
    tmp_path: Path, precision: int, header_kind: str, stream_kind: str
) -> None:
    stored = values(12, header_kind, (48, 64))
    pattern = stored.view("u2") & (2**precision - 1)
    unused = 16 - precision
    encoded = pattern if stream_kind == "u" else (pattern.view("i2") << unused) >> unused
    path = write(image(stored, bits=12), tmp_path / "a", JPEG2000Lossless)
    stream = encode_array(encoded, bits_stored=precision, photometric_interpretation=2, codec_format=0)
    found = stored_pixels(header_of(with_pixel_data(path, encapsulate([bytes(stream)]))))
    assert np.array_equal(found, stored)


@pytest.mark.parametrize("syntax", RAW[:3], ids=lambda uid: uid.name)
def test_a_raw_file_that_ends_too_early_is_truncated(tmp_path: Path, syntax: str) -> None:
    path = write(image(values(16, "i")), tmp_path / "a", syntax)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(PixelError, match="ends before its last pixel") as caught:
        stored_pixels(header_of(path))
    assert caught.value.code is FindingCode.TRUNCATED


def test_pixel_data_shorter_than_rows_and_columns_are_truncated(tmp_path: Path) -> None:
    path = write(image(values(16, "i"), Rows=SIZE[0] + 1), tmp_path / "a")
    with pytest.raises(PixelError, match="3240 bytes, expected 3330 for 37 x 45") as caught:
        stored_pixels(header_of(path))
    assert caught.value.code is FindingCode.TRUNCATED


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
@pytest.mark.parametrize("kept", [0.97, 0.5, 0.1])
def test_a_compressed_file_that_ends_too_early_is_never_read(tmp_path: Path, syntax: str, kept: float) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    header = header_of(path)
    assert header.pixel_offset is not None
    content = path.read_bytes()
    path.write_bytes(content[: header.pixel_offset + int(kept * (len(content) - header.pixel_offset))])
    with pytest.raises(PixelError):
        stored_pixels(header_of(path))


@pytest.mark.parametrize("syntax", LOSSLESS[1:], ids=lambda uid: uid.name)
def test_a_codestream_without_its_end_is_truncated(tmp_path: Path, syntax: str) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    stream = get_frame(dcmread(path).PixelData, 0, number_of_frames=1)
    with pytest.raises(PixelError, match="end too early") as caught:
        stored_pixels(header_of(with_pixel_data(path, encapsulate([stream[: len(stream) * 3 // 4]]))))
    assert caught.value.code is FindingCode.TRUNCATED


@pytest.mark.parametrize("syntax", LOSSLESS[1:], ids=lambda uid: uid.name)
def test_a_codestream_of_another_size_is_refused_even_with_as_many_pixels(tmp_path: Path, syntax: str) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    dataset = dcmread(path)
    dataset.Rows, dataset.Columns = 80, 64
    dataset.save_as(path)
    with pytest.raises(PixelError, match="64 x 80 pixels, expected 80 x 64"):
        stored_pixels(header_of(path))


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
def test_rubbish_is_undecodable_and_the_message_holds_nothing_of_it(tmp_path: Path, syntax: str) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    rubbish = b"\xff\xd8SECRET^NAME" + bytes(range(256)) * 3 + b"\xff\xd9"
    with pytest.raises(PixelError) as caught:
        stored_pixels(header_of(with_pixel_data(path, encapsulate([rubbish]))))
    assert caught.value.code is FindingCode.UNDECODABLE
    assert "SECRET" not in str(caught.value)


def test_damaged_jpeg_ls_is_undecodable(tmp_path: Path) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", JPEGLSLossless)
    stream = bytearray(get_frame(dcmread(path).PixelData, 0, number_of_frames=1))
    stream[len(stream) // 2 : len(stream) // 2 + 20] = bytes(20)
    with pytest.raises(PixelError, match="damaged"):
        stored_pixels(header_of(with_pixel_data(path, encapsulate([bytes(stream)]))))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SamplesPerPixel": 3}, "one grey value"),
        ({"BitsAllocated": 12}, "expected integers"),
        ({"BitsStored": 17}, "expected integers"),
        ({"PixelRepresentation": 2}, "expected integers"),
        ({"Rows": 0}, "expected integers"),
        ({"BitsStored": None}, "one grey value"),
    ],
)
def test_a_header_that_does_not_say_how_pixels_are_stored_is_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(PixelError, match=reason):
        stored_pixels(header_of(write(image(values(16, "u"), **changes), tmp_path / "a")))


def test_a_file_without_pixel_data_has_none(tmp_path: Path) -> None:
    dataset = image(values(16, "u"))
    del dataset.PixelData
    with pytest.raises(PixelError, match="no pixel data"):
        stored_pixels(header_of(write(dataset, tmp_path / "a")))


def test_a_compressed_syntax_over_raw_pixels_is_refused(tmp_path: Path) -> None:
    path = write(image(values(16, "u")), tmp_path / "a")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    with pytest.raises(PixelError, match="compressed one"):
        stored_pixels(header_of(path))


def test_a_missing_decoder_is_told_by_the_name_of_its_syntax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(image(values(16, "u")), tmp_path / "a", JPEG2000Lossless)
    decoding._plugin.cache_clear()
    monkeypatch.setattr(decoding, "DECODERS", {JPEG2000Lossless: ("none",)})
    with pytest.raises(PixelError, match="no decoder for its transfer syntax JPEG 2000"):
        stored_pixels(header_of(path))


def test_without_meta_header_pixels_are_raw(tmp_path: Path) -> None:
    stored = values(16, "i")
    path = write(image(stored), tmp_path / "a", ImplicitVRLittleEndian)
    content = path.read_bytes()
    meta_bytes = int.from_bytes(content[140:144], "little")
    path.write_bytes(content[144 + meta_bytes :])
    header = header_of(path)
    assert header.transfer_syntax_uid == ""
    assert np.array_equal(stored_pixels(header), stored)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, DeflatedExplicitVRLittleEndian])
def test_a_member_of_an_archive_is_read_in_place(tmp_path: Path, syntax: str) -> None:
    stored = values(16, "i")
    path = write(image(stored), tmp_path / "a", syntax)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "folder/a")
    assert np.array_equal(stored_pixels(header_of(tmp_path / "a.zip", "folder/a")), stored)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("frame", [0, 3, 4])
def test_any_frame_of_a_multi_frame_file_is_found(tmp_path: Path, syntax: str, frame: int) -> None:
    stored = values(16, "i", (5, *SIZE))
    header = header_of(write(image(stored), tmp_path / "a", syntax))
    assert np.array_equal(stored_pixels(header, frame), stored[frame])


@pytest.mark.parametrize("has_offsets", [True, False])
def test_frames_in_several_fragments_are_put_together(tmp_path: Path, *, has_offsets: bool) -> None:
    stored = values(16, "i", (3, *SIZE))
    path = write(image(stored), tmp_path / "a", JPEGLSLossless)
    content = dcmread(path).PixelData
    streams = [get_frame(content, frame, number_of_frames=3) for frame in range(3)]
    with_pixel_data(path, encapsulate(streams, fragments_per_frame=4, has_bot=has_offsets))
    assert np.array_equal(stored_pixels(header_of(path), 2), stored[2])


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(PixelError(FindingCode.TRUNCATED, "too short")))  # noqa: S301
    assert (error.code, str(error)) == (FindingCode.TRUNCATED, "too short")


def test_a_stack_is_rescaled_with_the_numbers_of_each_frame(tmp_path: Path) -> None:
    stored = values(12, "u", (4, *SIZE))
    slopes, intercepts = (1, 0.5, 2, 1), (-1024, 10, 0, 0.25)
    slices = slices_of([header_of(write(enhanced(stored, slopes, intercepts), tmp_path / "a"))])
    found = read_stack(in_order(slices), workers=1)
    expected = [
        plane * float(slope) + intercept for plane, slope, intercept in zip(stored, slopes, intercepts, strict=True)
    ]
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array(expected, dtype=np.float32).transpose(2, 1, 0))


def test_large_values_are_rescaled_as_exactly_as_float32_holds_them(tmp_path: Path) -> None:
    stored = np.array([[[2**31 - 1, -(2**31)], [16_777_217, 3]]], dtype="i4")
    slices = slices_of([header_of(write(image(stored, RescaleIntercept=0.5), tmp_path / "a"))])
    assert np.array_equal(read_stack(slices, workers=1)[..., 0].T, (stored[0] + 0.5).astype("f4"))


def test_a_stack_lies_slice_after_slice_in_memory(tmp_path: Path) -> None:
    planes = [header_of(write(one, tmp_path / str(k))) for k, one in enumerate(stack(values(12, "u", (3, *SIZE))))]
    found = read_stack(in_order(slices_of(planes)), workers=1)
    assert found.shape == (SIZE[1], SIZE[0], 3)
    assert found.flags.f_contiguous


def test_progress_counts_every_slice(tmp_path: Path) -> None:
    planes = [header_of(write(one, tmp_path / str(k))) for k, one in enumerate(stack(values(12, "u", (3, *SIZE))))]
    seen: list[tuple[int, int]] = []
    read_stack(in_order(slices_of(planes)), workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_slice_that_cannot_be_read_is_named_by_its_place(tmp_path: Path) -> None:
    paths = [write(one, tmp_path / str(k)) for k, one in enumerate(stack(values(12, "u", (5, *SIZE))))]
    paths[3].write_bytes(paths[3].read_bytes()[:-10])
    slices = in_order(slices_of([header_of(path) for path in reversed(paths)]))
    with pytest.raises(PixelError, match="slice 4 of 5: its file ends"):
        read_stack(slices, workers=1)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_other_threads_and_processes_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    stored = values(12, "u", (24, *SIZE))
    headers = [header_of(write(one, tmp_path / str(k), syntax)) for k, one in enumerate(stack(stored))]
    slices = in_order(slices_of(headers))
    alone = read_stack(slices, workers=1)
    monkeypatch.setattr(pixels, "PROCESSES_PAY_S", 0.0)
    monkeypatch.setattr(pixels, "THREADS_PAY_S", 0.0)
    main = sys.modules["__main__"]
    seen: list[int] = []
    together = read_stack(slices, workers=3, progress=lambda done, _: seen.append(done))
    assert np.array_equal(together, alone)
    assert seen == list(range(1, 25))
    assert sys.modules["__main__"] is main


def test_a_fault_in_another_process_is_named_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = values(12, "u", (12, *SIZE))
    paths = [write(one, tmp_path / str(k), RLELossless) for k, one in enumerate(stack(stored))]
    headers = [header_of(path) for path in paths]
    paths[1].write_bytes(paths[1].read_bytes()[:-900])
    monkeypatch.setattr(pixels, "PROCESSES_PAY_S", 0.0)
    with pytest.raises(PixelError, match="slice 2 of 12"):
        read_stack(in_order(slices_of(headers)), workers=2)


def test_one_image_in_four_syntaxes_has_the_same_values(real_data: Path) -> None:
    # from dcm2niix's quality assurance set, compressed by several tools; its uncompressed files are another image
    root = real_data / "dicom" / "mr_d2n_compressed"
    found = {}
    for name in ("jpegll", "jpegls", "j2k", "rle", "mixed"):
        headers = [header_of(path) for path in sorted((root / name).iterdir())]
        found[name] = read_stack(in_order(slices_of(headers)), workers=1)
    assert found["rle"].std() > 1
    assert all(np.array_equal(voxels, found["rle"]) for voxels in found.values())


def test_baseline_jpeg_of_8_bits_is_close(tmp_path: Path) -> None:
    stored = smooth(8)
    content = BytesIO()
    Image.fromarray(stored).save(content, "JPEG", quality=95)
    path = write(image(stored), tmp_path / "a", JPEGLosslessSV1)
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([content.getvalue()])
    dataset.save_as(path)
    assert np.abs(stored_pixels(header_of(path)).astype(int) - stored).max() < 8


def test_every_syntax_has_a_decoder() -> None:
    assert {decoding._plugin(UID(syntax)) for syntax in decoding.DECODERS} == {"gdcm", "pyjpegls", "pylibjpeg"}


def test_a_syntax_that_nobody_knows_is_told(tmp_path: Path) -> None:
    path = write(image(values(16, "u")), tmp_path / "a", RLELossless)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.9\0"))
    with pytest.raises(PixelError, match="is not supported"):
        stored_pixels(header_of(path))


def _crash(_: object) -> list[np.ndarray]:
    os._exit(1)


def test_a_decoder_that_crashes_in_another_process_is_an_error(tmp_path: Path) -> None:
    headers = [header_of(write(one, tmp_path / str(k))) for k, one in enumerate(stack(values(12, "u", (4, *SIZE))))]
    chunks = deque(pixels._chunks(slices_of(headers)))
    with ProcessPool(1) as executor, pytest.raises(PixelError, match="has crashed"):
        list(pixels._shared_out(chunks, executor, _crash, 2))


def codestream_of(path: Path) -> bytes:
    return get_frame(dcmread(path).PixelData, 0, number_of_frames=1)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
@pytest.mark.parametrize("has_table", [True, False])
def test_two_images_in_a_file_that_tells_of_one_are_refused(tmp_path: Path, syntax: str, *, has_table: bool) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    twice = encapsulate([codestream_of(path)] * 2, has_bot=has_table)
    with pytest.raises(PixelError, match=r"more than one image|do not unpack"):
        stored_pixels(header_of(with_pixel_data(path, twice)))


def test_colours_under_a_grey_header_are_refused_before_a_decoder_ends_the_process(tmp_path: Path) -> None:
    stored = values(8, "u", (48, 64))
    path = write(image(stored), tmp_path / "a", JPEG2000Lossless)
    stream = encode_array(np.stack([stored] * 3, axis=-1), photometric_interpretation=1, codec_format=0)
    with pytest.raises(PixelError, match="3 x 8 bits a pixel, expected one grey value of at most 8"):
        stored_pixels(header_of(with_pixel_data(path, encapsulate([bytes(stream)]))))


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [*((one, 8) for one in LOSSLESS), *((one, 32) for one in LOSSLESS if one != JPEG2000Lossless)],  # there 12 fit
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_header_of_other_bits_allocated_than_the_codestream_is_refused(
    tmp_path: Path, syntax: str, bits: int
) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    dataset = dcmread(path)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, min(bits, 12), min(bits, 12) - 1
    dataset.save_as(path)
    with pytest.raises(PixelError):
        stored_pixels(header_of(path))


def test_runs_beyond_the_end_of_rle_are_undecodable(tmp_path: Path) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", RLELossless)
    stream = bytearray(codestream_of(path))
    stream[64] = 127 if stream[64] != 127 else 126
    with pytest.raises(PixelError, match="do not unpack to 5120 pixels"):
        stored_pixels(header_of(with_pixel_data(path, encapsulate([bytes(stream)]))))


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
def test_damage_anywhere_never_ends_the_process(tmp_path: Path, syntax: str) -> None:
    path = write(image(values(12, "u", (64, 80)), bits=12), tmp_path / "a", syntax)
    stream, rng = codestream_of(path), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(stream)
        damaged[rng.integers(120)] = rng.integers(256)
        with contextlib.suppress(PixelError):
            stored_pixels(header_of(with_pixel_data(path, encapsulate([bytes(damaged)]))))


def test_deflated_pixels_of_more_columns_than_the_header_says_are_refused(tmp_path: Path) -> None:
    path = write(image(values(16, "u"), Columns=SIZE[1] - 4), tmp_path / "a", DeflatedExplicitVRLittleEndian)
    with pytest.raises(PixelError, match="3240 bytes, expected 2952"):
        stored_pixels(header_of(path))


@pytest.mark.parametrize("uid", ["SECRET^NAME", "1.2.276.99.1234567", ""])
def test_a_private_transfer_syntax_is_never_shown(tmp_path: Path, uid: str) -> None:
    path = write(image(values(16, "u")), tmp_path / "a", RLELossless)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.5\0", uid.encode().ljust(20, b"\0")))
    with pytest.raises(PixelError, match="its transfer syntax is not supported") as caught:
        stored_pixels(header_of(path))
    assert not uid or uid not in str(caught.value)
