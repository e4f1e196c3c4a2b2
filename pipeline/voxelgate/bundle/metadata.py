"""What a bundle says of itself in `metadata.json`."""

import json
from pathlib import Path
from typing import Any

from voxelgate.core.errors import BundleError
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.manifest import Modality
from voxelgate.dicom.choose import SeriesRule
from voxelgate.evaluation.expectations import Expected
from voxelgate.images.spec import ImageSpec

MODALITY_OF = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT"}
"""DICOM's names of the modalities that a bundle's metadata may state."""


def is_bundle(path: Path) -> bool:
    """Return whether a folder looks like a bundle."""
    return (path / "configs" / "metadata.json").is_file()


def read_metadata(root: Path) -> dict[str, Any]:
    """Read `metadata.json`.

    Raises:
        BundleError: no bundle at `root`, or no valid metadata.
    """
    path = root / "configs" / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{root} is no bundle: it has no configs/metadata.json; name the folder of a bundle"
        ) from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: no readable JSON ({error}); restore the bundle") from error
    if not isinstance(metadata, dict) or not {"name", "version", "network_data_format"} <= metadata.keys():
        raise BundleError(f"{path}: expected name, version and network_data_format; restore the bundle")
    return metadata


def series_rule_of(root: Path) -> SeriesRule:
    """Return which series of a DICOM study a bundle wants: `series_rule` of its metadata, else its modality.

    Raises:
        BundleError: the rule is none.
    """
    metadata = read_metadata(root)
    stated = str(metadata["network_data_format"].get("inputs", {}).get("image", {}).get("modality", "")).upper()
    default = {"modality": MODALITY_OF[stated]} if stated in MODALITY_OF else {}
    try:
        return SeriesRule.from_mapping(metadata.get("series_rule", default))
    except (AttributeError, TypeError, ValueError) as error:
        raise BundleError(f"{root.name}: series_rule in metadata.json is none ({error})") from error


def image_spec_of(root: str | Path) -> ImageSpec:
    """Return what the images of a bundle consist of, as its metadata name channels and modality.

    Raises:
        BundleError: the channels are not 0, 1, 2, ...

    >>> vg.image_spec_of("my_bundle").files
    1
    """
    stated = read_metadata(Path(root))["network_data_format"].get("inputs", {}).get("image", {})
    count = int(stated.get("num_channels", 1))
    names = stated.get("channel_def", {str(index): f"channel {index}" for index in range(count)})
    if list(names) != [str(index) for index in range(count)]:
        raise BundleError(
            f"{Path(root).name}: metadata.json names the channels {', '.join(names)} of its image, expected 0 to "
            f"{count - 1} as num_channels says; correct it"
        )
    return ImageSpec(tuple(map(str, names.values())), stated.get("modality") == Modality.PICTURE)


def expected_of(root: Path) -> Expected | None:
    """Return what a bundle was trained on, if its metadata say so.

    Raises:
        BundleError: `trained_on` cannot be used.
    """
    metadata = read_metadata(root)
    try:
        return Expected.from_mapping(metadata["trained_on"]) if "trained_on" in metadata else None
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise BundleError(f"{root.name}: trained_on in metadata.json cannot be used ({error})") from error


def labels_of(root: Path) -> LabelTable:
    """Return what the label values of a bundle's output mean.

    Raises:
        BundleError: the metadata do not say it.
    """
    metadata = read_metadata(root)
    try:
        names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return LabelTable.from_mapping(names, metadata.get("label_codes"))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{root.name}: metadata.json does not name the output labels ({error})") from error
