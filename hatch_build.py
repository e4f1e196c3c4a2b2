"""Put the shipped bundles into the wheel.

An editable installation takes them from the checkout, where a copy would grow stale.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = ("LICENSE", "*.json", "configs/*", "docs/*", "models/*.pt")
"""What a bundle consists of; what others left in its folder stays behind."""


class BundlesHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own examples leave it out
    """Add `bundles/` to the package as `voxelgate/bundles`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files; hatchling calls this before it builds a wheel, `version` being its kind."""
        if version != "standard":
            return
        bundles = Path(self.root) / "bundles"
        for path in (path for part in PARTS for path in bundles.glob(f"*/{part}") if path.is_file()):
            build_data["force_include"][str(path)] = f"voxelgate/bundles/{path.relative_to(bundles).as_posix()}"
