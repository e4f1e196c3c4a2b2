"""The Python files of a zoo bundle: read, listed and recognised, never run by an import that does not trust them."""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.zoo_components import SCRIPTS
from voxelgate.bundle.scripts import admit_scripts
from voxelgate.core.errors import BundleError

KNOWN_CLASSES: Mapping[str, str] = {
    "ConcatImages": "e44f726d1ab40ee2178104862b0a0bfb3a1705aa8fef62c11c37f55baa1d9375",
    "MergeClassesd": "f085b316a2bf5814205a04f6b8b8621d0fc106609d515b8b1e2cdda9aad204ae",
    "OrientationGuidanceMultipleLabelDeepEditd": "a69385898558a21db1ea0216f381fa03ab3259c23bdbb5617329d3bfea2164f3",
}
"""Names of classes of the zoo whose meaning is done by components of ours, and the SHA-256 of what they say.

By the text of the class with each gap as one space: so layout does not count, and every word does."""


def script_names(source: ImportSource) -> tuple[str, ...]:
    """Return the names of a bundle's Python files."""
    return source.matching(r"scripts/(\w+/)*\w+\.py")


def known_scripts(source: ImportSource) -> dict[str, str]:
    """Return the names of known classes by the `_target_` under which the bundle's configs name them.

    Raises:
        InputError: a file cannot be read.
    """
    found = {}
    for name in script_names(source):
        text = source.text(name)
        for node in _classes_in(text):
            if KNOWN_CLASSES.get(node.name) == _hash_of_class(ast.get_source_segment(text, node) or ""):
                found[f"{_module_of(name)}.{node.name}"] = node.name
    return found


@dataclass(frozen=True)
class Scripts:
    """The Python files of a bundle.

    Args:
        files: content by name.
        package: as which they are imported from now on; empty where they are not trusted.
    """

    files: Mapping[str, bytes]
    package: str = ""

    def own_target(self, target: str, where: str) -> str:
        """Return the `_target_` by which one of the bundle's components is imported.

        Args:
            target: as the bundle's configs name it.
            where: the file and the id, for messages.

        Raises:
            BundleError: the files are not trusted, or there are none.
        """
        if not self.package:
            found = ", ".join(self.files) or "which is not there"
            raise BundleError(
                f"{where}: {target} is Python code of the bundle ({found}); read it, and run the import with "
                "--trust-code if you trust it"
            )
        return f"{self.package}.{target.removeprefix(SCRIPTS)}"


def scripts_of(source: ImportSource, *, trusted: bool) -> Scripts:
    """Return the Python files of a bundle, importable if they are trusted.

    Raises:
        InputError: a file cannot be read.
    """
    files = {name: source.text(name).encode() for name in script_names(source)}
    return Scripts(files, admit_scripts(files) if trusted and files else "")


def _module_of(name: str) -> str:
    parts = PurePosixPath(name).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _classes_in(text: str) -> Iterator[ast.ClassDef]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from (node for node in tree.body if isinstance(node, ast.ClassDef))


def _hash_of_class(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
