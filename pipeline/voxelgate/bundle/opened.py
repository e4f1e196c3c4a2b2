"""Open, verify, seal and run MONAI bundles; the only door to `monai.bundle`."""

import copy
import difflib
import functools
import hashlib
import itertools
import json
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import CastToTyped, Compose, EnsureChannelFirstd, LoadImaged, Orientationd, SaveImaged
from torch import nn

from voxelgate.core.errors import BundleError, UsageError, VoxelgateError, cause_of, reason_of
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.manifest import Modality
from voxelgate.dicom.choose import SeriesRule
from voxelgate.dicom.plausibility import Expected
from voxelgate.images.spec import ImageRule
from voxelgate.transforms import ResampleToSpacingd

CHECKSUMS = "checksums.json"
"""File in a bundle with the SHA-256 of every file that is executed or loaded."""

SEALED = ("configs/*.json", "models/*.pt", "plan.json", "fingerprint.json")
WEIGHTS = "models/model.pt"
FOLD_WEIGHTS = "models/fold_*.pt"
"""Weights of the folds of a cross-validation, which can be averaged instead of using `WEIGHTS`."""

UNREADABLE_WEIGHTS = (
    RuntimeError,
    OSError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
    LookupError,
    pickle.UnpicklingError,
)
"""What `torch.load` and `load_state_dict` raise on files that hold no weights, or other ones."""

MODALITY_OF = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT"}
"""DICOM's names of the modalities that a bundle's metadata may state."""

INFERENCE_IDS = ("device", "network_def", "preprocessing", "inferer")
"""What `inference.json` must define; MONAI Label reads the same ids."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, ready to segment.

    Args:
        root: its folder.
        name: from its metadata.
        version: from its metadata.
        fingerprint: SHA-256 over the checksums of its files, hex.
        labels: what the label values mean.
        preprocessing: `{"image": MetaTensor (C, I, J, K)}` on the source grid to `{"image": MetaTensor (C, i, j, k)}`
            on the network grid; the steps of `inference.json` after those that read the file.
        inferer: gives labels (1, 1, I, J, K) on the source grid.
        network: in eval mode, on `device`, weights loaded.
        device: where the network runs.
        series_rule: which series of a DICOM study it wants.
        expected: what images it was trained on, if its metadata say so.
        cleaning: labels (1, 1, I, J, K) from the inferer to labels without what cross-validation found to be mistakes;
            the steps of `postprocessing` in `inference.json` before it saves.
        images: what its images consist of.
    """

    root: Path
    name: str
    version: str
    fingerprint: str
    labels: LabelTable
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    inferer: Callable[..., Any]
    network: nn.Module
    device: torch.device
    series_rule: SeriesRule
    expected: Expected | None
    cleaning: Callable[[MetaTensor], MetaTensor]
    images: ImageRule


@functools.cache
def open_bundle(root: Path, device: str | None = None, *, is_ensemble: bool = False) -> Bundle:
    """Verify a bundle and load its network; cached, so that a process opens each bundle once.

    Args:
        root: the bundle's folder.
        device: where to run instead of the device that its config chooses.
        is_ensemble: take the networks of all folds, a `ModuleList` whose probabilities the inferer averages, with a
            fingerprint of its own.

    Raises:
        UsageError: no such device.
        BundleError: files are missing or altered, configs do not define what is needed, weights do not fit, or there
            are no weights of folds to average.
    """
    fingerprint = verify(root)
    metadata = read_metadata(root)
    parser = read_configs(
        root, ["inference"], {} if device is None else {"device": f"$torch.device({_known(device)!r})"}
    )
    missing = [name for name in INFERENCE_IDS if name not in parser.get()]
    if missing:
        raise BundleError(f"{root.name}: inference.json does not define {', '.join(missing)}")
    where = cast("torch.device", parser.get_parsed_content("device"))
    network = cast("nn.Module", parser.get_parsed_content("network_def"))
    if is_ensemble:
        network = _ensemble(network, root)
        fingerprint = ensemble_fingerprint(fingerprint)
    else:
        _load_weights(network, root / WEIGHTS)
    return Bundle(
        root=root,
        name=metadata["name"],
        version=metadata["version"],
        fingerprint=fingerprint,
        labels=labels_of(root),
        preprocessing=_after_reading(parser.get_parsed_content("preprocessing"), root),
        inferer=parser.get_parsed_content("inferer"),
        network=_placed(network, where).eval(),
        device=where,
        series_rule=series_rule_of(root),
        expected=_expected(root),
        cleaning=_cleaning(parser),
        images=image_rule_of(root),
    )


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network, or those of an ensemble one by one, since each knows its own memory format."""
    for one in network if isinstance(network, nn.ModuleList) else (network,):
        one.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # stubs lack it
    return network


def _cleaning(parser: ConfigParser) -> Callable[[MetaTensor], MetaTensor]:
    """Return what the steps before `SaveImaged` do to one label map."""
    steps = parser.get_parsed_content("postprocessing") if "postprocessing" in parser.get() else None
    transforms = list(steps.transforms) if isinstance(steps, Compose) else []
    before = Compose(list(itertools.takewhile(lambda step: not isinstance(step, SaveImaged), transforms)))

    def clean(labels: MetaTensor) -> MetaTensor:
        if not before.transforms:
            return labels
        cleaned: MetaTensor = before({"pred": labels[0]})["pred"]
        return cleaned[None].to(labels.dtype)

    return clean


def ensemble_fingerprint(fingerprint: str) -> str:
    """Return what names the networks of all folds of a bundle together."""
    return hashlib.sha256(f"{fingerprint} ensemble".encode()).hexdigest()


def _ensemble(network: nn.Module, root: Path) -> nn.ModuleList:
    paths = sorted(root.glob(FOLD_WEIGHTS))
    if not paths:
        raise BundleError(f"{root.name}: has no {FOLD_WEIGHTS} to average; train them (`voxelgate train --folds 5`)")
    networks = nn.ModuleList(copy.deepcopy(network) for _ in paths)
    for one, path in zip(networks, paths, strict=True):
        _load_weights(one, path)
    return networks


def _after_reading(steps: object, root: Path) -> Compose:
    """Return the steps that follow those that read the file; the pipeline reads and checks it itself, once."""
    transforms = list(steps.transforms) if isinstance(steps, Compose) else []
    if not transforms or not isinstance(transforms[0], LoadImaged):
        raise BundleError(f"{root.name}: preprocessing in inference.json must be a Compose that starts with LoadImaged")
    rest = list(itertools.dropwhile(lambda step: isinstance(step, LoadImaged | EnsureChannelFirstd), transforms))
    turned = itertools.dropwhile(lambda step: isinstance(step, Orientationd), rest)
    if isinstance(next(turned, None), ResampleToSpacingd):  # takes integers, a part of the volume at a time
        return Compose(rest)
    return Compose([CastToTyped("image", np.float32), *rest])  # as `LoadImaged` would


def _known(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} is not there; use cpu, or cuda where PyTorch finds a GPU") from error
    return device


def is_bundle(path: Path) -> bool:
    """Return whether a folder looks like a bundle."""
    return (path / "configs" / "metadata.json").is_file()


def is_sealed(root: Path) -> bool:
    """Return whether a bundle's checksums were recorded, which is the last thing a training does."""
    return (root / CHECKSUMS).is_file()


def read_metadata(root: Path) -> dict[str, Any]:
    """Read `metadata.json`.

    Raises:
        BundleError: no bundle at `root`, or no valid metadata.
    """
    path = root / "configs" / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{root} is no bundle: it has no configs/metadata.json; name the folder of a bundle"
        ) from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: no readable JSON ({error}); restore the bundle") from error
    if not isinstance(metadata, dict) or not {"name", "version", "network_data_format"} <= metadata.keys():
        raise BundleError(f"{path}: expected name, version and network_data_format; restore the bundle")
    return metadata


def series_rule_of(root: Path) -> SeriesRule:
    """Return which series of a DICOM study a bundle wants: `series_rule` of its metadata, else its modality.

    Raises:
        BundleError: the rule is none.
    """
    metadata = read_metadata(root)
    stated = str(metadata["network_data_format"].get("inputs", {}).get("image", {}).get("modality", "")).upper()
    default = {"modality": MODALITY_OF[stated]} if stated in MODALITY_OF else {}
    try:
        return SeriesRule.from_mapping(metadata.get("series_rule", default))
    except (AttributeError, TypeError, ValueError) as error:
        raise BundleError(f"{root.name}: series_rule in metadata.json is none ({error})") from error


def image_rule_of(root: str | Path) -> ImageRule:
    """Return what the images of a bundle consist of, as its metadata name channels and modality.

    Raises:
        BundleError: the channels are not 0, 1, 2, ...
    """
    stated = read_metadata(Path(root))["network_data_format"].get("inputs", {}).get("image", {})
    count = int(stated.get("num_channels", 1))
    names = stated.get("channel_def", {str(index): f"channel {index}" for index in range(count)})
    if list(names) != [str(index) for index in range(count)]:
        raise BundleError(
            f"{Path(root).name}: metadata.json names the channels {', '.join(names)} of its image, expected 0 to "
            f"{count - 1} as num_channels says; correct it"
        )
    return ImageRule(tuple(map(str, names.values())), stated.get("modality") == Modality.PICTURE)


def _expected(root: Path) -> Expected | None:
    metadata = read_metadata(root)
    try:
        return Expected.from_mapping(metadata["trained_on"]) if "trained_on" in metadata else None
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise BundleError(f"{root.name}: trained_on in metadata.json cannot be used ({error})") from error


def labels_of(root: Path) -> LabelTable:
    """Return what the label values of a bundle's output mean.

    Raises:
        BundleError: the metadata do not say it.
    """
    metadata = read_metadata(root)
    try:
        names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return LabelTable.from_mapping(names, metadata.get("label_codes"))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{root.name}: metadata.json does not name the output labels ({error})") from error


def seal(root: Path) -> str:
    """Record the checksums of a bundle's configs and weights; return its fingerprint.

    Do this after changing a bundle on purpose: from then on any other change is refused.

    Raises:
        BundleError: `root` is no bundle.
    """
    read_metadata(root)
    document = json.dumps(_checksums(root), indent=2) + "\n"
    partial = root / f".{CHECKSUMS}.partial"
    partial.write_text(document, encoding="utf-8")
    partial.replace(root / CHECKSUMS)
    return _fingerprint(_checksums(root))


def verify(root: Path) -> str:
    """Compare a bundle's files with its recorded checksums; return its fingerprint.

    Raises:
        BundleError: not sealed, or files are missing, altered or new; each is named.
    """
    read_metadata(root)
    path = root / CHECKSUMS
    if not path.is_file():
        raise BundleError(
            f"{root.name}: {CHECKSUMS} is missing, so its configs cannot be trusted; train the bundle, or run "
            "`voxelgate bundle seal` if you made it yourself"
        )
    try:
        recorded = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise BundleError(f"{root.name}: {CHECKSUMS} is no JSON object; restore the bundle") from error
    found = _checksums(root)
    changed = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
    if changed:
        raise BundleError(
            f"{root.name}: {', '.join(changed)} changed since the bundle was sealed; restore the files, or run "
            "`voxelgate bundle seal` if you changed them on purpose"
        )
    return _fingerprint(found)


def read_configs(root: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """Read configs of a bundle, later ones laid over earlier ones, with overrides that are known to count.

    Raises:
        BundleError: a config is missing or is no valid JSON.
        UsageError: an override names nothing in the configs, or has another type than the value there.
    """
    parser = ConfigParser()
    try:
        parser.read_config([str(_config(root, name)) for name in configs])
    except ValueError as error:
        raise BundleError(
            f"{root.name}: {' or '.join(configs)} is no valid JSON ({error}); restore the bundle"
        ) from error
    refuse_useless(parser, overrides)
    parser.update({"bundle_root": str(root), **overrides})
    return parser


def run_workflow(root: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """Run a workflow of a bundle as `python -m monai.bundle run` does, but refuse overrides that change nothing.

    Args:
        root: the bundle's folder.
        configs: names below `configs/`, later ones laid over earlier ones, e.g. `("train", "evaluate")`.
        overrides: config ids and their values, e.g. `{"epochs": 5, "train#dataloader#num_workers": 2}`.

    Returns:
        The parser with everything that was built.

    Raises:
        BundleError: a config is missing or is no valid JSON, or what it describes cannot be built or run.
        UsageError: an override names nothing in the configs, or has another type than the value there.
    """
    read_configs(root, configs, overrides)
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it would say that it sets up no logging
    workflow = ConfigWorkflow(
        config_file=[str(_config(root, name)) for name in configs],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(root),
        **overrides,
    )
    try:
        workflow.initialize()
        workflow.run()
    except (RuntimeError, ValueError, TypeError) as error:
        raise _as_ours(error, root) from error
    finally:
        workflow.finalize()
    return workflow.parser


def build(config: Mapping[str, Any]) -> Any:  # whatever the config describes
    """Build what a piece of config describes, as a bundle's parser would.

    >>> build({"_target_": "torch.nn.ReLU"})
    ReLU()
    """
    return ConfigParser({"it": dict(config)}).get_parsed_content("it")


def refuse_useless(config: ConfigParser, overrides: Mapping[str, Any]) -> None:
    """Refuse overrides of ids that the config does not have, which MONAI would add and ignore, and of another type.

    Raises:
        UsageError: names the id and what may have been meant.
    """
    known = config_ids(config.get())
    for name in overrides:
        if name.replace("::", "#") not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(config.get()))}."
            raise UsageError(f"the bundle has no setting {name!r}; {hint}")
        _refuse_other_type(name, config.get(name.replace("::", "#")), overrides[name])


def _refuse_other_type(name: str, present: object, asked: object) -> None:
    """Refuse a text for a number and the like; expressions and empty values may become anything."""
    is_free = present is None or any(isinstance(value, str) and value[:1] in ("$", "@") for value in (present, asked))
    is_number = type(present) is float and type(asked) is int
    if not is_free and not is_number and type(asked) is not type(present):
        raise UsageError(
            f"setting {name} is {present!r} in the bundle, and {asked!r} is of another type; give such a value"
        )


def _as_ours(error: BaseException, root: Path) -> VoxelgateError:
    """Find our own error behind those that MONAI and ignite wrap around it, or word the innermost one."""
    if isinstance(cause := cause_of(error), VoxelgateError):
        return cause
    reason = reason_of(error)
    return BundleError(f"{root.name}: its workflow cannot run with these settings ({reason}); --debug shows where")


def _config(root: Path, name: str) -> Path:
    path = root / "configs" / f"{name}.json"
    if not path.is_file():
        raise BundleError(f"{root.name}: configs/{name}.json is missing; restore the bundle")
    return path


def config_ids(config: Any, prefix: str = "") -> set[str]:  # whatever JSON holds
    """Return every id of a config, such as `train#dataloader#num_workers`."""
    if isinstance(config, Mapping):
        children: list[tuple[str, Any]] = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list):
        children = [(str(index), value) for index, value in enumerate(config)]
    else:
        return set()
    found: set[str] = set()
    for key, value in children:
        found |= {prefix + key} | config_ids(value, f"{prefix}{key}#")
    return found


def _load_weights(network: nn.Module, path: Path) -> None:
    root = path.parents[1]
    name = path.relative_to(root).as_posix()
    if not path.is_file():
        raise BundleError(f"{root.name}: {name} is missing; train the bundle first (`voxelgate train`)")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    except UNREADABLE_WEIGHTS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{root.name}: {name} does not fit the network of inference.json ({reason})") from error


def _checksums(root: Path) -> dict[str, str]:
    paths = sorted(path for pattern in SEALED for path in root.glob(pattern))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _fingerprint(checksums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sorted(checksums.items()))).encode()).hexdigest()
