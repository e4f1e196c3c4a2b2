"""Measure all of a result by which its quality can be foretold, in plain numbers."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from voxelgate.core.forms import Form, measure_forms
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import Structure
from voxelgate.evaluation.observation import Observation
from voxelgate.inference.restoring.label_sums import Sum, Sums


def observe(
    labels: npt.NDArray[Any],
    grid: Grid,
    table: LabelTable,
    measured: Mapping[str, Structure],
    said: tuple[Sums, Mapping[str, float]],
) -> Observation:
    """Return what is measured of a result.

    Args:
        labels: (I, J, K).
        grid: of the labels, RAS+ mm.
        table: what the labels mean.
        measured: the structures of the labels.
        said: what scores and image say of each label, and how the image looks to the network.
    """
    sums, look = said
    forms = measure_forms(labels, grid, table)
    values = {name: value for value, name in table.foreground.items()}
    of_structures = {
        name: form_values(form) | _result_values(measured[name], sums, values[name]) for name, form in forms.items()
    }
    return Observation(of_structures, look)


def form_values(form: Form) -> dict[str, float]:
    """Return the form of a structure as numbers by name."""
    return {
        "volume_ml": form.volume_ml,
        "roughness": form.roughness,
        **dict(zip(("r_mm", "a_mm", "s_mm"), form.centre_mm, strict=True)),
        **dict(zip(("wide_mm", "deep_mm", "high_mm"), form.extent_mm, strict=True)),
    }


def _result_values(found: Structure, sums: Sums, label: int) -> dict[str, float]:
    row = sums[label] if label < len(sums) else [0.0] * len(Sum)
    return {
        "cut": float(len(found.cut_at)),
        "outside_main": found.outside_main,
        "away_mm": found.away_mm,
        **{column.name.lower(): float(row[column]) for column in Sum},
    }
