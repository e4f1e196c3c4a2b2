"""Folders of TotalSegmentator's weights: the networks of a task become one bundle, chained as TotalSegmentator does.

Facts are those of TotalSegmentator 2.18.0 (`totalsegmentator_tasks`). Names of structures are those of each network's
`dataset.json`, joined in the order of the parts.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.imported import Imported, ImportOptions
from voxelgate.bundle.imports.members import Member, parts_of
from voxelgate.bundle.imports.source import ImportSource, Kind
from voxelgate.bundle.imports.totalsegmentator_tasks import FOLDERS, TASKS, Crop, Task
from voxelgate.bundle.imports.trained import (
    TrainedConfiguration,
    configuration_of,
    configuration_parts,
    kept_files,
    network_and_state,
)
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.labels import LabelTable

LARGEST_WHOLE_VOX = 512 * 512 * 900
"""Larger images are segmented in three parts by tasks of several networks."""

BODY_TASKS = ("body", "body_fast")
LEAST_EXTREMITY_MM3 = 50000.0
"""A piece of an arm or leg of no more is dropped."""

SMALL_BLOB_MM3 = 200.0
"""A piece of a structure of no more is dropped by `--remove_small_blobs`, which is `import --postprocessing` here."""

USUAL_PLANS = "nnUNetPlans"


@dataclass(frozen=True, eq=False)
class _Model:
    """A task as a part of a bundle.

    Args:
        member: its networks, and the inferer that joins their labels.
        labels: what these mean.
    """

    member: Member
    labels: LabelTable


def is_totalsegmentator(source: ImportSource) -> bool:
    """Return whether a folder holds weights of TotalSegmentator: by the names of the folders in it, or its own."""
    return bool(FOLDERS & {folder or source.root.name for folder in _data_sets(source).values()})


def read_totalsegmentator(source: ImportSource, options: ImportOptions) -> Imported:
    """Read the networks of a task.

    Args:
        source: folder with `DatasetNNN_NAME` folders, or one of them.
        options: which task, if there are several.

    Raises:
        InputError: folders or files are missing or damaged.
        BundleError: a task or a network cannot be matched.
        UsageError: an option asks for what is not there.
    """
    there = _data_sets(source)
    name = _chosen_task(source, there, options)
    task = TASKS[name]
    inner = _model(source, name, options)
    crop = task.crop
    if crop is not None and (crop.around or set(TASKS[crop.by].data_sets) <= set(there)):
        rough = _model(source, crop.by, replace(options, applies_postprocessing=False))
        trained = (*rough.member.trained, *inner.member.trained)
        preparation, inferer = [], _cropped(rough, inner, crop)
    else:
        trained = inner.member.trained
        preparation, inferer = [inner.member.preprocessing], inner.member.inferer
    network, state = network_and_state(trained)
    last = inner.member.last
    return Imported(
        name=f"totalsegmentator_{name}",
        version="1.0.0",
        description=f"{len(inner.labels.foreground)} structures of TotalSegmentator's task {name}.",
        network_def=network,
        preparation=[step for step in preparation if step is not None],
        inferer=inferer,
        state=state,
        labels=inner.labels,
        channels=last.data_set.channels,
        modality=last.data_set.modality,
        spatial_shape=last.configuration.patch_size,
        source_files=tuple(dict.fromkeys(file for one in trained for file in one.files)),
        licence=task.licence,
        origin={"task": name, "networks": [one.folder or source.name for one in trained]},
        extra_files=kept_files(source, trained),
        findings=_findings_on(task, has_crop=len(trained) > len(inner.member.trained)),
    )


def _data_sets(source: ImportSource) -> dict[int, str]:
    """Return the folder of each data set by its number; empty if it is the source itself."""
    if source.kind is Kind.NNUNET_DATA_SET:
        found = re.fullmatch(r"Dataset(\d{3})_.+", source.root.name)
        return {int(found[1]): ""} if found else {}
    names = {name.split("/")[0] for name in source.matching(r"Dataset\d{3}_[^/]+/[^/]+/plans\.json")}
    return {int(name[7:10]): name for name in sorted(names)}


def _chosen_task(source: ImportSource, there: dict[int, str], options: ImportOptions) -> str:
    possible = [name for name, task in TASKS.items() if set(task.data_sets) <= set(there)]
    if options.task:
        _refuse_other_folder(source, there, options.task)
    if options.task and options.task not in TASKS:
        raise UsageError(
            f"--task {options.task}: is no task of TotalSegmentator known here; {source.name} holds the networks of "
            f"{_in_words(possible) or 'none'}."
        )
    if options.task:
        lacking = [number for number in TASKS[options.task].data_sets if number not in there]
        if lacking:
            raise InputError(
                f"{source.name}: task {options.task} needs the folders of data sets {_in_words(lacking)}; put them "
                "beside the others."
            )
        return options.task
    if not possible:
        raise InputError(
            f"{source.name}: holds data sets {_in_words(there)}, but all of no task; put the others beside, or import "
            "the folder TRAINER__PLANS__CONFIGURATION of one as a model of its own."
        )
    if len(possible) > 1 and possible[0] != "total":
        raise UsageError(f"{source.name}: holds the networks of {_in_words(possible)}; say which with --task.")
    return possible[0]


def _refuse_other_folder(source: ImportSource, there: dict[int, str], task: str) -> None:
    """Refuse to look for a task in a folder that holds nothing of TotalSegmentator.

    Raises:
        UsageError: neither names nor numbers of its data sets are TotalSegmentator's.
    """
    needed = TASKS[task].data_sets if task in TASKS else ()
    if not is_totalsegmentator(source) and not set(needed) & set(there):
        raise UsageError(
            f"--task {task}: {source.name} holds no weights of TotalSegmentator; name the folder of its weights, or "
            "leave out --task to import this model of nnU-Net as it is."
        )


def _model(source: ImportSource, name: str, options: ImportOptions) -> _Model:
    """Return a task with all of its networks; its image is only read before."""
    task, there = TASKS[name], _data_sets(source)
    if task.refused:
        raise BundleError(f"{source.name}: task {name} cannot be imported, since {task.refused}.")
    if lacking := [number for number in task.data_sets if number not in there]:
        raise InputError(
            f"{source.name}: data set {_in_words(lacking)} (task {name}), which finds where to look, is missing; put "
            "its folder beside the others."
        )
    folds = options.folds or (() if task.has_all_folds else ("0",))
    chosen = replace(options, folds=folds)
    trained = [
        configuration_parts(source, _folder_in(source, there[number], options), chosen) for number in task.data_sets
    ]
    tables, values = _joined_labels(trained, task)
    parts = [_network_member(one, is_overlapping_less=task.is_overlapping_less) for one in trained]
    cleaning = _body_cleaning() if name in BODY_TASKS else []
    if options.applies_postprocessing:
        cleaning.append(_without_blobs([[value] for value in tables.foreground], SMALL_BLOB_MM3))
    inferer = {
        "_target_": "voxelgate.PartsInferer",
        "parts": parts_of(parts, values),
        **({"split_above_vox": LARGEST_WHOLE_VOX} if len(trained) > 1 else {}),
        **({"cleaning": {"_target_": "Compose", "transforms": cleaning}} if cleaning else {}),
    }
    preprocessing = {
        "_target_": "voxelgate.CanonicalZoomd",
        "keys": "image",
        "spacing_mm": list(task.spacing_mm) or None,
    }
    return _Model(Member(tuple(trained), inferer, preprocessing), tables)


def _folder_in(source: ImportSource, data_set: str, options: ImportOptions) -> str:
    """Return the folder TRAINER__PLANS__CONFIGURATION of a data set."""
    folders = source.configurations(data_set)
    asked = options.configurations
    wanted = [one for one in folders if not asked or configuration_of(one) in asked]
    usual = [one for one in wanted if one.split("__")[-2] == USUAL_PLANS]
    chosen = wanted if len(wanted) == 1 else usual
    if len(chosen) != 1:
        raise UsageError(
            f"{data_set or source.name}: holds {_in_words(folders)}; say which configuration is meant with "
            "--configuration, or take the others away."
        )
    return chosen[0]


def _network_member(trained: TrainedConfiguration, *, is_overlapping_less: bool) -> Member:
    """Return a network as TotalSegmentator runs it: never mirrored."""
    if trained.data_set.regions is not None or len(trained.data_set.channels) != 1:
        raise BundleError(f"{trained.folder}: has regions or several channels, as no network of TotalSegmentator has.")
    inferer = trained.inferer() | {"mirror_axes": [], "step_size": 0.8 if is_overlapping_less else 0.5}
    return Member((trained,), inferer, trained.preprocessing())


def _joined_labels(trained: Sequence[TrainedConfiguration], task: Task) -> tuple[LabelTable, list[list[int] | None]]:
    """Return what the labels of all mean, and the value in the whole of each label of each part."""
    names = [
        [name for value, name in one.data_set.labels.foreground.items() if value not in task.auxiliary]
        for one in trained
    ]
    if len(trained) == 1 and not task.auxiliary:
        return trained[0].data_set.labels, [None]
    firsts = accumulate((len(part) for part in names), initial=1)
    values: list[list[int] | None] = [
        [0, *range(first, first + len(part)), *(0 for _ in task.auxiliary)]
        for first, part in zip(firsts, names, strict=False)
    ]
    try:
        return LabelTable(("background", *(name for part in names for name in part))), values
    except ValueError as error:
        raise BundleError(f"{trained[0].folder} and the other parts of the task: {error}") from error


def _cropped(rough: _Model, inner: _Model, crop: Crop) -> Config:
    """Return the inferer that finds the box by one model, and segments it by the other."""
    values = {name: value for value, name in rough.labels.foreground.items()}
    if unknown := [name for name in crop.around if name not in values]:
        raise BundleError(f"the task {crop.by}, which finds where to look, knows no {_in_words(unknown)}.")
    parts = parts_of((rough.member, inner.member))
    return {
        "_target_": "voxelgate.CroppedInferer",
        "rough": parts[0],
        "inner": parts[1],
        "labels": [values[name] for name in crop.around] or None,
        "margin_mm": [crop.margin_mm] * 3,
    }


def _body_cleaning() -> list[Config]:
    """Return what is dropped of `body`: all but the largest piece of the trunk, and small pieces of the extremities."""
    return [
        {
            "_target_": "KeepLargestConnectedComponentd",
            "keys": "pred",
            "applied_labels": [1],
            "is_onehot": False,
            "connectivity": 1,
        },
        _without_blobs([[2]], LEAST_EXTREMITY_MM3),
    ]


def _without_blobs(groups: Sequence[Sequence[int]], above_mm3: float) -> Config:
    return {"_target_": "voxelgate.KeepComponentsd", "keys": "pred", "groups": groups, "above_mm3": above_mm3}


def _findings_on(task: Task, *, has_crop: bool) -> tuple[str, ...]:
    made = (
        "labels are those of TotalSegmentator 2.18.0 for networks of the same make; its own weights were not at hand."
    )
    if task.crop is None or task.crop.around:
        return (made,)
    data_sets = _in_words(TASKS[task.crop.by].data_sets)
    if has_crop:
        return made, f"single structures are looked for around what data set {data_sets} finds, as by TotalSegmentator."
    return (
        made,
        f"single structures are looked for in the whole image; with the folder of data set {data_sets} beside the "
        "others they would be looked for where TotalSegmentator does, which is faster.",
    )


def _in_words(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
