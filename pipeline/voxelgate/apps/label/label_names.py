"""What the label maps of a folder mean: written beside them, so that no other model takes them for its own."""

import json
from pathlib import Path

from voxelgate.core.errors import UsageError
from voxelgate.core.files import write_text
from voxelgate.core.labels import LabelTable

LABEL_NAMES = "names.json"
"""File among the label maps with the name of each value."""


def remember_label_names(folder: Path, table: LabelTable, *, has_maps: bool) -> None:
    """Write down what the values of the label maps in a folder mean; where it stands already, compare.

    Args:
        folder: with the label maps, in sub-folders.
        table: what the model that is served means by its values.
        has_maps: whether there are label maps; without, what stands there is forgotten.

    Raises:
        UsageError: the label maps are those of a model with other labels.
    """
    path = folder / LABEL_NAMES
    names = table.to_mapping()
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found == names:
        return
    if found is not None and has_maps:
        raise UsageError(
            f"{folder}: its label maps are of {_worded(found)}, but the model knows {_worded(names)}; serve it on a "
            "folder of its own, or move these label maps away."
        )
    write_text(path, json.dumps(names, indent=0, ensure_ascii=False) + "\n")


def _worded(names: dict[str, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in names.items() if value != "0")
