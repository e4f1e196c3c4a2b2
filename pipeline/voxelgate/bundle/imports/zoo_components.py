"""The components that a zoo bundle's config names: by which names they go, and what may stand as their arguments."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.zoo_expressions import NumberType
from voxelgate.core.errors import BundleError

SCRIPTS = "scripts."
"""Components whose `_target_` begins so are Python files of the bundle."""

_PLAIN_TEXT = re.compile(r"[\w .,:;/+()-]*")
"""Texts that stand in a config of ours: none that a parser of configs would follow or run."""

FAITHFUL = "run the import with --faithful to keep the bundle's own chain"


@dataclass(frozen=True)
class Component:
    """A component of a foreign config, not built.

    Args:
        name: without the package for MONAI's, and with `d` at the end for dictionary transforms; with the path of the
            file for a bundle's own, such as `scripts.my_transforms.MergeClassesd`.
        arguments: worked out.
        where: the file and the id, for messages.
    """

    name: str
    arguments: Mapping[str, Any]
    where: str

    def names(self, argument: str = "keys") -> tuple[str, ...]:
        """Return the names of images that stand in an argument; none if it is not there.

        Raises:
            BundleError: they are no names.
        """
        stated = self.arguments.get(argument) or []
        names = stated if isinstance(stated, list) else [stated]
        if not all(isinstance(name, str) for name in names):
            raise BundleError(f"{self.where}: {argument} of {self.name} names no images; correct it")
        return tuple(names)

    def number(self, name: str, otherwise: float = 0.0) -> float:
        """Return a number among the arguments.

        Raises:
            BundleError: it is none.
        """
        value = self.arguments.get(name, otherwise)
        if not isinstance(value, int | float):
            raise BundleError(f"{self.where}: {name} of {self.name} is {str(value)[:80]!r}, expected a number")
        return value

    def config(self, **changed: Any) -> Config:
        """Return it as a piece of our config, with arguments changed, or left out where they are None."""
        wanted = {**self.arguments, **changed}
        return {"_target_": self.name, **{name: plain(value) for name, value in wanted.items() if value is not None}}

    def says(self, name: str) -> bool:
        """Return whether a flag is set; a text such as "True" is, as for MONAI."""
        return bool(self.arguments.get(name))

    def refuse_others(self, known: Iterable[str]) -> None:
        """Refuse arguments that mean something which is not known here; None and False mean nothing.

        Raises:
            BundleError: there is one.
        """
        unknown = sorted(
            name for name, value in self.arguments.items() if name not in set(known) and value not in (None, False)
        )
        if unknown:
            raise BundleError(
                f"{self.where}: {self.name} is asked for {', '.join(unknown)}, which cannot be translated; {FAITHFUL}"
            )


def component(stated: Any, where: str, known: Mapping[str, str] | None = None) -> Component:
    """Return what a piece of a foreign config describes.

    Args:
        stated: worked out by `ZooConfig`.
        where: the file and the id, for messages.
        known: names of components for the `_target_` of a bundle's own whose meaning is known (`known_scripts`).

    Raises:
        BundleError: it is none.
    """
    target = stated.get("_target_") if isinstance(stated, Mapping) else None
    if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)*", target):
        raise BundleError(
            f"{where}: expected a component with _target_, found {str(stated)[:80]!r}; restore the bundle"
        )
    name = target.rpartition(".")[2] if target.startswith("monai.") else (known or {}).get(target, target)
    arguments = {str(key): _without_arrays(value) for key, value in stated.items() if key != "_target_"}
    if odd := next((key for key in arguments if key.startswith("_")), None):
        raise BundleError(f"{where}: {target} is asked for {odd}, which changes how MONAI builds it; leave it out")
    return Component(re.sub(r"(?<=[a-z])(D|Dict)$", "d", name), arguments, where)


def _without_arrays(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_without_arrays(one) for one in value] if isinstance(value, list) else value


def components(stated: Any, where: str, known: Mapping[str, str] | None = None) -> list[Component]:
    """Return the steps of a `Compose`, in their order.

    Raises:
        BundleError: it is none, or one of its steps is no component.
    """
    whole = component(stated, where)
    steps = whole.arguments.get("transforms")
    if whole.name != "Compose" or not isinstance(steps, list):
        raise BundleError(f"{where}: expected a Compose of transforms, found {whole.name}; {FAITHFUL}")
    return [component(one, f"{where}, step {number}", known) for number, one in enumerate(steps, start=1)]


def plain(value: Any) -> Any:
    """Return a value as JSON holds it, for a config of ours.

    Raises:
        BundleError: it is neither number, text, list nor object, or a text that a parser of configs would follow.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, NumberType):
        return f"$torch.{value.name}"
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value):
        return value
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) and not key.startswith("_") for key in value):
        return {str(plain(key)): plain(one) for key, one in value.items()}
    raise BundleError(f"the value {str(value)[:80]!r} is neither number, plain text, list nor object of these")
