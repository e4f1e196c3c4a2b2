"""Whether a result can be taken as it is: what is odd about a label map, and about how it was made."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from voxelgate.core.findings import Finding, Severity
from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import VOLUME_DIGITS, Structure, StructureRange
from voxelgate.core.verdict import Doubt, PredictedDice, Quality, Verdict
from voxelgate.evaluation.expectations import Expected
from voxelgate.evaluation.predicted_dice import Foretold

FRAGMENTED = 0.1
"""Share of a volume outside the largest piece that is told; 1 of 410 hand-drawn structures has more."""

FAR_MM = 20.0
"""Distance from the largest piece at which a piece is told: more than a gap in one organ, such as a missed slice."""


RARELY_CUT = 0.05
ALWAYS_PRESENT = 0.95
"""Shares of the training label maps: what one in twenty shows is no reason to look again."""


VOLUME_SLACK = 1.2
"""Least factor beyond the outer percentiles that is told; they are rough where few label maps were there."""

ABSURD_FACTOR = 5.0
"""Times the 99th percentile above which a volume is surely wrong: no organ grows so much and keeps its place."""

FULL = 0.95
"""Share of the image that no structure fills: there is always air or other tissue around it."""

LOW_CONFIDENCE = 0.7
"""Mean probability of a class where it won, below which it is told.

0.5 is a coin toss between two classes; the hippocampus bundle has 0.93 or more on 25 images of its kind.
"""

LOW_FLIP_DICE = 0.8
"""Agreement with the mirrored image below which it is told.

The hippocampus bundle, asked without its own mirroring, has 0.95 or more on 25 images of its kind.
"""

LOW_DICE = 0.7
"""Dice with true labels below which agreement is no good one (Zijdenbos 1994, doi:10.1109/42.363096)."""

FOREIGN = 3.0
"""Times the strangeness that one in a hundred sound images reaches, above which an image is of another kind."""

SURELY_WRONG = 0.6
"""Part of the Dice that sound results usually reach, below which a structure is surely wrong."""

FORETOLD_FROM = ("volume:", "fragments:")
"""How sentences begin on what the foretold Dice counts already."""

NAMED = 4
"""Structures that a sentence names before it counts the others."""

UNKNOWN = StructureRange((1.0, 1.0, 1.0))
"""Of a structure of which the bundle says nothing; its volume is then not judged."""


def assess(
    measured: Mapping[str, Structure],
    table: LabelTable,
    expected: Expected | None,
    *,
    findings: Sequence[Finding] = (),
    confidence: Sequence[float] | None = None,
    flip_dice: Mapping[str, float] | None = None,
) -> Quality:
    """Say whether a result can be taken as it is, and why not.

    Refused is what is surely wrong: a structure that fills the image or is absurdly large, and nothing at all where
    every training image had something. Whatever else is odd is to be reviewed by a person. Where the bundle does not
    say what its training label maps looked like, volumes are not judged, a missing structure is told, and one is cut by
    the border if it goes on through it. Of a bundle that did badly on its validation cases nothing is accepted.

    Args:
        measured: the structures of the result, from `measure_structures`.
        table: what the labels mean.
        expected: what the bundle was trained on, if it says so.
        findings: about the image; warnings count, notes do not.
        confidence: mean probability of each class where it won, background first; NaN where it never did.
        flip_dice: from `flip_dice`, by name of the structure.
    """
    known = expected or Expected()
    doubts = [
        *_doubts_about_bundle(known),
        *doubts_about(measured, table, dict(known.structures)),
        *_doubts_about_network(table, confidence, flip_dice or {}),
        *_doubts_about_image(findings),
    ]
    return Quality.of(doubts)


def assess_foretold(
    measured: Mapping[str, Structure],
    table: LabelTable,
    expected: Expected | None,
    foretold: Foretold,
    *,
    findings: Sequence[Finding] = (),
    flip_dice: Mapping[str, float] | None = None,
) -> Quality:
    """Say whether a result can be taken as it is, where a cross-validation has taught how good results are.

    The Dice that is foretold takes the place of the rules on volumes, fragments and confidence, from which it is
    foretold; what is surely wrong by `assess` is so here too.

    Args:
        measured: as for `assess`.
        table: as for `assess`.
        expected: as for `assess`.
        foretold: of the result.
        findings: as for `assess`.
        flip_dice: as for `assess`.
    """
    odd = doubts_about(measured, table, dict((expected or Expected()).structures))
    kept = [one for one in odd if one.verdict is Verdict.REFUSE or not one.reason.startswith(FORETOLD_FROM)]
    doubts = [
        *doubts_about_foretold(foretold, measured),
        *kept,
        *_doubts_about_network(table, None, flip_dice or {}),
        *_doubts_about_image(findings),
    ]
    return Quality.of(doubts, foretold.structures)


def _doubts_about_image(findings: Sequence[Finding]) -> Iterator[Doubt]:
    for finding in findings:
        if finding.severity is Severity.WARN:
            yield Doubt(Verdict.REVIEW, f"image: {finding}")


def doubts_about_foretold(foretold: Foretold, measured: Collection[str]) -> Iterator[Doubt]:
    """Yield what is odd about what is foretold of a result, worst first.

    Args:
        foretold: of the result.
        measured: names of the structures that were found.
    """
    if foretold.strangeness > 1:
        verdict = Verdict.REFUSE if foretold.strangeness > FOREIGN else Verdict.REVIEW
        yield Doubt(
            verdict,
            "image: it looks unlike those that the bundle was trained on, by "
            f"{foretold.strangeness:.1f} times what one in a hundred of them reaches.",
        )
    found = {name: one for name, one in foretold.structures.items() if name in measured}
    wrong = [name for name, one in found.items() if one.high < SURELY_WRONG * foretold.floors[name]]
    if wrong:
        yield Doubt(Verdict.REFUSE, f"dice: surely wrong: {listed([_dice_in_words(name, found) for name in wrong])}.")
    low = [name for name, one in found.items() if name not in wrong and one.value < foretold.floors[name]]
    if low:
        usual = listed([f"{_dice_in_words(name, found)}, usual {foretold.floors[name]:.2f} or more" for name in low])
        yield Doubt(Verdict.REVIEW, f"dice: foretold low: {usual}.")


def _dice_in_words(name: str, foretold: Mapping[str, PredictedDice]) -> str:
    one = foretold[name]
    return f"{name} {one.value:.2f} ({one.low:.2f} to {one.high:.2f})"


def _doubts_about_bundle(known: Expected) -> Iterator[Doubt]:
    if known.validation_dice is not None and known.validation_dice < LOW_DICE:
        stated = f"{known.validation_dice:.2f} on its validation cases, below {LOW_DICE}"
        yield Doubt(Verdict.REVIEW, f"bundle: its mean Dice was {stated}; no result of it stands unseen.")


def doubts_about(
    found: Mapping[str, Structure], table: LabelTable, ranges: Mapping[str, StructureRange]
) -> Iterator[Doubt]:
    """Yield what is odd about the structures of a label map, worst first.

    Args:
        found: from `measure_structures`.
        table: which structures there could be.
        ranges: how they looked in the training; those without are judged by themselves.
    """
    if not found:
        is_wrong = any(known.present >= ALWAYS_PRESENT for known in ranges.values())
        yield Doubt(Verdict.REFUSE if is_wrong else Verdict.REVIEW, "missing: no structure was found at all.")
        return
    yield from _doubts_about_presence(found, table, ranges)
    yield from _doubts_about_volume(found, ranges)
    yield from _doubts_about_shape(found, ranges)


def _doubts_about_presence(
    found: Mapping[str, Structure], table: LabelTable, ranges: Mapping[str, StructureRange]
) -> Iterator[Doubt]:
    missing = [
        name
        for name in table.foreground.values()
        if name not in found and (name not in ranges or ranges[name].present >= ALWAYS_PRESENT)
    ]
    if missing:
        yield Doubt(Verdict.REVIEW, f"missing: {listed(missing)}.")
    full = [f"{name} ({one.fills:.0%})" for name, one in found.items() if one.fills > FULL]
    if full:
        yield Doubt(Verdict.REFUSE, f"volume: {listed(full)} fills the image.")


def _doubts_about_volume(found: Mapping[str, Structure], ranges: Mapping[str, StructureRange]) -> Iterator[Doubt]:
    for name, known in ranges.items():
        if name not in found:
            continue
        low, middle, high = known.volume_ml
        largest = known.largest_ml or high
        volume_ml = round(found[name].volume_ml, VOLUME_DIGITS)
        usual = f"training had {_ml(low)} to {_ml(largest)}"
        if volume_ml > ABSURD_FACTOR * high:
            yield Doubt(Verdict.REFUSE, f"volume: {name} {_ml(volume_ml)}, absurdly large; {usual}.")
        elif volume_ml > largest:
            yield Doubt(Verdict.REVIEW, f"volume: {name} {_ml(volume_ml)}, large; {usual}.")
        elif volume_ml * max(VOLUME_SLACK, (middle / low) ** 0.5) < low:
            yield Doubt(Verdict.REVIEW, f"volume: {name} {_ml(volume_ml)}, small; {usual}.")


def _doubts_about_shape(found: Mapping[str, Structure], ranges: Mapping[str, StructureRange]) -> Iterator[Doubt]:
    both = {name: (one, ranges.get(name, UNKNOWN)) for name, one in found.items()}
    cut = [
        f"{name} ({', '.join(one.cut_at)})"
        for name, (one, known) in both.items()
        if one.cut_at and known.cut < RARELY_CUT
    ]
    broken = [
        f"{name} ({one.outside_main:.0%})"
        for name, (one, known) in both.items()
        if one.outside_main > max(FRAGMENTED, VOLUME_SLACK * known.outside_main)
    ]
    far = [
        f"{name} ({one.away_mm:.0f} mm)"
        for name, (one, known) in both.items()
        if one.away_mm > max(FAR_MM, VOLUME_SLACK * known.away_mm)
    ]
    if cut:
        yield Doubt(Verdict.REVIEW, f"border: the image ends within {listed(cut)}.")
    if broken:
        yield Doubt(Verdict.REVIEW, f"fragments: in pieces, with the share outside the largest: {listed(broken)}.")
    if far:
        yield Doubt(Verdict.REVIEW, f"fragments: a piece lies far from the rest of {listed(far)}.")


def _doubts_about_network(
    table: LabelTable, confidence: Sequence[float] | None, dice_of: Mapping[str, float]
) -> Iterator[Doubt]:
    stated = {} if confidence is None else dict(zip(table.names, confidence, strict=True))
    unsure = [
        f"{name} ({stated[name]:.2f})" for name in table.foreground.values() if stated.get(name, 1.0) < LOW_CONFIDENCE
    ]
    if unsure:
        yield Doubt(Verdict.REVIEW, f"confidence: the network is unsure of {listed(unsure)}.")
    unlike = [f"{name} (Dice {dice:.2f})" for name, dice in dice_of.items() if dice < LOW_FLIP_DICE]
    if unlike:
        yield Doubt(Verdict.REVIEW, f"mirror: the mirrored image gives another result for {listed(unlike)}.")


def listed(texts: Sequence[str]) -> str:
    """Return the first texts, and how many there are beyond them."""
    named = ", ".join(texts[:NAMED])
    return named if len(texts) <= NAMED else f"{named} and {len(texts) - NAMED} more"


def _ml(volume_ml: float) -> str:
    return f"{volume_ml:.0f} ml" if volume_ml >= 100 else f"{volume_ml:.3g} ml"
