"""The label server on a PACS: series of a real Orthanc get proposals, and what annotators submit goes back as SEG."""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the environment that `make label` builds")

import requests
from pydicom import dcmread

from tests.label_server import START_LIMIT_S, Server, running
from tests.planted import ct_series, write
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.apps.label.model_versions import MODELS, ModelVersions, Origin
from voxelgate.bundle.checksums import seal
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.images.volumes import read_volume

pytestmark = pytest.mark.label

ORTHANC_PORT = 8042
PLUGINS = Path("/usr/share/orthanc/plugins")
MODEL = "bright_ct"
THRESHOLD_HU = 150

PACS = f"http://127.0.0.1:{ORTHANC_PORT}"
CLONE_NEWNET = 0x40000000
"""Of sched.h: the namespace of networks."""


def enter_network(path: Path) -> None:
    """Let this thread, and the processes it starts, see another network; `os.setns` comes with Python 3.12 only."""
    with path.open("rb") as namespace:
        assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0, ctypes.get_errno()


@contextlib.contextmanager
def network_of_its_own() -> Iterator[None]:
    """Go into a network in which there is nobody else: Orthanc 1.10 listens to every address."""
    outside = Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as holder:
        try:
            if holder.stdout is None or holder.stdout.readline() != b"ready\n":
                pytest.skip("needs the right to make a network namespace (unshare --net)")
            kept = os.open(outside, os.O_RDONLY)
            enter_network(Path(f"/proc/{holder.pid}/ns/net"))
            try:
                yield
            finally:
                enter_network(Path(f"/dev/fd/{kept}"))
                os.close(kept)
        finally:
            holder.kill()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the DICOMweb address of an Orthanc that holds one CT."""
    if shutil.which("Orthanc") is None or not (PLUGINS / "libOrthancDicomWeb.so").is_file():
        pytest.skip("needs Debian's orthanc and orthanc-dicomweb")
    root = tmp_path_factory.mktemp("orthanc")
    config = {
        "StorageDirectory": str(root / "db"),
        "IndexDirectory": str(root / "db"),
        "HttpPort": ORTHANC_PORT,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
    }
    (root / "orthanc.json").write_text(json.dumps(config), encoding="utf-8")
    with network_of_its_own(), (root / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(root / "orthanc.json")], stdout=log, stderr=log)
        try:
            wait_for_orthanc(root / "orthanc.log")
            for path in write(ct_series(), root / "ct"):
                requests.post(f"{PACS}/instances", data=path.read_bytes(), timeout=60).raise_for_status()
            yield f"{PACS}/dicom-web"
        finally:
            process.kill()
            process.wait()


def wait_for_orthanc(log: Path) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while True:
        with contextlib.suppress(requests.ConnectionError):
            requests.get(f"{PACS}/system", timeout=10).raise_for_status()
            return
        assert time.monotonic() < deadline_s, log.read_text(errors="replace")[-2000:]
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(pacs: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("pacs")
    with running(make_threshold_bundle(root / MODEL), pacs, root / "work") as started:
        yield started


def found(pacs: str, modality: str) -> list[dict[str, Any]]:
    """Ask the PACS for its series of a modality."""
    answer = requests.get(f"{pacs}/series", params={"Modality": modality}, timeout=60)
    return list(answer.json()) if answer.status_code == 200 else []


def test_a_series_is_proposed_for_and_what_is_submitted_becomes_a_seg_in_the_pacs(
    server: Server, pacs: str, tmp_path: Path
) -> None:
    write(ct_series(), tmp_path / "ct")
    (series,) = scan_dicom(tmp_path / "ct")
    volume = read_series(series)
    sample = server.json("POST", "/activelearning/first")
    image_id = sample["id"]
    assert sample["name"] == f"{image_id}.nii.gz"

    image = server.call("GET", "/datastore/image", params={"image": image_id})
    (tmp_path / "image.nii.gz").write_bytes(image.content)
    query = {"image": image_id, "output": "image"}
    (tmp_path / "label.nii.gz").write_bytes(server.call("POST", f"/infer/{MODEL}", params=query).content)

    voxels, grid = read_volume(tmp_path / "image.nii.gz")
    labels, label_grid = read_volume(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(voxels, volume.voxels)
    assert grid.agrees(volume.grid, 1e-3)
    assert label_grid.agrees(volume.grid, 1e-3)
    np.testing.assert_array_equal(labels, volume.voxels > THRESHOLD_HU)

    seg = server.call("POST", f"/infer/{MODEL}", params={"image": image_id, "output": "dicom_seg"})
    (tmp_path / "proposal.dcm").write_bytes(seg.content)
    assert dcmread(tmp_path / "proposal.dcm").SegmentSequence[0].SegmentLabel == "femur"
    assert found(pacs, "SEG") == []

    versions = ModelVersions(server.work / MODELS / MODEL)
    shutil.copytree(versions.current_path, candidate := versions.scratch())
    (candidate / "plan.json").write_text("{}", encoding="utf-8")
    fingerprint = seal(candidate)
    server.json("PUT", f"/versions/{MODEL}", params={"version": versions.add(candidate, Origin(parent=1))})
    answer = server.submit(image_id, tmp_path / "label.nii.gz")
    assert answer.status_code == 200, answer.text

    (kept,) = found(pacs, "SEG")
    assert kept["0020000D"] == found(pacs, "CT")[0]["0020000D"]
    study_uid, series_uid = (kept[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
    (facts,) = requests.get(f"{pacs}/studies/{study_uid}/series/{series_uid}/metadata", timeout=60).json()
    assert facts["00181000"]["Value"] == [fingerprint]
    assert facts["0008103E"]["Value"] == ["SEG corrected: bright_ct 1.0.0"]
    assert facts["00700084"].get("Value", []) == []  # nobody logged in, so nobody is named
    assert server.json("GET", "/info/")["datastore"] == {
        "total": 1,
        "completed": 1,
        "label_tags": {"final": 1},
    }
    assert server.json("POST", "/activelearning/first") == {}


def test_a_series_that_arrives_is_listed_at_once(server: Server, tmp_path: Path) -> None:
    assert server.json("GET", "/info/")["datastore"]["total"] == 1

    for dataset in ct_series(series=7):
        (path,) = write([dataset], tmp_path / str(dataset.SOPInstanceUID))
        requests.post(f"{PACS}/instances", data=path.read_bytes(), timeout=60).raise_for_status()

    assert server.json("GET", "/info/")["datastore"]["total"] == 2


def test_the_proxy_for_ohif_reaches_dicomweb_and_nothing_else_of_the_pacs(server: Server) -> None:
    assert server.call("GET", "/proxy/dicom/studies").status_code == 200
    assert "<html" in server.call("GET", "/ohif/").text
    found = server.json("GET", "/proxy/dicom/qido/studies?limit=1&offset=0&fuzzymatching=true&includefield=00081030")
    uid = found[0]["0020000D"]["Value"][0]
    assert server.json("GET", f"/proxy/dicom/qido/studies?StudyInstanceUID={uid}.0") == []
    assert server.call("GET", f"/proxy/dicom/wado/studies/{uid}/metadata").status_code == 200
    for path in (
        "/proxy/dicom/../system",
        "/proxy/dicom/%2e%2e/system",
        "/proxy/dicom/%252e%252e/system",
        "/proxy/dicom/wado/..%2fsystem",
    ):
        answer = server.call("GET", path)
        assert 400 <= answer.status_code < 500, answer.text
        assert "DatabaseVersion" not in answer.text
    assert server.call("POST", "/proxy/dicom/studies", data=b"nothing").status_code == 405
