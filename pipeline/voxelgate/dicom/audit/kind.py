"""Rules on whose images these are and of what kind: only plain CT, MR and PET volumes of one patient are read."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from voxelgate.core.findings import Allow, Finding, FindingCode
from voxelgate.dicom.audit.facts import SHOWN_NUMBERS, SeriesFacts, note, refuse, share, warn
from voxelgate.dicom.audit.planes import usual_orientation
from voxelgate.dicom.read.headers import IMAGE_CLASSES, NOT_IMAGE_CLASSES, STORAGE, Concatenation, Header, is_one_of
from voxelgate.dicom.read.stack import Slice

_KNOWN = "CT MR PT NM US XA RF CR DX MG SEG RTSTRUCT RTDOSE RTPLAN RTIMAGE SR PR KO OT SC REG FID DOC"
KNOWN_MODALITIES = frozenset(_KNOWN.split())
"""Modalities that are shown; any other text of a header is not, whatever it holds."""

READ_MODALITIES = frozenset(("CT", "MR", "PT"))

NOT_IMAGE_MODALITIES = frozenset(("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "FID", "DOC"))

SECONDARY_CAPTURE_CLASSES = frozenset(f"{STORAGE}.{part}" for part in ("7", "7.1", "7.2", "7.3", "7.4"))

ENHANCED_CLASSES = frozenset(f"{STORAGE}.{part}" for part in ("2.1", "2.2", "4.1", "4.4", "128.1", "130"))
"""Enhanced and legacy converted enhanced CT, MR and PET (PS3.4 table B.5-1)."""

SCREEN_WORDS = frozenset(("SCREEN", "SCREENSAVE", "SCREENSHOT"))
LOCALIZER_WORDS = frozenset(("LOCALIZER", "LOCALISER", "SCOUT", "SURVIEW", "TOPOGRAM", "SCANOGRAM"))
RENDERING_WORDS = frozenset(("VOLREN", "VRT", "SSD", "RENDER", "RENDERING", "RENDERED", "CURVED"))
PROJECTION_WORDS = frozenset(("PROJECTION", "MIP", "MINIP", "MNIP", "MAXIP", "AVGIP", "IP"))
WATER_AND_FAT_WORDS = frozenset(("IN", "OPP", "OPPOSED", "OUT", "IP"))
"""Words of MR images in and out of phase, which are no maps of a phase, nor projections (IP) as in CT."""

CALCULATED_WORDS = frozenset(("MAP", "ADC", "FA", "SUBTRACT", "SUBTRACTION", "ADDITION", "DIVISION", "PHASE"))
"""Words of Image Type from its third value on (PS3.3 C.8.2.1.1.1, C.8.3.1.1.1, C.8.16.1); vendors add their own."""

LOCALIZER_COSINE = 0.9
"""Images whose normal is further from the others' (26 degrees) show another plane of the body."""

LOCALIZER_SHARE = 0.25
"""Images of another plane that are fewer than this are localizers among slices; more make two stacks."""

MOSAIC_LEAST_MM = 500.0
MOSAIC_LEAST_OF_TWO_MM = 600.0
MOSAIC_LEAST_UNEXPLAINED_MM = 1000.0
"""Widths that an MR scanner (bore 600 to 700 mm) does not image, at 3 and more, 2 or an unknown number of tiles a side.

Zero-filled images have two or four times the acquired matrix too, but a field of view that fits a scanner.
"""


def several_patients(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse images of more than one patient; what is empty is unknown."""
    nouns = ("patient IDs", "patient names", "birth dates")
    counts = [len({header.patient[index] for header in facts.headers} - {""}) for index in range(len(nouns))]
    differing = [f"{count} {noun}" for count, noun in zip(counts, nouns, strict=True) if count > 1]
    if differing:
        sentence = (
            f"one series holds {' and '.join(differing)}, expected one patient; separate them and send them again."
        )
        yield refuse(FindingCode.SEVERAL_PATIENTS, sentence)


def several_studies(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse images of more than one study."""
    if (count := len({header.study_uid for header in facts.headers} - {""})) > 1:
        yield refuse(
            FindingCode.SEVERAL_STUDIES, f"one series belongs to {count} studies, expected one; send it again."
        )


def several_frames_of_reference(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse images whose positions cannot be compared."""
    if (count := len({header.frame_of_reference_uid for header in facts.headers} - {""})) > 1:
        sentence = f"the positions refer to {count} frames of reference, expected one; the patient was moved between."
        yield refuse(FindingCode.SEVERAL_FRAMES_OF_REFERENCE, sentence)


def several_series(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse single images that make a stack but name several series; with `Allow.MERGE_SERIES` warn."""
    if (count := len({header.series_uid for header in facts.headers})) < 2:
        return
    sentence = (
        f"{count} single images of one study, series number, frame of reference and grid make a stack, but each has a "
        "series UID of its own"
    )
    if Allow.MERGE_SERIES in facts.allow:
        sentence += "; they are read as one, and DICOM results (SEG) that refer to one series cannot be written."
        yield warn(FindingCode.SEVERAL_SERIES, sentence)
    else:
        yield refuse(FindingCode.SEVERAL_SERIES, f"{sentence}; pass --allow merge-series to read them as one.")


def not_an_image(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse segmentations, structures, reports and whatever else holds no image of a patient."""
    found = [header for header in facts.headers if _is_no_image(header)]
    if found:
        names = sorted({header.modality for header in found} & NOT_IMAGE_MODALITIES)
        kind = f" ({', '.join(names)})" if names else ""
        sentence = f"{len(found)} of {len(facts.headers)} files hold no image{kind}, expected CT, MR or PET images."
        yield refuse(FindingCode.NOT_AN_IMAGE, sentence)


def _is_no_image(header: Header) -> bool:
    if is_one_of(header.sop_class_uid, NOT_IMAGE_CLASSES) or header.modality in NOT_IMAGE_MODALITIES:
        return True
    return header.pixel_bytes is None and header.rows is None and header.sop_class_uid not in IMAGE_CLASSES


def secondary_capture(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse screenshots, dose pages and scanned documents: their pixels are no measurements."""
    found = [
        header
        for header in facts.headers
        if header.sop_class_uid in SECONDARY_CAPTURE_CLASSES or _words(header) & SCREEN_WORDS
    ]
    if found:
        sentence = f"{share(found, facts.headers)}: secondary captures (screenshots), expected slices from the scanner."
        yield refuse(FindingCode.SECONDARY_CAPTURE, sentence)


def modality(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse all but CT, MR and PET, and a mixture of them."""
    found = {header.modality for header in facts.headers}
    if len(found) == 1 and found <= READ_MODALITIES:
        return
    names = sorted({_shown_modality(name) for name in found})
    yield refuse(FindingCode.MODALITY, f"the modality is {' and '.join(names)}, expected one of CT, MR or PT.")


def _shown_modality(name: str) -> str:
    return name if name in KNOWN_MODALITIES else "unknown" if name else "missing"


def localizer(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse localizers, all or among slices; those that do not say so are told by their other plane."""
    slices = facts.slices
    found = [part for part in slices if _words(part.header) & LOCALIZER_WORDS] or _in_another_plane(slices)
    if not found:
        return
    if len(found) == len(slices):
        yield refuse(FindingCode.LOCALIZER, f"{share(found, slices)}: a localizer, expected a stack of slices.")
    else:
        sentence = f"{share(found, slices)} are localizers among the slices; send the slices without them."
        yield refuse(FindingCode.LOCALIZER, sentence)


def _in_another_plane(slices: Sequence[Slice]) -> list[Slice]:
    oriented = [part for part in slices if part.plane.orientation_lps]
    if not oriented:
        return []
    cosines = np.array([part.plane.orientation_lps for part in oriented])
    usual = usual_orientation(cosines)
    normals, normal = np.cross(cosines[:, :3], cosines[:, 3:]), np.cross(usual[:3], usual[3:])
    lengths = np.linalg.norm(normals, axis=1) * np.linalg.norm(normal)
    is_other = np.abs(normals @ normal) < LOCALIZER_COSINE * lengths
    is_minority = 0 < is_other.sum() < LOCALIZER_SHARE * len(oriented)
    return [part for part, other in zip(oriented, is_other, strict=True) if other] if is_minority else []


def colour(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse what is not grey from dark to bright."""
    kinds: dict[FindingCode, list[Header]] = {}
    for header in facts.headers:
        code = _colour_code(header)
        if code is not None:
            kinds.setdefault(code, []).append(header)
    reasons = {
        FindingCode.COLOUR: "in colour, expected grey values",
        FindingCode.PALETTE: "in palette colours, expected grey values",
        FindingCode.MONOCHROME1: "MONOCHROME1 (bright and dark exchanged), expected MONOCHROME2; convert them at the "
        "source",
        FindingCode.BAD_VALUE: "without a known Photometric Interpretation, expected MONOCHROME2",
    }
    for code, headers in sorted(kinds.items()):
        yield refuse(code, f"{share(headers, facts.headers)}: {reasons[code]}.")


def _colour_code(header: Header) -> FindingCode | None:
    name = header.photometric
    if header.samples_per_pixel not in (None, 1) or name.startswith(("RGB", "YBR", "ARGB", "HSV", "CMYK")):
        return FindingCode.COLOUR
    if name == "PALETTE COLOR":
        return FindingCode.PALETTE
    if name == "MONOCHROME1":
        return FindingCode.MONOCHROME1
    has_pixels = header.pixel_bytes is not None
    return FindingCode.BAD_VALUE if name != "MONOCHROME2" and has_pixels else None


def mosaic(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse mosaics, the slices of a volume side by side in one image, also where the tags are gone."""
    found = [header for header in facts.headers if _says_mosaic(header) or _looks_like_mosaic(header)]
    if found:
        sentence = f"{share(found, facts.headers)}: mosaics, the slices of a volume side by side; convert them first."
        yield refuse(FindingCode.MOSAIC, sentence)


def _says_mosaic(header: Header) -> bool:
    return "MOSAIC" in _words(header) or (header.mosaic_count or 0) > 1


def _looks_like_mosaic(header: Header) -> bool:
    spacing_mm = header.planes[0].pixel_spacing_mm
    if header.modality != "MR" or spacing_mm is None or not header.rows or not header.columns:
        return False
    narrower_mm = min(header.rows * spacing_mm[0], header.columns * spacing_mm[1])
    tiles = _tiles(header)
    if tiles == 1:
        return narrower_mm > MOSAIC_LEAST_UNEXPLAINED_MM
    return narrower_mm > (MOSAIC_LEAST_OF_TWO_MM if tiles == 2 else MOSAIC_LEAST_MM)


def _tiles(header: Header) -> int:
    """Return how often the acquired matrix fits into each side of the image; 1 unless it is one whole number."""
    matrix = header.acquisition_matrix or (0.0,) * 4
    high, wide = matrix[0] or matrix[2], matrix[1] or matrix[3]
    if not high or not wide or not header.rows or not header.columns:
        return 1
    down, across = header.rows / high, header.columns / wide
    return int(down) if down == across == int(down) else 1


def multi_frame(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse multi-frame files that do not say where each frame lies, and more than one of them."""
    several = [header for header in facts.headers if header.frames > 1 or len(header.planes) > 1]
    if not several:
        return
    if any(header.sop_class_uid not in ENHANCED_CLASSES for header in several):
        sentence = (
            f"{share(several, facts.headers)}: multi-frame of a kind that is not read, expected enhanced CT, MR or PET."
        )
        yield refuse(FindingCode.MULTI_FRAME, sentence)
    elif any(len(header.planes) != header.frames for header in several):
        sentence = (
            f"{share(several, facts.headers)}: frames do not say where they lie, expected a functional group for each."
        )
        yield refuse(FindingCode.MULTI_FRAME, sentence)
    elif len(facts.headers) > 1 and not all(header.concatenation for header in facts.headers):
        sentence = (
            f"{len(several)} of {len(facts.headers)} files are multi-frame, expected one; choose one and give it alone."
        )
        yield refuse(FindingCode.MULTI_FRAME, sentence)


def concatenation(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse an image of which some parts are missing or contradict each other; complete ones are read as one.

    Nothing says how many parts there are where the optional total is missing: a warning.
    """
    parts = [header.concatenation for header in facts.headers if header.concatenation is not None]
    if not parts:
        return
    wrong = _why_not_concatenated(parts, facts.headers)
    if wrong:
        yield refuse(FindingCode.CONCATENATION, f"{wrong}.")
    elif all(part.total is None for part in parts):
        sentence = f"nothing says how many parts the image has, {len(parts)} are there; check that none is missing."
        yield warn(FindingCode.CONCATENATION, sentence)


def _why_not_concatenated(parts: Sequence[Concatenation], headers: Sequence[Header]) -> str | None:
    """Say why files are not all parts of one image, or return None."""
    images = {part.uid for part in parts}
    numbers = Counter(part.number or 0 for part in parts)
    totals = sorted({part.total for part in parts if part.total is not None})
    total = totals[0] if totals else max(numbers)
    missing = sorted(set(range(1, total + 1)) - set(numbers))
    twice = sorted(number for number, count in numbers.items() if count > 1)
    if len(images) > 1 or len(parts) < len(headers):
        kinds = _counted(len(images), "concatenated image")
        return (
            f"{len(parts)} of {len(headers)} files are parts of {kinds}, expected all of one; give the parts of one "
            "image alone"
        )
    if min(numbers) < 1 or max(numbers) > total or len(totals) > 1:
        found = ", ".join(map(str, sorted(numbers)))
        return f"the parts contradict each other: numbers {found} of {' and '.join(map(str, totals))}; send them again"
    if twice:
        return f"part {twice[0]} of {total} of the image is there {numbers[twice[0]]} times, expected once; choose one"
    if missing:
        named = ", ".join(map(str, missing[:SHOWN_NUMBERS])) + " and more" * (len(missing) > SHOWN_NUMBERS)
        verb = "s are" if len(missing) > 1 else " is"
        return f"of the {total} parts of the image {len(missing)} part{verb} missing (number {named}); send all of them"
    return _why_not_in_line(headers)


def _why_not_in_line(headers: Sequence[Header]) -> str | None:
    """Say where a part does not start behind the frames of those before it, or return None."""
    before = 0
    for header in sorted(headers, key=lambda one: one.concatenation.number or 0 if one.concatenation else 0):
        part = header.concatenation
        if part is not None and part.offset not in (None, before):
            return (
                f"part {part.number} of the image says that {part.offset} frames lie before it, the other parts have "
                f"{before}; send all parts again"
            )
        before += header.frames
    return None


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def several_stacks(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse frames that say themselves that they belong to several stacks."""
    if (count := len({part.plane.stack for part in facts.slices} - {""})) > 1:
        yield refuse(
            FindingCode.SEVERAL_VOLUMES, f"the frames belong to {count} stacks, expected one; separate them first."
        )


def derived(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse renderings, warn of projections and calculated images, note other images that were derived."""
    found = [(header, _words(header)) for header in facts.headers]
    rendered = [header for header, words in found if words & RENDERING_WORDS]
    slabs = PROJECTION_WORDS - WATER_AND_FAT_WORDS if facts.modality == "MR" else PROJECTION_WORDS
    projected = [header for header, words in found if words & slabs]
    calculated = [header for header, words in found if words & CALCULATED_WORDS and not words & WATER_AND_FAT_WORDS]
    other = [header for header in facts.headers if header.image_type[:1] == ("DERIVED",)]
    everyone = facts.headers
    if rendered:
        yield refuse(
            FindingCode.DERIVED, f"{share(rendered, everyone)}: renderings or curved planes, expected plane slices."
        )
    elif projected:
        yield warn(
            FindingCode.DERIVED, f"{share(projected, everyone)}: projections through a slab, expected plain slices."
        )
    elif calculated:
        yield warn(
            FindingCode.DERIVED, f"{share(calculated, everyone)}: calculated images or maps, expected plain slices."
        )
    elif other:
        yield note(FindingCode.DERIVED, f"{share(other, everyone)}: derived, not as the scanner made them.")


def _words(header: Header) -> frozenset[str]:
    """Return the words of Image Type after its first two values."""
    return frozenset(word for value in header.image_type[2:] for word in re.split(r"[^A-Z0-9]+", value))
