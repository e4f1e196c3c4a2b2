"""Gates that a bundle passes before it is handed on; each runs the bundle as somebody else would."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from jsonschema import Draft202012Validator
from monai.utils import BundleProperty, BundlePropertyConfig

from voxelgate.bundle.checksums import verify
from voxelgate.bundle.export import export, formats_of
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.workflow import (
    ConfigParser,
    InferProperties,
    TrainProperties,
    config_ids,
    read_configs,
    run_workflow,
)
from voxelgate.core.errors import BundleError, VoxelgateError, reason_of
from voxelgate.datasets.build_manifest import write_manifest
from voxelgate.datasets.manifest import Modality, manifest_from_document
from voxelgate.images.pictures import is_picture, write_picture
from voxelgate.images.spec import ImageSpec
from voxelgate.inference.runtimes.formats import is_installed
from voxelgate.inference.runtimes.kinds import SUFFIXES
from voxelgate.training.configs.bundle_files import METADATA as METADATA_NAME
from voxelgate.training.configs.bundle_files import bundle_files
from voxelgate.training.planning.plan import Plan
from voxelgate.training.train import brings_no_training, how_to_go_on

FILES = (
    "LICENSE",
    "checksums.json",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/logging.conf",
    "configs/metadata.json",
    "configs/multi_gpu_train.json",
    "configs/train.json",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
)
"""What MONAI's bundle specification asks for, and our own `checksums.json`."""

OF_TRAINING = (
    "configs/evaluate.json",
    "configs/logging.conf",
    "configs/multi_gpu_train.json",
    "configs/train.json",
)
"""Those of them that a model which others have trained does not bring."""

INSTALLED = ("monai_version", "pytorch_version", "numpy_version", "required_packages_version", "supported_apps")
"""What metadata say of the machine on which they were written; another machine writes others."""

FLAT_SLICES = 4
"""Of the image on which a network of two axes is tried."""

TRIAL_CASES = 2
TRIAL_STEPS = 2

_TEXT = {"type": "string", "minLength": 1}
_FORMAT = {
    "type": "object",
    "required": [
        "type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def",
    ],
    "properties": {
        "type": _TEXT,
        "format": _TEXT,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "minItems": 2, "maxItems": 3},
        "dtype": _TEXT,
        "value_range": {"type": "array"},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "minProperties": 1},
    },
}  # fmt: skip
METADATA = Draft202012Validator(
    {
        "type": "object",
        "required": [
            "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
            "task", "description", "authors", "copyright", "network_data_format",
        ],
        "properties": {
            **dict.fromkeys(("version", "task", "description", "authors", "copyright"), _TEXT),
            "changelog": {"type": "object", "minProperties": 1, "additionalProperties": _TEXT},
            "network_data_format": {
                "type": "object",
                "required": ["inputs", "outputs"],
                "properties": {
                    "inputs": {"type": "object", "required": ["image"], "additionalProperties": _FORMAT},
                    "outputs": {"type": "object", "required": ["pred"], "additionalProperties": _FORMAT},
                },
            },
        },
    }
)  # fmt: skip
"""Mandatory fields of metadata.json; https://docs.monai.io/en/stable/mb_specification.html, "metadata.json File"."""


@dataclass(frozen=True)
class Passed:
    """A gate that a bundle has passed: its name, and what was seen."""

    name: str
    seen: str


def pass_checks(root: Path) -> Iterator[Passed]:
    """Check a bundle gate by gate; yield each that it passes.

    Args:
        root: the bundle's folder.

    Raises:
        BundleError: the first gate that it does not pass, and why.
    """
    for name, gate in (IMPORTED_CHECKS if brings_no_training(root) else CHECKS).items():
        try:
            yield Passed(name, gate(root))
        except VoxelgateError as error:
            raise BundleError(f"{name}: {error}") from error


def _check_files(root: Path, wanted: Sequence[str] = FILES) -> str:
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing:
        raise BundleError(f"{root.name} lacks {', '.join(missing)}; restore them, or plan the bundle anew")
    return f"{len(wanted)} files, sha256 {verify(root)}"


def _imported_files(root: Path) -> str:
    seen = _check_files(root, [name for name in FILES if name not in OF_TRAINING])
    return f"{seen}; {how_to_go_on(root.name)}"


def _networks_of_imported(root: Path) -> str:
    """Run the first network on a window of noise; others may take other channels."""
    bundle, window = open_bundle(root, "cpu"), Metadata.read(root).spatial_shape_vox
    image = torch.rand(1, len(bundle.image_spec.channels), *window, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = bundle.networks[0](image)
    except (RuntimeError, ValueError) as error:
        size = "x".join(map(str, window))
        raise BundleError(f"{root.name}: the network takes no window of {size} voxels ({reason_of(error)})") from error
    if not bool(torch.isfinite(logits).all()):
        raise BundleError(f"{root.name}: the network gives values that are not finite; import the model again")
    return f"{len(bundle.networks)} of them, the first gives {'x'.join(map(str, logits.shape))}"


def _inference_alone(root: Path) -> str:
    """Let `inference.json` segment an image of noise, as other programs run it."""
    images, rng = Metadata.read(root).image_spec, np.random.default_rng(0)
    shape = (*Metadata.read(root).spatial_shape_vox, FLAT_SLICES)[:3]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        for number in range(images.files):
            _save(folder / f"images/0_{number:04d}.nii.gz", rng.normal(0, 100, (1, *shape)))
        where = {"dataset_dir": str(folder / "images"), "output_dir": str(folder / "labels")}
        run_workflow(root, ["inference"], where)
        found = len(list((folder / "labels").glob("*")))
    if found != 1:
        raise BundleError(f"inference.json wrote {found} label maps of one image; see its postprocessing")
    return "inference.json segments an image alone"


def _metadata(root: Path) -> str:
    metadata = Metadata.read(root)
    problems = [
        f"{'.'.join(map(str, error.absolute_path)) or 'metadata.json'}: {error.message}"
        for error in METADATA.iter_errors(metadata.document)
    ]
    if problems:
        raise BundleError(f"{root.name}: {'; '.join(problems)}")
    if metadata.version not in metadata.document["changelog"]:
        raise BundleError(f"{root.name}: changelog does not say what version {metadata.version} changed; add it")
    return "all mandatory fields"


def _network_format(root: Path) -> str:
    bundle, metadata, generator = open_bundle(root, "cpu"), Metadata.read(root), torch.Generator().manual_seed(0)
    pred = metadata.document["network_data_format"]["outputs"]["pred"]
    wanted, channels = (pred["num_channels"], *pred["spatial_shape"]), len(metadata.image_spec.channels)
    with torch.no_grad():
        logits = bundle.network(torch.rand(1, channels, *metadata.spatial_shape_vox, generator=generator))
    if not bool(torch.isfinite(logits).all()):
        raise BundleError(f"{root.name}: the network gives values that are not finite; restore the weights")
    if tuple(logits.shape[1:]) != wanted:
        raise BundleError(f"the network gives {tuple(logits.shape[1:])}, metadata.json says {wanted}; correct it")
    return f"{'x'.join(map(str, logits.shape))} as metadata.json says"


def _export(root: Path) -> str:
    """Export to every format whose packages are installed."""
    bundle, seen = open_bundle(root, "cpu"), {}
    with tempfile.TemporaryDirectory() as folder:
        for form in filter(is_installed, formats_of(bundle.network)):
            seen[form] = export(bundle, form, Path(folder) / f"model{SUFFIXES[form][0]}").agreement.difference
    return f"{', '.join(seen)}: logits differ by at most {max(seen.values()):.1g} of their range"


def _properties(root: Path) -> str:
    """Look for the ids by which other programs, such as MONAI's workflows, find what a bundle holds."""
    for config, properties in (("train", TrainProperties), ("inference", InferProperties)):
        known = config_ids(read_configs(root, [config], {}).get())
        wanted = [str(one[BundlePropertyConfig.ID]) for one in properties.values() if one[BundleProperty.REQUIRED]]
        missing = [name for name in wanted if name.replace("::", "#") not in known]
        if missing:
            raise BundleError(f"{config}.json lacks the ids {', '.join(missing)} of MONAI's workflows; add them")
    return "those of MONAI's train and inference workflows"


def _agreement(root: Path) -> str:
    """Compare the configs with each other, and with what the plan generates if there is one."""
    parsers = {name: read_configs(root, [name], {}) for name in ("train", "inference")}
    if parsers["train"].get("network_def") != parsers["inference"].get("network_def"):
        raise BundleError("train.json and inference.json define different networks; plan the bundle anew")
    train, infer = (_preparation(parsers[name], path) for name, path in _PREPARATION.items())
    if train != infer:
        raise BundleError("train.json and inference.json prepare images in different ways; plan the bundle anew")
    if not (root / "plan.json").is_file():
        return "one network, one preprocessing; no plan to compare with"
    for name, text in bundle_files(Plan.from_json(root / "plan.json")).items():
        if not name.endswith(".json"):
            continue
        planned, found = _numbers_in(json.loads(text)), _numbers_in(json.loads((root / name).read_text()))
        if name == METADATA_NAME:  # people add what no plan knows, such as codes
            found = {key: value for key, value in found.items() if key in planned}
        if planned != found:
            raise BundleError(f"{name} is not what plan.json generates; change the plan, and write the bundle anew")
    return "one network, one preprocessing, all as plan.json says"


_PREPARATION = {"train": "validate#preprocessing#transforms", "inference": "preprocessing#transforms"}
_FOR_LABELS = ("PlaceLabeld", "LoadLabeld")


def _preparation(parser: ConfigParser, path: str) -> list[dict[str, Any]]:
    """Return the steps for the image, without those that read files and those for labels."""
    steps = [step for step in parser.get(path) if not step["_target_"].endswith(_FOR_LABELS)]
    return [step for step in steps if not step["_target_"].startswith(("LoadImage", "EnsureChannelFirst"))]


def _numbers_in(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in INSTALLED}


def _two_iterations(root: Path) -> str:
    """Train two steps, measure, and infer, on cases made up in a folder of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = _trial_cases(root, folder / "data")
        where = {"manifest": str(manifest), "data_root": str(manifest.parent), "output_dir": str(folder / "run")}
        weights = {"model_path": str(folder / "model.pt"), **_from_nothing(root)}
        short = {"epochs": 1, "steps_per_epoch": TRIAL_STEPS, "warmup_steps": 1, "precision": "float32"}
        run_workflow(root, ["train"], where | weights | short)
        run_workflow(root, ["train", "evaluate"], where | weights)
        images = {"dataset_dir": str(folder / "data" / "images"), "output_dir": str(folder / "labels")}
        run_workflow(root, ["inference"], images)
        found = len(list((folder / "labels").glob("*")))
    if found != TRIAL_CASES:
        raise BundleError(f"inference.json wrote {found} label maps of {TRIAL_CASES} images; see its postprocessing")
    return f"{TRIAL_STEPS} steps, evaluation and inference on {TRIAL_CASES} cases"


def _from_nothing(root: Path) -> dict[str, Any]:
    """Return settings of a trial without first weights, which may be on another machine."""
    return {"init_weights": None} if "init_weights" in read_configs(root, ["train"], {}).get() else {}


def _trial_cases(root: Path, folder: Path) -> Path:
    """Write images of noise on the network's grid with a box of each structure, and their manifest."""
    metadata, rng = Metadata.read(root), np.random.default_rng(0)
    labels, rule = metadata.labels.to_mapping(), metadata.image_spec
    is_ct, shape = metadata.modality == "CT", metadata.spatial_shape_vox
    suffix = ".png" if rule.is_picture else ".nii.gz"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    rows = []
    for case in range(TRIAL_CASES):
        label = np.zeros(shape, np.uint8)
        for value, at in zip(range(1, len(labels)), np.array_split(np.arange(shape[0]), len(labels) - 1), strict=True):
            label[at, shape[1] // 4 : shape[1] - shape[1] // 4] = value  # none where there are more labels than voxels
        names = [f"images/{case}_{number:04d}{suffix}" for number in range(rule.files)]
        for name in names:
            noise = rng.normal(0, 100, (rule.channels_per_file(rule.files), *shape)) - (
                1000 * (label == 0) if is_ct else 0
            )
            _save(folder / name, noise)
        _save(folder / f"labels/{case}{suffix}", label[None])
        named: str | list[str] = names[0] if len(names) == 1 else names
        rows.append({"image": named, "label": f"labels/{case}{suffix}", "subject": str(case), "fold": case})
    channels = {str(number): name for number, name in enumerate(rule.channels)}
    modality = dict.fromkeys(channels, _trial_modality(rule, is_ct=is_ct))
    head = {"name": "trial", "licence": "CC0-1.0", "modality": modality, "channels": channels, "labels": labels}
    write_manifest(manifest_from_document(head | {"training": rows}, folder), folder / "manifest.json")
    return folder / "manifest.json"


def _trial_modality(rule: ImageSpec, *, is_ct: bool) -> Modality:
    if rule.is_picture:
        return Modality.PICTURE
    return Modality.CT if is_ct else Modality.MRI


def _save(path: Path, voxels: np.typing.NDArray[Any]) -> None:
    """Write (C, i, j, k) as NIfTI, of which C is 1, or as a picture."""
    is_image = voxels.dtype != np.uint8
    if is_picture(path):
        write_picture(path, np.clip(voxels + 128, 0, 255).astype(np.uint8) if is_image else voxels)
    else:
        nib.save(nib.Nifti1Image(voxels[0].astype(np.float32) if is_image else voxels[0], np.eye(4)), path)


CHECKS: Mapping[str, Callable[[Path], str]] = {
    "files": _check_files,
    "metadata": _metadata,
    "network": _network_format,
    "configs": _agreement,
    "properties": _properties,
    "export": _export,
    "two iterations": _two_iterations,
}
"""Cheap ones first."""

IMPORTED_CHECKS: Mapping[str, Callable[[Path], str]] = {
    "files": _imported_files,
    "metadata": _metadata,
    "networks": _networks_of_imported,
    "export": _export,
    "inference": _inference_alone,
}
"""Of a model that others have trained."""
