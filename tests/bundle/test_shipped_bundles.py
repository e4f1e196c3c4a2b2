"""The bundles in `bundles/`: generated from their plan, whole, and runnable by plain MONAI."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from tests.conftest import REPOSITORY
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle
from voxelgate.training.configs.bundle_files import bundle_files
from voxelgate.training.configs.train_config import PLACE_LABEL
from voxelgate.training.planning import Plan

BUNDLES = sorted((REPOSITORY / "bundles").iterdir())
INSTALLED = ("monai_version", "pytorch_version", "numpy_version", "required_packages_version", "supported_apps")


@pytest.fixture(params=BUNDLES, ids=lambda root: root.name)
def root(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def config(root: Path, name: str) -> dict[str, object]:
    return dict(json.loads((root / "configs" / f"{name}.json").read_text(encoding="utf-8")))


def without_versions(metadata: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in metadata.items() if key not in INSTALLED}


def test_every_config_is_what_its_plan_generates(root: Path) -> None:
    generated = bundle_files(Plan.from_json(root / "plan.json"))
    for name in ("train", "inference", "evaluate", "multi_gpu_train"):
        assert config(root, name) == json.loads(generated[f"configs/{name}.json"]), name
    planned = without_versions(json.loads(generated["configs/metadata.json"]))
    found = without_versions(config(root, "metadata"))
    assert {key: value for key, value in found.items() if key in planned} == planned
    assert set(found) - set(planned) == {"label_codes", "eval_metrics"}
    assert (root / "docs" / "README.md").read_text(encoding="utf-8").startswith(generated["docs/README.md"])
    for name in ("docs/data_license.txt", "configs/logging.conf", "LICENSE", "plan.json"):
        assert (root / name).read_text(encoding="utf-8") == generated[name], name


def test_training_and_inference_prepare_images_in_the_same_way(root: Path) -> None:
    parsers = {}
    for name in ("inference", "train"):
        parsers[name] = ConfigParser(config(root, name))
    infer = parsers["inference"].get("preprocessing")["transforms"]
    validate = parsers["train"].get("validate")["preprocessing"]["transforms"]
    train = parsers["train"].get("train")["deterministic_transforms"]
    of_labels = (PLACE_LABEL["_target_"], "voxelgate.LoadLabeld")
    validate, train = ([step for step in steps if step["_target_"] not in of_labels] for steps in (validate, train))
    assert infer[2:] == validate[2:]
    for step, twin in zip(infer[2:], train[2:], strict=False):
        for key, value in step.items():
            if key not in {"keys", "mode"}:
                assert twin[key] == value
    assert parsers["inference"].get("network_def") == parsers["train"].get("network_def")


def test_the_bundle_is_whole_and_its_weights_fit(root: Path) -> None:
    opened = open_bundle(root, "cpu")
    assert opened.labels == Metadata.read(root).labels
    assert isinstance(opened.preprocessing, Compose)
    assert (root / "models" / "model.pt").stat().st_size < 25e6


def test_the_network_takes_and_gives_what_the_metadata_say(root: Path) -> None:
    stated = Metadata.read(root)
    size, outputs = stated.spatial_shape_vox, stated.document["network_data_format"]["outputs"]["pred"]
    with torch.no_grad():
        logits = open_bundle(root, "cpu").network(torch.zeros(1, len(stated.image_spec.channels), *size))
    assert tuple(logits.shape) == (1, outputs["num_channels"], *outputs["spatial_shape"])


@pytest.mark.slow
def test_monai_exports_the_network_as_torchscript(tmp_path: Path) -> None:
    bundle = shutil.copytree(REPOSITORY / "bundles" / "hippocampus_mri_segmentation", tmp_path / "bundle")
    command = ["-m", "monai.bundle", "ckpt_export", "network_def", "--filepath", "model.ts"]
    command += ["--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json"]
    command += ["--config_file", "configs/inference.json"]

    done = subprocess.run([sys.executable, "-P", *command], cwd=bundle, check=False, capture_output=True, text=True)

    assert (bundle / "model.ts").is_file(), done.stderr
    image = torch.randn(1, 1, 37, 48, 33)
    with torch.no_grad():
        expected = open_bundle(bundle, "cpu").network(image)
        torch.testing.assert_close(torch.jit.load(bundle / "model.ts")(image), expected, atol=1e-3, rtol=1e-3)
