"""Turn what is measured of a result into signs of a bad one, each the larger the worse, in units of what is usual."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from voxelgate.evaluation.observation import Observation, QualityRow

Numbers = Mapping[str, float]

Range = tuple[float, float]
"""What is usual: the middle, and the distance from it that about two in three keep within."""

NO_DOUBT = 0.005
"""Added to a share of doubt before its logarithm: less is not told apart."""

QUARTILES_SD = 1.349
"""Distance of the quartiles of a normal distribution in standard deviations."""

LEAST_OF_SD = 0.3
"""Part of the standard deviation below which a distance of quartiles is not believed."""

SHRINKAGE = 0.3
"""Part of the covariance of looks that is replaced by equal independent variances; few cases know no better."""

FARTHEST = 50.0
"""Usual distances beyond which a look is no stranger."""

DOUBTS: Mapping[str, Callable[[Numbers], float]] = {
    "expected error": lambda one: 1 - 2 * one["own"] / (one["voxels"] + one["all"]),
    "inner doubt": lambda one: 1 - one["own"] / one["voxels"],
    "spread doubt": lambda one: 1 - one["squared"] / one["all"],
    "views apart": lambda one: 1 - one["least"] / one["most"] if one["most"] > 0 else 0.0,
    "thin core": lambda one: 1 - one["narrow"] / one["voxels"],
    "unsure band": lambda one: (one["wide"] - one["narrow"] + 1) / (one["voxels"] + 1),
}
"""Shares of doubt in what the scores say of a structure.

The first is the error of Dice to be expected if the probabilities were right: twice the probability inside over the
voxels inside and all probability.
"""

FORMS = ("volume_ml", "wide_mm", "deep_mm", "high_mm")
OFFSETS = ("r_mm", "a_mm", "s_mm")

LEAST_SPREAD: Mapping[str, float] = {
    **dict.fromkeys(DOUBTS, 0.1),
    **dict.fromkeys(FORMS, 0.05),
    **dict.fromkeys(OFFSETS, 2.0),
    "roughness": 0.03,
    "brightness": 0.02,
    "texture": 0.02,
    "ratio": 0.05,
}
"""Smallest spread that is believed: of logarithms, mm, and the values of prepared images."""

LEAST_LOOK = 0.02


@dataclass(frozen=True)
class Usual:
    """What is usual of sound images and of results of them.

    Args:
        structures: of each measure of each structure.
        pairs: of how two structures lie to each other, by the name of the one and of the other.
        look: of the numbers of an image.
        precision: inverse of the covariance of the look, in usual distances.
    """

    structures: Mapping[str, Mapping[str, Range]]
    pairs: Mapping[str, Mapping[str, Mapping[str, Range]]]
    look: Mapping[str, Range]
    precision: tuple[tuple[float, ...], ...]

    def strangeness(self, look: Numbers) -> float:
        """Return how unlike an image is: its Mahalanobis distance, about 1 for a usual one."""
        apart = np.array([_usual_steps(look[name], usual) for name, usual in self.look.items()]).clip(
            -FARTHEST, FARTHEST
        )
        return float(math.sqrt(apart @ np.array(self.precision) @ apart / len(apart)))


def usual_of(rows: Iterable[QualityRow]) -> Usual:
    """Return what is usual, from the rows that are not damaged: forms of the truth, the rest of the results."""
    sound = [row for row in rows if not row.damage]
    names = list(dict.fromkeys(name for row in sound for name in row.truth))
    structures = {}
    for name in names:
        found = [_measures(row.observation.structures[name]) for row in sound if name in row.observation.structures]
        forms = [_measures_of_form(row.truth[name]) for row in sound if name in row.truth]
        of_results = {
            key: _usual_range([one[key] for one in found], LEAST_SPREAD[key])
            for key in LEAST_SPREAD
            if found and key in found[0]
        }
        of_truth = {key: _usual_range([one[key] for one in forms], LEAST_SPREAD[key]) for key in FORMS}
        structures[name] = of_results | of_truth if found else {}
    pairs: dict[str, dict[str, Mapping[str, Range]]] = {name: {} for name in names}
    for name, other in permutations(names, 2):
        both = [_relation(row.truth[name], row.truth[other]) for row in sound if {name, other} <= row.truth.keys()]
        if both:
            pairs[name][other] = {key: _usual_range([one[key] for one in both], LEAST_SPREAD[key]) for key in both[0]}
    looks = [row.observation.look for row in sound]
    look = {key: _usual_range([one[key] for one in looks], LEAST_LOOK) for key in looks[0]}
    return Usual(structures, pairs, look, _inverse_covariance(looks, look))


def signs_of(observation: Observation, usual: Usual) -> dict[str, dict[str, float]]:
    """Return the signs of a bad result for each structure that was found and is known."""
    found = {name: one for name, one in observation.structures.items() if usual.structures.get(name)}
    apart = {
        name: {key: _usual_steps(value, usual.structures[name][key]) for key, value in _measures(one).items()}
        for name, one in found.items()
    }
    strange = math.log(max(usual.strangeness(observation.look), NO_DOUBT))
    missing = float(len(usual.structures) - len(found))
    return {
        name: _own_signs(one, apart[name])
        | _signs_of_others(name, found, apart, usual)
        | {"strange image": strange, "missing others": missing}
        for name, one in found.items()
    }


def _own_signs(one: Numbers, apart: Numbers) -> dict[str, float]:
    return {
        **{key: apart[key] for key in DOUBTS},
        "volume": abs(apart["volume_ml"]),
        "small": max(-apart["volume_ml"], 0.0),
        "extent": max(abs(apart[key]) for key in FORMS[1:]),
        "rough": apart["roughness"],
        "brightness": abs(apart["brightness"]),
        "texture": abs(apart["texture"]),
        "fragments": math.log1p(100 * one["outside_main"]),
        "far pieces": math.log1p(one["away_mm"]),
        "cut": one["cut"],
    }


def _signs_of_others(
    name: str, found: Mapping[str, Numbers], apart: Mapping[str, Numbers], usual: Usual
) -> dict[str, float]:
    """Return how a structure lies to the others, by most of them, and what doubt there is of those."""
    places, ratios = [], []
    for other, known in usual.pairs[name].items():
        if other in found:
            relation = _relation(found[name], found[other])
            places.append(math.hypot(*(_usual_steps(relation[key], known[key]) for key in OFFSETS)))
            ratios.append(abs(_usual_steps(relation["ratio"], known["ratio"])))
    others = [apart[other]["expected error"] for other in found if other != name]
    return {
        "place": float(np.median(places or [0.0])),
        "proportion": float(np.median(ratios or [0.0])),
        "doubt of others": float(np.mean(others or [0.0])),
    }


def _measures(one: Numbers) -> dict[str, float]:
    voxels = max(one["voxels"], 1.0)
    known = dict(one) | {"voxels": voxels, "all": max(one["all"], NO_DOUBT)}
    mean = one["value"] / voxels
    return {
        **{key: math.log(max(doubt(known), 0.0) + NO_DOUBT) for key, doubt in DOUBTS.items()},
        **_measures_of_form(one),
        "brightness": mean,
        "texture": math.sqrt(max(one["value_squared"] / voxels - mean**2, 0.0)),
    }


def _measures_of_form(one: Numbers) -> dict[str, float]:
    return {key: math.log(one[key]) for key in (*FORMS, "roughness")}


def _relation(one: Numbers, other: Numbers) -> dict[str, float]:
    ratio = math.log(one["volume_ml"] / other["volume_ml"])
    return {**{key: one[key] - other[key] for key in OFFSETS}, "ratio": ratio}


def _usual_range(values: Sequence[float], least: float) -> Range:
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return middle, max((high - low) / QUARTILES_SD, LEAST_OF_SD * float(np.std(values)), least)


def _usual_steps(value: float, usual: Range) -> float:
    """Return how far a value lies from the middle, in usual distances."""
    return (value - usual[0]) / usual[1]


def _inverse_covariance(looks: Sequence[Numbers], usual: Mapping[str, Range]) -> tuple[tuple[float, ...], ...]:
    apart: npt.NDArray[np.float64] = np.array([[_usual_steps(one[key], usual[key]) for key in usual] for one in looks])
    covariance = np.atleast_2d(np.cov(apart.clip(-5, 5).T)) if len(apart) > 1 else np.eye(len(usual))
    even = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    inverse = np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * even)
    return tuple(map(tuple, np.round(inverse, 6).tolist()))
