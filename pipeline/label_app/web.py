"""The HTTP server: MONAI Label's endpoints, and in place of those that trust what they are given, our own."""

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    info,
    login,
    logs,
    ohif,
    proxy,
    scoring,
    session,
    train,
)
from monailabel.endpoints.user.auth import RBAC, User, get_current_user
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import get_mime_type
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from requests_toolbelt import MultipartEncoder
from starlette.background import BackgroundTask

from pipeline.cases import Case
from pipeline.errors import InputError, UsageError, VoxelgateError
from pipeline.label_app.app import VoxelgateApp
from pipeline.label_app.datastore import ImageStore
from pipeline.label_app.infer_task import facts_of
from pipeline.label_app.label_files import LabelFormat, converted
from pipeline.label_app.names import check_id, check_tag
from pipeline.label_app.submitted import RAW_SUFFIX
from pipeline.label_app.tokens import anonymous, current_user
from pipeline.results import Output
from pipeline.volumes import SUFFIXES, is_volume

ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


class Answer(StrEnum):
    """What a client may ask of a proposal."""

    IMAGE = "image"
    JSON = "json"
    ALL = "all"
    DICOM_SEG = "dicom_seg"


class InferWish(BaseModel):  # type: ignore[misc]  # pydantic is not there where mypy runs
    """What counts of a client's `params`; 3D Slicer and OHIF send more, which a bundle has no use for."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    result_extension: LabelFormat = LabelFormat.NIFTI
    model_filename: str = "model.pt"


class TrainWish(BaseModel):  # type: ignore[misc]  # as above
    """How a client wants a model to be trained; whatever else is refused, since it would have no effect."""

    model_config = ConfigDict(extra="forbid")
    device: str = Field("", pattern=r"^[\w .:()/-]*$")
    max_epochs: int = Field(20, ge=1, le=10_000)
    val_split: float = Field(0.2, gt=0, lt=1)
    client_id: str = ""


class BatchWish(BaseModel):  # type: ignore[misc]  # as above
    """What a client may say of a batch; devices are named for compatibility, the bundle chooses its own."""

    model_config = ConfigDict(extra="forbid")
    label_tag: str = DefaultLabelTag.ORIGINAL.value
    max_batch_size: int = Field(0, ge=0)
    device: str = ""
    multi_gpu: bool = False
    gpus: str = "all"
    logging: str = ""
    save_label: bool = True
    max_workers: int = 1
    client_id: str = ""


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
    wish = _infer_wish(params)
    if wish.model_filename != "model.pt":
        raise InputError("a model runs with its own weights only; leave model_filename out.")
    app = voxelgate_app()
    task = app.task(model)
    outputs = (Output.NIFTI, Output.SEG) if output is Answer.DICOM_SEG else (Output.NIFTI,)
    with tempfile.TemporaryDirectory() as folder:
        case = _wanted(app, image, session_id, file, Path(folder))
        report = task.propose(case, Path(folder) / "out", outputs)
        if output is Answer.DICOM_SEG:
            if Output.SEG not in report.outputs:
                raise InputError("nothing was found in the image, so there is no SEG; ask for the image.")
            return Response(report.outputs[Output.SEG].read_bytes(), media_type="application/dicom")
        facts = facts_of(report, task)
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
    """Take a label map that an annotator submits."""
    facts = _object(params) | {"user": user.username}
    with tempfile.TemporaryDirectory() as folder:
        path = _saved(label, Path(folder), (*SUFFIXES, RAW_SUFFIX))
        label_id = voxelgate_app().datastore().save_label(check_id(image), str(path), check_tag(tag), facts)
    return {"image": image, "label": label_id}


def add_image(
    file: Annotated[UploadFile, File()],
    image: str = "",
    params: Annotated[str, Form()] = "{}",
    user: User = ANNOTATOR,
) -> dict[str, str]:
    """Take an image."""
    facts = _object(params) | {"user": user.username}
    with tempfile.TemporaryDirectory() as folder:
        path = _saved(file, Path(folder), SUFFIXES)
        suffix = _suffix(file, SUFFIXES)
        image_id = image or Path(file.filename or "").name[: -len(suffix)]
        return {"image": voxelgate_app().datastore().add_image(check_id(image_id), str(path), facts)}


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
    sessions = voxelgate_app().sessions()
    with tempfile.TemporaryDirectory() as folder:
        path = _saved(files, Path(folder), SUFFIXES)
        session_id, kept = sessions.add_session(str(path), max(0, expiry))
    return {"session_id": session_id, "session_info": kept.to_json()}


def start_training(model: str, wish: TrainWish | None = None, *, enqueue: bool = False) -> Any:
    """Train a model in a process of its own."""
    voxelgate_app().task(model)
    return train.run_model(model, _train_request(wish), run_sync=False, enqueue=enqueue)


def start_trainings(wishes: dict[str, TrainWish] | None = None) -> Any:
    """Train every model, as OHIF asks for it."""
    app = voxelgate_app()
    return {model: start_training(model, (wishes or {}).get(model), enqueue=True) for model in app.tasks}


def start_batch(
    model: str, wish: BatchWish | None = None, images: BatchInferImageType = BatchInferImageType.IMAGES_ALL
) -> Any:
    """Propose label maps for all images, in a process of its own."""
    voxelgate_app().task(model)
    asked = wish or BatchWish()
    request = {"label_tag": check_tag(asked.label_tag), "max_batch_size": asked.max_batch_size}
    return batch_infer.run(model, images, request)


def next_sample(strategy: str, params: dict[str, Any] | None = None, user: User = USER) -> Any:
    """Choose the next image to annotate."""
    return activelearning.sample(strategy, {"client_id": (params or {}).get("client_id")}, user.username)


def versions(model: str) -> dict[str, Any]:
    """List the versions of a model, and which is in use."""
    kept = voxelgate_app().task(model).versions
    listed = {str(number): vars(kept.origin(number)) for number in kept.numbers()}
    return {"current": kept.current, "versions": listed}


def use_version(model: str, version: int) -> dict[str, int]:
    """Put an earlier version of a model into use again, or a later one."""
    kept = voxelgate_app().task(model).versions
    kept.use(version)
    return {"current": kept.current}


def _infer_wish(params: str) -> InferWish:
    try:
        return cast("InferWish", InferWish.model_validate_json(params or "{}"))
    except ValidationError as error:
        fields = ", ".join(str(place) for fault in error.errors() for place in fault["loc"]) or "no JSON object"
        raise InputError(f"params cannot be used ({fields}); send a JSON object with known values.") from error


def _object(params: str) -> dict[str, Any]:
    try:
        found = json.loads(params or "{}")
    except ValueError as error:
        raise InputError("params are no JSON; send a JSON object.") from error
    if not isinstance(found, dict):
        raise InputError("params are no JSON object; send one.")
    return found


def _wanted(app: VoxelgateApp, image: str, session_id: str, file: UploadFile | None, folder: Path) -> Case:
    if file is not None:
        return Case("upload", _saved(file, folder, SUFFIXES))
    if session_id:
        kept = app.sessions().get_session(check_id(session_id))
        if kept is None or not is_volume(Path(kept.image)):
            raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such session; send the image again.")
        return Case("session", Path(kept.image))
    store: ImageStore = app.datastore()
    return store.case(check_id(image))


def _suffix(file: UploadFile, allowed: tuple[str, ...]) -> str:
    name = Path(file.filename or "").name.lower()
    suffix = next((suffix for suffix in allowed if name.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"a file of this format is not taken; send {', '.join(allowed)}.")
    return suffix


def _saved(file: UploadFile, folder: Path, allowed: tuple[str, ...]) -> Path:
    """Write an upload under a name of ours; of the client's name only a known suffix counts."""
    path = folder / f"upload{_suffix(file, allowed)}"
    with path.open("wb") as stream:
        shutil.copyfileobj(file.file, stream)
    return path


def _label_answer(label_map: Path, facts: dict[str, Any], output: Answer) -> Response:
    content, kind = label_map.read_bytes(), get_mime_type(label_map.name)
    if output is Answer.IMAGE:
        headers = {"content-disposition": f'attachment; filename="{label_map.name}"'}
        return Response(content, media_type=kind, headers=headers)
    parts = MultipartEncoder(
        {"params": (None, json.dumps(facts), "application/json"), "image": (label_map.name, content, kind)}
    )
    return Response(parts.to_string(), media_type=parts.content_type)


def _train_request(wish: TrainWish | None) -> dict[str, Any]:
    asked = wish or TrainWish()
    return {name: value for name, value in asked.model_dump(exclude={"client_id"}).items() if value != ""}


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


def _own_routes() -> APIRouter:
    router = APIRouter()
    for path, endpoint, method, role in (
        ("/infer/{model}", infer, "POST", USER),
        ("/datastore/label", save_label, "PUT", ANNOTATOR),
        ("/datastore/image", add_image, "PUT", ANNOTATOR),
        ("/datastore/", add_image, "PUT", ANNOTATOR),
        ("/datastore/dataset", download_dataset, "GET", ANNOTATOR),
        ("/session/", create_session, "PUT", USER),
        ("/train/", start_trainings, "POST", ADMIN),
        ("/train/{model}", start_training, "POST", ADMIN),
        ("/batch/infer/{model}", start_batch, "POST", ADMIN),
        ("/activelearning/{strategy}", next_sample, "POST", USER),
        ("/versions/{model}", versions, "GET", USER),
        ("/versions/{model}", use_version, "PUT", ADMIN),
    ):
        router.add_api_route(path, endpoint, methods=[method], dependencies=[role])
    return router


def make_web(origins: tuple[str, ...] = ()) -> FastAPI:
    """Return the application; what it serves is set in MONAI Label's settings.

    Left out are endpoints that change a model's file, that load whole slides, and that reload the app.

    Args:
        origins: pages of other servers that may read answers; none by default.
    """
    web = FastAPI(title="voxelgate", lifespan=_lifespan, docs_url="/docs", redoc_url=None)
    if origins:
        web.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    parts = [info, train, batch_infer, activelearning, scoring, datastore, logs, session, ohif]
    parts += [login] if settings.MONAI_LABEL_AUTH_ENABLE else []
    parts += [proxy] if settings.MONAI_LABEL_STUDIES.startswith("http") else []
    for router in (_own_routes(), *(part.router for part in parts)):
        web.include_router(router)
    web.dependency_overrides[get_current_user] = current_user if settings.MONAI_LABEL_AUTH_ENABLE else anonymous
    for error, status in (
        (InputError, HTTPStatus.UNPROCESSABLE_ENTITY),
        (UsageError, HTTPStatus.CONFLICT),
        (VoxelgateError, HTTPStatus.INTERNAL_SERVER_ERROR),
        (MONAILabelException, HTTPStatus.NOT_FOUND),
        (json.JSONDecodeError, HTTPStatus.BAD_REQUEST),
    ):
        web.add_exception_handler(error, _refused(status))
    return web
