"""The stored values of one DICOM file, by whichever decoder knows its transfer syntax."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from io import SEEK_CUR, BytesIO
from typing import IO, Any, NamedTuple

import gdcm
import numpy as np
import numpy.typing as npt
from pydicom._uid_dict import UID_dictionary
from pydicom.encaps import encapsulate, get_frame, parse_basic_offsets
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from voxelgate.core.findings import FindingCode
from voxelgate.dicom.read.codestreams import (
    ANOTHER_IMAGE,
    END_OF_IMAGE,
    JPEG_START,
    describe_codestream,
    up_to_end,
    whole_rle,
)
from voxelgate.dicom.read.headers import Header
from voxelgate.dicom.read.parsing import inflated_pixels

DECODERS: Mapping[str, tuple[str, ...]] = {
    JPEGBaseline8Bit: ("gdcm", "pylibjpeg"),
    JPEGExtended12Bit: ("gdcm", "pylibjpeg"),
    JPEGLossless: ("gdcm", "pylibjpeg"),
    JPEGLosslessSV1: ("gdcm", "pylibjpeg"),
    JPEGLSLossless: ("pyjpegls", "pylibjpeg"),
    JPEGLSNearLossless: ("pyjpegls", "pylibjpeg"),
    JPEG2000Lossless: ("gdcm", "pylibjpeg"),
    JPEG2000: ("gdcm", "pylibjpeg"),
    HTJ2K: ("pylibjpeg",),
    HTJ2KLossless: ("pylibjpeg",),
    HTJ2KLosslessRPCL: ("pylibjpeg",),
    RLELossless: ("pylibjpeg", "pydicom"),
}
"""pydicom's plugins for each transfer syntax; the first that is installed decodes.

gdcm (BSD) decodes JPEG 2000 to the same values as pylibjpeg, but on several cores (25 instead of 40 ms for 512 x 512 on
two); JPEG-LS it decodes more slowly than pyjpegls (BSD), and not of 6 and 7 bits. pillow is never asked: it shifts
values of more than 8 bits. pylibjpeg means openjpeg and rle (MIT); its JPEG and JPEG-LS part is under the GPL and only
used where somebody has installed it.
"""

LOSSY = frozenset((JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K))
"""Syntaxes whose decoded values may lie a little outside of Bits Stored and are not to be cut to it."""

EXACT_FLOAT32 = 2**24
"""Whole numbers up to this are exact in float32."""

JPEG_MOST_BITS = 16
"""Bits of a pixel that JPEG and JPEG-LS can hold (ITU-T T.81 table B.2)."""

SEVERAL_IMAGES = "its compressed pixel data hold more than one image, expected one a file"


Values = npt.NDArray[Any]


class PixelError(Exception):
    """The pixels of an image cannot be had.

    Args:
        code: `TRUNCATED`, `UNDECODABLE`, or `BAD_VALUE` where header and pixels contradict each other.
        reason: what is wrong, in words that hold no patient data.
    """

    def __init__(self, code: FindingCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class FrameLayout(NamedTuple):
    """How the values of a frame are stored."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type of the values in native byte order."""
        return np.dtype(f"{'ui'[self.pixel_representation]}{self.bits_allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Return the length of a frame that is not compressed."""
        return self.rows * self.columns * self.bits_allocated // 8


def stored_pixels(header: Header, frame: int = 0) -> Values:
    """Return the stored values of one frame, (rows, columns), integers in native byte order, perhaps read-only.

    Bits above Bits Stored may hold an overlay that the header names, or the sign; they are replaced by the sign
    (PS3.5 8.1.1). Call it inside `quiet_pydicom`: decoders warn with values of the header.

    Raises:
        PixelError: there are no pixels, or fewer than the header promises, they cannot be decoded, or they hold values
            of more bits than Bits Stored says.
    """
    return next(stored_frames(header, (frame,)))


def stored_frames(header: Header, frames: Sequence[int]) -> Iterator[Values]:
    """Yield the stored values of several frames as `stored_pixels` returns them; the file is opened once.

    Raises:
        PixelError: as for `stored_pixels`.
    """
    layout = layout_of(header)
    with _open(header, layout) as stream:
        start = stream.tell()
        _check_inflated(header, layout, stream)
        for frame in frames:
            with _reworded_fault():
                stream.seek(start)
                values = (_read_raw if is_raw(header) else _read_encoded)(header, layout, stream, frame)
            yield values


def is_raw(header: Header) -> bool:
    """Return whether the pixels are not compressed, or deflated together with the header."""
    return header.pixel_bytes != -1 or header.transfer_syntax_uid == DeflatedExplicitVRLittleEndian


def layout_of(header: Header) -> FrameLayout:
    """Return how the pixels of a file lie in it.

    Raises:
        PixelError: its header describes no format that is read here.
    """
    if header.pixel_bytes is None:
        raise PixelError(FindingCode.UNDECODABLE, "it has no pixel data")
    if header.pixel_bytes >= 0 and header.transfer_syntax_uid in DECODERS:
        raise PixelError(FindingCode.UNDECODABLE, "its transfer syntax is a compressed one, but its pixel data are not")
    found = (header.rows, header.columns, header.bits_allocated, header.bits_stored, header.pixel_representation)
    numbers = [number for number in found if number is not None]
    if len(numbers) < len(found) or header.samples_per_pixel != 1:
        raise PixelError(FindingCode.UNDECODABLE, "its header does not say how one grey value for each pixel is stored")
    layout = FrameLayout(*numbers)
    is_known = layout.bits_allocated in (8, 16, 32) and layout.pixel_representation in (0, 1)
    if not is_known or not 1 <= layout.bits_stored <= layout.bits_allocated or min(layout.rows, layout.columns) < 1:
        raise PixelError(
            FindingCode.UNDECODABLE,
            f"its pixels have {layout.bits_allocated} bits with {layout.bits_stored} in use and pixel representation "
            f"{layout.pixel_representation}, expected integers of 8, 16 or 32 bits",
        )
    return layout


@contextmanager
def _reworded_fault() -> Iterator[None]:
    """Turn whatever the decoders raise into a sentence; their own texts may hold values of the header."""
    try:
        yield
    except PixelError:
        raise
    except OSError as error:
        raise PixelError(FindingCode.UNDECODABLE, "its file cannot be read") from error
    except Exception as error:  # the decoders raise nearly anything on damaged input
        raise PixelError(FindingCode.UNDECODABLE, "its pixel data are damaged and cannot be decoded") from error


def _open(header: Header, layout: FrameLayout) -> IO[bytes]:
    """Return a stream that stands where the value of Pixel Data starts; what is packed is unpacked into memory."""
    with _reworded_fault():
        if header.pixel_offset is None:
            with header.file.open() as packed:
                return inflated_pixels(packed, header.frames * layout.frame_bytes)
        stream: IO[bytes] = BytesIO(header.file.read()) if header.file.member else header.file.open()
        stream.seek(header.pixel_offset)
        return stream


def _check_inflated(header: Header, layout: FrameLayout, stream: IO[bytes]) -> None:
    """Refuse deflated pixel data that are longer than rows, columns and frames say; the audit could not see them."""
    if isinstance(stream, BytesIO) and header.pixel_offset is None:
        found, expected = stream.getbuffer().nbytes, header.frames * layout.frame_bytes
        if found > expected + expected % 2:
            raise PixelError(
                FindingCode.UNDECODABLE,
                f"its pixel data have {found} bytes, expected {expected} for {_pixel_size(layout)}",
            )


def _read_raw(header: Header, layout: FrameLayout, stream: IO[bytes], frame: int) -> Values:
    size = layout.frame_bytes
    promised = header.pixel_bytes or 0
    if 0 <= promised < (frame + 1) * size:
        raise PixelError(
            FindingCode.TRUNCATED,
            f"its pixel data have {promised} bytes, expected {header.frames * size} for {_pixel_size(layout)}",
        )
    first = frame * size
    is_swapped = layout.bits_allocated == 8 and not header.is_little_endian and _is_in_words(stream)
    begin, end = (first - first % 2, first + size + (first + size) % 2) if is_swapped else (first, first + size)
    stream.seek(begin, SEEK_CUR)
    content = stream.read(end - begin)
    if len(content) < end - begin:
        raise PixelError(FindingCode.TRUNCATED, "its file ends before its last pixel")
    if is_swapped:
        content = np.frombuffer(content, np.uint16).byteswap().tobytes()[first - begin :][:size]
    stored = np.frombuffer(content, layout.dtype.newbyteorder("<" if header.is_little_endian else ">"))
    values = stored.astype(layout.dtype, copy=False).reshape(layout.rows, layout.columns)
    return _without_unused_bits(values, layout, header.overlay_bits, may_be_signed=False)


def _is_in_words(stream: IO[bytes]) -> bool:
    """Return whether the pixels of an explicit big endian file are words (OW), at whose start the stream stands."""
    start = stream.tell()
    stream.seek(start - 8)
    vr = stream.read(2)
    stream.seek(start)
    return vr == b"OW"


def _without_unused_bits(values: Values, layout: FrameLayout, overlay_bits: int, *, may_be_signed: bool) -> Values:
    """Return values in which the bits above Bits Stored are the sign, or 0.

    Args:
        values: as they are stored, each in Bits Allocated.
        layout: what the header says of them.
        overlay_bits: mask of the bits that hold overlays.
        may_be_signed: whether a decoder may have extended the sign of values that the header calls unsigned.

    Raises:
        PixelError: bits above are in use, so that values without them would be others.
    """
    unused = layout.bits_allocated - layout.bits_stored
    stored = (values << unused) >> unused if unused else values
    if np.array_equal(stored, values):
        return stored
    bits = values.view(f"u{values.dtype.itemsize}")
    above_mask = ((1 << unused) - 1) & ~(overlay_bits >> layout.bits_stored)
    above = (bits >> layout.bits_stored) & above_mask
    is_negative = (bits >> (layout.bits_stored - 1)) & 1 if layout.pixel_representation or may_be_signed else 0
    count = np.count_nonzero((above != 0) & ((above != above_mask) | (is_negative == 0)))
    if count:
        raise PixelError(
            FindingCode.BAD_VALUE,
            f"{count} of its {values.size} pixels use more bits than the {layout.bits_stored} of Bits Stored, which "
            "would be cut off",
        )
    return stored


def _read_encoded(header: Header, layout: FrameLayout, stream: IO[bytes], frame: int) -> Values:
    syntax = UID(header.transfer_syntax_uid)
    plugin = _plugin(syntax)
    _check_frames(header, stream)
    codestream = get_frame(stream, frame, number_of_frames=header.frames)
    codestream = (_checked_rle if syntax == RLELossless else _checked_codestream)(codestream, layout)
    if plugin == "gdcm" and syntax == JPEGExtended12Bit:
        values = _decode_gdcm(codestream, layout)
    else:
        values = _decode_pydicom(codestream, layout, syntax, plugin)
    if syntax in LOSSY:
        return values
    return _without_unused_bits(values, layout, header.overlay_bits, may_be_signed=syntax != RLELossless)


def _decode_pydicom(codestream: bytes, layout: FrameLayout, syntax: UID, plugin: str) -> Values:
    options: dict[str, Any] = {
        **layout._asdict(),
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
        "correct_unused_bits": False,  # without a word
    }
    source = encapsulate([codestream], has_bot=False)
    values, _ = get_decoder(syntax).as_array(source, index=0, raw=True, decoding_plugin=plugin, **options)
    return values


@cache
def _plugin(syntax: UID) -> str:
    """Return the name of the decoder to use."""
    if syntax not in DECODERS:
        raise PixelError(FindingCode.UNDECODABLE, f"its transfer syntax{_shown_syntax(syntax)} is not supported")
    installed = get_decoder(syntax).available_plugins
    chosen = next((name for name in DECODERS[syntax] if name in installed), None)
    if chosen is None:
        raise PixelError(FindingCode.UNDECODABLE, f"no decoder for its transfer syntax {syntax.name} is installed")
    return chosen


def _shown_syntax(syntax: UID) -> str:
    """Return the name that DICOM gives to a syntax; any other text may be a patient's."""
    return f" {syntax.name}" if syntax in UID_dictionary else ""


def _checked_codestream(codestream: bytes, layout: FrameLayout) -> bytes:
    """Return a codestream without padding; refuse what decoders would fill up, cut or die of.

    Raises:
        PixelError: it is not whole, or not one grey image as the header says.
    """
    whole = up_to_end(codestream)
    if whole is None:
        if END_OF_IMAGE in codestream:
            raise PixelError(FindingCode.UNDECODABLE, "other bytes than padding follow its compressed pixel data")
        raise PixelError(FindingCode.TRUNCATED, "its compressed pixel data end too early")
    found = describe_codestream(codestream)
    if (found.rows, found.columns) != (layout.rows, layout.columns):
        raise PixelError(
            FindingCode.UNDECODABLE,
            f"its compressed pixel data have {found.rows} x {found.columns} pixels, expected {_pixel_size(layout)}",
        )
    if found.components != 1 or _bytes(found.bits) > layout.bits_allocated // 8:
        raise PixelError(
            FindingCode.UNDECODABLE,
            f"its compressed pixel data have {found.components} x {found.bits} bits a pixel, expected one grey value "
            f"of at most {layout.bits_allocated}",
        )
    if layout.bits_allocated > JPEG_MOST_BITS and codestream.startswith(JPEG_START):
        raise PixelError(FindingCode.UNDECODABLE, "its pixels are said to have 32 bits, which JPEG cannot hold")
    if ANOTHER_IMAGE.search(codestream):
        raise PixelError(FindingCode.UNDECODABLE, SEVERAL_IMAGES)
    return whole


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _checked_rle(codestream: bytes, layout: FrameLayout) -> bytes:
    try:
        return whole_rle(codestream, layout.rows * layout.columns, layout.bits_allocated)
    except ValueError as error:
        raise PixelError(FindingCode.UNDECODABLE, f"its compressed pixel data {error}") from error


def _check_frames(header: Header, stream: IO[bytes]) -> None:
    """Refuse a table of more frames than the header says; only its first ones would be decoded."""
    start = stream.tell()
    offsets = parse_basic_offsets(stream)
    stream.seek(start)
    if len(offsets) > header.frames:
        raise PixelError(
            FindingCode.UNDECODABLE, SEVERAL_IMAGES if header.frames == 1 else "it has more frames than it says"
        )


def _decode_gdcm(codestream: bytes, layout: FrameLayout) -> Values:
    """Decode JPEG Extended of 12 bits, which pydicom's own plugin declines although GDCM can do it, as in ITK."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(codestream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    bits = layout.bits_stored
    image.SetPixelFormat(gdcm.PixelFormat(1, layout.bits_allocated, bits, bits - 1, layout.pixel_representation))
    content = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(content, layout.dtype).reshape(layout.rows, layout.columns)


def _pixel_size(layout: FrameLayout) -> str:
    return f"{layout.rows} x {layout.columns}"
