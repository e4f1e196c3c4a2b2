"""Open a bundle: its files are compared with their checksums, its network gets its weights and its device."""

import copy
import functools
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import CastToTyped, Compose, EnsureChannelFirstd, LoadImaged, Orientationd, SaveImaged
from torch import nn

from voxelgate.bundle.checksums import FOLD_WEIGHTS, QUALITY, WEIGHTS, ensemble_fingerprint, verify
from voxelgate.bundle.frame import AS_IT_IS
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.predict import Bundle
from voxelgate.bundle.scripts import admit_scripts, read_scripts
from voxelgate.bundle.shipped import find_bundle
from voxelgate.bundle.workflow import read_configs
from voxelgate.core.errors import BundleError, UsageError, VoxelgateError, reason_of
from voxelgate.core.files import file_sha256
from voxelgate.evaluation.predicted_dice import QualityModel
from voxelgate.transforms import ResampleToSpacingd
from voxelgate.transforms.canonical_zoom import CanonicalZoomd
from voxelgate.transforms.dicom_order import OrderDicomd
from voxelgate.transforms.flat_spacing import FlatSpacingd
from voxelgate.transforms.nnunet.preprocess import NnUNetPreprocessd

TAKE_INTEGERS = (ResampleToSpacingd, FlatSpacingd, CanonicalZoomd, NnUNetPreprocessd)
"""Steps that need no float32 volume, but take a part of it at a time."""

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


INFERENCE_IDS = ("device", "network_def", "preprocessing", "inferer")
"""What `inference.json` must define; MONAI Label reads the same ids."""


def open_bundle(path: str | Path, device: str | None = None, *, ensemble: bool = False) -> Bundle:
    """Verify a bundle and load its network; a process does so once for each bundle, device and kind.

    Args:
        path: the bundle's folder, or the name of a shipped bundle.
        device: where to run instead of the device that its config chooses.
        ensemble: take the networks of all folds, a `ModuleList` whose probabilities the inferer averages, with a
            fingerprint of its own.

    Raises:
        UsageError: no such device, or a shipped bundle and a folder here have this name.
        BundleError: files are missing or altered, configs do not define what is needed, weights do not fit, or there
            are no weights of folds to average.

    >>> bundle = vg.open_bundle("my_bundle", device="cpu")
    >>> bundle.labels.names
    ('background', 'femur')
    """
    return _open_once(find_bundle(path), device, is_ensemble=ensemble)


def read_inferer(root: Path) -> Callable[..., Any]:
    """Return the inferer of a bundle, whose network and weights are not read.

    Raises:
        BundleError: files are missing or altered, or configs define none.
    """
    verify(root)
    admit_scripts(read_scripts(root))
    return cast("Callable[..., Any]", _built(read_configs(root, ["inference"], {}), root, "inferer"))


def forget_opened() -> None:
    """Let go of every bundle that this process has opened."""
    _open_once.cache_clear()


def open_fold(root: Path, weights: Path) -> Bundle:
    """Load a bundle that is being made, and is not sealed yet, with the weights of one of its folds.

    Raises:
        BundleError: configs do not define what is needed, or weights do not fit.
    """
    return _bundle_at(root, file_sha256(weights), None, weights)


@functools.cache
def _open_once(root: Path, device: str | None, *, is_ensemble: bool) -> Bundle:
    fingerprint = verify(root)
    if is_ensemble:
        return _bundle_at(root, ensemble_fingerprint(fingerprint), device, None)
    return _bundle_at(root, fingerprint, device, root / WEIGHTS)


def _bundle_at(root: Path, fingerprint: str, device: str | None, weights: Path | None) -> Bundle:
    """Return a bundle as its configs describe it; without weights, with those of all folds."""
    admit_scripts(read_scripts(root))
    metadata = Metadata.read(root)
    parser = read_configs(
        root, ["inference"], {} if device is None else {"device": f"$torch.device({_known(device)!r})"}
    )
    missing = [name for name in INFERENCE_IDS if name not in parser.get()]
    if missing:
        raise BundleError(f"{root.name}: inference.json does not define {', '.join(missing)}")
    where = cast("torch.device", _built(parser, root, "device"))
    network = cast("nn.Module", _built(parser, root, "network_def"))
    if weights is None:
        network = _ensemble(network, root)
    else:
        _load_weights(network, weights)
    return Bundle(
        root=root,
        name=metadata.name,
        version=metadata.version,
        fingerprint=fingerprint,
        labels=metadata.labels,
        preprocessing=_after_reading(_built(parser, root, "preprocessing"), root),
        inferer=_built(parser, root, "inferer"),
        network=_on_device(network, where, is_channels_last=parser.get("network") != AS_IT_IS).eval(),
        device=where,
        series_rule=metadata.series_rule,
        expected=metadata.expected,
        cleaning=_cleaning_of(parser, root),
        image_spec=metadata.image_spec,
        is_imported=metadata.is_imported,
        licence=metadata.licence,
        quality=_quality_of(root) if weights == root / WEIGHTS else None,
    )


def _quality_of(root: Path) -> QualityModel | None:
    """Return what a cross-validation taught of the quality of results; None if there was none.

    Raises:
        BundleError: the file holds something else.
    """
    path = root / QUALITY
    try:
        return QualityModel.from_json(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{root.name}: {QUALITY} does not say how good results are ({reason_of(error)}); remove it and seal the "
            "bundle, whose verdicts then rest on fixed rules"
        ) from error


def _built(parser: ConfigParser, root: Path, name: str) -> Any:  # whatever the config describes
    """Return what a part of `inference.json` describes.

    Raises:
        BundleError: it cannot be built here.
    """
    try:
        return parser.get_parsed_content(name)
    except (ImportError, RuntimeError, ValueError, TypeError, LookupError, VoxelgateError) as error:
        raise BundleError(
            f"{root.name}: {name} of inference.json cannot be built ({reason_of(error)}); the bundle may be of another "
            "version of this program or of MONAI"
        ) from error


def _on_device(network: nn.Module, device: torch.device, *, is_channels_last: bool) -> nn.Module:
    """Move a network, or those of an ensemble one by one, since each knows its own memory format."""
    if not is_channels_last:
        return network.to(device)
    for one in network if isinstance(network, nn.ModuleList) else (network,):
        one.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # stubs lack it
    return network


def _cleaning_of(parser: ConfigParser, root: Path) -> Callable[[MetaTensor], MetaTensor]:
    """Return what the steps before `SaveImaged` do to one label map."""
    steps = _built(parser, root, "postprocessing") if "postprocessing" in parser.get() else None
    transforms = list(steps.transforms) if isinstance(steps, Compose) else []
    before = Compose(list(itertools.takewhile(lambda step: not isinstance(step, SaveImaged), transforms)))

    def clean(labels: MetaTensor) -> MetaTensor:
        if not before.transforms:
            return labels
        cleaned: MetaTensor = before({"pred": labels[0]})["pred"]
        return cleaned[None].to(labels.dtype)

    return clean


def _ensemble(network: nn.Module, root: Path) -> nn.ModuleList:
    paths = sorted(root.glob(FOLD_WEIGHTS))
    if not paths:
        raise BundleError(
            f"{root.name}: has no {FOLD_WEIGHTS} to average; leave out --ensemble, which imported bundles do not need, "
            "or train the folds (`voxelgate train --folds 5`)"
        )
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
    turned = itertools.dropwhile(lambda step: isinstance(step, Orientationd | OrderDicomd), rest)
    if isinstance(next(turned, None), TAKE_INTEGERS):
        return Compose(rest)
    return Compose([CastToTyped("image", np.float32), *rest])  # as `LoadImaged` would


def _known(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} is not there; use cpu, or cuda where PyTorch finds a GPU") from error
    return device


def _load_weights(network: nn.Module, path: Path) -> None:
    root = path.parents[1]
    name = path.relative_to(root).as_posix()
    if not path.is_file():
        raise BundleError(f"{root.name}: {name} is missing; train the bundle first (`voxelgate train`)")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    except UNREADABLE_WEIGHTS as error:
        raise BundleError(
            f"{root.name}: {name} does not fit the network of inference.json ({reason_of(error)})"
        ) from error
