"""The planes in which people look at a patient, whatever is drawn in them."""

from typing import Literal, NamedTuple

PlaneName = Literal["axial", "coronal", "sagittal"]


class ViewPlane(NamedTuple):
    """A plane of the patient: which axis it cuts, and the letters at the left, right, upper and lower edge."""

    name: PlaneName
    axis: int
    edges: str

    @property
    def others(self) -> tuple[int, int]:
        """Return the axes that run across and down."""
        across, down = sorted({0, 1, 2} - {self.axis})
        return across, down


PLANES = (ViewPlane("axial", 2, "RLAP"), ViewPlane("coronal", 1, "RLSI"), ViewPlane("sagittal", 0, "APSI"))
"""Radiological convention: the patient's right is on the left, as seen from the feet and from the front."""
