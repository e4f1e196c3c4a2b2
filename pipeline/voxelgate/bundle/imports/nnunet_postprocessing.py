"""nnU-Net's own postprocessing, as `nnUNetv2_find_best_configuration` found it to help: read from JSON alone."""

import re
from collections.abc import Sequence
from typing import Any

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.core.errors import BundleError, InputError, UsageError

KNOWN = "remove_all_but_largest_component_from_segmentation"
"""The only function that nnU-Net 2.8.1 writes (`postprocessing/remove_connected_components.py`)."""

FILE = "postprocessing.json"


def postprocessing_of(
    source: ImportSource, folders: Sequence[str], folds: Sequence[str]
) -> tuple[list[Config], tuple[str, ...]]:
    """Return the steps for `pred` that a folder states, and the files that say so.

    Args:
        source: that holds the folders.
        folders: of the configurations whose labels or average are postprocessed, below the source.
        folds: that are averaged.

    Raises:
        UsageError: nothing is stated for these folds.
        InputError: it is stated in a pickle only, which is not opened, or not as nnU-Net writes it.
        BundleError: a function is not known.
    """
    name = _stated_for(source, folders, folds)
    document = source.json(name)
    functions, arguments = (document.get(f"postprocessing_{what}") for what in ("fns", "kwargs"))
    if not isinstance(functions, list) or not isinstance(arguments, list) or len(functions) != len(arguments):
        raise InputError(f"{source.name}: {name} has not as many functions as arguments; copy it again.")
    for function in functions:
        if function != KNOWN:
            raise BundleError(f"{source.name}: {name} asks for {function!a}, only {KNOWN} can be imported.")
    groups = [_labels(one, f"{source.name}: {name}") for one in arguments]
    steps = [{"_target_": "voxelgate.KeepComponentsd", "keys": "pred", "groups": groups}] if groups else []
    return steps, (name,)


def _stated_for(source: ImportSource, folders: Sequence[str], folds: Sequence[str]) -> str:
    """Return the name of the file that states the postprocessing of a configuration or an ensemble."""
    used = "_".join(folds)
    if len(folders) == 1:
        places = [f"{folders[0]}/crossval_results_folds_{used}/".lstrip("/")]
    else:
        names = ("___".join(order) for order in (folders, tuple(reversed(folders))))
        places = [f"ensembles/ensemble___{name}___{used}/" for name in names]
    for place in places:
        if source.has(place + FILE):
            return place + FILE
    if any(source.has(f"{place}postprocessing.pkl") for place in places):
        raise InputError(
            f"{source.name}: {places[0]} has a pickle but no {FILE}, and pickles can run code; have nnU-Net determine "
            "the postprocessing again."
        )
    known = source.matching(rf".*/{re.escape(FILE)}")
    raise UsageError(
        f"--postprocessing: {source.name} states none for folds {', '.join(folds)}"
        f"{f'; it has {chr(44).join(known)}' if known else ''}; leave it out, or choose folds for which there is one."
    )


def _labels(arguments: Any, where: str) -> list[int]:
    """Return all labels that the arguments of a function name, of regions too."""
    known = isinstance(arguments, dict) and set(arguments) <= {"labels_or_regions", "background_label"}
    stated = arguments.get("labels_or_regions") if known else None
    flat = _flattened(stated)
    is_right = bool(flat) and all(type(value) is int and value > 0 for value in flat)
    if not known or arguments.get("background_label", 0) != 0 or not is_right:
        raise BundleError(f"{where} has arguments {arguments!a}, expected labels_or_regions above 0 only.")
    return sorted(set(flat))


def _flattened(values: Any) -> list[Any]:
    return [one for value in values for one in _flattened(value)] if isinstance(values, list) else [values]
