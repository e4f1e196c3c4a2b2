"""A bundle works in MONAI Label's own `monaibundle` app too, with no code of ours but the installed package."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("monailabel", reason="needs the environment that `make label` builds")

from tests.conftest import Run
from tests.label_server import MODEL, Server, blob, free_port, save, started, untrained_bundle
from voxelgate.apps.label.server import missing_modules
from voxelgate.bundle.checksums import WEIGHTS, seal
from voxelgate.images.volumes import read_grid, read_volume

pytestmark = pytest.mark.label

STOCK_APP = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
TURNED = np.array([[0.0, -1.0, 0.0, 9.0], [-0.94, 0.0, 0.34, 5.0], [0.34, 0.0, 0.94, 1.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start the stock app as MONAI Label's manual says; offline, it must be told to stay so."""
    root = tmp_path_factory.mktemp("stock")
    app = Path(shutil.copytree(STOCK_APP, root / "app"))
    shutil.copytree(untrained_bundle(root), app / "model" / MODEL)
    rng = np.random.default_rng(2)
    for number in range(4):
        image, label = blob(rng)
        affine = TURNED if number == 0 else np.eye(4)
        save(root / "studies" / f"case_{number}.nii.gz", image, affine)
        save(root / "studies" / "labels" / "final" / f"case_{number}.nii.gz", label, affine)
    port = free_port()
    offline = ["--conf", "zoo_source", "ngc", "--conf", "sam2", "false"]
    where = ["--app", str(app), "--studies", str(root / "studies"), "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "monailabel.main", "start_server", *where, "--conf", "models", MODEL, *offline]
    paths = os.pathsep.join([*missing_modules(), os.environ.get("PYTHONPATH", "")])
    with started(command, port, app, {"PYTHONPATH": paths}) as running:
        yield running


def test_the_stock_app_gives_the_labels_of_the_command_line_on_the_grid_of_the_image(
    server: Server, tmp_path: Path, run: Run
) -> None:
    image = server.work.parent / "studies" / "case_0.nii.gz"
    seal(server.work / "model" / MODEL)
    run("segment", server.work / "model" / MODEL, image, "--out", tmp_path, "--require", "any")  # untrained

    answer = server.call("POST", f"/infer/{MODEL}", params={"image": "case_0", "output": "image"})

    assert answer.status_code == 200, answer.text
    (tmp_path / "label.nii.gz").write_bytes(answer.content)
    labels, grid = read_volume(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(labels, read_volume(tmp_path / "case_0.nii.gz")[0])
    assert labels.any()
    assert grid.agrees(read_grid(image), 1e-3)


def test_the_stock_app_trains_the_bundle_and_validates_it(server: Server) -> None:
    weights = server.work / "model" / MODEL / WEIGHTS
    before = torch.load(weights, weights_only=True)

    server.json("POST", f"/train/{MODEL}", json={"max_epochs": 2, "val_split": 0.25, "device": "cpu"})
    lines = server.finish("/train/")

    assert any("val_mean_dice" in line for line in lines)
    after = torch.load(weights, weights_only=True)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_stock_app_trains_again_and_keeps_what_the_training_before_left(server: Server) -> None:
    bundle = server.work / "model" / MODEL
    for _ in range(2):
        kept, before = set(bundle.glob("training_*")), (bundle / WEIGHTS).read_bytes()
        server.json("POST", f"/train/{MODEL}", json={"max_epochs": 1, "val_split": 0.25, "device": "cpu"})
        lines = server.finish("/train/")
        assert any("val_mean_dice" in line for line in lines)
        (new,) = set(bundle.glob("training_*")) - kept
        assert (new / "model.pt").read_bytes() == before
        assert (bundle / WEIGHTS).read_bytes() != before
