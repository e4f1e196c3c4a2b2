"""Take the chain of a zoo bundle as it is: MONAI's own components, by name, around an inferer that checks the grid."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from monai import transforms

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.zoo_chain import HEADER_SIZES, Chain, first_wins, is_read_by_itk
from voxelgate.bundle.imports.zoo_components import SCRIPTS, Component, component, components
from voxelgate.bundle.imports.zoo_expressions import FunctionText
from voxelgate.bundle.imports.zoo_references import ZooConfig
from voxelgate.bundle.imports.zoo_scripts import Scripts
from voxelgate.core.errors import BundleError

_MODULES = frozenset(
    f"monai.transforms.{room}.dictionary" for room in ("croppad", "intensity", "post", "smooth_field", "spatial")
)
"""Modules of MONAI whose transforms compute with images and touch nothing else."""

_UTILITIES = frozenset({"EnsureTyped", "CastToTyped", "ToTensord", "RepeatChanneld", "ConcatItemsd", "SqueezeDimd"})
_INFERERS = frozenset({"SimpleInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer"})
"""Inferers of MONAI that compute and touch nothing else; `PatchInferer` imports and writes what its arguments name."""

_DROPPED = frozenset({"LoadImaged", "EnsureChannelFirstd", "SaveImaged", "ToDeviced"})
"""Steps that are done before and after, by this program's own reading and writing."""

_PLACES = ("device", "sw_device", "meta_keys", "orig_meta_keys", "meta_key_postfix")
"""Arguments that name a device, or metadata that images carry themselves by now."""


def read_own_chain(config: ZooConfig, scripts: Scripts) -> Chain:
    """Return the chain of a config with its own components.

    Args:
        config: of the bundle.
        scripts: the bundle's own files.

    Raises:
        BundleError: it reads several images, names a component that is none of MONAI's, or states a function.
    """
    where = f"{config.name}: preprocessing"
    before = components(config.value("preprocessing"), where)
    images = [name for step in before if step.name == "LoadImaged" for name in step.names()]
    if len(images) != 1:
        raise BundleError(f"{where}: reads {', '.join(images) or 'no image'}; with --faithful it must be one image")
    own = _Own(images[0], scripts)
    by_itk = any(map(is_read_by_itk, before))
    after = components(config.value("postprocessing"), f"{config.name}: postprocessing")
    inferer = component(config.value("inferer"), f"{config.name}: inferer")
    return Chain(
        images=("image",),
        preparation=(*([HEADER_SIZES] if by_itk else []), *own.steps(before, where)),
        merges=_merges_of(after),
        inferer={
            "_target_": "voxelgate.InvertingInferer",
            "inferer": own.inferer(inferer, f"{config.name}: inferer"),
            "postprocessing": {
                "_target_": "Compose",
                "transforms": own.steps(after, f"{config.name}: postprocessing"),
            },
        },
        findings=("The bundle runs its own chain, whole volumes at a time; only the grid of its result is checked.",),
    )


def _merges_of(steps: Sequence[Component]) -> tuple[tuple[int, int], ...] | None:
    """Return the values that come out: of an argmax the channels, of a known function what it gives, else none."""
    if any(step.name == "AsDiscreted" and step.says("argmax") for step in steps):
        return ()
    told = [step.arguments.get("func") for step in steps if step.name == "Lambdad"]
    merges = first_wins(told[0].text) if len(told) == 1 and isinstance(told[0], FunctionText) else None
    return None if merges is None else tuple(merges)


class _Own:
    """A bundle's components, with its image called `image`."""

    def __init__(self, image: str, scripts: Scripts) -> None:
        self._image = image
        self._scripts = scripts

    def steps(self, steps: Sequence[Component], where: str) -> list[Config]:
        """Return transforms without those that read, save or move images."""
        return [self._step(step, where) for step in steps if step.name not in _DROPPED]

    def inferer(self, inferer: Component, where: str) -> Config:
        """Return the inferer."""
        return self._known(inferer, where, is_known=inferer.name in _INFERERS).config(**dict.fromkeys(_PLACES))

    def _step(self, step: Component, where: str) -> Config:
        kind = getattr(transforms, step.name, None)
        module = getattr(kind, "__module__", "")
        is_known = step.name in _UTILITIES or (module in _MODULES and not step.name.startswith(("Rand", "Save")))
        if step.name == "Lambdad":
            return self._known_function(step, where)
        taken = self._known(step, where, is_known=is_known and inspect.isclass(kind))
        if step.name == "Invertd":
            changed: dict[str, Any] = {"transform": None, "orig_keys": "image", "keys": "pred"}
            return {**taken.config(**changed, **dict.fromkeys(_PLACES)), "transform": "@preprocessing"}
        return taken.config(**{name: self._renamed(taken.arguments[name]) for name in _keys_in(taken)}, device=None)

    def _known(self, one: Component, where: str, *, is_known: bool) -> Component:
        """Return a component that may be named in a config of ours.

        Raises:
            BundleError: it may not.
        """
        if one.name.startswith(SCRIPTS):
            return replace(one, name=self._scripts.own_target(one.name, where))
        if not is_known:
            raise BundleError(f"{where}: {one.name} is no component of MONAI that may be named in a bundle here")
        return one

    def _known_function(self, step: Component, where: str) -> Config:
        """Return a step with a function of a form that is known to do nothing but merge regions.

        Raises:
            BundleError: its function is any other.
        """
        told = step.arguments.get("func")
        if not isinstance(told, FunctionText) or first_wins(told.text) is None:
            said = told.text if isinstance(told, FunctionText) else str(told)
            raise BundleError(f"{where}: states the function {said[:120]!r}, and foreign functions are never run")
        return {**step.config(func=None), "func": f"${told.text}"}

    def _renamed(self, keys: Any) -> Any:
        if isinstance(keys, list):
            return [self._renamed(key) for key in keys]
        return "image" if keys == self._image else keys


def _keys_in(one: Component) -> list[str]:
    return [name for name in ("keys", "source_key", "orig_keys", "ref_image") if name in one.arguments]
