"""A bundle's network as a file that other systems run, compared with the network before it gets its name."""

import copy
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional as F

from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.predict import FLAT_AXES, Bundle
from voxelgate.bundle.workflow import read_configs
from voxelgate.core.errors import BundleError, UsageError, VoxelgateError, reason_of
from voxelgate.core.files import make_folder, new_scratch, publish, refuse_existing, sync
from voxelgate.core.geometry import Grid, triple
from voxelgate.inference.composed.cropped_inferer import CroppedInferer
from voxelgate.inference.composed.part import parts_in
from voxelgate.inference.runtimes.agreement import Agreement, Evidence, central_patch, worst_of
from voxelgate.inference.runtimes.calibration import UNRUNNABLE
from voxelgate.inference.runtimes.formats import METADATA, Texts, require_format, sizes_of, write_format
from voxelgate.inference.runtimes.kinds import SUFFIXES, Format, paths_of_format
from voxelgate.inference.runtimes.torch_programs import IMAGE, PRED, Sizes
from voxelgate.networks import ScriptedNetwork
from voxelgate.transforms.io import as_image

PARITY = 1e-4
"""Largest difference of logits between the network and its file, as a part of their range; 1e-6 was seen."""

INFERENCE = "inference.json"
ABOUT = "export.json"
"""What every file carries: the bundle's metadata and its `inference.json`, under the names that MONAI's `ckpt_export`
gives them, and what the file itself takes and gives."""

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)

PHANTOM_SCALES_VOX = (4, 10, 24)
"""Sizes of the spots in a phantom."""

HU_OF_BODY = (40.0, 150.0)
"""Mean and spread of a phantom of CT; air around it."""

AIR_HU = -1000.0

MAGNITUDE_OF_BODY = (400.0, 150.0)
"""The same of every other modality; 0 around it."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what was seen when it was compared with the network.

    Args:
        path: of the file.
        sizes: windows that it takes.
        source: what the windows were cut from.
        agreement: with the network in float32.
        voxels: that were compared.
    """

    path: Path
    sizes: Sizes
    source: str
    agreement: Agreement
    voxels: int

    def __str__(self) -> str:
        """Return one sentence of figures."""
        found = self.agreement
        return (
            f"takes windows of {self.sizes}; on {self.source} with {found.structure_voxels} or more voxels of "
            f"structures in a window, logits differ by at most {found.difference:.1g} of their range, labels at "
            f"{found.unequal} of {self.voxels} voxels, of which {found.unequal - found.beyond_ties} are ties"
        )


def export(
    bundle: Bundle,
    form: Format | str,
    out: Path | None = None,
    image: MetaTensor | None = None,
    *,
    number: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Write a bundle's network in another format, read it back, and compare it with the network.

    Compared are windows of an image that is prepared as for segmentation, and a batch of two, smaller where the file
    takes other sizes.

    Args:
        bundle: opened, on any device; the network is compared on the CPU.
        form: the format, `onnx`, `openvino`, `torchscript` or `torch-export`.
        out: file to write; `models/model` with the ending of the format in the bundle by default.
        image: one with the structures, (C, I, J, K) as it was read; a phantom by default. In float32 every window is
            evidence, since logits are compared, not labels alone; labels are worth more where there are structures.
        number: which network of a bundle of several (folds, parts or stages), from 0.
        overwrite: replace what is there.

    Raises:
        UsageError: a package is not installed, the name of the file does not end as the format wants it, there is no
            such network, or the bundle prepares an image for each of its parts, so that none can be given.
        OutputError: the file is there already, or cannot be written.
        BundleError: the network cannot be exported, or the file says something else than the network; none is left.

    >>> written = vg.export(vg.open_bundle("my_bundle", device="cpu"), "torchscript", Path("model.ts"))
    >>> written.path.name, written.agreement.unequal
    ('model.ts', 0)
    """
    chosen = _format_named(form)
    require_format(chosen)
    one = _network_numbered(bundle, number)
    if chosen not in formats_of(one):
        raise BundleError(f"{bundle.name}: its network is a TorchScript program, which becomes no {chosen}.")
    name = f"model{f'_{number}' if number else ''}{SUFFIXES[chosen][0]}"
    paths = paths_of_format(out or bundle.root / "models" / name, chosen)
    refuse_existing(paths, overwrite=overwrite)
    network = copy.deepcopy(one)
    network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # PyTorch's stubs lack it for 5D
    patches = _patches(bundle, network, image)
    sizes = sizes_of(network, patches[0], chosen)
    evidence = tuple(_evidence_of(network, patches, sizes, bundle))
    scratch = new_scratch(paths[0].parent)
    make_folder(scratch)
    try:
        agreement = _written_and_compared(
            chosen, scratch / paths[0].name, evidence, sizes, _texts(bundle, chosen, sizes, number)
        )
        for path in paths:
            sync(scratch / path.name)
        publish({path: scratch / path.name for path in paths}, (), scratch / "older")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    voxels = sum(len(patch) * math.prod(patch.shape[2:]) for one in evidence for patch in one.patches)
    return Exported(paths[0], sizes, "a phantom" if image is None else "the image", agreement, voxels)


def formats_of(network: nn.Module) -> tuple[Format, ...]:
    """Return what a network can become: a program that is TorchScript already nothing else."""
    return (Format.TORCHSCRIPT,) if isinstance(network, ScriptedNetwork) else tuple(Format)


def _network_numbered(bundle: Bundle, number: int) -> nn.Module:
    if not 0 <= number < len(bundle.networks):
        there = f"networks 0 to {len(bundle.networks) - 1}" if len(bundle.networks) > 1 else "one network, number 0"
        raise UsageError(f"network {number}: {bundle.name} has {there}.")
    return bundle.networks[number]


def _format_named(name: Format | str) -> Format:
    try:
        return Format(name)
    except ValueError as error:
        raise UsageError(f"format {name!r}: expected {', '.join(Format)}.") from error


def _written_and_compared(
    form: Format, path: Path, evidence: Sequence[Evidence], sizes: Sizes, texts: Texts
) -> Agreement:
    """Write a file and compare it; raise if it cannot be, or is not the network's equal."""
    try:
        run = write_format(evidence[0].network, form, sizes, path, texts)
        found = worst_of([one.compare(run) for one in evidence])
    except VoxelgateError:
        raise
    except (*UNRUNNABLE, AssertionError, torch.jit.Error) as error:
        reason = reason_of(error).rstrip(".")
        raise BundleError(f"the network cannot be exported to {form} ({reason}); choose another format.") from error
    if found.beyond_ties or found.difference > PARITY:
        raise BundleError(
            f"the file of format {form} says something else than the network: logits differ by {found.difference:.1e} "
            f"of their range, expected at most {PARITY:.0e}, and labels at {found.unequal} voxels of which "
            f"{found.beyond_ties} are no ties; it is not kept, choose another format."
        )
    return found


# --- windows --------------------------------------------------------------------------------------------------------


def _patches(bundle: Bundle, network: nn.Module, image: MetaTensor | None) -> tuple[torch.Tensor, ...]:
    """Return windows of an image, or of a phantom, as the network gets them."""
    if not bundle.is_imported:
        return _windows(bundle.prepare(_phantom(bundle) if image is None else image), _window_vox(bundle))
    window_vox = Metadata.read(bundle.root).spatial_shape_vox
    if image is None:
        return (_standard_spots(_channels_of(network, bundle), window_vox),)
    if bundle.window_vox is None or _channels_of(network, bundle) != len(bundle.image_spec.channels):
        raise UsageError("the bundle prepares images for each of its networks; leave out --image.")
    windows = _windows(bundle.prepare(image), bundle.window_vox)
    flat = bundle.window_vox.index(1) + 2 if len(window_vox) == FLAT_AXES else None
    return windows if flat is None else tuple(window.squeeze(flat) for window in windows)


def _channels_of(network: nn.Module, bundle: Bundle) -> int:
    """Return how many channels a network takes: that of a second stage takes more than those of the image."""
    first = next((module for module in network.modules() if isinstance(module, CONVOLUTIONS)), None)
    return len(bundle.image_spec.channels) if first is None else first.in_channels


def _standard_spots(channels: int, window_vox: tuple[int, ...]) -> torch.Tensor:
    """Return spots as an image that was normalised, (1, channels, ...)."""
    spots = _spots(channels, window_vox, torch.Generator().manual_seed(0))
    return (spots - spots.mean()) / spots.std()


def _window_vox(bundle: Bundle) -> tuple[int, ...]:
    return bundle.window_vox or Metadata.read(bundle.root).spatial_shape_vox


def _spots(channels: int, shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Return spots of several sizes, (1, channels, ...)."""
    spots = torch.zeros(1, channels, *shape)
    for scale_vox in PHANTOM_SCALES_VOX:
        coarse = torch.randn(1, channels, *(-(-n // scale_vox) for n in shape), generator=rng)
        spots += F.interpolate(coarse, size=shape, mode="trilinear" if len(shape) > FLAT_AXES else "bilinear")
    return spots


def _phantom(bundle: Bundle) -> MetaTensor:
    """Return spots of several sizes in an ellipsoid, one window large, as the bundle's images are read."""
    shape, rng = _window_vox(bundle), torch.Generator().manual_seed(0)
    spacing_mm = _stated(_preprocessing_steps(bundle), ("spacing_mm", "pixdim"), [1.0] * 3)
    is_ct = Metadata.read(bundle.root).modality == "CT"
    mean, spread = HU_OF_BODY if is_ct else MAGNITUDE_OF_BODY
    around = AIR_HU if is_ct else 0.0
    spots = _spots(len(bundle.image_spec.channels), shape, rng)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape), indexing="ij")
    is_body = sum(axis**2 for axis in axes) <= 1
    voxels = torch.where(cast("torch.Tensor", is_body), (mean + spread * spots).clamp(min=around), around)
    grid = Grid(triple(shape), torch.diag(torch.tensor([*map(float, spacing_mm), 1.0], dtype=torch.float64)).numpy())
    return as_image(voxels[0].numpy(), grid)


def _windows(image: MetaTensor, window_vox: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Return the windows (1, C, i, j, k) in the middle and at two opposite corners of an image (C, i, j, k).

    A smaller image is padded with 0, as MONAI's sliding window pads it.
    """
    lacking = [max(0, most - n) for n, most in zip(image.shape[1:], window_vox, strict=True)]
    padding = [n for axis in reversed(lacking) for n in (axis // 2, axis - axis // 2)]
    padded = F.pad(image.as_tensor().float(), padding)[None]
    rest = [n - most for n, most in zip(padded.shape[2:], window_vox, strict=True)]
    corners = dict.fromkeys((tuple(n // 2 for n in rest), (0,) * len(rest), tuple(rest)))
    return tuple(_window_at(padded, corner, window_vox) for corner in corners)


def _window_at(image: torch.Tensor, corner: Sequence[int], window_vox: Sequence[int]) -> torch.Tensor:
    for dim, (first, length) in enumerate(zip(corner, window_vox, strict=True), start=2):
        image = image.narrow(dim, first, length)
    return image.contiguous()


def _evidence_of(
    network: nn.Module, patches: tuple[torch.Tensor, ...], sizes: Sizes, bundle: Bundle
) -> Iterator[Evidence]:
    yield Evidence(network, patches, are_regions=bundle.are_regions)
    other = central_patch(patches[0], other_window(sizes))
    yield Evidence(network, (torch.cat((other, other.flip(2))),), are_regions=bundle.are_regions)


def other_window(sizes: Sizes) -> tuple[int, ...]:
    """Return about half a window where a file takes other sizes; an odd one if it takes any."""
    return tuple(
        n if step is None else min(n, max(smallest, n // 2 | 1 if step == 1 else n // 2 // step * step))
        for n, step, smallest in zip(sizes.window_vox, sizes.multiples_vox, sizes.smallest_vox, strict=True)
    )


# --- what a file says of itself -------------------------------------------------------------------------------------


def _texts(bundle: Bundle, form: Format, sizes: Sizes, number: int) -> Texts:
    """Return the documents that a file carries, as JSON on one line."""
    documents = {
        METADATA: Metadata.read(bundle.root).document,
        INFERENCE: json.loads((bundle.root / "configs" / INFERENCE).read_text(encoding="utf-8")),
        ABOUT: _about(bundle, form, sizes, number),
    }
    return {name: json.dumps(document, ensure_ascii=False) for name, document in documents.items()}


def _about(bundle: Bundle, form: Format, sizes: Sizes, number: int) -> dict[str, Any]:
    steps, axes = _preprocessing_steps(bundle), ["i", "j", "k"][: len(sizes.window_vox)]
    return {
        "bundle": bundle.name,
        "version": bundle.version,
        "sha256": bundle.fingerprint,
        "format": form.value,
        **({"network": number, "networks": len(bundle.networks)} if len(bundle.networks) > 1 else {}),
        **({"licence": bundle.licence} if bundle.licence else {}),
        "input": {
            "name": IMAGE,
            "axes": ["batch", "channel", *axes],
            "orientation": _stated(steps, ("axcodes",), None),
            "spacing_mm": _stated(steps, ("spacing_mm", "pixdim"), None),
            "dtype": "float32",
            "channels": sizes.channels if bundle.is_imported else list(bundle.image_spec.channels),
            "window_vox": list(sizes.window_vox),
            "multiples_vox": list(sizes.multiples_vox),
            "smallest_vox": list(sizes.smallest_vox),
            "preprocessing": steps,
        },
        "output": {
            "name": PRED,
            "axes": ["batch", "class", *axes],
            "dtype": "float32",
            "values": "logits",
            "activation": "sigmoid" if bundle.are_regions else "softmax",
            "labels": _labels_of_network(bundle, number),
        },
        "software": {name: version(name) for name in ("voxelgate", "monai", "torch")},
    }


def _labels_of_network(bundle: Bundle, number: int) -> dict[str, str]:
    """Return the name of each channel of a network; none of one that finds what the bundle does not name."""
    inferer = bundle.inferer
    if isinstance(inferer, CroppedInferer) and not inferer.follows_restriction and number in inferer.rough.networks:
        return {}
    values = _values_of_channels(inferer, number)
    if values is None:
        return bundle.labels.to_mapping()
    return {str(channel): bundle.labels.names[value] for channel, value in enumerate(values)}


def _values_of_channels(inferer: object, number: int) -> Sequence[int] | None:
    """Return the label value of each channel of a network; None where each channel has the label of its number."""
    for part in parts_in(inferer):
        if number in part.networks:
            own = _values_of_channels(part.inferer, part.networks.index(number))
            if own is None or part.labels is None:
                return own if part.labels is None else part.labels
            return [part.labels[value] for value in own]
    return getattr(inferer, "regions", None)


def _preprocessing_steps(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the preprocessing as `inference.json` has it, as far as it is plain."""
    config = read_configs(bundle.root, ["inference"], {}).get("preprocessing")
    steps = config.get("transforms", []) if isinstance(config, Mapping) else []
    return [dict(step) for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []


def _stated(steps: Sequence[Mapping[str, Any]], names: Sequence[str], default: Any) -> Any:  # whatever JSON holds
    return next((step[name] for step in steps for name in names if name in step), default)
