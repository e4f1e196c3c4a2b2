"""Foretell the Dice of each structure of a result with an interval, by what came of results whose truth is known.

The logarithm of the error (1 - Dice) is a sum of signs, none of which can make a result better, fitted by least squares
with bounds; what it says is then brought to the errors that were seen, and the interval holds what nine in ten of the
errors did (split conformal, by subjects that the fit had not seen: Vovk 2005, doi:10.1007/b106715; Barber 2021,
doi:10.1214/20-AOS1965).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from scipy.optimize import isotonic_regression, lsq_linear

from voxelgate.core.documents import read_json
from voxelgate.core.verdict import PredictedDice
from voxelgate.evaluation.observation import Observation, QualityRow
from voxelgate.evaluation.quality_features import Usual, signs_of, usual_of

Array = npt.NDArray[np.float64]

PERFECT = 0.02
"""Error that is added before the logarithm: smaller ones are not told apart."""

USUAL_UP_TO = 2.5
"""Usual distances up to which a sign counts in proportion; beyond, by its logarithm and with a weight of its own."""

SUPPOSED: Mapping[str, float] = {
    "expected error": 0.03,
    "inner doubt": 0.08,
    "spread doubt": 0.03,
    "thin core": 0.08,
    "unsure band": 0.08,
    "views apart": 0.05,
    "small": 0.05,
}
"""Weights that signs are supposed to have within the usual, as long as few cases say otherwise.

Sound results differ in little, and most of what they seem to tell of in tens of cases is chance.
"""

SUPPOSED_PAIRS = 1000.0
"""Pairs of case and structure that must say otherwise to count as much as what is supposed within the usual."""

RIDGE_PAIRS = 10.0
"""The same for weights beyond the usual, which are supposed to be 0 and of which damaged images tell much."""

DAMAGED_WEIGHT = 0.3
"""What damaged pairs count together, in the weight of all sound ones."""

PARTS = 5
"""Parts of the subjects: each is foretold by a fit that has not seen it, for calibration."""

CURVE = 8
"""Steps of the curve from what the signs say to the errors that were seen."""

TRUST = 0.25
"""Part that what the signs say has in the curve; the rest is what was seen."""

FAR = 3.0
"""Distance in logarithms beyond the outer groups at which the curve ends, having gone on in parallel."""

BANDS = 4
"""Groups of alike errors with bounds of their own."""

FEWEST_IN_BAND = 40

LOOKED_AT = 0.3
"""Part of sound cases that may have a structure below its floor, where each structure fails on its own."""

LEAST_PART, MOST_PART = 0.02, 0.1
"""Parts of the sound results of a structure between which those below its floor lie."""

CLEARLY_LOWER = 0.05
"""Dice below the median that matters; some structures hardly vary."""

COVERAGE = 0.9
"""Part of all pairs whose Dice lies in its interval."""


@dataclass(frozen=True)
class Foretold:
    """What is foretold of a result.

    Args:
        structures: Dice of each structure that the bundle knows; one that was not found has 0.
        floors: Dice of each structure that sound results usually reach.
        strangeness: how unlike those of the training the image is; 1 for what one in a hundred sound images reaches.
    """

    structures: Mapping[str, PredictedDice]
    floors: Mapping[str, float]
    strangeness: float


@dataclass(frozen=True, eq=False)
class QualityModel:
    """Foretells Dice; made by `fit_quality`.

    Args:
        usual: what is usual of images and results.
        levels: usual logarithm of the error of each structure.
        weights: of each sign, within the usual and beyond it.
        curve: from the sum of the signs to the logarithm of the error that was seen: points in order.
        bounds: centre of each band of errors, as a logarithm, and what is added for lower and upper bound.
        floors: Dice of each structure that sound results usually reach.
        strangest: strangeness of an image that one in a hundred sound ones reaches.
        cases: sound cases that it rests on.
        subjects: whose they are.
    """

    usual: Usual
    levels: Mapping[str, float]
    weights: Mapping[str, tuple[float, float]]
    curve: tuple[tuple[float, float], ...]
    bounds: tuple[tuple[float, float, float], ...]
    floors: Mapping[str, float]
    strangest: float
    cases: int
    subjects: int

    def foretell(self, observation: Observation) -> Foretold:
        """Return what is foretold of a result; of a structure that was not found, that it is missed.

        Args:
            observation: of the result.
        """
        structures = {name: PredictedDice(0.0, 0.0, 0.0) for name in self.levels if name not in observation.structures}
        for name, signs in signs_of(observation, self.usual).items():
            said = self.levels[name] + _row_of(signs) @ _flat(self.weights)
            middle = float(_on_curve(self.curve, said))
            centres, low, high = zip(*self.bounds, strict=True)
            ends = middle + np.interp(middle, centres, high), middle + np.interp(middle, centres, low)
            value, least, most = (round(_dice_of(end), 3) for end in (middle, *ends))
            structures[name] = PredictedDice(value, min(least, value), max(most, value))
        return Foretold(structures, self.floors, self.usual.strangeness(observation.look) / self.strangest)

    def to_json(self) -> str:
        """Return the model as a JSON document."""
        return json.dumps(asdict(self), allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read a model that `to_json` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds something else.
        """
        return TypeAdapter(cls).validate_python(read_json(path))


def fit_quality(rows: Sequence[QualityRow]) -> QualityModel:
    """Learn from results whose truth is known, sound ones and damaged ones.

    Args:
        rows: of at least two subjects; each by a network that has not seen its subject.

    Raises:
        ValueError: of fewer than two subjects a sound row holds a structure.
    """
    sound = [row for row in rows if not row.damage]
    subjects = sorted({row.subject for row in sound if row.dice.keys() & row.observation.structures.keys()})
    if len(subjects) < 2:
        raise ValueError(f"quality is learnt from found structures of at least two subjects, found {len(subjects)}")
    part_of = {subject: number % PARTS for number, subject in enumerate(subjects)}
    foretold, strange = [], []
    for part in sorted(set(part_of.values())):
        seen = [row for row in rows if part_of.get(row.subject) != part]
        unseen = [row for row in rows if part_of.get(row.subject) == part]
        usual = usual_of(seen)
        fit = _fit(_known_pairs(seen, usual))
        foretold += [(pair, fit.said(pair)) for pair in _known_pairs(unseen, usual) if pair.name in fit.levels]
        strange += [usual.strangeness(row.observation.look) for row in unseen if not row.damage]
    said = np.array([each for _, each in foretold])
    true = np.array([pair.target for pair, _ in foretold])
    weight = np.array([pair.weight for pair, _ in foretold])
    curve = _curve(said, true, weight)
    middle = _on_curve(curve, said)
    whole = usual_of(rows)
    last = _fit(_known_pairs(rows, whole))
    return QualityModel(
        whole,
        last.levels,
        last.weights,
        curve,
        _bounds(middle, true - middle),
        _floors(sound),
        float(np.quantile(strange, 0.99)),
        len(sound),
        len(subjects),
    )


@dataclass(frozen=True)
class _Pair:
    """A structure of a result whose truth is known."""

    name: str
    signs: Array
    target: float
    weight: float


@dataclass(frozen=True)
class _Fit:
    levels: Mapping[str, float]
    weights: Mapping[str, tuple[float, float]]

    def said(self, pair: _Pair) -> float:
        return self.levels[pair.name] + float(pair.signs @ _flat(self.weights))


def _known_pairs(rows: Iterable[QualityRow], usual: Usual) -> list[_Pair]:
    known = list(rows)
    damaged = sum(bool(row.damage) for row in known)
    of_damaged = min(1.0, DAMAGED_WEIGHT * (len(known) - damaged) / max(damaged, 1))
    return [
        _Pair(name, _row_of(signs), float(np.log(1 - row.dice[name] + PERFECT)), of_damaged if row.damage else 1.0)
        for row in known
        for name, signs in signs_of(row.observation, usual).items()
        if name in row.dice
    ]


SIGNS = (
    "expected error", "inner doubt", "spread doubt", "thin core", "views apart", "unsure band", "volume", "small",
    "extent", "rough", "brightness", "texture", "fragments", "far pieces", "cut", "place", "proportion",
    "doubt of others", "strange image", "missing others",
)  # fmt: skip
"""In the order of the weights."""


def _row_of(signs: Mapping[str, float]) -> Array:
    values = np.array([signs[name] for name in SIGNS])
    within = values.clip(-USUAL_UP_TO, USUAL_UP_TO)
    beyond = np.log1p((values - USUAL_UP_TO).clip(0))
    return np.concatenate((within, beyond))


def _flat(weights: Mapping[str, tuple[float, float]]) -> Array:
    return np.array([weights[name][side] for side in range(2) for name in SIGNS])


def _fit(pairs: Sequence[_Pair]) -> _Fit:
    """Return levels and weights by least squares; no weight is below 0."""
    names = sorted({pair.name for pair in pairs})
    signs = np.array([pair.signs for pair in pairs])
    is_of = np.array([[pair.name == name for name in names] for pair in pairs], float)
    root = np.sqrt([pair.weight for pair in pairs])
    pull = np.sqrt(np.repeat((SUPPOSED_PAIRS, RIDGE_PAIRS), len(SIGNS)))
    supposed = pull * np.array([SUPPOSED.get(sign, 0.0) for sign in SIGNS] + [0.0] * len(SIGNS))
    wanted = np.concatenate((root * [pair.target for pair in pairs], supposed))
    prior = np.hstack((np.zeros((len(pull), len(names))), np.diag(pull)))
    rows = np.vstack((np.hstack((is_of, signs)) * root[:, None], prior))
    lowest = np.concatenate((np.full(len(names), -np.inf), np.zeros(len(pull))))
    solved = np.round(lsq_linear(rows, wanted, (lowest, np.inf)).x, 6).tolist()
    within, beyond = solved[len(names) : len(names) + len(SIGNS)], solved[len(names) + len(SIGNS) :]
    weights = {sign: both for sign, *both in zip(SIGNS, within, beyond, strict=True)}
    return _Fit(dict(zip(names, solved, strict=False)), {sign: (low, high) for sign, (low, high) in weights.items()})


def _curve(said: Array, true: Array, weight: Array) -> tuple[tuple[float, float], ...]:
    """Return points of a rising curve through the means of groups of alike pairs, drawn a little to what was said."""
    groups = np.array_split(np.argsort(said, kind="stable"), max(1, min(CURVE, len(said) // FEWEST_IN_BAND)))
    x = np.array([np.average(said[group], weights=weight[group]) for group in groups])
    errors = np.array([np.average(np.exp(true[group]), weights=weight[group]) for group in groups])
    rising = np.log(isotonic_regression(errors, weights=[weight[group].sum() for group in groups]).x)
    y = (1 - TRUST) * rising + TRUST * (x + (rising - x).mean())
    ends = (x[0] - FAR, y[0] - FAR), *zip(x, y, strict=True), (x[-1] + FAR, y[-1] + FAR)
    return tuple((round(float(at), 6), round(float(to), 6)) for at, to in ends)


def _on_curve(curve: Sequence[tuple[float, float]], said: float | Array) -> Array:
    x, y = np.array(curve).T
    found: Array = np.interp(said, x, y)
    return found


def _bounds(middle: Array, off: Array) -> tuple[tuple[float, float, float], ...]:
    groups = np.array_split(np.argsort(middle, kind="stable"), max(1, min(BANDS, len(middle) // FEWEST_IN_BAND)))
    tail = (1 - COVERAGE) / 2
    found = []
    for group in groups:
        most = (len(group) + 1) / len(group)
        low, high = np.quantile(off[group], (max(0.0, 1 - (1 - tail) * most), min(1.0, (1 - tail) * most)))
        found.append((round(float(middle[group].mean()), 6), round(float(low), 6), round(float(high), 6)))
    return tuple(found)


def _dice_of(logarithm: float) -> float:
    return float(np.clip(1 - (np.exp(logarithm) - PERFECT), 0.0, 1.0))


def _floors(sound: Sequence[QualityRow]) -> dict[str, float]:
    """Return below which Dice a structure is to be looked at: so that not too many sound cases have one such."""
    names = dict.fromkeys(name for row in sound for name in row.dice)
    part = float(np.clip(LOOKED_AT / len(names), LEAST_PART, MOST_PART))
    floors = {}
    for name in names:
        low, middle = np.quantile([row.dice[name] for row in sound if name in row.dice], (part, 0.5)).tolist()
        floors[name] = round(min(low, middle - CLEARLY_LOWER), 3)
    return floors
