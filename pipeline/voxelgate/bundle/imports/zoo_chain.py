"""Translate the chain of a zoo bundle, from its image to its labels, into components of ours that do the same.

The grids stay MONAI's affair until the network (`Orientationd`, `Spacingd`, ...), intensities too; what follows the
network is brought back slab by slab by `voxelgate.ChainInferer`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.zoo_components import FAITHFUL, Component, component, components, plain
from voxelgate.bundle.imports.zoo_expressions import FunctionText, NumberType
from voxelgate.bundle.imports.zoo_references import ZooConfig
from voxelgate.core.errors import BundleError

GEOMETRY = frozenset({"Orientationd", "Spacingd", "CropForegroundd", "Resized"})
"""Steps before the network that change the grid and that `voxelgate.ChainInferer` takes back."""

_MODES: Mapping[str, tuple[str, ...]] = {
    "Spacingd": ("bilinear", "nearest"),
    "Resized": ("area", "nearest", "nearest-exact", "linear", "bilinear", "trilinear"),
}
"""Interpolation that can be taken back, MONAI's default first, of the steps that resample; there may be one of them."""

_FLAT = {"Spacingd": "voxelgate.FlatSpacingd"}
"""Components of ours that give the bits of MONAI's in less memory."""

HEADER_SIZES: Config = {"_target_": "voxelgate.HeaderSizesd", "keys": "image"}
"""First step of bundles whose images MONAI's `ITKReader` reads."""

INTENSITIES = frozenset(
    {
        "ScaleIntensityRanged",
        "ScaleIntensityd",
        "ScaleIntensityRangePercentilesd",
        "NormalizeIntensityd",
        "ThresholdIntensityd",
    }
)

_BY_OWN_VALUES = frozenset({"ScaleIntensityd", "ScaleIntensityRangePercentilesd", "NormalizeIntensityd"})
"""Steps that change an image by its own values, which of joined images are those of each channel (`channel_wise`)."""

_NOT_NEEDED = frozenset(
    {
        "EnsureChannelFirstd",
        "EnsureTyped",
        "ToTensord",
        "ToDeviced",
        "SaveImaged",
        "OrientationGuidanceMultipleLabelDeepEditd",
        "ResizeGuidanceMultipleLabelDeepEditd",
    }
)
"""Steps without a part in the translation: images are read, typed and saved here, and clicks are none."""

_WINDOWS = ("roi_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_batch_size")
_WINDOW_SPEED = ("device", "sw_device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps", "buffer_dim")
"""Arguments of MONAI's inferers that change places and pace, not results."""

_FIRST_WINS = re.compile(r"torch\.where\(x\[\[(\d+)\]\] > 0, (\d+), (.+)\)")
"""One level of the lambda of brats: where a channel is on, a value, else the rest."""


@dataclass(frozen=True)
class Chain:
    """What a bundle does with an image, in components of ours.

    Args:
        images: names of the images that are read, in the order of the network's channels.
        clicks: channels of clicks that follow them, all zero.
        preparation: steps from the images as read to the network.
        inferer: config of the inferer, which brings labels back.
        merges: channel and value of each region, the first that is on wins; empty where labels are an argmax, None
            where nobody knows which values come out.
        findings: sentences for the one who imports.
    """

    images: tuple[str, ...]
    preparation: tuple[Config, ...]
    inferer: Config
    clicks: int = 0
    merges: tuple[tuple[int, int], ...] | None = ()
    findings: tuple[str, ...] = ()


def read_chain(config: ZooConfig, classes: int, known: Mapping[str, str]) -> Chain:
    """Translate the chain of a config.

    Args:
        config: of the bundle.
        classes: channels that the network gives.
        known: names of components for the `_target_` of a bundle's own whose meaning is known (`known_scripts`).

    Raises:
        BundleError: a step is not known here, or cannot be translated; the sentence names it.
    """
    windows = windows_of(component(config.value("inferer"), f"{config.name}: inferer"), f"{config.name}: inferer")
    before = _Preparation(f"{config.name}: preprocessing")
    for step in components(config.value("preprocessing"), before.where, known):
        before.take(step)
    after = _Restoring(f"{config.name}: postprocessing", classes, is_resampled=before.changes_grid)
    for step in components(config.value("postprocessing"), after.where, known):
        after.take(step)
    steps = after.finished()
    return Chain(
        images=before.channels,
        preparation=tuple(before.steps),
        inferer={"_target_": "voxelgate.ChainInferer", "steps": steps, **windows},
        clicks=before.clicks,
        merges=after.merges,
        findings=tuple(after.findings),
    )


@dataclass
class _Preparation:
    """The steps before the network, taken one by one."""

    where: str
    images: tuple[str, ...] = ()
    joined: str = ""
    clicked: int = 0
    clicks: int = 0
    changes_grid: bool = False
    is_read_by_itk: bool = False
    is_sampled: bool = False
    steps: list[Config] = field(default_factory=list)

    @property
    def channels(self) -> tuple[str, ...]:
        """Return the names of the images in the order of the network's channels."""
        if len(self.images) > 1 and not self.joined:
            raise BundleError(f"{self.where}: reads {', '.join(self.images)}, and no step joins them; {FAITHFUL}")
        return self.images

    def take(self, step: Component) -> None:
        """Take the next step.

        Raises:
            BundleError: it is not known here.
        """
        if step.name in GEOMETRY or step.name in INTENSITIES:
            self._keep(step)
        elif (taken := _TAKEN.get(step.name)) is not None:
            taken(self, step)
        elif step.name not in _NOT_NEEDED and not _is_cast_to_float(step):
            raise BundleError(f"{self.where}: {step.name} is no step that can be translated; {FAITHFUL}")

    def read(self, step: Component) -> None:
        """Note which images are read, labels aside, and by whom."""
        self.is_read_by_itk = is_read_by_itk(step)
        self.images = tuple(name for name in step.names() if name != "label")

    def join(self, step: Component) -> None:
        """Note in which order images become channels."""
        merged, out = ("keys_merge", "keys_out") if "keys_merge" in step.arguments else ("keys", "name")
        order = step.names(merged)
        if not set(order) <= set(self.images):
            raise BundleError(f"{self.where}: joins {', '.join(order)}, which it has not read; restore the bundle")
        self.images, self.joined = order, str(step.arguments.get(out))

    def note_clicks(self, step: Component) -> None:
        """Note for how many labels there may be clicks."""
        self.clicked = len(step.arguments.get("label_names") or ())

    def add_clicks(self, step: Component) -> None:
        """Put channels without clicks after the images, as the bundle does where nobody clicked."""
        if len(self.channels) != step.arguments.get("number_intensity_ch", 1) or not self.clicked:
            raise BundleError(f"{self.where}: {step.name} does not fit the images and labels before it; {FAITHFUL}")
        self.clicks = self.clicked
        self.steps.append({"_target_": "voxelgate.AppendZerosd", "keys": "image", "channels": self.clicks})

    def _keep(self, step: Component) -> None:
        keys = step.names()
        if not keys or set(keys) != ({self.joined} if self.joined else set(self.images)):
            raise BundleError(f"{self.where}: {step.name} takes {', '.join(keys)} apart from the others; {FAITHFUL}")
        self._check_sampling(step)
        arguments = {name: _of_all(value, len(keys)) for name, value in step.arguments.items()}
        source = {"source_key": "image"} if "source_key" in arguments else {}
        kept = replace(step, name=_FLAT.get(step.name, step.name), arguments=arguments)
        labels = {"labels": None} if step.name == "Orientationd" and "labels" not in arguments else {}
        each = {"channel_wise": True} if self._looks_at_each(step) else {}
        config = kept.config(keys="image", allow_missing_keys=None, **source, **each)
        self.steps.append(config | labels)  # of which MONAI would say at each start that they are its default
        self.changes_grid |= step.name in GEOMETRY

    def _looks_at_each(self, step: Component) -> bool:
        """Return whether a step changes each of several images by its own values, before they are joined."""
        if len(self.images) == 1 or self.joined:
            return False
        if step.name == "CropForegroundd" or {"subtrahend", "divisor"} & step.arguments.keys():
            raise BundleError(f"{self.where}: {step.name} looks at each of several images; {FAITHFUL}")
        return step.name in _BY_OWN_VALUES

    def _check_sampling(self, step: Component) -> None:
        """Refuse what `voxelgate.ChainInferer` would refuse in every image."""
        modes = _MODES.get(step.name)
        if modes is None:
            return
        mode = _of_all(step.arguments.get("mode", modes[0]), 1)
        if self.is_sampled or mode not in modes or step.arguments.get("padding_mode", "border") != "border":
            raise BundleError(f"{self.where}: {step.name} resamples in a way that cannot be translated; {FAITHFUL}")
        self.is_sampled = True
        if step.name == "Spacingd" and self.is_read_by_itk:
            self.steps.insert(0, HEADER_SIZES)


_TAKEN: Mapping[str, Callable[[_Preparation, Component], None]] = {
    "LoadImaged": _Preparation.read,
    "ConcatImages": _Preparation.join,
    "ConcatItemsd": _Preparation.join,
    "AddGuidanceFromPointsDeepEditd": _Preparation.note_clicks,
    "AddGuidanceSignalDeepEditd": _Preparation.add_clicks,
}


@dataclass
class _Restoring:
    """The steps after the network, taken one by one."""

    where: str
    classes: int
    is_resampled: bool
    steps: list[Any] = field(default_factory=list)
    merges: tuple[tuple[int, int], ...] = ()
    threshold: float | None = None
    is_labels: bool = False
    is_back: bool = False
    findings: list[str] = field(default_factory=list)

    def take(self, step: Component) -> None:
        """Take the next step.

        Raises:
            BundleError: it is not known here.
        """
        if step.name in _NOT_NEEDED or _is_cast_to_float(step):
            return
        if step.name not in _RESTORED or step.names() != ("pred",):
            raise BundleError(f"{self.where}: {step.name} is no step that can be translated; {FAITHFUL}")
        arguments = {name: _of_all(value, 1) for name, value in step.arguments.items()}
        _RESTORED[step.name](self, replace(step, arguments=arguments))

    def activate(self, step: Component) -> None:
        """Make probabilities of scores."""
        step.refuse_others(("keys", "sigmoid", "softmax"))
        if step.says("softmax") == step.says("sigmoid") or self.is_labels or self.threshold is not None:
            raise BundleError(f"{self.where}: {step.name} does not make probabilities of scores; {FAITHFUL}")
        self.steps.append("softmax" if step.says("softmax") else "sigmoid")

    def invert(self, step: Component) -> None:
        """Bring scores or labels back to the grid of the image."""
        step.refuse_others(("keys", "transform", "orig_keys", "nearest_interp", *_INVERSE_REST))
        is_nearest = bool(step.arguments.get("nearest_interp", True))
        if self.is_labels and self.is_resampled and not is_nearest:
            self.findings.append(
                "The bundle brings label numbers back by linear interpolation, which makes labels between two others "
                "that nobody found: they are brought back by nearest neighbour instead."
            )
        if self.threshold is not None and not self.merges:
            raise BundleError(f"{self.where}: brings back regions between threshold and merge; {FAITHFUL}")
        self.steps.append("invert_nearest" if is_nearest or self.is_labels else "invert")
        self.is_back = True

    def discretise(self, step: Component) -> None:
        """Make labels of probabilities, or regions that a later step merges."""
        step.refuse_others(("keys", "argmax", "threshold"))
        threshold = step.arguments.get("threshold")
        if step.says("argmax") == (threshold is not None) or self.is_labels or self.threshold is not None:
            raise BundleError(f"{self.where}: {step.name} does not make labels of scores; {FAITHFUL}")
        if step.says("argmax"):
            self.steps.append("argmax")
            self.is_labels = True
        else:
            self.threshold = float(step.number("threshold"))

    def merge(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Make labels of regions: the first channel that is on gives its value."""
        if self.threshold is None:
            raise BundleError(f"{self.where}: merges regions that no threshold made; {FAITHFUL}")
        self.merges, self.is_labels = tuple(pairs), True
        self.steps.append({"threshold": self.threshold, "regions": [list(pair) for pair in pairs]})

    def merge_by_number(self, _: Component) -> None:
        """Merge regions as `MergeClassesd` of the zoo does: each channel but the first gives its number."""
        self.merge([(channel, channel) for channel in range(1, self.classes)])

    def merge_as_told(self, step: Component) -> None:
        """Merge regions as a lambda of a known form says."""
        step.refuse_others(("keys", "func"))
        told = step.arguments.get("func")
        pairs = first_wins(told.text) if isinstance(told, FunctionText) else None
        if pairs is None:
            said = told.text if isinstance(told, FunctionText) else str(told)
            raise BundleError(
                f"{self.where}: the function {said[:120]!r} is none that is known here, and foreign functions are "
                "never run; put a component in its place"
            )
        self.merge(pairs)

    def keep_largest(self, step: Component) -> None:
        """Keep the largest piece of each label."""
        if not self.is_labels:
            raise BundleError(f"{self.where}: {step.name} comes before there are labels; {FAITHFUL}")
        self.steps.append(replace(step, name=step.name.removesuffix("d")).config(keys=None))

    def finished(self) -> list[Any]:
        """Return the steps, which end with labels on the grid of the image.

        Raises:
            BundleError: they do not.
        """
        if self.threshold is not None and not self.is_labels:
            if self.classes != 1:
                raise BundleError(
                    f"{self.where}: leaves {self.classes} regions, and no step says which wins; {FAITHFUL}"
                )
            self.merge([(0, 1)])
        if not self.is_labels:
            raise BundleError(f"{self.where}: ends without labels (no argmax, no threshold); {FAITHFUL}")
        if not self.is_back:
            self.steps.append("invert_nearest")
            if self.is_resampled:
                self.findings.append("The bundle leaves labels on the network's grid; they are brought to the image's.")
        return self.steps


_INVERSE_REST = ("meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device")
"""Arguments of `Invertd` that have no meaning any more since images know their own metadata."""

_RESTORED: Mapping[str, Callable[[_Restoring, Component], None]] = {
    "Activationsd": _Restoring.activate,
    "Invertd": _Restoring.invert,
    "AsDiscreted": _Restoring.discretise,
    "Lambdad": _Restoring.merge_as_told,
    "MergeClassesd": _Restoring.merge_by_number,
    "KeepLargestConnectedComponentd": _Restoring.keep_largest,
}


def first_wins(text: str) -> list[tuple[int, int]] | None:
    """Return channel and value of each region that a lambda merges, the first that is on wins; None if it does else.

    >>> first_wins("lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))")
    [(2, 4), (0, 1)]
    """
    rest, pairs = text.removeprefix("lambda x: "), []
    while found := _FIRST_WINS.fullmatch(rest):
        pairs.append((int(found[1]), int(found[2])))
        rest = found[3]
    return pairs if pairs and rest == "0" else None


def windows_of(inferer: Component, where: str) -> Config:
    """Return the arguments of `voxelgate.ChainInferer` that take the windows of one of MONAI's inferers.

    Raises:
        BundleError: it is none that is known here.
    """
    if inferer.name == "SimpleInferer":
        return {}
    if inferer.name not in {"SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer"}:
        raise BundleError(f"{where}: {inferer.name} is no inferer that can be translated; {FAITHFUL}")
    inferer.refuse_others((*_WINDOWS, *_WINDOW_SPEED, "spatial_dim"))
    arguments = {name: plain(inferer.arguments[name]) for name in _WINDOWS if name in inferer.arguments}
    if isinstance(arguments.get("roi_size"), int):
        arguments["roi_size"] = [arguments["roi_size"]] * (2 if inferer.name == "SliceInferer" else 3)
    if inferer.name == "SliceInferer":
        arguments["slice_axis"] = int(inferer.number("spatial_dim"))
    return arguments


def is_read_by_itk(step: Component) -> bool:
    """Return whether images are read by MONAI's `ITKReader`, which takes voxel sizes from the header."""
    return "itkreader" in str(step.arguments.get("reader")).lower()


def _of_all(value: Any, keys: int) -> Any:
    """Return what a list with one equal item for each of several keys says of all of them."""
    is_listed = isinstance(value, list) and len(value) == keys and all(one == value[0] for one in value)
    return value[0] if is_listed and isinstance(value[0], str | bool) else value


def _is_cast_to_float(step: Component) -> bool:
    return step.name == "CastToTyped" and step.arguments.get("dtype", NumberType("float32")) == NumberType("float32")
