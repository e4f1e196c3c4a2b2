"""What the maps of an attention gate say, in a record that needs no PyTorch to be read."""

from dataclasses import dataclass
from enum import StrEnum


class GateVerdict(StrEnum):
    """What a gate does: the same everywhere, nothing or everything, tell the labels apart, or vary without them."""

    UNIFORM = "uniform"
    SATURATED = "saturated"
    SELECTIVE = "selective"
    UNRELATED = "unrelated"


@dataclass(frozen=True)
class GateReport:
    """What the coefficients of one attention gate say.

    Args:
        level: of its skip connection, 0 the finest.
        verdict: in a word.
        low: value that all but a thousandth of the voxels exceed.
        high: value that only a thousandth of the voxels exceed.
        entropy: of the coefficients as a distribution over the voxels, 1 where all are equal, 0 for a single voxel.
        mass_inside: part of the sum of the coefficients that lies inside the labels.
        label_share: part of the voxels inside the labels: `mass_inside` of a gate that is the same everywhere.
        contrast: mean inside minus mean outside the labels; 0 if one of them is empty.
    """

    level: int
    verdict: GateVerdict
    low: float
    high: float
    entropy: float
    mass_inside: float
    label_share: float
    contrast: float

    def __str__(self) -> str:
        return (
            f"gate {self.level} is {self.verdict}: {self.low:.2f} to {self.high:.2f}, entropy {self.entropy:.3f}, "
            f"{100 * self.mass_inside:.1f} % of its mass on {100 * self.label_share:.1f} % of the voxels, the labels"
        )
