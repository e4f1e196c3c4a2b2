"""Numbers of cross-validation folds: dealt by subject, and closed up where one was lost."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from voxelgate.core.errors import UsageError


def assign_folds(subject_of: Mapping[str, str], folds: int, seed: int = 0) -> dict[str, int]:
    """Deal cases into folds 0 to `folds - 1` so that no subject is split and the folds are as equal as that allows.

    Subjects with many cases are dealt first, the others in the order of a hash, each to the fold that has the fewest
    cases; so two folds never differ by more cases than the largest subject has, whatever the order of the cases.

    Args:
        subject_of: subject of every case id.
        folds: number of folds.
        seed: part of the hash.

    Raises:
        UsageError: fewer than one fold, or more folds than subjects.

    >>> assign_folds({"a": "s1", "b": "s1", "c": "s2"}, 2) == {"a": 0, "b": 0, "c": 1}
    True
    """
    size = Counter(subject_of.values())
    if not 1 <= folds <= len(size):
        raise UsageError(f"{folds} folds asked for, but {_possible(len(size))}.")
    cases_in = [0] * folds
    fold_of_subject: dict[str, int] = {}
    for subject in sorted(size, key=lambda subject: (-size[subject], _order_key(f"{seed}/{subject}"), subject)):
        fold = cases_in.index(min(cases_in))
        fold_of_subject[subject] = fold
        cases_in[fold] += size[subject]
    return {case_id: fold_of_subject[subject] for case_id, subject in subject_of.items()}


def _possible(subjects: int) -> str:
    if subjects == 1:
        return "there is one subject, and nobody is in two folds; train on all cases (--fold -1), or add a subject"
    return f"there are {subjects} subjects; choose 1 to {subjects} folds"


def closed_up(folds: Iterable[int | None]) -> dict[int | None, int | None]:
    """Return a new number for each fold, 0, 1, 2, ... in their order; None stays None.

    >>> closed_up([3, 0, 3])
    {None: None, 0: 0, 3: 1}
    """
    return {None: None} | {fold: number for number, fold in enumerate(sorted({f for f in folds if f is not None}))}


def _order_key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
