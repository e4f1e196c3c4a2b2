"""What was found out about a series: a stable code, how bad it is, and a sentence for people."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What follows from a finding.

    >>> [severity.value for severity in vg.Severity]
    ['refuse', 'warn', 'note']
    """

    REFUSE = "refuse"
    """The series is not read."""

    WARN = "warn"
    """The series is read; somebody should look at it."""

    NOTE = "note"
    """A fact that changes nothing."""


class FindingCode(StrEnum):
    """Stable names of what can be found; programs may rely on them."""

    # which files
    UNREADABLE_FILE = "UNREADABLE_FILE"
    MISSING_FILE = "MISSING_FILE"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    DUPLICATE_FILE = "DUPLICATE_FILE"
    MISNAMED_FILE = "MISNAMED_FILE"
    EXTRA_BYTES = "EXTRA_BYTES"
    # whose images
    SEVERAL_PATIENTS = "SEVERAL_PATIENTS"
    SEVERAL_STUDIES = "SEVERAL_STUDIES"
    SEVERAL_SERIES = "SEVERAL_SERIES"
    SEVERAL_FRAMES_OF_REFERENCE = "SEVERAL_FRAMES_OF_REFERENCE"
    BAD_UID = "BAD_UID"
    DUPLICATE_UID = "DUPLICATE_UID"
    # what kind of image
    MODALITY = "MODALITY"
    SECONDARY_CAPTURE = "SECONDARY_CAPTURE"
    LOCALIZER = "LOCALIZER"
    COLOUR = "COLOUR"
    PALETTE = "PALETTE"
    MONOCHROME1 = "MONOCHROME1"
    MOSAIC = "MOSAIC"
    MULTI_FRAME = "MULTI_FRAME"
    CONCATENATION = "CONCATENATION"
    DERIVED = "DERIVED"
    # which geometry
    NO_POSITION = "NO_POSITION"
    NO_ORIENTATION = "NO_ORIENTATION"
    BAD_ORIENTATION = "BAD_ORIENTATION"
    CONTRADICTORY_GEOMETRY = "CONTRADICTORY_GEOMETRY"
    NO_PIXEL_SPACING = "NO_PIXEL_SPACING"
    NON_SQUARE_PIXELS = "NON_SQUARE_PIXELS"
    MIXED_ORIENTATIONS = "MIXED_ORIENTATIONS"
    MIXED_SIZES = "MIXED_SIZES"
    MIXED_PIXEL_SPACINGS = "MIXED_PIXEL_SPACINGS"
    SINGLE_SLICE = "SINGLE_SLICE"
    MISSING_SLICE = "MISSING_SLICE"
    DUPLICATE_POSITION = "DUPLICATE_POSITION"
    NON_UNIFORM_SPACING = "NON_UNIFORM_SPACING"
    ROUNDED_POSITIONS = "ROUNDED_POSITIONS"
    GANTRY_TILT = "GANTRY_TILT"
    SHIFTED_SLICES = "SHIFTED_SLICES"
    SPACING_BETWEEN_SLICES = "SPACING_BETWEEN_SLICES"
    SPARSE_SLICES = "SPARSE_SLICES"
    # how many volumes
    SEVERAL_VOLUMES = "SEVERAL_VOLUMES"
    SEVERAL_ECHOES = "SEVERAL_ECHOES"
    DIFFUSION = "DIFFUSION"
    MIXED_ACQUISITIONS = "MIXED_ACQUISITIONS"
    # which values
    NO_RESCALE = "NO_RESCALE"
    BAD_RESCALE = "BAD_RESCALE"
    SLOPE_PER_SLICE = "SLOPE_PER_SLICE"
    MODALITY_LUT = "MODALITY_LUT"
    PADDING_VALUE = "PADDING_VALUE"
    BAD_VALUE = "BAD_VALUE"
    CHARACTER_SET = "CHARACTER_SET"
    MIXED_PIXEL_FORMATS = "MIXED_PIXEL_FORMATS"
    LOSSY = "LOSSY"
    NO_PIXELS = "NO_PIXELS"
    TRUNCATED = "TRUNCATED"
    UNDECODABLE = "UNDECODABLE"
    # whether it looks right
    NOT_HU = "NOT_HU"
    CONSTANT = "CONSTANT"
    FIELD_OF_VIEW = "FIELD_OF_VIEW"
    VOXEL_SIZE = "VOXEL_SIZE"
    ORIENTATION = "ORIENTATION"
    # what was done on request
    FILLED_SLICES = "FILLED_SLICES"
    CORRECTED_TILT = "CORRECTED_TILT"
    # what is said of a case rather than of its image
    REMARK = "REMARK"


class Allow(StrEnum):
    """Faults that a user may ask to have mended, instead of a refusal."""

    GAPS = "gaps"
    """Fill missing slices by linear interpolation between their neighbours."""

    TILT = "tilt"
    """Bring the slices of a tilted gantry onto a rectangular grid."""

    MERGE_SERIES = "merge-series"
    """Read single images that make a stack as one volume, although each has a series UID of its own."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that was found.

    Args:
        code: its stable name.
        severity: what follows from it.
        message: one sentence without patient data or raw UIDs.

    >>> (series,) = vg.scan_dicom(Path("study"))
    >>> [(finding.code.value, finding.severity.value) for finding in series.findings]
    [('SPARSE_SLICES', 'warn')]
    """

    code: FindingCode
    severity: Severity
    message: str

    def __str__(self) -> str:
        """Return code and sentence, as in reports; a note says that it is one, and a remark is its sentence alone."""
        if self.code is FindingCode.REMARK:
            return self.message
        return f"{self.code}{' (note)' if self.severity is Severity.NOTE else ''}: {self.message}"


def remark(sentence: str, severity: Severity = Severity.NOTE) -> Finding:
    """Return a sentence on a case that follows from no rule on images; by default nobody has to look again for it."""
    return Finding(FindingCode.REMARK, severity, sentence)


def refusals(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return those findings for which the series is not read."""
    return tuple(finding for finding in findings if finding.severity is Severity.REFUSE)
