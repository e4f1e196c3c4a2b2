"""Write what was imported as a bundle of ours: configs of public components, plain weights, where they come from."""

import errno
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from voxelgate.bundle.checksums import WEIGHTS, fingerprint_of, seal
from voxelgate.bundle.frame import (
    AS_IT_IS,
    SCHEMA,
    Config,
    data_format,
    image_reading_steps,
    inference_config_around,
    saving_step,
    versions_here,
)
from voxelgate.bundle.imports.imported import NOT_STATED, Imported
from voxelgate.bundle.imports.readme import imported_readme
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.target import refuse_taken, take_name
from voxelgate.bundle.opened import forget_opened, open_bundle
from voxelgate.core.errors import InputError
from voxelgate.core.files import is_within, make_folder, sync, unwritable
from voxelgate.datasets.manifest import Modality
from voxelgate.images.spec import ImageSpec

MOST_BYTE_LABEL = 255
"""Above it label maps are uint16."""


def write_imported(out: Path, imported: Imported, source: ImportSource, *, overwrite: bool = False) -> str:
    """Write a bundle, open it once on the CPU, and give it its name; return its fingerprint.

    Args:
        out: folder to make.
        imported: what a reader made of the source.
        source: of which the files that count are hashed.
        overwrite: whether a bundle of that name is replaced; nothing else ever is.

    Raises:
        OutputError: the folder is there, lies in the source, or cannot be written.
        InputError: the reader's files cannot be read, or leave the bundle.
        BundleError: the bundle does not open, as when the weights are of another network.
    """
    refuse_taken(out, source, overwrite=overwrite)
    make_folder(out.parent)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".voxelgate-", suffix=".partial") as partial:
            folder = Path(partial) / out.name
            _write_parts(folder, imported, source)
            fingerprint = seal(folder)
            _prove(folder)
            take_name(folder, out, Path(partial))
            sync(out.parent)
    except OSError as error:
        raise unwritable(out.name, error) from error
    return fingerprint


def _write_parts(folder: Path, imported: Imported, source: ImportSource) -> None:
    document = _metadata_of(imported, source)
    _refuse_expressions(document, source.name)
    licence = f"Licence: {document['licence']}\n"
    texts = {
        "configs/inference.json": json.dumps(_inference_config_of(imported), indent=2) + "\n",
        "configs/metadata.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        "docs/README.md": imported_readme(imported, document),
        "docs/data_license.txt": f"Model: {imported.name}, imported from {source.name}\n{licence}",
        "LICENSE": licence,
    }
    for name, content in ({name: text.encode() for name, text in texts.items()} | dict(imported.extra_files)).items():
        if not is_within(folder, Path(name)):
            raise InputError(f"{source.name}: the name {name!a} leads out of the bundle; it is not written.")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_bytes(content)
    (folder / WEIGHTS).parent.mkdir(exist_ok=True)
    try:
        torch.save(dict(imported.state), folder / WEIGHTS)
    except RuntimeError as error:  # PyTorch's, for a full disk too
        raise OSError(errno.ENOSPC, "the disk takes no more") from error
    for path in folder.rglob("*"):
        sync(path)


def _inference_config_of(imported: Imported) -> Config:
    images = ImageSpec(imported.channels, imported.modality == Modality.PICTURE)
    label_type = "uint8" if max(imported.labels.foreground) <= MOST_BYTE_LABEL else "uint16"
    return inference_config_around(
        imported.network_def,
        [*image_reading_steps(images), *imported.preparation],
        imported.inferer,
        [*imported.cleaning, saving_step(images, label_type)],
        images,
        network=AS_IT_IS,
    )


def _metadata_of(imported: Imported, source: ImportSource) -> Config:
    labels, files = imported.labels, source.checksums(imported.source_files)
    coded = {value: coding for value in labels.foreground if (coding := labels.find_coding(value)) is not None}
    image = {"format": "hounsfield" if imported.modality == "CT" else "magnitude", "modality": imported.modality}
    return {
        "schema": SCHEMA,
        "version": imported.version,
        "changelog": {imported.version: f"imported from the {source.kind} {source.name}"},
        **versions_here(),
        "name": imported.name,
        "task": imported.description,
        "description": imported.description,
        "authors": NOT_STATED,
        "copyright": NOT_STATED,
        "data_type": "nibabel",
        "intended_use": "Research only; not a medical device.",
        **imported.metadata,
        "licence": imported.licence or NOT_STATED,
        "imported_from": {
            "kind": str(source.kind),
            "name": source.name,
            "sha256": fingerprint_of(files),
            **imported.origin,
            "files": files,
        },
        **({} if imported.series_rule is None else {"series_rule": dict(imported.series_rule)}),
        **({"label_codes": {str(value): coding.to_mapping() for value, coding in coded.items()}} if coded else {}),
        "network_data_format": data_format(
            image | {"value_range": []}, labels, imported.channels, imported.spatial_shape
        ),
    }


def _refuse_expressions(value: Any, where: str) -> None:
    """Refuse metadata that a parser of configs would follow, run or build, as MONAI's does when asked for a fact.

    Raises:
        InputError: they are such.
    """
    if isinstance(value, str) and value[:1] in {"$", "@", "%"}:
        raise InputError(f"{where}: {value[:80]!a} would be run or followed as a config; write it in another way.")
    if isinstance(value, dict):
        if "_target_" in value:
            raise InputError(f"{where}: its metadata name a component to build, {value['_target_']!a}; leave it out.")
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        _refuse_expressions(part, where)


def _prove(folder: Path) -> None:
    """Open a bundle once, so that none gets its name whose weights do not fit."""
    try:
        open_bundle(folder, "cpu")
    finally:
        forget_opened()
