"""What an nnU-Net `plans.json` says, checked before anything is made of it; facts are those of nnunetv2 2.8.1.

Only what inference reads is looked at. Numbers have limits far above those of any model, so that a wrong file is
refused before memory is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as record

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.foreign_records import as_record
from voxelgate.core.errors import BundleError, UsageError
from voxelgate.transforms.nnunet.normalise import NormalizationScheme
from voxelgate.transforms.nnunet.resample import Resampling, ResamplingFunction
from voxelgate.transforms.nnunet.source_layout import NnUNetReader

MOST_WINDOW_VOXELS = 2**27
"""Of a patch; features of its finest level alone would take 16 GiB."""

NORM_EPS = 1e-5
"""Of every norm in plans that nnU-Net writes, and of those here."""

LEAKY_SLOPE = 0.01
"""PyTorch's default for `LeakyReLU`, which plans leave as it is."""

NETWORK_PACKAGE = "dynamic_network_architectures."

T = TypeVar("T")


def _listed(value: Any) -> Any:  # one number for all, or a list
    return value if isinstance(value, list) else [value]


def _class_of_package(value: Any) -> Any:  # of others the whole name stays, which is that of no network here
    is_of_package = isinstance(value, str) and value.startswith(NETWORK_PACKAGE)
    return value.rpartition(".")[2] if is_of_package else value


def _lists_of(value: Any) -> Any:  # one number for all, or for each level one or a list
    return [_listed(one) for one in _listed(value)]


_FINITE = Field(strict=True, allow_inf_nan=False)
_LEVELS = Field(min_length=1, max_length=16)
_Number = Annotated[float, _FINITE]
_Length = Annotated[float, _FINITE, Field(ge=1e-6, le=1e6)]
_Flag = Annotated[bool, Field(strict=True)]
_Order = Annotated[int, Field(strict=True, ge=0, le=5)]
_Width = Annotated[int, Field(strict=True, ge=1, le=2**13)]
_Few = Annotated[int, Field(strict=True, ge=1, le=64)]
_Widths = Annotated[tuple[_Width, ...], _LEVELS, BeforeValidator(_listed)]
_Counts = Annotated[tuple[_Few, ...], _LEVELS, BeforeValidator(_listed)]
_Step = Annotated[tuple[_Few, ...], Field(min_length=1, max_length=3)]
_Steps = Annotated[tuple[_Step, ...], _LEVELS, BeforeValidator(_lists_of)]
_Axis = Annotated[int, Field(strict=True, ge=0, le=2)]
_Axes = tuple[_Axis, _Axis, _Axis]
_NO_OTHERS = ConfigDict(extra="forbid")


class NetworkName(StrEnum):
    """Networks of nnU-Net that are written here under the same names."""

    PLAIN = "PlainConvUNet"
    RESIDUAL = "ResidualEncoderUNet"


@record(frozen=True)
class Intensities:
    """What `CTNormalization` knows of a channel of the training images."""

    mean: _Number
    std: Annotated[float, _FINITE, Field(ge=0)]
    percentile_00_5: _Number
    percentile_99_5: _Number


@record(frozen=True, config=_NO_OTHERS)
class _ResamplingArguments:
    is_seg: _Flag = False
    order: _Order = 3
    order_z: _Order = 0
    force_separate_z: _Flag | None = None
    separate_z_anisotropy_threshold: _Length = 3.0
    memefficient_seg_resampling: _Flag = False


@record(frozen=True, config=_NO_OTHERS)
class _NormArguments:
    eps: _Number = NORM_EPS
    affine: _Flag | None = None
    momentum: _Number | None = None
    track_running_stats: _Flag | None = None


@record(frozen=True, config=_NO_OTHERS)
class _ActivationArguments:
    inplace: _Flag = False
    negative_slope: Annotated[float, _FINITE, Field(ge=0, le=1)] = LEAKY_SLOPE


@record(frozen=True, config=_NO_OTHERS)
class _ArchitectureArguments:
    n_stages: _Few
    features_per_stage: _Widths
    conv_op: str
    kernel_sizes: _Steps
    strides: _Steps
    n_conv_per_stage_decoder: _Counts
    n_conv_per_stage: _Counts | None = None
    n_blocks_per_stage: _Counts | None = None
    conv_bias: _Flag = False
    norm_op: str | None = None
    norm_op_kwargs: _NormArguments | None = None
    dropout_op: str | None = None
    dropout_op_kwargs: dict[str, Any] | None = None
    nonlin: str | None = None
    nonlin_kwargs: _ActivationArguments | None = None
    deep_supervision: _Flag = False
    nonlin_first: _Flag = False
    block: str | None = None
    bottleneck_channels: Any = None
    stem_channels: _Width | None = None


@record(frozen=True)
class _Architecture:
    network_class_name: Annotated[NetworkName, BeforeValidator(_class_of_package)]
    arch_kwargs: _ArchitectureArguments


@record(frozen=True)
class _ConfigurationFile:
    patch_size: Annotated[tuple[_Width, ...], Field(min_length=2, max_length=3)]
    spacing: Annotated[tuple[_Length, ...], Field(min_length=2, max_length=3)]
    normalization_schemes: tuple[NormalizationScheme, ...]
    architecture: _Architecture
    use_mask_for_norm: tuple[_Flag, ...] = ()
    preprocessor_name: str = "DefaultPreprocessor"
    resampling_fn_data: ResamplingFunction = ResamplingFunction.DEFAULT
    resampling_fn_data_kwargs: dict[str, Any] | None = None
    resampling_fn_seg: ResamplingFunction = ResamplingFunction.DEFAULT
    resampling_fn_seg_kwargs: dict[str, Any] | None = None
    resampling_fn_probabilities: ResamplingFunction = ResamplingFunction.DEFAULT
    resampling_fn_probabilities_kwargs: dict[str, Any] | None = None
    previous_stage: str | None = None


@record(frozen=True)
class _PlansFile:
    configurations: dict[str, Any]
    transpose_forward: _Axes
    transpose_backward: _Axes
    image_reader_writer: NnUNetReader
    plans_name: str = ""
    dataset_name: str = ""
    label_manager: str = "LabelManager"
    foreground_intensity_properties_per_channel: dict[str, Any] | None = None
    foreground_intensity_properties_by_modality: dict[str, Any] | None = None


@dataclass(frozen=True)
class Configuration:
    """One configuration of plans, inheritance resolved.

    Args:
        name: such as `3d_fullres`.
        patch_size: of a window, in transposed axes; two of a configuration that sees slices.
        spacing: of the network grid, in transposed axes, as many.
        normalization: for each channel the name of the scheme and its numbers, as `NnUNetPreprocessd` takes them.
        use_mask_for_norm: for each channel, whether only voxels inside the mask are normalised.
        resampling: of `data`, `seg` and `probabilities`: the function and its arguments, as `Resampling` reads them.
        network: of one of nnU-Net's networks all arguments but those for channels and classes.
        has_dropout: whether the training dropped channels.
        previous_stage: configuration whose result is an input too, in a cascade.
    """

    name: str
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    normalization: tuple[Config, ...]
    use_mask_for_norm: tuple[bool, ...]
    resampling: Mapping[str, Config]
    network: Config
    has_dropout: bool
    previous_stage: str | None


@dataclass(frozen=True)
class Plans:
    """What `plans.json` says; a configuration is looked at when it is asked for.

    Args:
        where: file that it was read from, for messages.
        name: of the plans.
        data_set: name of the data set.
        transpose_forward: of the axes (k, j, i) to those of the network.
        reader: how images are read.
        intensities: by number of the channel, not looked at yet.
        configurations: by name, not looked at yet.
    """

    where: str
    name: str
    data_set: str
    transpose_forward: tuple[int, ...]
    reader: NnUNetReader
    intensities: Mapping[str, Any]
    configurations: Mapping[str, Any]

    def configuration(self, name: str, channels: int, *, norm: str | None = None) -> Configuration:
        """Return a configuration.

        Args:
            name: of it.
            channels: of the images.
            norm: of the network, where the trainer sets another than the plans say.

        Raises:
            BundleError: there is none, it inherits from itself, or something in it cannot be matched.
        """
        where = f"{self.where}, configuration {name}"
        stated = as_record(_ConfigurationFile, _with_architecture(self._inherited(name), where), where)
        _check_whole(stated, channels, where)
        masks = stated.use_mask_for_norm or (False,) * channels
        return Configuration(
            name=name,
            patch_size=stated.patch_size,
            spacing=stated.spacing,
            normalization=tuple(
                self._normalization(scheme, channel) for channel, scheme in enumerate(stated.normalization_schemes)
            ),
            use_mask_for_norm=masks,
            resampling={of: _resampling(stated, of, where) for of in ("data", "seg", "probabilities")},
            network=_network_config(stated.architecture, len(stated.patch_size), norm, where),
            has_dropout=stated.architecture.arch_kwargs.dropout_op is not None,
            previous_stage=stated.previous_stage,
        )

    def _inherited(self, name: str) -> dict[str, Any]:
        """Return what a configuration says and inherits; its own word goes before that of its ancestors."""
        lineage: list[str] = []
        parent: Any = name
        while parent is not None:
            if parent in lineage:
                raise BundleError(f"{self.where}: the configuration {name} inherits from itself; restore the file.")
            if not isinstance(parent, str) or parent not in self.configurations:
                raise BundleError(
                    f"{self.where}: has no configuration {parent!a}; it has {', '.join(self.configurations)}."
                )
            if not isinstance(self.configurations[parent], dict):
                raise BundleError(f"{self.where}: the configuration {parent} is no record; restore the file.")
            lineage.append(parent)
            parent = self.configurations[parent].get("inherits_from")
        return {key: value for ancestor in reversed(lineage) for key, value in self.configurations[ancestor].items()}

    def _normalization(self, scheme: NormalizationScheme, channel: int) -> Config:
        if scheme is not NormalizationScheme.CT:
            return {"scheme": str(scheme)}
        where = f"{self.where}, intensities of channel {channel}"
        stated = as_record(Intensities, self.intensities.get(str(channel)), where)
        return {"scheme": str(scheme), **vars(stated)}


def read_plans(document: Mapping[str, Any], where: str) -> Plans:
    """Check what plans say beside their configurations.

    Args:
        document: content of `plans.json`.
        where: file that it was read from, for messages.

    Raises:
        BundleError: something is missing, of another type or out of its limits, or cannot be matched.
    """
    stated = as_record(_PlansFile, document, where)
    forward, backward = stated.transpose_forward, stated.transpose_backward
    if sorted(forward) != [0, 1, 2] or [forward[axis] for axis in backward] != [0, 1, 2]:
        raise BundleError(
            f"{where}: transpose_forward {list(forward)} and transpose_backward {list(backward)} do not undo each "
            "other; restore the file."
        )
    if stated.label_manager != "LabelManager":
        raise BundleError(f"{where}: label_manager is {stated.label_manager!a}, only LabelManager can be imported.")
    return Plans(
        where=where,
        name=stated.plans_name,
        data_set=stated.dataset_name,
        transpose_forward=forward,
        reader=stated.image_reader_writer,
        intensities=stated.foreground_intensity_properties_per_channel
        or stated.foreground_intensity_properties_by_modality
        or {},
        configurations=stated.configurations,
    )


def _with_architecture(stated: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a configuration as it is written since 2.4; before, its network was told in entries of their own."""
    if "architecture" in stated:
        return stated
    old = as_record(_OldNetwork, stated, where)
    dims = len(stated["patch_size"]) if isinstance(stated.get("patch_size"), list) else 3
    blocks = "n_conv_per_stage" if old.UNet_class_name is NetworkName.PLAIN else "n_blocks_per_stage"
    levels = range(len(old.n_conv_per_stage_encoder))
    arguments = {
        "n_stages": len(levels),
        "features_per_stage": [min(old.UNet_base_num_features * 2**n, old.unet_max_num_features) for n in levels],
        "conv_op": f"Conv{dims}d",
        "kernel_sizes": stated["conv_kernel_sizes"],
        "strides": stated["pool_op_kernel_sizes"],
        blocks: list(old.n_conv_per_stage_encoder),
        "n_conv_per_stage_decoder": list(old.n_conv_per_stage_decoder),
        "conv_bias": True,
        "norm_op": f"InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": NORM_EPS, "affine": True},
        "nonlin": "LeakyReLU",
    }
    name = f"{NETWORK_PACKAGE}architectures.unet.{old.UNet_class_name}"
    return stated | {"architecture": {"network_class_name": name, "arch_kwargs": arguments}}


@record(frozen=True)
class _OldNetwork:
    UNet_class_name: NetworkName
    UNet_base_num_features: _Width
    unet_max_num_features: _Width
    n_conv_per_stage_encoder: _Counts
    n_conv_per_stage_decoder: _Counts
    pool_op_kernel_sizes: _Steps
    conv_kernel_sizes: _Steps


def _check_whole(stated: _ConfigurationFile, channels: int, where: str) -> None:
    """Refuse what is right in each part and wrong as a whole."""
    if len(stated.spacing) != len(stated.patch_size):
        raise BundleError(f"{where}: patch_size and spacing have not as many axes; restore the file.")
    if prod(stated.patch_size) > MOST_WINDOW_VOXELS:
        size = " x ".join(map(str, stated.patch_size))
        raise BundleError(f"{where}: a patch of {size} voxels, at most {MOST_WINDOW_VOXELS} can be run.")
    masks = stated.use_mask_for_norm
    if len(stated.normalization_schemes) != channels or len(masks) not in (0, channels):
        raise BundleError(
            f"{where}: normalises {len(stated.normalization_schemes)} channels, but dataset.json names {channels}; the "
            "files are of different models."
        )
    if stated.preprocessor_name != "DefaultPreprocessor":
        raise BundleError(
            f"{where}: preprocessor_name is {stated.preprocessor_name!a}, only DefaultPreprocessor can be imported."
        )


def _resampling(stated: _ConfigurationFile, of: str, where: str) -> Config:
    """Return a resampling function with its arguments; very old plans leave them to nnU-Net's defaults."""
    function = getattr(stated, f"resampling_fn_{of}")
    arguments = getattr(stated, f"resampling_fn_{of}_kwargs")
    if arguments is None:
        default = {"is_seg": of == "seg", "order": 3 if of == "data" else 1, "order_z": 0, "force_separate_z": None}
        arguments = default if function is ResamplingFunction.DEFAULT else {}
    as_record(_ResamplingArguments, arguments, f"{where}, resampling_fn_{of}_kwargs")
    config = {"function": str(function), **arguments}
    try:
        Resampling.from_mapping(config)
    except UsageError as error:
        raise BundleError(f"{where}: {error}") from error
    return config


def _network_config(stated: _Architecture, dims: int, norm: str | None, where: str) -> Config:
    """Return the config of a network without its channels and classes."""
    arguments, name = stated.arch_kwargs, stated.network_class_name
    blocks = arguments.n_conv_per_stage if name is NetworkName.PLAIN else arguments.n_blocks_per_stage
    if blocks is None:
        raise BundleError(f"{where}: says not how many blocks its {name} has at each level; restore the file.")
    _refuse_other_parts(arguments, dims, where)
    levels = arguments.n_stages
    strides = _spread(arguments.strides, levels)
    if max(strides[0]) > 1:
        raise BundleError(
            f"{where}: the first stride of the network is {list(strides[0])}, expected 1 along each axis."
        )
    return {
        "_target_": f"voxelgate.{name}",
        "spatial_dims": dims,
        "channels": _spread(arguments.features_per_stage, levels),
        "strides": [_each_axis(step, dims) for step in strides[1:]],
        "kernel_sizes": [_each_axis(size, dims) for size in _spread(arguments.kernel_sizes, levels)],
        "encoder_blocks": _spread(blocks, levels),
        "decoder_blocks": _spread(arguments.n_conv_per_stage_decoder, levels - 1),
        "norm": norm or _norm(arguments, dims, where),
        "conv_bias": arguments.conv_bias,
        "negative_slope": _slope(arguments, where),
    }


def _spread(values: Sequence[T], levels: int) -> list[T]:
    return list(values) * levels if len(values) == 1 else list(values)


def _each_axis(values: Sequence[int], dims: int) -> list[int]:
    return _spread(values, dims)


def _refuse_other_parts(arguments: _ArchitectureArguments, dims: int, where: str) -> None:
    """Refuse parts of a network that are not built here."""
    stem = arguments.stem_channels
    odd = {
        "conv_op": arguments.conv_op if _last(arguments.conv_op) != f"Conv{dims}d" else None,
        "nonlin_first": arguments.nonlin_first or None,
        "block": arguments.block if arguments.block and _last(arguments.block) != "BasicBlockD" else None,
        "bottleneck_channels": arguments.bottleneck_channels,
        "stem_channels": stem if stem != arguments.features_per_stage[0] else None,
        "dropout_op": arguments.dropout_op if "Dropout" not in (arguments.dropout_op or "Dropout") else None,
    }
    for name, value in odd.items():
        if value is not None:
            raise BundleError(f"{where}: {name} of the network is {value!a}, which cannot be imported.")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _norm(arguments: _ArchitectureArguments, dims: int, where: str) -> str:
    """Return the norm of a network, in our word."""
    if arguments.norm_op is None:
        return "none"
    kinds = {f"InstanceNorm{dims}d": "instance", f"BatchNorm{dims}d": "batch"}
    kind, stated = kinds.get(_last(arguments.norm_op)), arguments.norm_op_kwargs or _NormArguments()
    is_affine = kind == "batch" if stated.affine is None else stated.affine
    tracks = kind == "batch" if stated.track_running_stats is None else stated.track_running_stats
    if kind is None or stated.eps != NORM_EPS or not is_affine or tracks != (kind == "batch"):
        raise BundleError(
            f"{where}: the norm of the network is {arguments.norm_op} with eps {stated.eps:g}, affine {is_affine} and "
            f"track_running_stats {tracks}, only PyTorch's batch norm, and instance norm that is affine, are known."
        )
    return kind


def _slope(arguments: _ArchitectureArguments, where: str) -> float:
    """Return the negative slope of the activations."""
    stated = arguments.nonlin_kwargs or _ActivationArguments()
    name = _last(arguments.nonlin or "none")
    if name == "ReLU":
        return 0.0
    if name != "LeakyReLU":
        raise BundleError(
            f"{where}: the activation of the network is {arguments.nonlin}, only LeakyReLU and ReLU are known."
        )
    return stated.negative_slope
