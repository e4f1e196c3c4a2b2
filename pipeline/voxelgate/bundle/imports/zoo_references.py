"""Follow the references of a zoo bundle's config: `@id`, `@id::part`, `@id#part`, `%id`, also inside expressions."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from voxelgate.bundle.imports.zoo_documents import check_size
from voxelgate.bundle.imports.zoo_expressions import Scope, UnknownExpressionError, worked_out
from voxelgate.core.documents import DEEPEST
from voxelgate.core.errors import BundleError

_REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")
"""As MONAI's `ReferenceResolver.id_matcher`, of ids that begin at the top of the config."""

_MACRO = re.compile(r"%(\w+(?:(?:::|#)\w+)*)")
_SEPARATOR = re.compile(r"::|#")

_REMARKS = frozenset({"_desc_", "_disabled_", "_requires_"})
"""Keys of a component's config that are no arguments of it."""

BUNDLE_ROOT = "."
"""What `@bundle_root` gives, whatever the config says: paths are taken from the bundle's folder."""


class ZooConfig:
    """A config whose parts are worked out when they are asked for, and no others.

    Args:
        document: what the file says.
        name: of the file, for messages.
        load: returns the plain arrays of a file of the bundle, by its path from the bundle's folder.
    """

    def __init__(self, document: Mapping[str, Any], name: str, load: Callable[[str], Any]) -> None:
        self.name = name
        self._document = {**document, "bundle_root": BUNDLE_ROOT}
        self._load = load
        self._known: dict[str, Any] = {}
        self._asked: list[str] = []

    def get(self, reference: str, otherwise: Any = None) -> Any:
        """Return the worked-out value of an id at the top, or something else if it is not there."""
        return self.value(reference) if reference in self._document else otherwise

    def value(self, reference: str) -> Any:
        """Return the worked-out value of an id such as `network_def` or `labels#spleen`.

        Configs of components stay objects with `_target_`; parts that are `_disabled_` are left out.

        Raises:
            BundleError: there is no such id, it refers to itself, or it says what is not known here.
        """
        key = _SEPARATOR.sub("#", reference)
        if key not in self._known:
            with self._asking(key):
                self._known[key] = self._of_bounded_size(self._worked_out(self._stated(key), key), key)
        return self._known[key]

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        if key in self._asked:
            raise BundleError(f"{self.name}: {' refers to '.join([*self._asked, key])}, which is a circle; correct it")
        if len(self._asked) > DEEPEST or key.count("#") > DEEPEST:
            raise BundleError(f"{self.name}: {key[:80]} is referred to over more than {DEEPEST} steps; correct it")
        self._asked.append(key)
        try:
            yield
        finally:
            self._asked.pop()

    def _of_bounded_size(self, value: Any, key: str) -> Any:
        """Return a value, unless references in it make it grow out of bounds.

        Raises:
            BundleError: they do.
        """
        try:
            check_size(value)
        except ValueError as error:
            raise BundleError(f"{self.name}: {key} cannot be used, since {error}; correct it") from error
        return value

    def _stated(self, key: str) -> Any:
        """Return what stands at an id, or below one that is itself a reference or an expression."""
        whole, _, part = key.rpartition("#")
        found = self._document if not whole else self._parts_at(whole)
        try:
            return found[int(part)] if isinstance(found, list) else found[part]
        except (LookupError, TypeError, ValueError) as error:
            raise BundleError(f"{self.name}: refers to {key}, which is not there; restore the bundle") from error

    def _parts_at(self, key: str) -> Any:
        stated = self._stated(key)
        return self.value(key) if isinstance(stated, str) and stated[:1] in {"$", "@", "%"} else stated

    def _worked_out(self, stated: Any, key: str) -> Any:
        if isinstance(stated, dict):
            return {
                name: self._worked_out(value, f"{key}#{name}") for name, value in stated.items() if name not in _REMARKS
            }
        if isinstance(stated, list):
            return [
                self._worked_out(part, f"{key}#{number}")
                for number, part in enumerate(stated)
                if not self._is_left_out(part, key)
            ]
        if isinstance(stated, str):
            return self._of_text(stated, key)
        return stated

    def _is_left_out(self, part: Any, key: str) -> bool:
        """Return whether a component of a list is switched off."""
        if not isinstance(part, dict) or "_disabled_" not in part:
            return False
        stated = self._worked_out(part["_disabled_"], key)
        if not isinstance(stated, bool | int | str):
            raise BundleError(f"{self.name}: _disabled_ in {key} says neither true nor false; correct it")
        return stated.strip().lower() == "true" if isinstance(stated, str) else bool(stated)

    def _of_text(self, text: str, key: str) -> Any:
        if (found := _REFERENCE.fullmatch(text)) or (found := _MACRO.fullmatch(text)):
            return self.value(found[1])
        if text.startswith("$"):
            return self._of_expression(text[1:], key)
        if text[:1] in {"@", "%"}:
            raise BundleError(f"{self.name}: {key} refers to {text!r}, and only ids of this file are followed here")
        return text

    def _of_expression(self, text: str, key: str) -> Any:
        ids = dict.fromkeys(found[1] for found in _REFERENCE.finditer(text))
        names = {one: f"_reference_{number}" for number, one in enumerate(ids)}
        try:
            tree = ast.parse(_REFERENCE.sub(lambda found: names[found[1]], text).strip(), mode="eval").body
            scope = Scope(_Looked({name: one for one, name in names.items()}, self.value), self._load)
            return worked_out(tree, scope)
        except (UnknownExpressionError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise BundleError(
                f"{self.name}: {key} is the expression {text[:120]!r}, of which {error}; foreign expressions are never "
                "run, so write its value in its place"
            ) from error


class _Looked(Mapping[str, Any]):
    """Values of references, worked out only where an expression needs them."""

    def __init__(self, ids: Mapping[str, str], value: Callable[[str], Any]) -> None:
        self._ids = ids
        self._value = value

    def __getitem__(self, name: str) -> Any:
        return self._value(self._ids[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)
