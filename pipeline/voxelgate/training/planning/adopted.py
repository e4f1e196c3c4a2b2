"""Go on from an imported network of nnU-Net: its layers, its window and its own preparation, with other labels too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelgate.bundle.checksums import verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.shipped import kept_bundles
from voxelgate.bundle.workflow import read_configs
from voxelgate.core.errors import UsageError

PREPARATION = "voxelgate.NnUNetPreprocessd"
INFERER = "voxelgate.NnUNetInferer"
NETWORK_LIST = "torch.nn.ModuleList"
READING = ("LoadImaged", "EnsureChannelFirstd")

VOLUME_AXES = 3


def adopted_overrides(bundle: Path, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the overrides of a plan whose training goes on from an imported bundle.

    Images are prepared as nnU-Net prepares them, and brought back so. They are not mirrored, in training or after: the
    axes of the network grid are not those of the patient. Regions become classes.

    Args:
        bundle: imported from one configuration of nnU-Net, of one fold or several.
        own: overrides of somebody's own, which count before those.

    Raises:
        UsageError: it is something else.
        BundleError: files are missing or altered.
    """
    verify(bundle)
    config = read_configs(bundle, ["inference"], {})
    steps = [step for step in config.get("preprocessing#transforms") if step["_target_"] not in READING]
    network, inferer = config.get("network_def"), config.get("inferer")
    network = network["modules"][0] if network["_target_"] == NETWORK_LIST else network
    if inferer["_target_"] != INFERER or not steps or steps[-1]["_target_"] != PREPARATION:
        raise UsageError(f"{bundle.name}: is no model of one configuration of nnU-Net; only such can be gone on from.")
    patch = inferer["patch_size"]
    if len(patch) != VOLUME_AXES:
        raise UsageError(f"{bundle.name}: sees slices, and training goes on with volumes only; import a 3D model.")
    layers = {name: value for name, value in network.items() if name not in ("in_channels", "out_channels")}
    taken = {
        "network": layers,
        "channels": layers["channels"],
        "strides": layers["strides"],
        "spacing_mm": inferer["spacing"],
        "patch_vox": patch,
        "window_vox": patch,
        "overlap": 0.5,
        "flip_test": False,
        "intensity": {"low_hu": None, "high_hu": None, "offset_hu": 0.0},
        "augmentation": {"flip_sagittal": 0.0, "gamma": 0.0},
        "adopted": {
            "from": bundle.name if _is_kept(bundle) else str(bundle.resolve()),
            "licence": Metadata.read(bundle).licence,
            "preparation": steps,
            "inferer": {**inferer, "mirror_axes": [], "regions": None},
        },
    }
    given = dict(own or {})
    untouched = [name for name in taken if name not in given]
    reasons = dict.fromkeys(untouched, f"as {bundle.name} has it, from which the training goes on")
    return {**taken, **given, "reasons": {**reasons, **given.get("reasons", {})}}


def _is_kept(bundle: Path) -> bool:
    """Return whether a bundle is found by its name, from any folder and for whoever has it too."""
    kept = kept_bundles().get(bundle.name)
    return kept is not None and kept.samefile(bundle)
