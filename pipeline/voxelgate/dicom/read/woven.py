"""Whether slices of two or more acquisitions alternate in a volume, told by their values where no header tells it."""

import numpy as np
import numpy.typing as npt

from voxelgate.core.findings import Finding, FindingCode, Severity

PERIODS = (2, 3)
"""Numbers of acquisitions that are looked for; slices of four alternate in pairs, too."""

LEAST_SLICES = 12
"""Fewest slices of which a spectrum says anything."""

BLOCKS = 32
"""Parts of a slice along each edge, whose means are compared: that leaves the anatomy and takes away the noise."""

LOWEST_FREQUENCY = 0.2
"""Of what is compared with the alternation, in periods a slice; below it lies the anatomy."""

WOVEN_RATIO = 4.0
"""How much stronger an alternation must be than what is a little slower; the spectrum of a sound stack falls.

In 200 sound CT and MR volumes it is 0.04 to 0.9. CT of the body of which every other slice has 40 HU more in soft
tissue gives 6 to 75, by the noise.
"""

LEAST_AMPLITUDE_HU = 10.0
"""Difference of CT slices that matters, in a twentieth of their parts; scanners' own are some HU."""

LEAST_AMPLITUDE = 0.02
"""The same for other images, as a share of the range of their values."""

Voxels = npt.NDArray[np.float32]


def woven_finding(voxels: Voxels, modality: str, *, is_suspect: bool) -> Finding | None:
    """Return what speaks against one acquisition, if slices differ from their neighbours by turns, all along the stack.

    In MR the odd slices of one acquisition are often measured before the even ones, so that they can be darker, which
    does not count, or the patient moves in between, which is only a warning unless the header is suspect too.

    Args:
        voxels: (I, J, K), in the order of the stack.
        modality: as DICOM names it.
        is_suspect: whether settings alternate along the stack.
    """
    if voxels.shape[2] < LEAST_SLICES:
        return None
    means = _block_means(voxels)
    if modality == "CT":
        least = LEAST_AMPLITUDE_HU
    else:
        levels = means.mean(axis=0)
        means = means * (np.median(levels) / np.where(levels > 0, levels, 1.0))
        least = LEAST_AMPLITUDE * float(np.subtract(*np.percentile(means, (99, 1))))
    period = next((period for period in PERIODS if _is_woven(means, period, least)), None)
    if period is None:
        return None
    told = f"every {'second' if period == 2 else 'third'} slice differs from those between in the same way"
    if modality == "MR" and not is_suspect:
        sentence = f"{told}, as if {period} acquisitions alternated along the stack; check that it is one acquisition."
        return Finding(FindingCode.MIXED_ACQUISITIONS, Severity.WARN, sentence)
    sentence = f"{told}, so {period} acquisitions alternate along the stack, expected one; give each of them alone."
    return Finding(FindingCode.MIXED_ACQUISITIONS, Severity.REFUSE, sentence)


def _block_means(voxels: Voxels) -> npt.NDArray[np.float64]:
    """Return the means of square parts of each slice, (parts, K)."""
    width, height, count = voxels.shape
    wide, high = max(1, width // BLOCKS), max(1, height // BLOCKS)
    across, down = width // wide, height // high
    planes = voxels.transpose(2, 1, 0)  # each one piece of memory, as `read_stack` leaves them
    means = np.empty((across * down, count))
    for index in range(count):
        part = planes[index, : down * high, : across * wide].reshape(down * high, across, wide)
        rows = np.add.reduce(part, axis=2, dtype=np.float64).reshape(down, high, across)
        means[:, index] = rows.mean(axis=1).ravel() / wide
    return means


def _is_woven(means: npt.NDArray[np.float64], period: int, least: float) -> bool:
    """Return whether values alternate so along the stack, stronger than anything a little slower, and by so much."""
    bends = means[:, 1:-1] - (means[:, :-2] + means[:, 2:]) / 2
    count = bends.shape[1]
    limit = float(np.percentile(np.abs(bends), 90)) or float(np.abs(bends).max())
    bends = np.clip(bends, -limit, limit)  # edges of organs weigh no more than the rest
    slower = np.arange(LOWEST_FREQUENCY, 1 / period - 2 / count, 0.5 / count)
    if not slower.size or limit == 0:
        return False
    usual = float(np.median([_power(bends, float(frequency)) for frequency in slower]))
    wave = np.exp(-2j * np.pi * np.arange(count) / period)
    amplitudes = 2 * np.abs((bends @ wave) / count) / _gain(1 / period)
    return float(np.percentile(amplitudes, 95)) >= least and _power(bends, 1 / period) > WOVEN_RATIO * usual


def _power(bends: npt.NDArray[np.float64], frequency: float) -> float:
    """Return the mean power at a frequency of the values of which these are the bends."""
    window = np.hanning(bends.shape[1] + 2)[1:-1]
    wave = np.exp(-2j * np.pi * frequency * np.arange(bends.shape[1]))
    return float((np.abs((bends * window) @ wave) ** 2).mean()) / _gain(frequency) ** 2


def _gain(frequency: float) -> float:
    """Return by how much bends are larger than the values, at a frequency."""
    return float(1 - np.cos(2 * np.pi * frequency))
