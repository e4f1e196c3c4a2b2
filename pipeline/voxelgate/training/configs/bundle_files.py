"""From a plan to the files of a MONAI bundle: numbers come from the plan, the structure of the configs stands here."""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

from voxelgate.bundle.checksums import seal
from voxelgate.bundle.frame import SCHEMA, Config, data_format, inference_config_around, saving_step, versions_here
from voxelgate.core.errors import OutputError
from voxelgate.core.files import write_text
from voxelgate.datasets.manifest import Modality
from voxelgate.datasets.survey import Fingerprint
from voxelgate.training.configs.docs import LOGGING_CONF, data_licence, readme
from voxelgate.training.configs.steps import (
    cleaning_steps,
    inferer_config,
    network_config,
    preparation_steps,
    reading_steps,
)
from voxelgate.training.configs.train_config import evaluate_config, multi_gpu_config, train_config
from voxelgate.training.planning.plan import Cleaning, Plan

FINGERPRINT = "fingerprint.json"
"""File in a bundle with the facts of its training data, which name no case."""

README = "docs/README.md"
METADATA = "configs/metadata.json"

DICOM_MODALITY = {Modality.CT: "CT", Modality.MRI: "MR"}
"""Pictures come in no DICOM."""


def write_bundle(plan: Plan, root: Path | str, facts: Fingerprint | None = None) -> None:
    """Write every file of a bundle but its weights, and seal it; all of them appear at once, or none.

    Args:
        plan: the numbers.
        root: folder to make; must not exist.
        facts: from which the plan follows; kept beside it, so that anybody can plan again without the data.

    Raises:
        OutputError: `root` exists.

    >>> made = vg.plan(vg.survey(vg.load_manifest("data/manifest.json")).fingerprint)
    >>> vg.write_bundle(made, "planned")
    >>> Path("planned/configs/train.json").is_file()
    True
    """
    target = Path(root)
    refuse_existing_bundle(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as partial:
        folder = Path(partial) / target.name
        texts = bundle_files(plan) | ({} if facts is None else {FINGERPRINT: facts.to_json()})
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "models").mkdir()
        seal(folder)
        shutil.move(os.fspath(folder), target)


def refuse_existing_bundle(root: Path) -> None:
    """Refuse a folder that is there.

    Raises:
        OutputError: it is.
    """
    if root.exists():
        raise OutputError(f"{root} exists already; name another folder, or remove it first")


def is_as_planned(plan: Plan, root: Path) -> bool:
    """Return whether the configs that run are those that a plan generates."""
    return all((root / name).read_text(encoding="utf-8") == text for name, text in _configs(plan).items())


def rewrite_bundle(plan: Plan, root: Path) -> None:
    """Write the plan and the configs that run anew, each at once.

    Metadata, README, licences and weights stay as they are, for people add to them what no plan knows.
    """
    for name, text in ({"plan.json": plan.to_json()} | _configs(plan)).items():
        write_text(root / name, text)


def _configs(plan: Plan) -> dict[str, str]:
    return {name: text for name, text in bundle_files(plan).items() if name.startswith("configs/") and name != METADATA}


def cleaned(plan: Plan, cleaning: Cleaning) -> Plan:
    """Return a plan with what cross-validation found to help."""
    reason = "the mean Dice of cases that were not seen rose by it"
    if cleaning == Cleaning():
        reason = "neither the largest piece alone nor filled holes were better on cases that were not seen"
    return replace(plan, cleaning=cleaning, reasons={**plan.reasons, "cleaning": reason})


def bundle_files(plan: Plan) -> dict[str, str]:
    """Return the text of every generated file by its path in the bundle; README and weights come from the training."""
    configs = {
        "train": train_config(plan),
        "inference": inference_config(plan),
        "evaluate": evaluate_config(plan),
        "multi_gpu_train": multi_gpu_config(plan),
        "metadata": metadata(plan),
    }
    return {
        "plan.json": plan.to_json(),
        **{f"configs/{name}.json": json.dumps(config, indent=2) + "\n" for name, config in configs.items()},
        "configs/logging.conf": LOGGING_CONF,
        README: readme(plan),
        "docs/data_license.txt": data_licence(plan),
        "LICENSE": distribution("voxelgate").read_text("licenses/LICENSE") or "Apache-2.0\n",
    }


def inference_config(plan: Plan) -> Config:
    """Return `inference.json`: segment every volume of a folder, each on its own grid."""
    return inference_config_around(
        network_config(plan),
        reading_steps(plan, ["image"]) + preparation_steps(plan, ["image"]),
        inferer_config(plan),
        [*cleaning_steps(plan), saving_step(plan.images)],
        plan.images,
    )


def metadata(plan: Plan) -> Config:
    """Return `metadata.json` after MONAI's schema."""
    image = {
        "format": _format(plan),
        "modality": plan.modality.value,
        "value_range": [0, 1] if plan.intensity.low_hu is not None else [-5, 5],
    }
    return {
        "schema": SCHEMA,
        "version": plan.version,
        "changelog": dict(plan.changelog),
        **versions_here(),
        "name": plan.name,
        "task": plan.description,
        "description": plan.description,
        "authors": "the voxelgate developers",
        "copyright": "Copyright (c) the voxelgate developers",
        "data_source": plan.data.get("name", ""),
        "data_type": "nibabel",
        "intended_use": "Research only; not a medical device.",
        **({"licence": licence} if (licence := plan.adopted.get("licence")) else {}),
        **_series_rule(plan),
        **({"trained_on": dict(plan.trained_on)} if plan.trained_on else {}),
        "references": [text for text in (plan.data.get("reference", ""),) if text],
        "network_data_format": data_format(image, plan.label_table, plan.image_channels, plan.patch_vox),
    }


def _series_rule(plan: Plan) -> Config:
    if plan.modality not in DICOM_MODALITY:
        return {}
    return {"series_rule": {"modality": [DICOM_MODALITY[plan.modality]], "min_slices": plan.min_slices}}


def _format(plan: Plan) -> str:
    if plan.is_colour:
        return "rgb"
    return "hounsfield" if plan.modality is Modality.CT else "magnitude"
