"""What a bundle says of itself in `metadata.json`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from voxelgate.core.documents import read_json
from voxelgate.core.errors import BundleError
from voxelgate.core.files import write_text
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.manifest import Modality
from voxelgate.dicom.choose import READABLE_MODALITIES, SeriesRule
from voxelgate.evaluation.expectations import Expected
from voxelgate.images.spec import ImageSpec

MODALITY_OF = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT"}
"""DICOM's names of the modalities that a bundle's metadata may state."""

_OF_ALL_ORIGINS = ("kind", "name", "sha256", "files")
"""What `imported_from` says of every imported model; the rest is of its kind, such as a trainer."""


def is_bundle(path: Path) -> bool:
    """Return whether a folder looks like a bundle."""
    return (path / "configs" / "metadata.json").is_file()


@dataclass(frozen=True)
class Metadata:
    """What `metadata.json` in a bundle's folder says; a part that is unfit is a `BundleError` when it is asked for."""

    root: Path
    name: str
    version: str
    document: dict[str, Any]

    @classmethod
    def read(cls, root: Path) -> Self:
        """Read it; no bundle at `root`, or no valid metadata, is a `BundleError` at once."""
        path = root / "configs" / "metadata.json"
        try:
            stated = read_json(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            found = f"{root} is no bundle: it has no configs/metadata.json; name the folder of a bundle"
            raise BundleError(found) from error
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: no readable JSON ({error}); restore the bundle") from error
        if not isinstance(stated, dict) or not isinstance(stated.get("network_data_format"), dict):
            raise BundleError(f"{path}: expected name, version and network_data_format; restore the bundle")
        if not all(isinstance(stated.get(name), str) and stated[name].strip() for name in ("name", "version")):
            raise BundleError(f"{path}: expected texts as name and version; restore the bundle")
        return cls(root, stated["name"], stated["version"], stated)

    def check(self) -> None:
        """Refuse metadata of which a part is unfit, and name every such part.

        Raises:
            BundleError: labels, codes, channels, series rule, facts of the training or measures are unfit, or name
                other structures.
        """
        problems = []
        for part in ("labels", "series_rule", "image_spec", "expected"):
            try:
                getattr(self, part)
            except BundleError as error:
                problems.append(str(error))
        if not problems and self.expected is not None:
            known = self.labels.foreground.values()
            problems += [
                f"{self.root.name}: trained_on in metadata.json tells of {name}, which is no structure of the output"
                for name, _ in self.expected.structures
                if name not in known
            ]
        if problems:
            raise BundleError(f"{'; '.join(problems)}; correct the metadata, then seal the bundle.")

    def write_with(self, **parts: Any) -> None:
        """Write the metadata with other parts, such as `label_codes`, at once; of a part that is None nothing stays.

        Raises:
            BundleError: a part is unfit, or the file cannot be written; the older one stays.
        """
        document = {name: value for name, value in {**self.document, **parts}.items() if value is not None}
        replace(self, document=document).check()
        path = self.root / "configs" / "metadata.json"
        try:
            write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise BundleError(f"{path}: cannot be written ({error.strerror}); free the disk or its rights.") from error

    @property
    def _image(self) -> dict[str, Any]:
        try:
            return dict(self.document["network_data_format"].get("inputs", {}).get("image", {}))
        except (AttributeError, TypeError, ValueError) as error:
            raise BundleError(f"{self.root.name}: metadata.json does not say what an image is ({error})") from error

    @property
    def modality(self) -> str:
        """Return the modality of the images as it is written there; empty if it is not."""
        return str(self._image.get("modality", ""))

    @property
    def spatial_shape_vox(self) -> tuple[int, ...]:
        """Return the size of the network's input."""
        return tuple(map(int, self._image["spatial_shape"]))

    @property
    def licence(self) -> str:
        """Return the licence of the model as the metadata of imported bundles state it; empty if they do not."""
        return str(self.document.get("licence", ""))

    @property
    def is_imported(self) -> bool:
        """Return whether others have trained the model."""
        return isinstance(self.document.get("imported_from"), dict)

    @property
    def provenance(self) -> tuple[str, ...]:
        """Return in sentences where an imported model comes from, and its licence; none for others."""
        origin = self.document.get("imported_from")
        if not isinstance(origin, dict):
            return ()
        facts = ", ".join(f"{name} {in_words(value)}" for name, value in origin.items() if name not in _OF_ALL_ORIGINS)
        source = f"imported from the {origin.get('kind')} {origin.get('name')} (sha256 {origin.get('sha256')})"
        return (f"{source}{': ' if facts else ''}{facts}", f"licence: {self.licence}")

    @property
    def series_rule(self) -> SeriesRule:
        """Return which series of a DICOM study the bundle wants: `series_rule`, else those of its modality."""
        default = {"modality": MODALITY_OF.get(self.modality.upper(), READABLE_MODALITIES)}
        try:
            return SeriesRule.from_mapping(self.document.get("series_rule", default))
        except (AttributeError, TypeError, ValueError) as error:
            raise BundleError(f"{self.root.name}: series_rule in metadata.json is none ({error})") from error

    @property
    def image_spec(self) -> ImageSpec:
        """Return what the images consist of; their channels must be 0, 1, 2, ..."""
        try:
            count = int(self._image.get("num_channels", 1))
            names = dict(self._image.get("channel_def", {str(index): f"channel {index}" for index in range(count)}))
        except (TypeError, ValueError) as error:
            raise BundleError(f"{self.root.name}: metadata.json does not name the channels ({error})") from error
        if list(names) != [str(index) for index in range(count)]:
            raise BundleError(
                f"{self.root.name}: metadata.json names the channels {', '.join(names)} of its image, expected 0 to "
                f"{count - 1} as num_channels says; correct it"
            )
        return ImageSpec(tuple(map(str, names.values())), self.modality == Modality.PICTURE)

    @property
    def expected(self) -> Expected | None:
        """Return what the bundle was trained on and how well it did, if its metadata say so."""
        try:
            stated, dice = self.document.get("trained_on"), self.document.get("eval_metrics", {}).get("mean_dice")
            if stated is None and dice is None:
                return None
            return Expected.from_mapping(stated or {}, None if dice is None else float(dice))
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            sentence = f"trained_on or eval_metrics in metadata.json cannot be used ({error})"
            raise BundleError(f"{self.root.name}: {sentence}; correct it") from error

    @property
    def labels(self) -> LabelTable:
        """Return what the label values of the bundle's output mean."""
        try:
            names = self.document["network_data_format"]["outputs"]["pred"]["channel_def"]
            return LabelTable.from_mapping(names, self.document.get("label_codes"), gaps=True)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{self.root.name}: metadata.json does not name the output labels ({error})") from error


def in_words(value: object) -> str:
    """Return a fact of `imported_from` as a line of text.

    >>> in_words([{"folder": "a", "folds": [0, 1]}, {"folder": "b", "folds": []}])
    'folder a, folds 0 1; folder b, folds none'
    """
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        is_of_tables = any(isinstance(one, dict) for one in value)
        return ("; " if is_of_tables else " ").join(map(in_words, value)) or "none"
    return str(value)


def image_spec_of(root: str | Path) -> ImageSpec:
    """Return what the images of a bundle consist of, as its metadata name channels and modality.

    Raises:
        BundleError: no valid metadata, or the channels are not 0, 1, 2, ...

    >>> vg.image_spec_of("my_bundle").files
    1
    """
    return Metadata.read(Path(root)).image_spec
