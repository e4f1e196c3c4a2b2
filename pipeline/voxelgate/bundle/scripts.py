"""Python files that belong to an imported bundle: one package of its own for each set of files, found by its hash.

Foreign bundles name theirs `scripts`, all of them alike; here `scripts` in their imports means the package of the same
bundle, whatever else this process has opened, and `sys.path` stays as it is.
"""

import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from voxelgate.core.errors import BundleError

PREFIX = "voxelgate_scripts_"
"""Of the packages' names; what follows is the beginning of their hash."""

_FOREIGN = "scripts"
"""What foreign bundles call their package."""


def package_of(files: Mapping[str, bytes]) -> str:
    """Return the name of the package that consists of some files, by their names below the bundle."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return f"{PREFIX}{digest.hexdigest()[:16]}"


def read_scripts(root: Path) -> dict[str, bytes]:
    """Return the Python files of a bundle by their names below it.

    Raises:
        BundleError: one cannot be read.
    """
    try:
        return {
            path.relative_to(root).as_posix(): path.read_bytes() for path in sorted((root / _FOREIGN).rglob("*.py"))
        }
    except OSError as error:
        raise BundleError(f"{root.name}: its scripts cannot be read ({error.strerror}); restore the bundle") from error


def admit_scripts(files: Mapping[str, bytes]) -> str:
    """Make Python files that were verified, or are trusted, importable; return the name of their package.

    Nothing of them runs until a config names it.
    """
    name = package_of(files)
    if files and not any(isinstance(finder, _Finder) and finder.package == name for finder in sys.meta_path):
        sys.meta_path.append(_Finder(name, files))
    return name


class _Finder(importlib.abc.MetaPathFinder):
    """Find the modules of one package among files that were read already."""

    def __init__(self, package: str, files: Mapping[str, bytes]) -> None:
        self.package = package
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a module of the package comes from; None for modules of others."""
        del path, target
        if fullname.partition(".")[0] != self.package:
            return None
        stem = fullname.replace(self.package, _FOREIGN, 1).replace(".", "/")
        is_package = f"{stem}.py" not in self._files
        name = f"{stem}/__init__.py" if is_package else f"{stem}.py"
        if not is_package or name in self._files or any(one.startswith(f"{stem}/") for one in self._files):
            loader = _Loader(self.package, name, self._files.get(name, b""))
            return importlib.util.spec_from_loader(fullname, loader, origin=name, is_package=is_package)
        return None


class _Loader(importlib.abc.SourceLoader):
    """Load one module from its text; `scripts` in it means its own package."""

    def __init__(self, package: str, name: str, text: bytes) -> None:
        self._package = package
        self._name = name
        self._text = text

    def get_filename(self, fullname: str) -> str:
        """Return what stands for the file in tracebacks."""
        del fullname
        return f"{self._package}/{self._name}"

    def get_data(self, path: str | bytes) -> bytes:
        """Return the text; nothing compiled is ever looked for."""
        del path
        return self._text

    def source_to_code(self, data: Any, path: Any = "") -> CodeType:  # type: ignore[override]  # a static method there
        """Compile the text with its imports turned to the package."""
        return compile(ast.fix_missing_locations(_OwnImports(self._package).visit(ast.parse(data))), path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, which knows its package as `scripts` too."""
        module.__dict__[_FOREIGN] = sys.modules[self._package]
        super().exec_module(module)


class _OwnImports(ast.NodeTransformer):
    """Let `scripts` in imports mean another package."""

    def __init__(self, package: str) -> None:
        self._package = package

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        """Change `from scripts.a import b`."""
        if node.level == 0 and node.module is not None:
            node.module = self._own(node.module)
        return node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        """Change `import scripts.a`."""
        for alias in node.names:
            alias.name = self._own(alias.name)
        return node

    def _own(self, module: str) -> str:
        head, dot, rest = module.partition(".")
        return f"{self._package}{dot}{rest}" if head == _FOREIGN else module
