"""Ask a bundle to run otherwise than it does: faster, in other steps, without mirroring, for some structures only."""

from collections.abc import Callable, Sequence
from typing import Any

from voxelgate.core.errors import UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.core.terminology import normalised
from voxelgate.inference.composed.part import parts_in
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer

Inferer = Callable[..., Any]


def adjusted_inferer(inferer: Inferer, asked: PassOptions, labels: LabelTable) -> Inferer:
    """Return an inferer that runs as it is asked to.

    Args:
        inferer: of a bundle.
        asked: what is asked for.
        labels: of the bundle.

    Raises:
        UsageError: the inferer cannot be asked for that, or a structure is none of the bundle's.
    """
    wanted = structures_named(asked, labels)
    told = [f"--{name.replace('_', '-')}" for name in asked.changes if name != "roi_subset"]
    changed = _told(inferer, asked, told) if told else inferer
    restrict = getattr(changed, "restricted_to", None)
    return changed if not wanted or restrict is None else restrict(frozenset(wanted))


def averages_mirrorings(inferer: Inferer) -> bool:
    """Return whether an inferer, or one of the models that it joins, averages over mirrored images."""
    own = getattr(inferer, "flip_axes", ()) or getattr(inferer, "mirror_axes", ())
    return bool(own) or any(averages_mirrorings(part.inferer) for part in parts_in(inferer))


def structures_named(asked: PassOptions, labels: LabelTable) -> tuple[int, ...]:
    """Return the values of the structures that are looked for; none if all are.

    Raises:
        UsageError: the bundle has no structure of a name.
    """
    known = {normalised(name): value for value, name in labels.foreground.items()}
    known |= {name: value for value, name in labels.foreground.items()}
    values = {name: known.get(name, known.get(normalised(name))) for name in asked.roi_subset}
    if unknown := [name for name, value in values.items() if value is None]:
        there = ", ".join(f'"{name}"' if "," in name else name for name in labels.foreground.values())
        raise UsageError(f"--roi-subset {', '.join(unknown)}: the bundle has no such structure; it has {there}.")
    return tuple(sorted(value for value in values.values() if value is not None))


def labels_looked_for(asked: PassOptions, labels: LabelTable) -> LabelTable:
    """Return the label table of the structures that are looked for; the others are gaps."""
    wanted = structures_named(asked, labels)
    if not wanted:
        return labels
    names = [name if value in (0, *wanted) else "" for value, name in enumerate(labels.names[: max(wanted) + 1])]
    return LabelTable(tuple(names), tuple((value, coding) for value, coding in labels.codings if value in wanted))


def refuse_unfit_pass(inferer: Inferer, asked: PassOptions, runtime: Runtime | None, labels: LabelTable) -> None:
    """Refuse before the first case what a bundle cannot be asked for.

    Raises:
        UsageError: as for `adjusted_inferer`, or a runtime is chosen for an imported model.
    """
    if runtime is not None and not isinstance(inferer, RestoringSlidingWindowInferer):
        raise UsageError(
            "--runtime is for bundles that were trained here; an imported model runs as its makers run "
            "it, or with --fast."
        )
    adjusted_inferer(inferer, asked, labels)


def _told(inferer: Inferer, asked: PassOptions, options: Sequence[str]) -> Inferer:
    change = getattr(inferer, "adjusted", None)
    if change is None:
        raise UsageError(f"{', '.join(options)}: this bundle has one way to run; leave it out.")
    changed: Inferer = change(asked)
    return changed
