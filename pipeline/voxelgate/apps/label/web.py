"""The HTTP server: MONAI Label's endpoints, and in place of those that trust what they are given, our own."""

import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from monailabel.config import settings
from monailabel.endpoints import batch_infer, datastore, info, scoring, session, train
from monailabel.endpoints import login as realm_login
from monailabel.endpoints.user.auth import DEFAULT_USER, RBAC, User, get_current_user
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import get_mime_type
from requests_toolbelt import MultipartEncoder
from starlette.background import BackgroundTask

from voxelgate.apps.label.app import VoxelgateApp
from voxelgate.apps.label.background import TaskKind, start_task, stop_all
from voxelgate.apps.label.crowd import Crowd
from voxelgate.apps.label.guard import Refusal
from voxelgate.apps.label.ids import check_id, check_tag
from voxelgate.apps.label.image_store import ImageStore
from voxelgate.apps.label.infer_task import facts_of
from voxelgate.apps.label.label_formats import converted
from voxelgate.apps.label.login import Login, login_routes, user_in
from voxelgate.apps.label.pages import endpoints_page, front_page, log_page, viewer_file
from voxelgate.apps.label.proxy import read_pacs
from voxelgate.apps.label.requests import (
    OWN_FACTS,
    BatchRequest,
    NextRequest,
    ScoreRequest,
    TrainRequest,
    facts_in,
    further_facts,
    infer_request,
)
from voxelgate.apps.label.submitted import RAW_SUFFIX
from voxelgate.apps.label.tokens import anonymous, current_user
from voxelgate.apps.label.uploads import IMAGE_SUFFIXES, save_upload, upload_suffix
from voxelgate.core.errors import InputError, UsageError, VoxelgateError
from voxelgate.images.volumes import is_volume
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.outputs import unwritable_kinds

HARMLESS = {"GET", "HEAD", "DELETE"}
"""Methods of HTTP that bring nothing to the server."""

ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


MODEL_CROWD = Crowd("the model")

MOST_SESSIONS = 64
"""Images that are kept for an hour at a time."""


class Answer(StrEnum):
    """What a client may ask of a proposal."""

    IMAGE = "image"
    JSON = "json"
    ALL = "all"
    DICOM_SEG = "dicom_seg"


def voxelgate_app() -> VoxelgateApp:
    """Return the app behind the server."""
    return cast("VoxelgateApp", app_instance())


def infer(
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    output: Answer = Answer.ALL,
) -> Response:
    """Propose a label map for an image of the datastore, of a session, or one that is sent and deleted afterwards."""
    wish = infer_request(params)
    if wish.model_filename != "model.pt":
        raise InputError("a model runs with its own weights only; leave model_filename out.")
    app = voxelgate_app()
    task = app.task(model)
    outputs = (Output.NIFTI, Output.SEG) if output is Answer.DICOM_SEG else (Output.NIFTI,)
    with tempfile.TemporaryDirectory() as folder:
        sent = None if file is None else save_upload(file, Path(folder), IMAGE_SUFFIXES, app.most_bytes)
        case = _wanted(app, image, session_id, sent)
        with MODEL_CROWD.place():
            proposal = task.propose(case, Path(folder) / "out", outputs)
        report = proposal.report
        if image:  # also of one that comes in a session, and is added under this id when it is annotated
            app.proposals.keep(image, Path(report.outputs[Output.NIFTI]))
        if output is Answer.DICOM_SEG:
            if Output.SEG not in report.outputs:
                _, unwritable = unwritable_kinds(outputs, task.bundle().labels)
                reason = unwritable or "nothing was found in the image, so there is no SEG; ask for the image."
                raise InputError(reason)
            return Response(report.outputs[Output.SEG].read_bytes(), media_type="application/dicom")
        facts = facts_of(proposal, task)
        if output is Answer.JSON:
            return JSONResponse(facts)
        label_map = converted(report.outputs[Output.NIFTI], wish.result_extension)
        return _label_answer(label_map, facts, output)


def save_label(
    image: str,
    label: Annotated[UploadFile, File()],
    params: Annotated[str, Form()] = "{}",
    tag: str = DefaultLabelTag.FINAL.value,
    user: User = ANNOTATOR,
) -> dict[str, str]:
    """Take a label map that an annotator submits; one that it replaces is kept."""
    app, facts = voxelgate_app(), _facts(params, user)
    with tempfile.TemporaryDirectory() as folder:
        path = save_upload(label, Path(folder), (*IMAGE_SUFFIXES, RAW_SUFFIX), app.most_bytes)
        label_id = app.datastore().save_label(check_id(image), str(path), check_tag(tag), facts)
    return {"image": image, "label": label_id}


def add_image(
    file: Annotated[UploadFile, File()],
    image: str = "",
    params: Annotated[str, Form()] = "{}",
    user: User = ANNOTATOR,
) -> dict[str, str]:
    """Take an image."""
    app, facts = voxelgate_app(), _facts(params, user)
    with tempfile.TemporaryDirectory() as folder:
        path = save_upload(file, Path(folder), IMAGE_SUFFIXES, app.most_bytes)
        suffix = upload_suffix(file, IMAGE_SUFFIXES)
        image_id = image or Path(file.filename or "").name[: -len(suffix)]
        return {"image": app.datastore().add_image(check_id(image_id), str(path), facts)}


def remove_image(id: str) -> dict[str, str]:  # noqa: A002 - as clients call it
    """Remove an image with its label maps, and with what was proposed for it."""
    app = voxelgate_app()
    app.datastore().remove_image(check_id(id))
    app.proposals.forget(id)
    return {}


def download_image(image: str) -> FileResponse:
    """Send an image; one of a PACS is copied and made a volume first, while others are answered."""
    path = Path(str(voxelgate_app().datastore().case_file(check_id(image))))
    return FileResponse(path, media_type=get_mime_type(path.name), filename=path.name)


def add_image_facts(image: str, info: Annotated[str, Form()] = "{}") -> dict[str, str]:
    """Keep facts with an image."""
    voxelgate_app().datastore().update_image_info(check_id(image), further_facts(info))
    return {"image": image}


def add_label_facts(label: str, tag: str, info: Annotated[str, Form()] = "{}") -> dict[str, str]:
    """Keep facts with a label map."""
    voxelgate_app().datastore().update_label_info(check_id(label), check_tag(tag), further_facts(info))
    return {"label": label}


def download_dataset(limit_cases: int | None = None) -> FileResponse:
    """Send the annotated images with their label maps as a zip, which is deleted afterwards."""
    store: ImageStore = voxelgate_app().datastore()
    if not store.datalist():
        raise InputError("no image is annotated yet; submit a label map first.")
    path = Path(store.get_dataset_archive(limit_cases))
    return FileResponse(
        path, media_type="application/zip", filename="dataset.zip", background=BackgroundTask(path.unlink)
    )


def create_session(files: Annotated[UploadFile, File()], expiry: int = 0) -> dict[str, Any]:
    """Keep an image for some proposals, an hour at most; archives are not unpacked."""
    app = voxelgate_app()
    app.sessions().remove_expired()
    if len(list(Path(app.sessions().store_path).iterdir())) >= MOST_SESSIONS:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "too many images are kept in sessions; end one of yours.")
    with tempfile.TemporaryDirectory() as folder:
        path = save_upload(files, Path(folder), IMAGE_SUFFIXES, app.most_bytes)
        session_id, kept = app.sessions().keep(path, expiry)
    return {"session_id": session_id, "session_info": kept.to_json()}


def start_training(model: str, wish: TrainRequest | None = None, *, enqueue: bool = False) -> Any:
    """Train a model in a process of its own."""
    voxelgate_app().check_trainable(model)
    return start_task(TaskKind.TRAIN, {"model": model, **(wish or TrainRequest()).request()}, enqueue=enqueue)


def start_trainings(wishes: dict[str, TrainRequest] | None = None) -> Any:
    """Train every model, as OHIF asks for it."""
    app = voxelgate_app()
    return {model: start_training(model, (wishes or {}).get(model), enqueue=True) for model in app.tasks}


def start_batch(
    model: str, wish: BatchRequest | None = None, images: BatchInferImageType = BatchInferImageType.IMAGES_ALL
) -> Any:
    """Propose label maps for all images, in a process of its own."""
    voxelgate_app().task(model)
    asked = wish or BatchRequest()
    which = {"model": model, "images": images.value, "label_tag": check_tag(asked.label_tag)}
    return start_task(TaskKind.BATCH_INFER, {**which, "max_batch_size": asked.max_batch_size})


def start_scoring(method: str, wish: ScoreRequest | None = None, *, run_sync: bool = False) -> Any:
    """Compare label maps, in a process of its own unless it is to be waited for."""
    if method != "dice":
        raise InputError("there is no such way to compare, only dice.")
    asked = wish or ScoreRequest()
    request = {"method": method, "y": check_tag(asked.y), "y_pred": check_tag(asked.y_pred)}
    return voxelgate_app().scoring(request) if run_sync else start_task(TaskKind.SCORING, request)


def next_sample(strategy: str, wish: NextRequest | None = None, user: User = USER) -> Any:
    """Choose the next image to annotate, another for each annotator: a user, or a client where there are no tokens."""
    client = (wish or NextRequest()).client_id if user == DEFAULT_USER else user.username
    app = voxelgate_app()
    with MODEL_CROWD.place():
        found = app.next_sample({"strategy": strategy, "client_id": client})
    return {**found, **app.datastore().get_image_info(found["id"])} if found else {}


def list_versions(model: str) -> dict[str, Any]:
    """List the versions of a model, and which is in use."""
    kept = voxelgate_app().task(model).versions
    listed = {str(number): vars(kept.origin(number)) for number in kept.numbers()}
    return {"current": kept.current, "versions": listed}


def use_version(model: str, version: int) -> dict[str, int]:
    """Put an earlier version of a model into use again, or a later one."""
    kept = voxelgate_app().task(model).versions
    kept.use(version)
    return {"current": kept.current}


def _wanted(app: VoxelgateApp, image: str, session_id: str, sent: Path | None) -> Case:
    if sent is not None:
        return Case("upload", sent)
    if session_id:
        kept = app.sessions().get_session(check_id(session_id))
        if kept is None or not is_volume(Path(kept.image)):
            raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such session; send the image again.")
        return Case("session", Path(kept.image))
    store: ImageStore = app.datastore()
    return store.case(check_id(image))


def _facts(params: str, user: User) -> dict[str, Any]:
    """Return what a client says of what it uploads, and who it is."""
    said = {name: value for name, value in facts_in(params).items() if name not in OWN_FACTS}
    return said | {"user": user.username}


def _label_answer(label_map: Path, facts: dict[str, Any], output: Answer) -> Response:
    content, kind = label_map.read_bytes(), get_mime_type(label_map.name)
    if output is Answer.IMAGE:
        headers = {"content-disposition": f'attachment; filename="{label_map.name}"'}
        return Response(content, media_type=kind, headers=headers)
    parts = MultipartEncoder(
        {"params": (None, json.dumps(facts), "application/json"), "image": (label_map.name, content, kind)}
    )
    return Response(parts.to_string(), media_type=parts.content_type)


def _refused(status: HTTPStatus) -> Callable[[Request, Any], JSONResponse]:
    def answer(_: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": getattr(error, "msg", str(error))}, status)

    return answer


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    app = voxelgate_app()
    app.server_mode(mode=True)
    app.on_init_complete()
    yield
    stop_all()


def _own_routes() -> APIRouter:
    router = APIRouter()
    for path, endpoint, method, role in (
        ("/infer/{model}", infer, "POST", USER),
        ("/datastore/label", save_label, "PUT", ANNOTATOR),
        ("/datastore/image", add_image, "PUT", ANNOTATOR),
        ("/datastore/", add_image, "PUT", ANNOTATOR),
        ("/datastore/image", remove_image, "DELETE", ADMIN),
        ("/datastore/", remove_image, "DELETE", ADMIN),
        ("/datastore/image/info", add_image_facts, "PUT", ANNOTATOR),
        ("/datastore/label/info", add_label_facts, "PUT", ANNOTATOR),
        ("/datastore/image", download_image, "GET", USER),
        ("/datastore/dataset", download_dataset, "GET", ANNOTATOR),
        ("/session/", create_session, "PUT", USER),
        ("/train/", start_trainings, "POST", ADMIN),
        ("/train/{model}", start_training, "POST", ADMIN),
        ("/batch/infer/{model}", start_batch, "POST", ADMIN),
        ("/scoring/{method}", start_scoring, "POST", ANNOTATOR),
        ("/activelearning/{strategy}", next_sample, "POST", USER),
        ("/", front_page, "GET", USER),
        ("/logs/", log_page, "GET", ADMIN),
        ("/ohif/{path:path}", viewer_file, "GET", USER),
        ("/versions/{model}", list_versions, "GET", USER),
        ("/versions/{model}", use_version, "PUT", ADMIN),
    ):
        router.add_api_route(path, endpoint, methods=[method], dependencies=[role])
    if settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        router.add_api_route("/proxy/dicom/{path:path}", read_pacs, methods=["GET"], dependencies=[USER])
    return router


def _harmless(router: APIRouter) -> APIRouter:
    """Return those of MONAI Label's endpoints that read or remove; what takes something from a client is ours."""
    return APIRouter(routes=[route for route in router.routes if route.methods <= HARMLESS])


def make_web(origins: tuple[str, ...] = (), login: Login | None = None) -> FastAPI:
    """Return the application; what it serves is set in MONAI Label's settings.

    Args:
        origins: pages of other servers that may read answers; none by default.
        login: who is let in; without, a realm's tokens where MONAI Label is set so, else everybody.
    """
    web = FastAPI(title="voxelgate", lifespan=_lifespan, docs_url=None, redoc_url=None)
    if origins:
        web.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    parts = (info, train, batch_infer, scoring, datastore, session)
    for router in (_own_routes(), *_login_routes(login), *(_harmless(part.router) for part in parts)):
        web.include_router(router)
    web.add_api_route("/docs", lambda: endpoints_page(web), methods=["GET"], dependencies=[USER], summary="This list.")
    web.add_api_route("/ohif", lambda: RedirectResponse("/ohif/"), methods=["GET"])
    web.dependency_overrides[get_current_user] = _user_of(login)
    for error, status in (
        (InputError, HTTPStatus.UNPROCESSABLE_ENTITY),
        (UsageError, HTTPStatus.CONFLICT),
        (VoxelgateError, HTTPStatus.INTERNAL_SERVER_ERROR),
        (MONAILabelException, HTTPStatus.NOT_FOUND),
        (json.JSONDecodeError, HTTPStatus.BAD_REQUEST),
    ):
        web.add_exception_handler(error, _refused(status))
    return web


def check_login_of(login: Login | None) -> Callable[[str], Refusal | None] | None:
    """Return what tells strangers by their header `Authorization`, before they send a body; None if all are let in."""
    if login is None and not settings.MONAI_LABEL_AUTH_ENABLE:
        return None

    def check(authorization: str) -> Refusal | None:
        try:
            if login is not None:
                login.name_of(authorization)
            else:
                current_user(authorization.partition(" ")[2])
        except HTTPException as error:
            return error.status_code, str(error.detail), error.headers or {}
        return None

    return check


def _login_routes(login: Login | None) -> tuple[APIRouter, ...]:
    if login is not None:
        return (login_routes(login),)
    return (realm_login.router,) if settings.MONAI_LABEL_AUTH_ENABLE else ()


def _user_of(login: Login | None) -> Callable[..., Any]:
    """Return the dependency that says who sends a request."""
    if login is None:
        return current_user if settings.MONAI_LABEL_AUTH_ENABLE else anonymous

    def logged_in(request: Request) -> User:
        return user_in(login, request)

    return logged_in
