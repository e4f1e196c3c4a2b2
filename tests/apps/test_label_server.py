"""A label server as annotators meet it: over HTTP, from the first proposal to a better model; and what it refuses."""

import io
import json
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the environment that `make label` builds")

from requests_toolbelt import MultipartDecoder

from tests.conftest import Run
from tests.label_server import MODEL, Server, blob, running, save, untrained_bundle
from voxelgate.apps.label.model_versions import ModelVersions
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.images.volumes import read_grid, read_volume

pytestmark = pytest.mark.label

FLIPPED = np.diag([-1.0, 1.0, 1.5, 1.0])
OBLIQUE = np.array([[0.0, 0.94, -0.34, 5.0], [1.2, 0.0, 0.0, -7.0], [0.0, 0.34, 0.94, 11.0], [0.0, 0.0, 0.0, 1.0]])
ANNOTATED = [f"case_{number}" for number in range(6)]
MOST_MIB = 1
DELETED_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images of which some are turned, one that is damaged, and the label maps to submit."""
    root = tmp_path_factory.mktemp("label")
    rng = np.random.default_rng(1)
    affines = {"flipped": FLIPPED, "oblique": OBLIQUE, "held out": np.eye(4)}
    for name in [*ANNOTATED, *affines]:
        image, label = blob(rng)
        folder = root / ("studies" if name != "held out" else "elsewhere")
        save(folder / f"{name}.nii.gz", image, affines.get(name))
        save(root / "meant" / f"{name}.nii.gz", label, affines.get(name))
    (root / "studies" / "broken.nii.gz").write_bytes((root / "studies" / "case_0.nii.gz").read_bytes()[:3000])
    return root


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    bundle = untrained_bundle(place)
    with running(bundle, str(place / "studies"), place / "work", most_mib=MOST_MIB) as started:
        yield started


def proposal(server: Server, image_id: str, to: Path, **params: Any) -> Path:
    """Ask for a label map and save it."""
    query = {"image": image_id, "output": "image"}
    answer = server.call("POST", f"/infer/{MODEL}", params=query, data={"params": json.dumps(params)})
    assert answer.status_code == 200, answer.text
    to.write_bytes(answer.content)
    return to


def leftovers(server: Server) -> list[Path]:
    """Return temporary files that stay; an answer may arrive a moment before its file is deleted."""
    deadline_s = time.monotonic() + DELETED_WITHIN_S
    while found := [path for path in (server.work / "tmp").rglob("*") if path.suffix != ".json"]:  # one is of logging
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.1)
    return found


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * np.logical_and(first, second).sum() / (first.astype(bool).sum() + second.astype(bool).sum()))


def test_the_server_tells_what_it_has(server: Server) -> None:
    facts = server.json("GET", "/info/")

    assert facts["labels"] == ["femur"]
    assert facts["models"][MODEL]["labels"] == {"femur": 1}
    colour = structure_colours(LabelTable(("background", "femur")))[1]
    assert facts["models"][MODEL]["label_colors"]["femur"] == list(colour)
    assert set(facts["strategies"]) == {"first", "random", "uncertainty", "disagreement"}
    assert facts["datastore"]["total"] == len(ANNOTATED) + 3


@pytest.mark.parametrize("image_id", ["case_1", "flipped", "oblique"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_proposal_is_what_the_command_line_gives_on_the_grid_of_the_image(
    server: Server, place: Path, tmp_path: Path, run: Run, image_id: str, suffix: str
) -> None:
    image = place / "studies" / f"{image_id}.nii.gz"
    bundle = ModelVersions(server.work / "model" / MODEL).current_path
    run("segment", bundle, image, "--out", tmp_path / "out", "--require", "any")  # untrained, so its verdict is bad

    found = proposal(server, image_id, tmp_path / f"label{suffix}", result_extension=suffix, result_dtype="uint8")

    labels, grid = read_volume(found)
    meant, _ = read_volume(tmp_path / "out" / f"{image_id}.nii.gz")
    assert meant.any()
    np.testing.assert_array_equal(labels, meant)
    np.testing.assert_allclose(grid.affine, read_grid(image).affine, atol=1e-5)


def test_a_proposal_comes_with_its_facts_or_alone(server: Server) -> None:
    both = server.call("POST", f"/infer/{MODEL}", params={"image": "case_1", "output": "all"})
    parts = MultipartDecoder(both.content, both.headers["content-type"]).parts
    facts = server.json("POST", f"/infer/{MODEL}", params={"image": "case_1", "output": "json"})

    assert [
        b'name="params"' in parts[0].headers[b"Content-Disposition"],
        b".nii.gz" in parts[1].headers[b"Content-Disposition"],
    ] == [True, True]
    told = json.loads(parts[0].content)
    assert told["label_names"] == facts["label_names"] == {"femur": 1}
    assert told["volumes_ml"] == facts["volumes_ml"]
    assert facts["version"] == 1


def test_an_image_that_is_sent_is_segmented_and_deleted(server: Server, place: Path) -> None:
    path = place / "elsewhere" / "held out.nii.gz"
    with path.open("rb") as stream:
        answer = server.call("POST", f"/infer/{MODEL}", files={"file": (path.name, stream)}, params={"output": "json"})
    with path.open("rb") as stream:
        kept = server.json("PUT", "/session/", files={"files": (path.name, stream)})
    query = {"session_id": kept["session_id"], "output": "json"}
    again = server.json("POST", f"/infer/{MODEL}", params=query)
    server.json("DELETE", f"/session/{kept['session_id']}")

    assert answer.status_code == 200, answer.text
    assert again["volumes_ml"] == answer.json()["volumes_ml"]
    assert not leftovers(server)
    assert not any((server.work / "sessions").iterdir())


def test_an_annotated_round_makes_the_model_better_on_what_it_has_not_seen(
    server: Server, place: Path, tmp_path: Path
) -> None:
    unseen = place / "elsewhere" / "held out.nii.gz"
    meant = read_volume(place / "meant" / "held out.nii.gz")[0]

    def on_unseen(name: str) -> float:
        with unseen.open("rb") as stream:
            answer = server.call(
                "POST", f"/infer/{MODEL}", files={"file": (unseen.name, stream)}, params={"output": "image"}
            )
        assert answer.status_code == 200, answer.text
        (tmp_path / name).write_bytes(answer.content)
        return dice(read_volume(tmp_path / name)[0], meant)

    before = on_unseen("before.nii.gz")
    too_few = server.json("POST", f"/train/{MODEL}", json={"max_epochs": 1})
    assert too_few["status"] in {"SUBMITTED", "RUNNING"}
    with pytest.raises(AssertionError, match="expected at least 1 and 3; annotate more images"):
        server.finish("/train/")
    server.json("POST", f"/batch/infer/{MODEL}", json={"device": "cpu"})
    lines = server.finish("/batch/infer")
    assert any("the file ends too early" in line for line in lines)
    assert "ends too early" in server.json("GET", "/datastore/image/info", params={"image": "broken"})["refused"]
    assert server.call("GET", "/datastore/dataset").status_code == 422
    assert any(f"{len(ANNOTATED) + 2} of {len(ANNOTATED) + 3} images have a proposal" in line for line in lines)
    for image_id in ANNOTATED:
        assert server.submit(image_id, place / "meant" / f"{image_id}.nii.gz").status_code == 200
    with zipfile.ZipFile(io.BytesIO(server.call("GET", "/datastore/dataset").content)) as archive:
        assert {f"label/{image_id}.nii.gz" for image_id in ANNOTATED} <= set(archive.namelist())
    assert not leftovers(server)
    assert server.json("POST", "/activelearning/first")["id"] == "flipped"
    assert server.json("GET", "/info/")["datastore"]["completed"] == len(ANNOTATED)
    scores = server.json("POST", "/scoring/dice", params={"run_sync": "true"})
    assert set(scores) == set(ANNOTATED)
    assert server.json("POST", "/activelearning/uncertainty")["id"] in {"flipped", "oblique"}
    assert server.call("POST", "/activelearning/disagreement").status_code == 409

    server.json("POST", f"/train/{MODEL}", json={"max_epochs": 4, "val_split": 0.34})
    lines = server.finish("/train/")
    assert "training 4 epochs on 3 cases; 3 others measure" in lines
    assert any(line.startswith("epoch 4 of 4") for line in lines)

    kept = server.json("GET", f"/versions/{MODEL}")
    origin = kept["versions"]["2"]
    assert kept["current"] == 2
    assert (origin["training_cases"], origin["validation_cases"]) == (3, 3)
    assert origin["dice"] > origin["parent_dice"]
    assert origin["better_cases"] > origin["worse_cases"]
    after = on_unseen("after.nii.gz")
    assert after > before + 0.2
    assert server.json("POST", "/activelearning/disagreement")["id"] in {"flipped", "oblique"}

    server.json("PUT", f"/versions/{MODEL}", params={"version": 1})

    assert on_unseen("rolled_back.nii.gz") == before
    server.json("PUT", f"/versions/{MODEL}", params={"version": 2})


def test_a_label_map_that_is_submitted_lies_on_its_image_and_names_its_values(
    server: Server, place: Path, tmp_path: Path
) -> None:
    labels, _ = read_volume(place / "meant" / "flipped.nii.gz")
    named = [{"name": "femur", "idx": 7}]

    def refusal(path: Path, **params: Any) -> str:
        answer = server.submit("flipped", path, **params)
        assert answer.status_code == 422, answer.text
        return str(answer.json()["detail"])

    assert "grid of its image: corners" in refusal(save(tmp_path / "moved.nii.gz", labels))
    assert "grid of its image: shape" in refusal(save(tmp_path / "cut.nii.gz", labels[1:], FLIPPED))
    assert "whole numbers" in refusal(save(tmp_path / "half.nii.gz", labels * np.float32(0.5), FLIPPED))
    assert "holds 7, expected 0 (background), 1 (femur)" in refusal(
        save(tmp_path / "seven.nii.gz", labels * 7, FLIPPED)
    )
    assert "no name that the model knows" in refusal(tmp_path / "seven.nii.gz", label_info=[{"name": "liver"}])
    (tmp_path / "note.txt").write_text("no label map", encoding="utf-8")
    assert "of this format is not taken" in refusal(tmp_path / "note.txt")
    assert not (place / "studies" / "labels" / "final" / "flipped.nii.gz").exists()

    assert server.submit("flipped", tmp_path / "seven.nii.gz", label_info=named).status_code == 200

    kept, grid = read_volume(place / "studies" / "labels" / "final" / "flipped.nii.gz")
    np.testing.assert_array_equal(kept, labels)
    assert grid.agrees(read_grid(place / "studies" / "flipped.nii.gz"), 1e-6)


def files_in(root: Path) -> dict[str, int]:
    """Return a checksum of every file, without those that a server changes all the time."""
    names = (path for path in root.rglob("*") if path.is_file() and "logs" not in path.parts and path.suffix != ".log")
    return {str(path): zlib.crc32(path.read_bytes()) for path in names}


LABEL = {"label": ("x.nii.gz", b"nothing")}


@pytest.mark.parametrize(
    ("method", "path", "arguments"),
    [
        ("PUT", "/datastore/label?image=case_1&tag=../../evil", {"files": LABEL}),
        ("PUT", "/datastore/label?image=case_1&tag=%2e%2e%2fevil", {"files": LABEL}),
        ("PUT", "/datastore/label?image=case_1&tag=a%00b", {"files": LABEL}),
        ("PUT", "/datastore/label?image=../evil&tag=final", {"files": LABEL}),
        ("PUT", "/datastore/label?image=case_1&image=../evil&tag=final", {"files": LABEL}),
        ("PUT", "/datastore/label?image=unknown&tag=final", {"files": LABEL}),
        ("PUT", "/datastore/image?image=../evil", {"files": {"file": ("x.nii.gz", b"nothing")}}),
        ("PUT", "/datastore/image", {"files": {"file": ("../../evil.nii.gz", b"nothing")}}),
        ("PUT", "/datastore/image?image=evil", {"files": {"file": ("x.py", b"print()")}}),
        ("GET", "/datastore/image?image=../../work/main.py", {}),
        ("GET", "/datastore/label?label=../../work/main.py&tag=final", {}),
        ("GET", "/datastore/label?label=case_1&tag=../..", {}),
        ("DELETE", "/datastore/label?id=../case_1&tag=final", {}),
        ("POST", f"/infer/{MODEL}?image=/etc/passwd", {}),
        ("POST", f"/infer/{MODEL}", {"data": {"params": '{"image": "/etc/passwd"}'}}),
        ("POST", f"/infer/{MODEL}?image=case_1", {"data": {"params": '{"model_filename": "../../evil.pt"}'}}),
        ("POST", f"/infer/{MODEL}?image=case_1", {"data": {"params": "no json"}}),
        ("POST", f"/infer/{MODEL}?session_id=../../studies", {}),
        ("POST", "/infer/..%2f..%2fevil?image=case_1", {}),
        ("POST", f"/train/{MODEL}", {"json": {"model_filename": "../../evil.pt"}}),
        ("POST", f"/train/{MODEL}", {"json": {"run_id": "initialize"}}),
        ("POST", f"/train/{MODEL}", {"json": {"max_epochs": 0}}),
        ("POST", "/train/unknown", {"json": {}}),
        ("POST", f"/batch/infer/{MODEL}", {"json": {"label_tag": "../../evil"}}),
        ("POST", "/scoring/dice?run_sync=true", {"json": {"y": "../../evil"}}),
        ("POST", "/scoring/dice", {"json": {"bundle_path": "."}}),  # it went on the path that code is loaded from
        ("POST", "/scoring/", {"json": {"dice": {"bundle_path": "."}}}),
        ("POST", "/scoring/other", {"json": {}}),
        ("PUT", "/datastore/image/info?image=case_1", {"data": {"info": '{"strategy": "x"}'}}),
        ("PUT", "/datastore/image/info?image=case_1", {"data": {"info": '{"x": NaN}'}}),
        ("PUT", "/datastore/updatelabelinfo?label=case_1&tag=final", {"data": {"params": "{}"}}),
        ("PUT", "/datastore/label?image=case_1&tag=final", {"files": LABEL, "data": {"params": '{"label_info": 5}'}}),
        ("GET", "/datastore/image?image=unknown", {}),
        ("POST", "/proxy/dicom/studies", {"data": b"nothing"}),
        ("PUT", f"/model/{MODEL}", {"files": {"file": ("model.pt", b"nothing")}}),
        ("DELETE", f"/model/{MODEL}", {}),
        ("PUT", f"/versions/{MODEL}?version=9", {}),
        ("POST", "/reload", {}),
        ("GET", "/ohif/../../../../etc/passwd", {}),
        ("PUT", "/session/", {"files": {"files": ("evil.tar", b"nothing")}, "params": {"uncompress": "true"}}),
        ("PUT", "/datastore/image?image=large", {"files": {"file": ("x.nii", bytes(MOST_MIB * 2**20 + 1))}}),
        ("POST", f"/train/{MODEL}", {"data": bytes(MOST_MIB * 2**20 + 1)}),
        ("GET", "/info/", {"headers": {"Host": "evil.example"}}),
        ("POST", f"/infer/{MODEL}?image=case_1", {"headers": {"Origin": "http://evil.example"}}),
    ],
)
def test_an_attack_is_answered_by_4xx_and_leaves_no_trace(
    server: Server, place: Path, method: str, path: str, arguments: dict[str, Any]
) -> None:
    before = files_in(place)

    answer = server.call(method, path, **arguments)

    assert 400 <= answer.status_code < 500, answer.text
    assert "root:" not in answer.text
    assert files_in(place) == before


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(MOST_MIB * 16 + 2):
            yield bytes(2**16)

    answer = server.call("POST", f"/train/{MODEL}", data=endless(), headers={"Content-Type": "application/json"})

    assert answer.status_code == 413


def test_no_page_of_another_server_may_read_answers(server: Server) -> None:
    answer = server.call("GET", "/info/")

    assert "access-control-allow-origin" not in answer.headers


def test_an_image_can_be_added_once_under_its_name(server: Server, place: Path, tmp_path: Path) -> None:
    image = place / "elsewhere" / "held out.nii.gz"

    def add(path: Path) -> int:
        with path.open("rb") as stream:
            files = {"file": (path.name, stream)}
            return server.call("PUT", "/datastore/", params={"image": "added"}, files=files).status_code

    assert add(image) == 200
    assert add(image) == 200
    assert add(save(tmp_path / "other.nii.gz", nib.load(image).get_fdata() + 1)) == 422
    assert read_grid(place / "studies" / "added.nii.gz").agrees(read_grid(image))
