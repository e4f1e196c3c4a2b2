"""The README of a bundle that was imported: what it is, where it comes from, and how it is run."""

from collections.abc import Mapping
from typing import Any

from voxelgate.bundle.imports.imported import Imported
from voxelgate.bundle.metadata import in_words

MONAI_COMMAND = "python -m monai.bundle run --config_file configs/inference.json --dataset_dir IN --output_dir OUT"


def imported_readme(imported: Imported, metadata: Mapping[str, Any]) -> str:
    """Return `docs/README.md`.

    Args:
        imported: what the bundle holds.
        metadata: its `metadata.json`.
    """
    origin = metadata["imported_from"]
    facts = "\n".join(f"| {name} | {_table_cell(value)} |" for name, value in origin.items() if name != "files")
    labels = "\n".join(f"| {value} | {_table_cell(name)} |" for value, name in imported.labels.to_mapping().items())
    findings = "".join(f"* {sentence}\n" for sentence in imported.findings) or "None.\n"
    commands = "voxelgate segment . SCANS --out RESULTS"
    if not any(name.startswith("scripts/") for name in imported.extra_files):  # which only this program admits
        commands += f"\n{MONAI_COMMAND}"
    return f"""\
# {imported.name}

{imported.description} For research; not a medical device.

Licence of the model: {metadata["licence"]}.

| value | label |
|---|---|
{labels}

Input: {", ".join(imported.channels)} ({imported.modality}). Output: a label map on the very grid of the input.

## Where it comes from

`voxelgate import` made it; the SHA-256 of every file of the source that counts is in `configs/metadata.json`.

| fact | value |
|---|---|
{facts}

What was found when it was imported:

{findings}
## Commands

In the folder of the bundle:

```sh
{commands}
```
"""


def _table_cell(value: object) -> str:
    return in_words(value).replace("|", "\\|").replace("\n", " ")
