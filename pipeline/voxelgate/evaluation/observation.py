"""What is measured of a result, from which its quality is foretold, and what came of results whose truth is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Observation:
    """What is measured of a result.

    Args:
        structures: numbers of each structure that was found, by its name and theirs.
        look: numbers of the image as the network got it.
    """

    structures: Mapping[str, Mapping[str, float]]
    look: Mapping[str, float]


@dataclass(frozen=True)
class QualityRow:
    """A result whose truth is known.

    Args:
        case_id: of the case.
        subject: of the case.
        damage: what was done to the image on purpose; empty for nothing.
        observation: what was measured of the result.
        dice: of each structure that result or truth hold.
        truth: the form of each structure of the truth, as numbers.
    """

    case_id: str
    subject: str
    damage: str
    observation: Observation
    dice: Mapping[str, float]
    truth: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
