"""Read a TorchScript file with its `inference.json`: the program stands for the network, the config says all else."""

import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from voxelgate.bundle.imports.foreign_records import licence_in, text_of
from voxelgate.bundle.imports.imported import NOT_STATED, Imported, ImportOptions
from voxelgate.bundle.imports.program_trial import tried_apart
from voxelgate.bundle.imports.programs import PROGRAM
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.zoo import METADATA, input_size_of
from voxelgate.bundle.imports.zoo_chain import read_chain
from voxelgate.bundle.imports.zoo_documents import read_foreign_config
from voxelgate.bundle.imports.zoo_facts import KEPT_FACTS, description_of, modality_of
from voxelgate.bundle.imports.zoo_faithful import read_own_chain
from voxelgate.bundle.imports.zoo_labels import channels_of, labels_of, part_of
from voxelgate.bundle.imports.zoo_references import ZooConfig
from voxelgate.bundle.imports.zoo_scripts import Scripts
from voxelgate.core.errors import InputError
from voxelgate.core.machine import free_host_bytes
from voxelgate.networks import ScriptedNetwork

MOST_TRIED_VOXELS = 2**28
"""In a window, 1 GiB as float32."""


def read_torchscript(source: ImportSource, options: ImportOptions) -> Imported:
    """Read a TorchScript file; its program runs once, on zeros in a process of its own, to see what it gives.

    Raises:
        BundleError: its config cannot be understood; the sentence names the place.
        InputError: there is no config, or the program does not load or does not fit its metadata.
        UsageError: an option names what it does not have.
    """
    name = _inference_config_in(source)
    metadata: dict[str, Any] = source.json(METADATA) if source.has(METADATA) else {}
    config = ZooConfig(read_foreign_config(source.path(name)), name, lambda path: source.path(path) and {})
    count, classes = (_stated_channels(part_of(metadata, *part)) for part in (("inputs", "image"), ("outputs", "pred")))
    chain = read_own_chain(config, Scripts({})) if options.is_faithful else read_chain(config, classes, {})
    size = input_size_of(chain)
    _refuse_other_output(source, (1, count, *size), classes)
    labels, on_labels = labels_of(metadata, classes, chain.merges, options.label_values)
    return Imported(
        name=source.name.removesuffix(".ts"),
        version=text_of(metadata, "version") or "1.0.0",
        description=description_of(metadata, source.name),
        network_def={"_target_": "voxelgate.ScriptedNetwork", "path": f"$@bundle_root + '/{PROGRAM}'"},
        preparation=chain.preparation,
        inferer=chain.inferer,
        state=_state_of(source.path(PROGRAM)),
        labels=labels,
        channels=channels_of(metadata, chain.images, count),
        modality=modality_of(metadata),
        spatial_shape=size,
        source_files=(name, PROGRAM, *((METADATA,) if metadata else ())),
        metadata={key: metadata[key] for key in KEPT_FACTS if key in metadata},
        licence=licence_in(metadata),
        origin={"config": name, "monai_version": text_of(metadata, "monai_version") or NOT_STATED},
        extra_files={PROGRAM: source.path(PROGRAM)},
        findings=(*chain.findings, *on_labels),
    )


def _inference_config_in(source: ImportSource) -> str:
    """Return the name of the config.

    Raises:
        InputError: there is none.
    """
    found = source.matching(r"configs/inference\.(json|yaml|yml)")
    if not found:
        raise InputError(
            f"{source.name}: has no inference.json in it or beside it, and so does not say how it segments; put the "
            "one of its bundle beside it."
        )
    return found[0]


def _stated_channels(part: Mapping[str, Any]) -> int:
    """Return how many channels an input or output has, as the metadata say; 1 if they do not."""
    stated, named = part.get("num_channels"), part.get("channel_def")
    if isinstance(stated, int) and stated > 0:
        return stated
    return max(len(named), 1) if isinstance(named, Mapping) else 1


def _state_of(path: Path) -> dict[str, Tensor]:
    """Return the weights in a program that was tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ScriptedNetwork(path=path).state_dict()


def _refuse_other_output(source: ImportSource, shape: tuple[int, ...], classes: int) -> None:
    """Refuse a program that does not give one channel for each class, on the grid of its input, and in time.

    Raises:
        InputError: it does not.
    """
    if prod(shape) > MOST_TRIED_VOXELS:
        raise InputError(f"{source.name}: its config asks for windows of {shape}, which no machine of today takes.")
    found, wanted = tried_apart(source.path(PROGRAM), shape, free_host_bytes()), (1, classes, *shape[2:])
    if found.said:
        raise InputError(
            f"{source.name}: its program, tried on zeros of shape {shape} as its config has it, {found.said}."
        )
    if found.shape != wanted:
        raise InputError(f"{source.name}: its program gives {found.shape}, expected {wanted}; see its metadata.json.")
