"""The parts of which every config of a bundle is made; numbers come from the plan, the structure stands here."""

from collections.abc import Sequence
from math import prod, radians

from voxelgate.bundle.frame import Config, image_reading_steps
from voxelgate.datasets.manifest import Modality
from voxelgate.training.planning.plan import Plan
from voxelgate.training.planning.rules import ANISOTROPY

_WHOLE_RANGE = {"low_percentile": 0.0, "high_percentile": 100.0}
_PICTURE_VALUES: dict[bool, Config] = {False: _WHOLE_RANGE, True: _WHOLE_RANGE | {"together": True}}
"""How pictures are normalised, by whether they are in colours; nothing is clipped, since a tile may be nearly blank."""

OWN_PACKAGE = "voxelgate."
"""Networks whose `_target_` begins so take images of any size."""

AIR_IS_BELOW_HU = -500.0
"""An HU window that begins here or above makes 0 of air, noise and all, and shows no lung."""

GAMMA_RANGE = (0.7, 1.5)
"""Range of nnU-Net's gamma augmentation (batchgenerators `GammaTransform`)."""

AFFINE_MARGIN = 6
"""A patch is cut larger by a sixth on each side, so that a rotation by 15 degrees and a scaling find voxels there."""

AXIS_ACROSS = {"sagittal": 0, "coronal": 1}
"""Axis of a RAS grid along which mirroring across a plane goes."""

ALL_MIRRORED = 3
"""Version of plans from which on pictures are mirrored along both axes at inference too, as in training."""

FAR_TURN_DEG, TURNED_MARGIN = 30.0, 4
"""Above such an angle a patch is cut larger by a quarter on each side."""

BLUR_SIGMA_VOX = (0.5, 1.0)
ZOOM_RANGE = (0.5, 1.0)
"""Ranges of nnU-Net's blur and simulated low resolution (`nnUNetTrainer.get_training_transforms`)."""

ELASTIC_SIGMA_VOX = (6.0, 9.0)
ELASTIC_MAGNITUDE_VOX = (40.0, 120.0)


def reading_steps(plan: Plan, keys: list[str]) -> list[Config]:
    """Return the steps from files to channel-first volumes."""
    steps = image_reading_steps(plan.images)
    if "label" in keys:
        steps.append({"_target_": "voxelgate.LoadLabeld", "keys": ["label"], "highest": len(plan.labels) - 1})
    return steps


def preparation_steps(plan: Plan, keys: list[str]) -> list[Config]:
    """Return the way to the network grid and its values; the only place it stands, for training and inference."""
    if plan.adopted:
        return _adopted_steps(plan.adopted["preparation"], keys)
    return [
        {"_target_": "Orientationd", "keys": keys, "axcodes": "RAS", "labels": None},
        {
            "_target_": "voxelgate.ResampleToSpacingd",
            "keys": keys,
            "spacing_mm": list(plan.spacing_mm),
            "mode": ["nearest" if key == "label" else "bilinear" for key in keys],
        },
        *_intensity_steps(plan),
    ]


def _adopted_steps(steps: Sequence[Config], keys: Sequence[str]) -> list[Config]:
    """Return the preparation of an imported model; labels follow the image where it is turned, and to its grid."""
    if "label" not in keys:
        return [dict(step) for step in steps]
    placed: list[Config] = [{"_target_": "voxelgate.PlaceLabeld"}] if len(steps) > 1 else []
    return [*map(dict, steps[:-1]), *placed, {**steps[-1], "label_key": "label"}]


def _intensity_steps(plan: Plan) -> list[Config]:
    rule = plan.intensity
    if plan.modality is Modality.PICTURE:
        return [{"_target_": "voxelgate.NormalizeImaged", "keys": "image", **_PICTURE_VALUES[plan.is_colour]}]
    if rule.low_hu is None:
        return [{"_target_": "voxelgate.NormalizeImaged", "keys": "image"}]
    offset = {"_target_": "voxelgate.OffsetToHUd", "keys": "image", "offset_hu": rule.offset_hu}
    window = {
        "_target_": "voxelgate.WindowHUd",
        "keys": "image",
        "low_hu": rule.low_hu,
        "high_hu": rule.high_hu,
    }
    return [offset, window] if rule.offset_hu else [window]


def augmentation_steps(plan: Plan) -> list[Config]:
    """Return the random steps from volume to training patch; those with probability 0 are left out."""
    drawn = [*_shape_steps(plan), *_value_steps(plan)]
    to_tensor = {"_target_": "ToTensord", "keys": ["image", "label"], "track_meta": False}
    return [*(step for probability, step in drawn if probability > 0), to_tensor]


def _shape_steps(plan: Plan) -> list[tuple[float, Config]]:
    """Return what cuts, mirrors and bends patches, with probabilities."""
    change, both = plan.augmentation, ["image", "label"]
    bent: Config = {"keys": both, "mode": ["bilinear", "nearest"], "padding_mode": "zeros"}
    margin = TURNED_MARGIN if change.rotation_deg > FAR_TURN_DEG else AFFINE_MARGIN
    cut: Config = {
        "_target_": "voxelgate.RandBalancedPatchd",
        "keys": both,
        "label_key": "label",
        "patch_vox": list(plan.patch_vox),
        "margin_vox": [n // margin for n in plan.patch_vox] if change.affine > 0 else [0, 0, 0],
        "foreground_probability": plan.training.foreground_probability,
    }
    mirrored: Config = {
        "_target_": "voxelgate.RandSideSafeFlipd",
        "keys": both,
        "label_key": "label",
        "axes": _mirrored_planes(plan),
        "side_pairs": [list(pair) for pair in plan.label_table.side_pairs],
        "unpaired_sides": list(plan.label_table.unpaired_sides),
        "prob": change.flip_sagittal,
    }
    turned: Config = {
        "_target_": "RandAffined",
        **bent,
        "prob": change.affine,
        "rotate_range": _turns(plan),
        "scale_range": [0.0 if n == 1 else change.scaling for n in plan.patch_vox],
        "spatial_size": list(plan.patch_vox),
    }
    elastic: Config = {
        "_target_": "Rand3DElasticd",
        **bent,
        "prob": change.elastic,
        "sigma_range": list(ELASTIC_SIGMA_VOX),
        "magnitude_range": list(ELASTIC_MAGNITUDE_VOX),
    }
    return [(1.0, cut), (change.flip_sagittal, mirrored), (change.affine, turned), (change.elastic, elastic)]


def _value_steps(plan: Plan) -> list[tuple[float, Config]]:
    """Return what changes the values of patches, with probabilities."""
    change = plan.augmentation
    by_channel = {"channel_wise": True} if plan.is_colour else {}
    blurred = {
        f"sigma_{axis}": list(BLUR_SIGMA_VOX) if n > 1 else [0.0, 0.0]
        for axis, n in zip("xyz", plan.patch_vox, strict=True)
    }
    gamma: Config = {"_target_": "RandAdjustContrastd", "keys": "image", "gamma": list(GAMMA_RANGE)}
    drawn: list[tuple[float, Config]] = [
        (change.noise, {"_target_": "RandGaussianNoised", "std": change.noise_sd}),
        (change.blur, {"_target_": "RandGaussianSmoothd", **blurred}),
        (change.low_resolution, {"_target_": "RandSimulateLowResolutiond", "zoom_range": list(ZOOM_RANGE)}),
        (change.gamma_inverted, gamma | {"invert_image": True, "retain_stats": True}),
        (change.gamma, gamma),
        (change.contrast, {"_target_": "RandScaleIntensityd", "factors": change.contrast_factor, **by_channel}),
        (change.contrast, {"_target_": "RandShiftIntensityd", "offsets": change.shift, **by_channel}),
    ]
    return [(probability, {**step, "keys": "image", "prob": probability}) for probability, step in drawn]


def _turns(plan: Plan) -> list[float]:
    """Return the largest rotation around each axis in radians, none where it would make long voxels of short ones.

    MONAI turns voxels, not mm: with slices five times as thick as pixels are wide, 15 degrees would tilt by 53.
    """
    turn = round(radians(plan.augmentation.rotation_deg), 4)
    sides = list(zip(plan.spacing_mm, plan.patch_vox, strict=True))
    across = [[mm for other, (mm, vox) in enumerate(sides) if other != axis and vox > 1] for axis in range(3)]
    return [turn if len(two) == 2 and max(two) < ANISOTROPY * min(two) else 0.0 for two in across]


def _mirrored_planes(plan: Plan) -> list[str]:
    """Return across which planes a patient is mirrored, or a picture of no known side."""
    has_sides = bool(plan.label_table.side_pairs or plan.label_table.unpaired_sides)
    return ["sagittal", "coronal"] if plan.modality is Modality.PICTURE and not has_sides else ["sagittal"]


def _flip_axes(plan: Plan) -> list[int]:
    """Return the axes of the network grid along which the network also sees its mirror image: those of the training."""
    if not (plan.flip_test and plan.is_mirrored):
        return []
    planes = _mirrored_planes(plan) if plan.plan_version >= ALL_MIRRORED else ["sagittal"]
    return [AXIS_ACROSS[plane] for plane in planes]


def network_config(plan: Plan) -> Config:
    """Return the network of a plan: an `AttentionUNet`, or what its `network` names as `_target_`."""
    ends = {"in_channels": len(plan.image_channels), "out_channels": len(plan.labels)}
    if "backbone" in plan.network:
        return {**ends, **plan.network}
    gates = {} if "_target_" in plan.network else {"attention": True}
    flat = plan.flat_axis
    unet = {
        "_target_": "voxelgate.AttentionUNet",
        "spatial_dims": 3 if flat is None else 2,
        **ends,
        "channels": list(plan.channels),
        "strides": [[step for axis, step in enumerate(stride) if axis != flat] for stride in plan.strides],
        **gates,
        **plan.network,
    }
    return unet if flat is None else {"_target_": "voxelgate.FlatNetwork", "axis": flat, "network": unet}


def inferer_config(plan: Plan) -> Config:
    """Return the inferer that gives labels on the grid of the file."""
    if plan.adopted:
        return dict(plan.adopted["inferer"])
    flip_axes = _flip_axes(plan)
    return {
        "_target_": "voxelgate.RestoringSlidingWindowInferer",
        "roi_size": list(plan.window_vox),
        "overlap": plan.overlap,
        "streaming": True,
        **_skipped(plan),
        **_multiple(plan),
        "flip_axes": flip_axes,
        "side_pairs": [list(pair) for pair in plan.label_table.side_pairs] if flip_axes else [],
    }


def _skipped(plan: Plan) -> Config:
    """Return what leaves air out, where the HU window begins above it."""
    low_hu = plan.intensity.low_hu
    return {"skip_below": 0.0} if low_hu is not None and low_hu >= AIR_IS_BELOW_HU else {}


def _multiple(plan: Plan) -> Config:
    """Return what networks of other packages need: windows of whole multiples of their strides."""
    is_own = str(plan.network.get("_target_", OWN_PACKAGE)).startswith(OWN_PACKAGE)
    if is_own or plan.flat_axis is not None:
        return {}
    return {"window_multiple": max(prod(steps) for steps in zip(*plan.strides, strict=True))}


def cleaning_steps(plan: Plan) -> list[Config]:
    """Return what is done to the label maps under `pred`, on the grid of the file; nothing unless it helps."""
    steps: list[Config] = []
    if plan.cleaning.keep_largest:
        steps.append(
            {
                "_target_": "KeepLargestConnectedComponentd",
                "keys": "pred",
                "applied_labels": list(plan.cleaning.keep_largest),
                "is_onehot": False,
            }
        )
    if plan.cleaning.fill_holes:
        steps.append({"_target_": "FillHolesd", "keys": "pred", "applied_labels": list(plan.cleaning.fill_holes)})
    return steps
