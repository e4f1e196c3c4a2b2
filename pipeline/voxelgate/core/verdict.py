"""Whether a result can be taken as it is: one of three words, and the reasons."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean

NOT_CALIBRATED = "not calibrated"
"""Said in the place of a foretold Dice where no cross-validation has taught a bundle how good its results are."""


class Verdict(StrEnum):
    """What to do with a result before anybody relies on it.

    >>> [f"{verdict} means {verdict.in_words}" for verdict in vg.Verdict]
    ['accept means accepted', 'review means for review', 'refuse means refused']
    """

    ACCEPT = "accept"
    REVIEW = "review"
    REFUSE = "refuse"

    @property
    def in_words(self) -> str:
        """Return what a person reads: a result is accepted, for review, or refused; input is rejected instead."""
        return {"accept": "accepted", "review": "for review", "refuse": "refused"}[self.value]


class Require(StrEnum):
    """The least verdict with which a result is written; of the others there are previews only."""

    ACCEPT = "accept"
    REVIEW = "review"
    ANY = "any"

    def admits(self, verdict: Verdict) -> bool:
        """Return whether a result with this verdict is written.

        >>> [verdict.value for verdict in Verdict if Require.REVIEW.admits(verdict)]
        ['accept', 'review']
        """
        return self is Require.ANY or list(Verdict).index(verdict) <= list(Verdict).index(Verdict(self.value))


@dataclass(frozen=True)
class PredictedDice:
    """How well a structure is likely to match the truth, which nobody knows yet.

    Args:
        value: the Dice to be expected, 0 to 1.
        low: below which nine in ten do not fall together with `high`.
        high: above which they do not rise.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """Whether a result can be taken as it is.

    Args:
        verdict: accept, review (a person must look), or refuse (it is surely wrong).
        reasons: a sentence for each doubt; empty if accepted.
        structures: Dice foretold of each structure; empty if the bundle was not calibrated in a cross-validation, and
            the verdict rests on fixed rules.

    >>> vg.Quality().verdict
    <Verdict.ACCEPT: 'accept'>
    """

    verdict: Verdict = Verdict.ACCEPT
    reasons: tuple[str, ...] = ()
    structures: Mapping[str, PredictedDice] = field(default_factory=dict)

    @property
    def predicted_dice(self) -> float | None:
        """Return the mean of what is foretold of the structures; None if nothing is."""
        return fmean(one.value for one in self.structures.values()) if self.structures else None

    @classmethod
    def of(cls, doubts: Iterable["Doubt"], structures: Mapping[str, PredictedDice] | None = None) -> "Quality":
        """Return the worst verdict of some doubts, with all their reasons, and what is foretold."""
        known = list(doubts)
        worst = max((doubt.verdict for doubt in known), key=list(Verdict).index, default=Verdict.ACCEPT)
        return cls(worst, tuple(doubt.reason for doubt in known), structures or {})


@dataclass(frozen=True)
class Doubt:
    """Something odd in a sentence, and what follows from it."""

    verdict: Verdict
    reason: str
