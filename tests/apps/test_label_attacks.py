"""What strangers send to a label server, and what is in the folder it is started in: it lives, and tells nothing."""

import gzip
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("monailabel", reason="needs the environment that `make label` builds")

from tests.label_server import START, Server, blob, free_port, running, save, wait_for
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.apps.label.patience import MOST_BODIES, SILENT_S

pytestmark = pytest.mark.label

MODEL = "bright_ct"
MOST_MIB = 4
SECRET = "never-to-be-told"  # noqa: S105 - of nobody
END_LIMIT_S = 30.0
MOST_SESSIONS = 64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("attacked")
    for number in range(3):
        save(root / "studies" / f"case_{number}.nii.gz", blob(np.random.default_rng(number))[0])
    make_threshold_bundle(root / MODEL)
    (root / "secret.txt").write_text(SECRET, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    secrets = {"MONAI_LABEL_DICOMWEB_PASSWORD": SECRET}
    with running(place / MODEL, str(place / "studies"), place / "work", secrets, most_mib=MOST_MIB) as started:
        yield started


def nifti(
    shape: tuple[int, int, int], voxels: bytes = b"", *, kind: tuple[int, int] = (16, 32), gap: float = 1
) -> bytes:
    """Return a NIfTI file, made without a library."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, *kind)
    struct.pack_into("<4f", header, 76, 1, gap, gap, gap)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    header[123] = 2
    struct.pack_into("<2h", header, 252, 0, 1)
    for row in range(3):
        struct.pack_into("<f", header, 280 + 20 * row, gap)
    header[344:348] = b"n+1\0"
    return bytes(header) + voxels


def meta_image(data: str, *, axes: int = 3, size: str = "16 16 16") -> bytes:
    return (
        f"ObjectType = Image\nNDims = {axes}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\n"
        f"DimSize = {size}\nElementType = MET_FLOAT\nElementDataFile = {data}\n"
    ).encode() + bytes(16384)


def nrrd(*lines: str, size: str = "16 1 1") -> bytes:
    return "\n".join(
        (
            "NRRD0004",
            "type: uint8",
            "dimension: 3",
            "space: left-posterior-superior",
            f"sizes: {size}",
            "space directions: (1,0,0) (0,1,0) (0,0,1)",
            "kinds: domain domain domain",
            "encoding: raw",
            "space origin: (0,0,0)",
            *lines,
            "",
        )
    ).encode()


def zeros(head: bytes, count: int) -> bytes:
    """Return a gzip file that begins with some bytes, and goes on with zeros."""
    packer = zlib.compressobj(1, wbits=31)
    chunks = [packer.compress(head), *(packer.compress(bytes(2**20)) for _ in range(count // 2**20)), packer.flush()]
    return b"".join(chunks)


NOISE = np.random.default_rng(0).normal(size=20**3).astype("<f4").tobytes()

HOSTILE = {
    "axes beyond all bounds": ("x.mha", meta_image("LOCAL", axes=1000)),
    "a format of printf": ("x.mha", meta_image("%s%s%n 1 16 1")),
    "a list of files": ("x.mha", meta_image("LIST")),
    "another file": ("x.mha", meta_image("SECRET", size="16 1 1")),
    "another file of NRRD": ("x.nrrd", nrrd("data file: SECRET")),
    "another file, by its older name": ("x.nrrd", nrrd("datafile: SECRET")),
    "files by a pattern": ("x.nrrd", nrrd("data file: SECRET%d 1 1 1")),
    "the environment": ("x.nrrd", nrrd("data file: /proc/self/environ")),
    "a header whose voxels come from elsewhere": ("x.mhd", meta_image("SECRET")),
    "a header of its own": ("x.nhdr", nrrd("data file: SECRET")),
    "many gigabytes, announced": ("x.nii.gz", gzip.compress(nifti((2000, 2000, 2000)))),
    "many gigabytes, packed": ("x.nii.gz", zeros(nifti((512, 512, 512)), 2**29)),
    "an offset without end": ("x.nii", nifti((20, 20, 20), NOISE)[:108] + struct.pack("<f", np.inf) + NOISE),
    "negative axes": ("x.nii", nifti((-20, 20, 20), NOISE)),
    "nothing": ("x.nii.gz", b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_a_sentence_and_tells_nothing(server: Server, place: Path, name: str) -> None:
    file_name, content = HOSTILE[name]
    sent = content.replace(b"SECRET", str(place / "secret.txt").encode())
    for method, path, field in (
        ("POST", f"/infer/{MODEL}?output=json", "file"),
        ("PUT", "/datastore/label?image=case_0&tag=final", "label"),
        ("PUT", "/datastore/image?image=sent", "file"),
        ("PUT", "/session/", "files"),
    ):
        answer = server.call(method, path, files={field: (file_name, sent)})

        assert answer.status_code == 422, f"{path}: {answer.status_code} {answer.text}"
        assert answer.json()["detail"].endswith(".")
        assert SECRET not in answer.text
        assert str(place) not in answer.text
    assert server.json("GET", "/info/")["datastore"]["total"] == 3


def connected(server: Server, head: str) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=60)
    made.sendall(head.replace("\n", "\r\n").encode())
    return made


UPLOAD = """PUT /session/ HTTP/1.1
Host: 127.0.0.1
Content-Type: multipart/form-data; boundary=x
Content-Length: 100000

--x
"""


def test_uploads_that_never_end_give_way_to_others(server: Server, place: Path) -> None:
    hanging = [connected(server, UPLOAD) for _ in range(3 * MOST_BODIES)]
    try:
        time.sleep(2 * SILENT_S)
        with (place / "studies" / "case_0.nii.gz").open("rb") as stream:
            answer = server.call("PUT", "/session/", files={"files": ("x.nii.gz", stream)})
        assert answer.status_code == 200, answer.text
        assert server.call("GET", "/info/").status_code == 200
    finally:
        for one in hanging:
            one.close()


def test_many_who_wait_for_a_proposal_keep_nobody_from_the_rest(server: Server) -> None:
    asking = f"POST /infer/{MODEL}?image=case_0 HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 0\n\n"
    waiting = [connected(server, asking) for _ in range(60)]
    began_s = time.monotonic()

    assert server.call("GET", "/").status_code == 200
    assert time.monotonic() - began_s < 20

    answers = [one.recv(12) for one in waiting]
    assert {b"HTTP/1.1 200", b"HTTP/1.1 503"} >= set(answers)
    assert b"HTTP/1.1 200" in answers
    for one in waiting:
        one.close()


def test_sessions_do_not_fill_the_disk(server: Server, place: Path) -> None:
    kept = server.work / "sessions"
    for number in range(MOST_SESSIONS):
        (kept / f"made-{number}").mkdir()
    with (place / "studies" / "case_0.nii.gz").open("rb") as stream:
        answer = server.call("PUT", "/session/", files={"files": ("x.nii.gz", stream)})
    for number in range(MOST_SESSIONS):
        (kept / f"made-{number}").rmdir()

    assert answer.status_code == 503
    assert "end one of yours" in answer.json()["detail"]


def test_a_file_of_the_current_folder_is_no_code_and_no_setting(place: Path, tmp_path: Path) -> None:
    for name in ("nibabel.py", "random.py", "monailabel.py", "torchvision.py", "sitecustomize.py"):
        (tmp_path / name).write_text("import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()")
    (tmp_path / ".env").write_text("MONAI_LABEL_DATASTORE_AUTO_RELOAD=false\nMONAI_LABEL_TASKS_TRAIN=false\n")
    port = free_port()
    given = {"bundles": [str(place / MODEL)], "studies": str(place / "studies"), "work": str(tmp_path / "work")}
    command = [sys.executable, "-P", "-c", START, json.dumps(given | {"port": port})]
    environment = {**os.environ, "HOME": str(tmp_path)}
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=output) as process:
        try:
            wait_for(port, process, log)
            server = Server(f"http://127.0.0.1:{port}", tmp_path / "work")
            server.json("POST", f"/batch/infer/{MODEL}")
            (child,) = wait_for_children(process.pid)
            seen = child.environ()
            server.finish("/batch/infer")
        finally:
            process.kill()

    assert not list(tmp_path.glob("*.ran"))
    assert seen["PYTHONSAFEPATH"] == "1"
    assert all(Path(path).is_absolute() for path in seen["PYTHONPATH"].split(os.pathsep))


def wait_for_children(pid: int) -> list[psutil.Process]:
    for _ in range(200):
        if found := psutil.Process(pid).children():
            return found
        time.sleep(0.05)
    return []


def test_no_process_of_the_server_shows_a_password(server: Server) -> None:
    pid = next(one.pid for one in psutil.process_iter() if any(str(server.work) in part for part in one.cmdline()[1:]))
    server.json("POST", f"/batch/infer/{MODEL}")
    children = wait_for_children(pid)
    shown = [Path(f"/proc/{one}/environ").read_bytes() for one in [pid, *(child.pid for child in children)]]
    server.finish("/batch/infer")

    assert len(shown) >= 2
    assert not any(SECRET.encode() in environment for environment in shown)


@pytest.mark.parametrize("path", ["/", "/docs", "/logs/", "/logs/?refresh=1&html=true", "/ohif/", "/ohif/viewer"])
def test_no_page_makes_a_browser_ask_another_host(server: Server, path: str) -> None:
    answer = server.call("GET", path)

    assert answer.status_code == 200
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "//" not in policy
    assert "*" not in policy


def test_the_first_page_says_what_to_do_and_the_list_names_the_endpoints(server: Server) -> None:
    assert "3D Slicer" in server.call("GET", "/").text
    assert "/infer/{model}" in server.call("GET", "/docs").text
    assert server.call("GET", "/ohif/app-config.js").headers["content-type"].startswith(("text/", "application/"))
    assert server.call("GET", "/ohif/assets/favicon-16x16.png").headers["content-type"] == "image/png"


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_that_is_told_to_end_ends_with_its_tasks(place: Path, tmp_path: Path, told: signal.Signals) -> None:
    port = free_port()
    given = {"bundles": [str(place / MODEL)], "studies": str(place / "studies"), "work": str(tmp_path / "work")}
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen([sys.executable, "-c", START, json.dumps(given | {"port": port})], stderr=output) as process,
    ):
        try:
            wait_for(port, process, log)
            server = Server(f"http://127.0.0.1:{port}", tmp_path / "work")
            server.json("POST", f"/batch/infer/{MODEL}")
            (child,) = wait_for_children(process.pid)
            hanging = [connected(server, UPLOAD), connected(server, "GET /info/ HTTP/1.1\n")]
            process.send_signal(told)
            assert process.wait(END_LIMIT_S) in {0, -told, 128 + told}
            child.wait(END_LIMIT_S)
            for one in hanging:
                one.close()
        finally:
            process.kill()
