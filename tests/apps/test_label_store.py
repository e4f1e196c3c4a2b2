"""What the label server keeps, in a folder or from a PACS: nothing lost by who comes second, nothing outside of it."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the environment that `make label` builds")

from voxelgate.apps.label.server import missing_modules, serve_label
from voxelgate.apps.label.serving import Serving

sys.path += missing_modules()

from fastapi import APIRouter, HTTPException, Request
from fastapi.routing import APIRoute
from monai.transforms import Compose
from monailabel.config import settings

from tests.dicomweb_server import Pacs, dicomweb
from tests.label_server import free_port, save
from tests.planted import ct_series
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.apps.label.batch_task import BatchTask
from voxelgate.apps.label.crowd import Crowd
from voxelgate.apps.label.image_store import EARLIER, HELD_S, ImageStore
from voxelgate.apps.label.infer_task import InferTask, refuse_beyond_memory
from voxelgate.apps.label.model_versions import import_bundle
from voxelgate.apps.label.next_image import MostDoubtful, Ordered, by_chance, by_name, open_images
from voxelgate.apps.label.pacs_store import PacsStore
from voxelgate.apps.label.proxy import read_pacs
from voxelgate.apps.label.requests import MOST_DEPTH, OWN_FACTS, facts_in, further_facts
from voxelgate.apps.label.sessions import ImageSessions
from voxelgate.apps.label.web import make_web
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import InputError, OutputError, UsageError, VoxelgateError
from voxelgate.core.files import locked
from voxelgate.core.labels import LabelTable
from voxelgate.images.volumes import read_volume
from voxelgate.segmentation.cases import Case
from voxelgate.transforms import ResampleToSpacingd

pytestmark = pytest.mark.label

TABLE = LabelTable(("background", "femur"))
SHAPE = (4, 5, 6)
GOOD, BAD, EVIL = "1.2.3.1", "1.2.3.2", "1.2.3.3"


@pytest.fixture(autouse=True)
def _unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for number in range(8):
        save(tmp_path / "studies" / f"case_{number}.nii.gz", np.full(SHAPE, number, np.int16))
    return tmp_path / "studies"


@pytest.fixture
def store(studies: Path) -> ImageStore:
    return ImageStore(studies, TABLE)


def label(folder: Path, value: int = 1) -> str:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[:value] = 1
    return str(save(folder / f"label_{value}.nii.gz", voxels))


def submit(store: ImageStore, image_id: str, path: str, user: str, tag: str = "final") -> None:
    store.save_label(image_id, path, tag, {"user": user})


# --- nothing is lost ----------------------------------------------------------------------------------------------


def test_two_processes_that_write_at_a_time_keep_what_the_other_wrote(studies: Path, tmp_path: Path) -> None:
    server, batch = ImageStore(studies, TABLE), ImageStore(studies, TABLE)

    submit(server, "case_1", label(tmp_path), "ann")
    submit(batch, "case_2", label(tmp_path), "batch", "original")
    submit(server, "case_3", label(tmp_path), "bob")

    fresh = ImageStore(studies, TABLE)
    assert fresh.get_label_info("case_1", "final")["user"] == "ann"
    assert fresh.get_label_info("case_2", "original")["user"] == "batch"
    assert fresh.get_label_info("case_3", "final")["user"] == "bob"


def test_annotators_who_submit_at_a_time_are_all_heard(studies: Path, tmp_path: Path) -> None:
    stores = [ImageStore(studies, TABLE) for _ in range(2)]
    path = label(tmp_path)

    def one(number: int) -> None:
        submit(stores[number % 2], f"case_{number}", path, f"user_{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))

    fresh = ImageStore(studies, TABLE)
    assert [fresh.get_label_info(f"case_{number}", "final")["user"] for number in range(8)] == [
        f"user_{number}" for number in range(8)
    ]


def test_who_reads_a_label_map_while_another_comes_reads_one_of_them_whole(
    store: ImageStore, studies: Path, tmp_path: Path
) -> None:
    submit(store, "case_1", label(tmp_path, 1), "ann")
    opened = tmp_path / "opened.nii.gz"
    os.link(studies / "labels" / "final" / "case_1.nii.gz", opened)  # as a training holds it

    submit(store, "case_1", label(tmp_path, 2), "bob")

    np.testing.assert_array_equal(read_volume(opened)[0], read_volume(Path(label(tmp_path, 1)))[0])


def test_a_label_map_that_another_annotator_replaces_is_kept(store: ImageStore, studies: Path, tmp_path: Path) -> None:
    for value, user in ((1, "ann"), (2, "bob"), (2, "bob"), (3, "ann")):
        submit(store, "case_1", label(tmp_path, value), user)

    kept = store.get_label_info("case_1", "final")["earlier"]
    assert [(one["file"], one["user"]) for one in kept] == [("final-1.nii.gz", "ann"), ("final-2.nii.gz", "bob")]
    for number in (1, 2):
        found = read_volume(studies / EARLIER / "case_1" / f"final-{number}.nii.gz")[0]
        np.testing.assert_array_equal(found, read_volume(Path(label(tmp_path, number)))[0])
    assert store.get_label_info("case_1", "final")["user"] == "ann"


def test_what_was_kept_is_not_overwritten_after_a_label_map_was_removed(
    store: ImageStore, studies: Path, tmp_path: Path
) -> None:
    for value in (1, 2):
        submit(store, "case_1", label(tmp_path, value), "ann")
    store.remove_label("case_1", "final")
    for value in (3, 4):
        submit(store, "case_1", label(tmp_path, value), "ann")

    sums = {int(read_volume(path)[0].sum()) for path in (studies / EARLIER / "case_1").iterdir()}

    assert sums == {1 * 30, 3 * 30}


def test_a_damaged_list_of_images_is_told_and_left_as_it_is(store: ImageStore, studies: Path, tmp_path: Path) -> None:
    path = studies / "datastore_v2.json"
    submit(store, "case_1", label(tmp_path), "ann")
    half = path.read_text(encoding="utf-8")[:300]
    path.write_text(half, encoding="utf-8")

    with pytest.raises(InputError, match=r"datastore_v2.json is damaged.*move it away"):
        ImageStore(studies, TABLE)
    with pytest.raises(InputError, match="is damaged"):
        submit(store, "case_2", label(tmp_path), "bob")
    assert path.read_text(encoding="utf-8") == half

    path.unlink()
    assert ImageStore(studies, TABLE).get_labeled_images() == ["case_1"]


def test_images_whose_names_are_no_ids_or_are_shared_do_not_stand_in_the_way(
    studies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a..b.nii.gz", "[x].nii.gz", "case_1.nii", "case_2.nii.old.nii.gz"):
        save(studies / name, np.zeros(SHAPE, np.int16))

    store = ImageStore(studies, TABLE)

    assert sorted(store.list_images()) == [*(f"case_{number}" for number in range(3)), "case_2.nii.old"] + [
        f"case_{number}" for number in range(3, 8)
    ]
    assert Path(store.get_image_uri("case_1")).name == "case_1.nii.gz"
    assert "3 images are passed over" in caplog.text


def test_an_image_that_is_removed_takes_its_label_maps_along_and_nothing_elsewhere(
    store: ImageStore, studies: Path, tmp_path: Path
) -> None:
    original = save(tmp_path / "archive" / "x.nii.gz", np.zeros(SHAPE, np.int16))
    (studies / "linked.nii.gz").symlink_to(original)
    store.refresh()
    for value in (1, 2):
        submit(store, "linked", label(tmp_path, value), "ann")

    store.remove_image("linked")

    assert original.is_file()
    assert not list(studies.rglob("linked*"))
    assert "linked" not in store.list_images()


def test_another_model_does_not_take_these_label_maps_for_its_own(
    store: ImageStore, studies: Path, tmp_path: Path
) -> None:
    other = LabelTable(("background", "tibia"))
    ImageStore(studies, other)  # no label map yet
    ImageStore(studies, TABLE)
    submit(store, "case_1", label(tmp_path), "ann")

    with pytest.raises(UsageError, match="are of 1 femur, but the model knows 1 tibia"):
        ImageStore(studies, other)


# --- the next image -----------------------------------------------------------------------------------------------


def next_of(store: ImageStore, client: str | None = None) -> str | None:
    found = Ordered(by_name, "")({"client_id": client, "strategy": "first"}, store)
    return None if found is None else str(found["id"])


def give(store: ImageStore, image_id: str, client: str, *, ago_s: float = 0) -> None:
    """Note that an image was given to a client."""
    store.update_image_info(image_id, {"strategy": {"first": {"ts": time.time() - ago_s, "client_id": client}}})


def test_two_annotators_are_given_two_images(store: ImageStore) -> None:
    give(store, "case_0", "ann")

    assert next_of(store, "ann") == "case_0"
    assert next_of(store, "bob") == "case_1"
    give(store, "case_0", "ann", ago_s=HELD_S + 1)
    assert next_of(store, "bob") == "case_0"


def test_what_another_annotator_holds_comes_when_nothing_else_is_left(store: ImageStore) -> None:
    for number in range(8):
        give(store, f"case_{number}", "ann")

    assert next_of(store, "bob") == "case_0"


def test_an_image_that_cannot_be_read_is_not_offered_again(store: ImageStore, studies: Path) -> None:
    (studies / "case_0.nii.gz").write_bytes(b"damaged")

    assert next_of(store) == "case_1"
    assert "not a NIfTI file" in store.get_image_info("case_0")["refused"]
    assert "case_0" not in open_images({}, store)


def test_images_that_cannot_be_read_do_not_hide_those_that_were_not_measured(
    store: ImageStore, studies: Path, tmp_path: Path
) -> None:
    task = InferTask(import_bundle(make_threshold_bundle(tmp_path / "bundle"), tmp_path / "models"))
    save(studies / "case_9.nii.gz", np.zeros(SHAPE, np.int16))  # all voxels of the others are equal, of this one too
    save(studies / "last.nii.gz", np.arange(120).reshape(SHAPE).astype(np.int16))
    store.refresh()

    def doubt(case: Any, _: InferTask) -> float:
        if case.case_id != "last":
            raise InputError("no")
        return 0.25

    asked = {"strategy": "uncertainty"}
    assert MostDoubtful("uncertainty", doubt, task, "")(asked, store) == {"id": "last", "uncertainty": 0.25}


def test_annotators_who_ask_at_the_same_moment_are_given_an_image_each(
    store: ImageStore, studies: Path, tmp_path: Path
) -> None:
    task = InferTask(import_bundle(make_threshold_bundle(tmp_path / "bundle"), tmp_path / "models"))
    strategies = {
        "first": Ordered(by_name, ""),
        "random": Ordered(by_chance, ""),
        "uncertainty": MostDoubtful("uncertainty", lambda *_: 0.5, task, ""),
    }
    barrier = threading.Barrier(8)
    stores = [store, ImageStore(studies, TABLE)]  # as in two processes

    def ask(number: int) -> str:
        name = list(strategies)[number % 3]
        barrier.wait()
        return str(strategies[name]({"client_id": f"user_{number}", "strategy": name}, stores[number % 2])["id"])

    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(ask, range(8)))

    assert sorted(given) == [f"case_{number}" for number in range(8)]


def test_who_asks_again_is_given_the_same_image(store: ImageStore) -> None:
    assert [next_of(store, client) for client in ("ann", "bob", "ann", "bob")] == ["case_0", "case_1"] * 2


def test_an_image_whose_voxel_size_is_wrong_by_far_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    bundle = replace(
        open_bundle(make_threshold_bundle(tmp_path / "bundle")),
        preprocessing=Compose([ResampleToSpacingd("image", spacing_mm=(1.0, 1.0, 2.0))]),
    )
    right, wrong = (
        save(tmp_path / f"{gap}.nii.gz", np.zeros((40, 40, 40)), np.diag([gap, gap, gap, 1.0])) for gap in (2.0, 2000.0)
    )

    refuse_beyond_memory(Case("right", right), bundle)
    with pytest.raises(InputError, match=r"wrong: 2.6e\+14 voxels once those of 2000 x 2000 x 2000 mm .*1 x 1 x 2 mm"):
        refuse_beyond_memory(Case("wrong", wrong), bundle)


def test_a_proposal_that_comes_at_last_lifts_the_refusal(store: ImageStore) -> None:
    store.update_image_info("case_0", {"refused": "was half there"})

    BatchTask()({"images": ["case_0"]}, store, lambda *_: {})

    assert open_images({}, store)[0] == "case_0"


# --- what clients may say -----------------------------------------------------------------------------------------


def endpoints(router: APIRouter) -> Iterator[APIRoute]:
    """Return the endpoints of a router and of those that it includes, which newer versions of FastAPI keep apart."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from endpoints(route.original_router)


def test_nothing_that_takes_from_a_client_is_an_endpoint_of_monai_label() -> None:
    taking = [route for route in endpoints(make_web().router) if not route.methods <= {"GET", "HEAD", "DELETE"}]

    assert {route.endpoint.__module__.partition(".")[0] for route in taking} == {"voxelgate"}
    assert len(taking) >= 10


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '"x"',
        '{"x": NaN}',
        '{"x": 1e999}',
        '{"x": "\\ud800"}',
        '{"x": ' + "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1) + "}",
        '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "{",
    ],
)
def test_facts_that_no_client_could_be_answered_are_refused(text: str) -> None:
    assert facts_in('{"x": [1, {"y": "ä"}]}') == {"x": [1, {"y": "ä"}]}
    with pytest.raises(InputError, match="send"):
        facts_in(text)


@pytest.mark.parametrize("name", sorted(OWN_FACTS))
def test_facts_of_the_server_cannot_be_set_by_a_client(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: the server keeps this itself"):
        further_facts(json.dumps({"note": 1, name: "x"}))


def test_a_session_ends_in_time_whatever_lies_beside_it(tmp_path: Path) -> None:
    sessions = ImageSessions(str(tmp_path / "sessions"), 3600)
    kept, over = (sessions.keep(save(tmp_path / f"{name}.nii.gz", np.zeros(SHAPE)), 60)[0] for name in "ab")
    assert len(kept) == 32
    assert kept[:8] != over[:8]
    sessions[over].last_access_ts -= 61
    for name, age_s in (("being made", 0), ("left behind", 7200)):
        (tmp_path / "sessions" / name).mkdir()
        os.utime(tmp_path / "sessions" / name, (time.time() - age_s,) * 2)

    assert sessions.remove_expired() == 2

    assert {path.name for path in (tmp_path / "sessions").iterdir()} == {kept, "being made"}


def test_who_comes_to_a_crowd_is_told_to_come_later() -> None:
    crowd = Crowd("the model", most=1)

    with crowd.place(), pytest.raises(HTTPException, match="503: too many wait for the model already"), crowd.place():
        pass
    with crowd.place():
        pass


# --- the server ---------------------------------------------------------------------------------------------------


def test_what_stands_in_for_a_module_does_not_count_as_the_module() -> None:
    assert set(missing_modules()) == {path for path in sys.path if "stand_ins" in path}


def test_a_second_server_does_not_touch_the_folder_of_the_first(studies: Path, tmp_path: Path) -> None:
    bundle, work = make_threshold_bundle(tmp_path / "bright_ct"), tmp_path / "work"
    (work / "sessions" / "kept").mkdir(parents=True)

    with locked(work), pytest.raises(OutputError, match="another run works in this folder"):
        serve_label(Serving((bundle,), str(studies), work, port=free_port()))

    assert (work / "sessions" / "kept").is_dir()


def test_a_port_or_host_that_cannot_be_had_is_refused_before_anything_is_touched(studies: Path, tmp_path: Path) -> None:
    bundle, work = make_threshold_bundle(tmp_path / "bright_ct"), tmp_path / "work"

    with dicomweb({}) as taken, pytest.raises(UsageError, match=r"cannot listen to 127\.0\.0\.1, port .*choose others"):
        serve_label(Serving((bundle,), str(studies), work, port=int(taken.url.split(":")[2].split("/")[0])))
    with pytest.raises(UsageError, match=r"cannot listen to 300\.1\.1\.1"):
        serve_label(Serving((bundle,), str(studies), work, host="300.1.1.1"))

    assert not work.exists()


# --- a PACS -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bright_ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "bright_ct")


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    gapped = [one for number, one in enumerate(ct_series()) if number != 5]
    with dicomweb({BAD: gapped, GOOD: ct_series()}) as served:
        yield served


@pytest.fixture
def series(pacs: Pacs, tmp_path: Path, bright_ct: Path) -> PacsStore:
    return PacsStore(pacs.url, tmp_path / "copies", lambda: open_bundle(bright_ct))


def test_a_series_that_cannot_be_used_ends_no_batch_and_hides_no_other(series: PacsStore) -> None:
    done = BatchTask()({}, series, lambda request, store: {"case": store.case(request["image"])})

    assert done["refused"] >= 1
    assert "MISSING_SLICE" in series.get_image_info(BAD)["refused"]
    assert next_of(series) == GOOD
    assert GOOD not in series.case(GOOD).case_id


def test_an_image_of_a_pacs_that_calls_itself_a_path_is_written_to_its_folder_only(
    tmp_path: Path, bright_ct: Path
) -> None:
    (image,) = ct_series(1)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "../../../evil"
    with dicomweb({EVIL: [image]}) as served, suppress(InputError):
        PacsStore(served.url, tmp_path / "copies", lambda: open_bundle(bright_ct)).case(EVIL)

    assert len(list((tmp_path / "copies").rglob("*.dcm"))) == 1
    assert not list(tmp_path.rglob("evil*"))


def test_two_who_open_a_series_at_a_time_both_get_it(series: PacsStore) -> None:
    barrier = threading.Barrier(2)

    def opened(_: int) -> str:
        barrier.wait()
        return series.get_image_uri(GOOD)

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(opened, range(2)))) == 1
    assert read_volume(Path(series.get_image_uri(GOOD)))[0].shape[2] == len(ct_series())


def test_a_pacs_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path, bright_ct: Path) -> None:
    store = PacsStore(f"http://127.0.0.1:{free_port()}/dicom-web", tmp_path, lambda: open_bundle(bright_ct))

    with pytest.raises(VoxelgateError, match="the PACS does not answer"):
        store.list_images()
    with pytest.raises(UsageError, match="is no address of a DICOMweb server"):
        PacsStore("http://", tmp_path, lambda: open_bundle(bright_ct))


def asked(path: str, query: str = "") -> Request:
    return Request({"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []})


def test_the_proxy_asks_for_resources_of_dicomweb_with_their_query(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", pacs.url)

    answer = read_pacs(asked("", "limit=5&PatientName=a%2Fb"), "qido/series")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert pacs.asked == [("GET", "/dicom-web/series", {"limit": "5", "PatientName": "a/b"})]


@pytest.mark.parametrize(
    "path",
    ["../system", "%2e%2e/system", "wado/%2e%2e/system", "..;/system", "qido//system", "studies?x=1", "", "qido"],
)
def test_the_proxy_asks_for_nothing_beside_dicomweb(pacs: Pacs, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", pacs.url)

    with pytest.raises(InputError, match="none of DICOMweb"):
        read_pacs(asked(""), path)
    assert pacs.asked == []


def test_the_proxy_says_that_the_pacs_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(HTTPException, match="502"):
        read_pacs(asked(""), "studies")
