"""One trained configuration of nnU-Net v2, TRAINER__PLANS__CONFIGURATION: its plans, networks and weights, checked."""

import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.data_set import DataSet, read_data_set
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.plans import Configuration, Plans, read_plans
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.weights import read_checkpoint, state_in, without_aliases
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.datasets.manifest import Modality
from voxelgate.images.file_facts import StoredOrder
from voxelgate.images.pictures import RGB
from voxelgate.inference.nnunet.nnunet_inferer import NnUNetInferer
from voxelgate.networks import PlainConvUNet, ResidualEncoderUNet
from voxelgate.transforms.nnunet.preprocess import NnUNetPreprocessd
from voxelgate.transforms.nnunet.source_layout import NnUNetReader

OTHER_NETWORKS = re.compile(r"primus|mamba|mednext|stunet|(?<!nn)unetr|xlstm", re.IGNORECASE)
"""Trainers, by parts of their names, that build networks of their own; others keep that of the plans."""

PLAIN_TRAINERS = re.compile(r"nnUNetTrainer(BN|_\d+epochs?|_?NoMirroring)*")
"""Trainers of which nothing need be said: they run the network of the plans, or that with batch norm."""

BATCH_NORM_TRAINER = "nnUNetTrainerBN"

NETWORKS = {f"voxelgate.{kind.__name__}": kind for kind in (PlainConvUNet, ResidualEncoderUNet)}

MOST_NAME_CHARACTERS = 250
"""Of a trainer, after which a folder is named."""

LISTS_OF_IMAGES = ("dataset", "training", "test", "numTraining", "numTest")
"""Entries of `dataset.json` that may name the images of the training; they stay where they are."""


@dataclass(frozen=True, eq=False)
class TrainedConfiguration:
    """One `TRAINER__PLANS__CONFIGURATION` folder, read and checked.

    Args:
        folder: its name below the source; empty if it is the source.
        plans: what its plans say.
        data_set: what its data set says.
        configuration: that was trained.
        trainer: name of the class.
        folds: that are averaged, in this order.
        network: config of one fold's network.
        states: of each fold, names and tensors of that network.
        mirror_axes: along which windows may be mirrored, of the network grid.
        files: of the source, of which something is used.
        findings: sentences for the one who imports.
    """

    folder: str
    plans: Plans
    data_set: DataSet
    configuration: Configuration
    trainer: str
    folds: tuple[str, ...]
    network: Config
    states: tuple[Mapping[str, Tensor], ...]
    mirror_axes: tuple[int, ...]
    files: tuple[str, ...]
    findings: tuple[str, ...]

    def __post_init__(self) -> None:
        for component, config in ((NnUNetPreprocessd, self.preprocessing()), (NnUNetInferer, self.inferer())):
            try:
                component(**_arguments_of(config))
            except UsageError as error:
                raise BundleError(f"{self.plans.where}, configuration {self.configuration.name}: {error}") from error

    def turning(self, dicom_order: StoredOrder) -> list[Config]:
        """Return the step that gives the axes of DICOM series the order that a converter gives them, if that counts."""
        if self.plans.reader.reorients or self.plans.reader is NnUNetReader.PICTURE:
            return []
        return [{"_target_": "voxelgate.OrderDicomd", "keys": "image", "axcodes": str(dicom_order)}]

    def preprocessing(self) -> Config:
        """Return the step that brings an image to the network grid."""
        stated = self.configuration
        return {
            "_target_": "voxelgate.NnUNetPreprocessd",
            "keys": "image",
            "reader": str(self.plans.reader),
            "spacing": list(stated.spacing),
            "transpose_forward": list(self.plans.transpose_forward),
            "normalization": list(stated.normalization),
            "use_mask_for_norm": list(stated.use_mask_for_norm),
            "resampling": stated.resampling["data"],
            "label_resampling": stated.resampling["seg"],
        }

    def inferer(self) -> Config:
        """Return what runs the network over the windows and brings labels back to the grid of the image."""
        regions = self.data_set.regions
        return {
            "_target_": "voxelgate.NnUNetInferer",
            "patch_size": list(self.configuration.patch_size),
            "spacing": list(self.configuration.spacing),
            "mirror_axes": list(self.mirror_axes),
            "regions": None if regions is None else list(regions),
            "resampling": self.configuration.resampling["probabilities"],
        }

    @property
    def channels(self) -> tuple[str, ...]:
        """Return the name of each channel; three of a picture are its colours, which stand in one file."""
        named = self.data_set.channels
        return RGB if self.plans.reader is NnUNetReader.PICTURE and len(named) == len(RGB) else named

    @property
    def modality(self) -> str:
        """Return what the voxels hold, as reader and names of channels tell it."""
        return Modality.PICTURE if self.plans.reader is NnUNetReader.PICTURE else self.data_set.modality

    @property
    def facts(self) -> dict[str, Any]:
        """Return where it comes from, for the metadata of a bundle."""
        return {
            "trainer": self.trainer,
            "plans": self.plans.name,
            "data_set": self.plans.data_set,
            "configuration": self.configuration.name,
            "folds": list(self.folds),
            "mirror_axes": list(self.mirror_axes),
            "reader": str(self.plans.reader),
        }


def configuration_of(folder: str) -> str:
    """Return the configuration that the name of a folder says.

    >>> configuration_of("nnUNetTrainer__nnUNetPlans__3d_fullres")
    '3d_fullres'
    """
    return folder.rpartition("__")[2]


def configuration_parts(source: ImportSource, folder: str, options: ImportOptions) -> TrainedConfiguration:
    """Read and check one folder TRAINER__PLANS__CONFIGURATION.

    Args:
        source: that holds it.
        folder: its name below the source; empty if it is the source.
        options: which folds and checkpoint.

    Raises:
        InputError: files are missing or damaged.
        BundleError: plans, labels or weights cannot be matched.
        UsageError: a fold or checkpoint is not there.
    """
    prefix = f"{folder}/" if folder else ""
    plans = read_plans(source.json(f"{prefix}plans.json"), f"{folder or source.name}: plans.json")
    data_set = read_data_set(source.json(f"{prefix}dataset.json"), f"{folder or source.name}: dataset.json")
    folds, names = _checkpoints(source, prefix, options)
    documents = [read_checkpoint(source, name) for name in names]
    trainer, configured, mirrored = _training_facts(documents[0], names[0])
    norm = "batch" if trainer == BATCH_NORM_TRAINER else None
    configuration = plans.configuration(configured, len(data_set.channels), norm=norm)
    network = _network_of(configuration, data_set)
    shapes = _shapes_of(network, plans.where)
    states = []
    for document, name in zip(documents, names, strict=True):
        states.append(without_aliases(state_in(document, name)))
        _refuse_other_network(states[-1], shapes, name, trainer)
    return TrainedConfiguration(
        folder=folder,
        plans=plans,
        data_set=data_set,
        configuration=configuration,
        trainer=trainer,
        folds=folds,
        network=network,
        states=tuple(states),
        mirror_axes=_mirror_axes(mirrored, configuration, names[0]),
        files=(f"{prefix}dataset.json", f"{prefix}plans.json", *names),
        findings=(*_findings(source, configuration, data_set, folds, prefix), *_trainer_findings(trainer)),
    )


def network_and_state(trained: Sequence[TrainedConfiguration]) -> tuple[Config, dict[str, Tensor]]:
    """Return the config and the state of the networks of all folds of all of them, in this order.

    It is a network where there is only one, else a `ModuleList`.
    """
    networks = [one.network for one in trained for _ in one.folds]
    states = [state for one in trained for state in one.states]
    if len(networks) == 1:
        return networks[0], dict(states[0])
    state = {f"{index}.{name}": value for index, one in enumerate(states) for name, value in one.items()}
    return {"_target_": "torch.nn.ModuleList", "modules": networks}, state


def kept_files(source: ImportSource, trained: Iterable[TrainedConfiguration]) -> dict[str, bytes]:
    """Return plans and data sets by their path in the bundle; lists of images stay out."""
    kept = {}
    for one in trained:
        prefix = f"{one.folder}/" if one.folder else ""
        for name in ("plans.json", "dataset.json"):
            document = {key: value for key, value in source.json(prefix + name).items() if key not in LISTS_OF_IMAGES}
            kept[f"source/{prefix}{name}"] = (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
    return kept


def _checkpoints(source: ImportSource, prefix: str, options: ImportOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folds that are averaged and their checkpoints; by default all but `all`, as nnU-Net does it."""
    name = f"checkpoint_{options.checkpoint}.pth"
    pattern = rf"{re.escape(prefix)}fold_(all|\d+)/{re.escape(name)}"
    there = [found[1] for one in source.names if (found := re.fullmatch(pattern, one))]
    if not there:
        raise _no_checkpoint(source, prefix, name)
    folds = options.folds or [fold for fold in there if fold != "all"] or there
    for fold in folds:
        if fold not in there:
            folders = ", ".join(f"fold_{one}" for one in there)
            raise UsageError(f"--folds {fold}: a {name} is in {folders}; choose among them.")
    return tuple(folds), tuple(f"{prefix}fold_{fold}/{name}" for fold in folds)


def _no_checkpoint(source: ImportSource, prefix: str, name: str) -> InputError:
    """Return what to say where no fold has this checkpoint."""
    others = source.matching(rf"{re.escape(prefix)}fold_(all|\d+)/checkpoint_(best|final)\.pth")
    kinds = sorted({one.rpartition("_")[2].removesuffix(".pth") for one in others})
    remedy = f"there are others: --checkpoint {kinds[0]}" if kinds else "copy it again"
    return InputError(f"{prefix.rstrip('/') or source.name}: has no fold with a {name}; {remedy}.")


def _training_facts(document: Mapping[str, Any], name: str) -> tuple[str, str, Any]:
    """Return trainer, configuration and mirroring axes as a checkpoint tells them."""
    trainer, arguments = document.get("trainer_name"), document.get("init_args")
    configured = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    if not isinstance(trainer, str) or not isinstance(configured, str) or len(trainer) > MOST_NAME_CHARACTERS:
        raise InputError(
            f"{name}: says neither trainer nor configuration, as checkpoints of nnU-Net v2 do; copy it again."
        )
    if OTHER_NETWORKS.search(trainer):
        raise BundleError(
            f"{name}: was trained by {trainer}, whose network is none of nnU-Net's own U-Nets; it cannot be imported."
        )
    return trainer, configured, document.get("inference_allowed_mirroring_axes")


def _mirror_axes(stated: Any, configuration: Configuration, name: str) -> tuple[int, ...]:
    axes = [] if stated is None else list(stated) if isinstance(stated, list | tuple) else [stated]
    dims = len(configuration.patch_size)
    if len(set(axes)) != len(axes) or not all(type(axis) is int and 0 <= axis < dims for axis in axes):
        raise InputError(
            f"{name}: allows mirroring along {reprlib.repr(stated)}, expected axes 0 to {dims - 1}, or none."
        )
    return tuple(axes)


def _network_of(configuration: Configuration, data_set: DataSet) -> Config:
    further = len(data_set.foreground) if configuration.previous_stage is not None else 0
    return configuration.network | {"in_channels": len(data_set.channels) + further, "out_channels": data_set.heads}


def _shapes_of(network: Config, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of a network that is built without any."""
    try:
        with torch.device("meta"):
            built = NETWORKS[network["_target_"]](**_arguments_of(network))
    except ValueError as error:
        raise BundleError(f"{where}: {error}; such a network cannot be built.") from error
    return {name: tuple(value.shape) for name, value in built.state_dict().items()}


def _arguments_of(config: Config) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "_target_"}


def _refuse_other_network(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], name: str, trainer: str
) -> None:
    """Refuse weights that are not those of the network that the plans describe."""
    lacking = next((one for one in shapes if one not in state), None)
    further = next((one for one in state if one not in shapes), None)
    misfit = next((one for one in shapes if one in state and tuple(state[one].shape) != shapes[one]), None)
    if misfit is not None:
        what = f"{misfit} is {_size(tuple(state[misfit].shape))}, expected {_size(shapes[misfit])}"
    elif lacking is not None:
        what = f"{lacking} is missing"
    elif further is not None:
        what = f"{further!a} belongs to no part of it"
    else:
        return
    raise BundleError(f"{name}: its weights are not those of the network in the plans ({what}); trained by {trainer}.")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _findings(
    source: ImportSource, configuration: Configuration, data_set: DataSet, folds: Sequence[str], prefix: str
) -> tuple[str, ...]:
    """Return what the one who imports should know."""
    there = sorted(source.matching(rf"{re.escape(prefix)}fold_[^/]+/checkpoint_[^/]+\.pth"))
    count = len({one.split("/")[-2] for one in there})
    used = f"folds {', '.join(folds)} are averaged" if len(folds) > 1 else f"fold {folds[0]} is used"
    found = [f"{configuration.name}: {used}, of {count} there."] if count > 1 else []
    if configuration.has_dropout:
        found.append("the training dropped channels at random; the imported network does not, as in prediction.")
    if data_set.regions is not None:
        found.append("its heads are regions; a label value says which of them was the last to hold at a voxel.")
    return tuple(found)


def _trainer_findings(trainer: str) -> tuple[str, ...]:
    """Return what is taken for granted of a trainer, whose program is not there."""
    if PLAIN_TRAINERS.fullmatch(trainer):
        return ()
    return (f"{trainer} is taken to change the training only, since its weights fit the network of the plans.",)
