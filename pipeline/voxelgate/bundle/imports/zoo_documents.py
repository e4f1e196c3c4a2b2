"""Read the configs of a bundle from elsewhere, JSON or YAML, as data: no tag, alias or depth does more than say so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from voxelgate.core.documents import DEEPEST, parse_json
from voxelgate.core.errors import BundleError
from voxelgate.core.files import read_text

MOST_PARTS = 200_000
"""Objects, lists and values of a config, aliases as often as they stand; the largest of the zoo has some thousand."""

LONGEST_NUMBER = 40
"""Digits of a whole number."""

LARGEST_BYTES = 2**20
"""Of a config file; the largest of MONAI's zoo has 0.1 MB."""


def read_foreign_config(path: Path) -> dict[str, Any]:
    """Return what a config says, without evaluating anything of it.

    Args:
        path: a JSON or YAML file.

    Raises:
        BundleError: it cannot be read, is too large or nested too deeply, asks for objects of Python, or is no object.
    """
    try:
        document = _document_in(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(
            f"configs/{path.name} is no usable {kind} ({reason}); correct it, or ask its author"
        ) from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise BundleError(f"configs/{path.name} holds no settings with names; it is no config of a bundle")
    return document


def _document_in(path: Path) -> Any:
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES // 2**20} MB")
    text = read_text(path).removeprefix("\ufeff")
    document = parse_json(text) if path.suffix == ".json" else yaml.load(text, _DataLoader)  # noqa: S506 - a safe loader
    check_size(document)
    return document


class _DataLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types here
    """YAML's plain values, without `<<`, which copies objects into each other as often as a text likes."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse objects that take over others."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise ValueError("it merges objects with <<, which is not followed here")

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        """Refuse numbers that are longer than any: `1:59:59` is one, and takes the longer the more parts it has."""
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > LONGEST_NUMBER:
            raise ValueError(f"a number has {len(node.value)} digits")
        return super().construct_scalar(node)


def check_size(document: Any) -> None:
    """Refuse documents that would not end, or would not fit, when somebody walks through them.

    Raises:
        ValueError: it is one.
    """
    level, seen = [document], 0
    for _ in range(DEEPEST):
        seen += len(level)
        if seen > MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS} parts")
        level = _parts_within(level, MOST_PARTS)
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _parts_within(level: list[Any], most: int) -> list[Any]:
    found: list[Any] = []
    for one in level:
        if isinstance(one, Mapping):
            found += one.values()
        elif isinstance(one, list):
            found += one
        if len(found) > most:
            raise ValueError(f"it has more than {most} parts")
    return found
