"""Whether a result can be taken as it is: one of three words, and the reasons."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


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
class Quality:
    """Whether a result can be taken as it is.

    Args:
        verdict: accept, review (a person must look), or refuse (it is surely wrong).
        reasons: a sentence for each doubt; empty if accepted.

    >>> vg.Quality().verdict
    <Verdict.ACCEPT: 'accept'>
    """

    verdict: Verdict = Verdict.ACCEPT
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, doubts: Iterable["Doubt"]) -> "Quality":
        """Return the worst verdict of some doubts, with all their reasons."""
        known = list(doubts)
        worst = max((doubt.verdict for doubt in known), key=list(Verdict).index, default=Verdict.ACCEPT)
        return cls(worst, tuple(doubt.reason for doubt in known))


@dataclass(frozen=True)
class Doubt:
    """Something odd in a sentence, and what follows from it."""

    verdict: Verdict
    reason: str
