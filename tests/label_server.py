"""A real label server for tests: a process of its own, small images, and a model that has yet to learn its task."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
import torch

from tests.training.test_resume import tiny_plan
from voxelgate.bundle.checksums import WEIGHTS, seal
from voxelgate.datasets.build_manifest import build_manifest, write_manifest
from voxelgate.networks import AttentionUNet
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.planning import Training

START_LIMIT_S = 300.0
"""A busy machine needs a minute to import everything."""

TASK_LIMIT_S = 600.0
POLL_S = 0.5
MODEL = "blobs"

START = """
import json, sys
from pathlib import Path
from voxelgate.apps.label.server import serve_label
from voxelgate.apps.label.serving import Serving
given = json.loads(sys.argv[1])
serve_label(Serving(tuple(map(Path, given.pop("bundles"))), given.pop("studies"), Path(given.pop("work")), **given))
"""


@dataclass(frozen=True)
class Server:
    """A server that runs, and where its files are."""

    url: str
    work: Path

    def call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Send a request, the path as it is."""
        request = requests.Request(method, self.url, **arguments).prepare()
        query = request.url.partition("?")[2]
        request.url = f"{self.url}{path}{'?' + query if query else ''}"
        with requests.Session() as session:
            return session.send(request, timeout=TASK_LIMIT_S)

    def json(self, method: str, path: str, **arguments: Any) -> Any:
        """Send a request that must succeed, and return what it answers."""
        answer = self.call(method, path, **arguments)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def submit(self, image_id: str, label: Path, tag: str = "final", **params: Any) -> requests.Response:
        """Submit a label map as 3D Slicer does."""
        with label.open("rb") as stream:
            files = {"label": (label.name, stream)}
            query = {"image": image_id, "tag": tag}
            data = {"params": json.dumps(params)}
            return self.call("PUT", "/datastore/label", params=query, files=files, data=data)

    def finish(self, task: str) -> list[str]:
        """Wait for a task in the background, and return its last lines."""
        deadline_s = time.monotonic() + TASK_LIMIT_S
        while (state := self.json("GET", task))["status"] in {"SUBMITTED", "RUNNING"}:
            assert time.monotonic() < deadline_s, state
            time.sleep(POLL_S)
        assert state["status"] == "DONE", state["details"]
        return list(state["details"])


@contextmanager
def running(
    bundle: Path, studies: str, work: Path, environment: dict[str, str] | None = None, **options: Any
) -> Iterator[Server]:
    """Start our server and stop it at the end."""
    port = free_port()
    given = {"bundles": [str(bundle)], "studies": studies, "work": str(work), "port": port, **options}
    with started([sys.executable, "-c", START, json.dumps(given)], port, work, environment or {}) as server:
        yield server


@contextmanager
def started(command: Sequence[str], port: int, work: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Run the command of a server until the end."""
    log = work.with_suffix(".log")
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HOME": str(work.parent)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own, **environment},
            start_new_session=True,
        )
    try:
        wait_for(port, process, log)
        yield Server(f"http://127.0.0.1:{port}", work)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline_s, log.read_text(errors="replace")[-3000:]
        time.sleep(POLL_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def blob(rng: np.random.Generator, size_vox: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with one bright ball and two dark ones of its size, and where the bright one is."""
    image = rng.normal(50, 10, size=(size_vox,) * 3)
    centres = rng.permutation([(6, 6, 6), (6, 13, 13), (13, 6, 13)]) + rng.integers(-1, 2, size=(3, 3))
    balls = [np.linalg.norm(np.indices(image.shape).T - centre, axis=-1).T < 4 for centre in centres]
    for ball, height in zip(balls, (60, -30, -30), strict=True):
        image[ball] += height
    return image.astype(np.float32), balls[0].astype(np.uint8)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def untrained_bundle(folder: Path) -> Path:
    """Make a bundle whose weights are random, and whose training takes seconds."""
    rng = np.random.default_rng(0)
    for case in range(5):
        image, label = blob(rng)
        save(folder / "data" / "images" / f"{case}.nii.gz", image)
        save(folder / "data" / "labels" / f"{case}.nii.gz", label)
    names = {"0": "background", "1": "femur"}
    document = build_manifest(folder / "data", name=MODEL, modality="MRI", licence="CC0", folds=2, labels=names)
    write_manifest(document, folder / "data" / "manifest.json")
    pace = Training(
        epochs=4,
        steps_per_epoch=25,
        batch_size=4,
        warmup_steps=5,
        average_decay=0.9,
        validate_every=2,
        learning_rate=0.01,
    )
    made = replace(tiny_plan(folder / "data" / "manifest.json"), name=MODEL, training=pace, patch_vox=(16, 16, 16))
    root = folder / MODEL
    write_bundle(made, root)
    config = json.loads((root / "configs" / "inference.json").read_text(encoding="utf-8"))["network_def"]
    torch.manual_seed(0)
    network = AttentionUNet(**{name: value for name, value in config.items() if name != "_target_"})
    torch.save(network.state_dict(), root / WEIGHTS)
    seal(root)
    return root
