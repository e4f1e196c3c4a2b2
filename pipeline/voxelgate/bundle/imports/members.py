"""Trained configurations as parts of a larger model: a cascade's two stages, the members of an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.trained import TrainedConfiguration, configuration_parts
from voxelgate.core.errors import BundleError, InputError
from voxelgate.inference.composed.cascade_inferer import PREVIOUS


@dataclass(frozen=True, eq=False)
class Member:
    """A model that may be part of a larger one.

    Args:
        trained: its configurations, in the order of their networks.
        inferer: gives labels on the grid of an image that `preprocessing` was given.
        preprocessing: brings an image to the grid of the networks; None if the inferer does it.
    """

    trained: tuple[TrainedConfiguration, ...]
    inferer: Config
    preprocessing: Config | None = None

    @property
    def last(self) -> TrainedConfiguration:
        """Return the configuration whose result counts."""
        return self.trained[-1]

    @property
    def networks(self) -> int:
        """Return how many networks it takes."""
        return sum(len(one.folds) for one in self.trained)

    def part(self, first: int, labels: Sequence[int] | None = None) -> Config:
        """Return the config of a `Part`.

        Args:
            first: place of its first network among those of the whole.
            labels: value in the whole of each of its labels; None if they are the same.
        """
        return {
            "_target_": "voxelgate.Part",
            "inferer": self.inferer,
            "networks": list(range(first, first + self.networks)),
            **({} if self.preprocessing is None else {"preprocessing": self.preprocessing}),
            **({} if labels is None else {"labels": list(labels)}),
        }


def parts_of(members: Sequence[Member], labels: Sequence[Sequence[int] | None] | None = None) -> list[Config]:
    """Return the configs of parts whose networks follow each other."""
    firsts = [sum(one.networks for one in members[:place]) for place in range(len(members))]
    values = [None] * len(members) if labels is None else labels
    return [one.part(first, known) for one, first, known in zip(members, firsts, values, strict=True)]


def read_member(source: ImportSource, folder: str, options: ImportOptions) -> Member:
    """Read a folder TRAINER__PLANS__CONFIGURATION, and that of its first stage if it is the second of a cascade.

    Raises:
        InputError: files are missing or damaged.
        BundleError: plans, labels or weights cannot be matched.
        UsageError: a fold or checkpoint is not there.
    """
    trained = configuration_parts(source, folder, options)
    if trained.configuration.previous_stage is None:
        return Member((trained,), trained.inferer(), trained.preprocessing())
    return _cascade(source, trained, options)


def _cascade(source: ImportSource, second: TrainedConfiguration, options: ImportOptions) -> Member:
    stated = second.configuration
    if not second.folder:
        raise InputError(
            f"{source.name}: is the second stage of a cascade and needs the first, {stated.previous_stage}; import the "
            "folder of the data set, which holds both."
        )
    folder = f"{second.folder.rpartition('__')[0]}__{stated.previous_stage}"
    if not source.has(f"{folder}/plans.json"):
        raise InputError(f"{source.name}: the cascade {second.folder} needs {folder}, which is missing; copy it too.")
    first = configuration_parts(source, folder, options)
    if first.configuration.previous_stage is not None or first.data_set.foreground != second.data_set.foreground:
        raise BundleError(f"{folder}: is no first stage of {second.folder}; the folders are of different models.")
    previous = {"key": PREVIOUS, "foreground": list(second.data_set.foreground)}
    stages = (
        Member((first,), first.inferer(), first.preprocessing()),
        Member((second,), second.inferer(), second.preprocessing() | {"previous": previous}),
    )
    parts = parts_of(stages)
    inferer = {"_target_": "voxelgate.CascadeInferer", "first": parts[0], "second": parts[1]}
    return Member((first, second), inferer)
