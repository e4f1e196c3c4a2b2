"""Read a MONAI bundle from elsewhere, such as one of MONAI's zoo, whose configs are data here and nothing else."""

import posixpath
from collections.abc import Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from voxelgate.bundle.checksums import WEIGHTS
from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.foreign_records import text_of
from voxelgate.bundle.imports.imported import NOT_STATED, Imported, ImportOptions
from voxelgate.bundle.imports.plans import MOST_WINDOW_VOXELS
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.weights import read_arrays, read_checkpoint, state_in
from voxelgate.bundle.imports.zoo_chain import Chain, read_chain
from voxelgate.bundle.imports.zoo_components import component
from voxelgate.bundle.imports.zoo_documents import read_foreign_config
from voxelgate.bundle.imports.zoo_facts import (
    KEPT_FACTS,
    LICENCE_FILES,
    description_of,
    licence_of,
    modality_of,
    on_packages,
)
from voxelgate.bundle.imports.zoo_faithful import read_own_chain
from voxelgate.bundle.imports.zoo_labels import channels_of, labels_of
from voxelgate.bundle.imports.zoo_networks import network_of, refuse_other_network
from voxelgate.bundle.imports.zoo_references import ZooConfig
from voxelgate.bundle.imports.zoo_scripts import known_scripts, scripts_of
from voxelgate.core.errors import BundleError, InputError, UsageError

METADATA = "configs/metadata.json"
"""What a bundle says of itself."""

UNSTATED_VOX = 96
"""Size of an input along an axis of which nothing is said; networks that halve it five times take it too."""

_PROMPTED = frozenset({"vista3d132", "VISTA3D", "Vista3dInferer", "VISTA3DInferer", "SAMJIT"})
"""Networks and inferers that segment what somebody points at or names for each image."""


def read_zoo(source: ImportSource, options: ImportOptions) -> Imported:
    """Read a MONAI bundle; nothing of it is run, but its Python files are where they are trusted.

    Args:
        source: a folder with `configs/metadata.json`.
        options: `configurations` may name one config other than `inference`.

    Raises:
        BundleError: its configs cannot be understood; the sentence names the place.
        InputError: a file is missing, or its weights are damaged or of another network.
        UsageError: an option that has no meaning here.
    """
    name = _config_name(source, options)
    loaded: list[str] = []
    config = ZooConfig(read_foreign_config(source.path(name)), name, lambda path: _arrays(source, path, loaded))
    _refuse_prompts(config)
    metadata = source.json(METADATA)
    scripts = scripts_of(source, trusted=options.trusts_code)
    network, classes, on_network = network_of(config.value("network_def"), f"{name}: network_def", scripts)
    if options.is_faithful:
        chain = read_own_chain(config, scripts)
    else:
        chain = read_chain(config, classes, known_scripts(source))
    labels, on_labels = labels_of(metadata, classes, chain.merges, options.label_values)
    if prod(size := input_size_of(chain)) > MOST_WINDOW_VOXELS:
        raise BundleError(f"{name}: the network takes {size} voxels at a time, at most {MOST_WINDOW_VOXELS} can be run")
    weights = _weights_name(config, source)
    state = state_in(read_checkpoint(source, weights), f"{source.name}: {weights}")
    refuse_other_network(network, state, f"{source.name}: {weights}")
    code = scripts.files if scripts.package and scripts.package in str((network, chain)) else {}
    files: dict[str, bytes | Path] = {**code, **{one: source.path(one) for one in LICENCE_FILES if source.has(one)}}
    return Imported(
        name=source.name.removesuffix(".zip"),
        version=text_of(metadata, "version") or "1.0.0",
        description=description_of(metadata, source.name),
        network_def=network,
        preparation=chain.preparation,
        inferer=chain.inferer,
        state=state,
        labels=labels,
        channels=channels_of(metadata, chain.images, _channels_in(network, f"{name}: network_def") - chain.clicks),
        modality=modality_of(metadata),
        spatial_shape=size,
        source_files=(name, METADATA, weights, *loaded, *files),
        metadata={key: metadata[key] for key in KEPT_FACTS if key in metadata},
        licence=licence_of(source, metadata),
        origin=_facts_of_origin(name, metadata, code, is_faithful=options.is_faithful),
        extra_files=files,
        findings=(*on_network, *chain.findings, *on_labels, *_on_code(code), *on_packages(metadata)),
    )


def _facts_of_origin(name: str, metadata: Mapping[str, Any], code: Mapping[str, bytes], *, is_faithful: bool) -> Config:
    return {
        "config": name,
        "chain": "its own" if is_faithful else "translated",
        "monai_version": text_of(metadata, "monai_version") or NOT_STATED,
        "code": sorted(code),
    }


def _on_code(code: Mapping[str, bytes]) -> list[str]:
    return [f"Python code of the bundle runs with it: {', '.join(sorted(code))}."] if code else []


def _config_name(source: ImportSource, options: ImportOptions) -> str:
    """Return the name of the config to read.

    Raises:
        UsageError: several are asked for, or one that is not there.
        BundleError: there is none.
    """
    found = {PurePosixPath(name).stem: name for name in reversed(source.matching(r"configs/[\w.-]+\.(json|yaml|yml)"))}
    asked = options.configurations or ("inference",)
    if len(asked) == 1 and asked[0] in found:
        return found[asked[0]]
    if options.configurations:
        raise UsageError(f"--configuration {' '.join(asked)}: expected one of {', '.join(sorted(found))}.")
    raise BundleError(f"{source.name}: has no configs/inference.json or .yaml, and so does not say how it segments")


def _refuse_prompts(config: ZooConfig) -> None:
    """Refuse bundles that segment nothing without a person.

    Raises:
        BundleError: it is one.
    """
    for key in ("network_def", "inferer"):
        target = str(component(config.value(key), f"{config.name}: {key}").name).rpartition(".")[2]
        if target in _PROMPTED:
            raise BundleError(
                f"{config.name}: {target} segments what points or class numbers name for each image, and no prompts "
                "are given here; import a bundle that segments without them"
            )


def _arrays(source: ImportSource, path: Any, loaded: list[str]) -> dict[str, Any]:
    name = _name_below(path, source.name)
    loaded.append(name)
    return read_arrays(source, name)


def _name_below(path: Any, where: str) -> str:
    """Return a path of a config as a name below the bundle's folder.

    Raises:
        BundleError: it leads out.
    """
    name = posixpath.normpath(path) if isinstance(path, str) else ".."
    if name.startswith(("/", "../")) or name in {"..", "."} or "\\" in name:
        raise BundleError(f"{where}: its config names the file {str(path)[:120]!r}, which lies outside; it is not read")
    return name


def _weights_name(config: ZooConfig, source: ImportSource) -> str:
    """Return the name of the weights, as the step that loads them says.

    Raises:
        InputError: they are not there.
    """
    steps = [config.get("checkpointloader"), *(config.get("handlers") or [])]
    paths = [
        step["load_path"]
        for step in steps
        if isinstance(step, Mapping) and str(step.get("_target_")).endswith("CheckpointLoader") and "load_path" in step
    ]
    name = _name_below(paths[0], source.name) if paths else WEIGHTS
    if not source.has(name):
        listed = source.matching(r"large_files\.(yml|yaml|json)")
        hint = f"{listed[0]} says where to get it" if listed else "copy the bundle again with its weights"
        raise InputError(f"{source.name}: {name} is missing; {hint}.")
    return name


def _channels_in(network: Config, where: str) -> int:
    told = network.get("in_channels", 1)
    if not isinstance(told, int) or told < 1:
        raise BundleError(f"{where}: in_channels is {told!r}, expected a number of channels")
    return told


def input_size_of(chain: Chain) -> tuple[int, ...]:
    """Return the size of the network's input in voxels, as the inferer or the last resizing says."""
    inner = chain.inferer.get("inferer", chain.inferer)
    resized = [step.get("spatial_size") for step in chain.preparation if step["_target_"] == "Resized"]
    for stated in (inner.get("roi_size"), *reversed(resized)):
        size = [stated] * 3 if isinstance(stated, int) else stated
        if isinstance(size, list) and all(isinstance(one, int) for one in size):
            return tuple(one if one > 0 else UNSTATED_VOX for one in size)
    return (UNSTATED_VOX,) * 3
