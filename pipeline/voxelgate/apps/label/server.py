"""Start the MONAI Label server: what it may serve is checked first, and it listens to this machine unless asked."""

import importlib.util
import json
import logging
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from voxelgate.apps.label.environment import hide_secrets
from voxelgate.apps.label.guard import Guard
from voxelgate.apps.label.model_versions import MODELS, import_bundle
from voxelgate.apps.label.serving import LOOPBACK, Serving, refuse_without_monai_label
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.files import locked, write_text
from voxelgate.core.process import refuse_current_folder
from voxelgate.inference.threads import start_network_thread

logger = logging.getLogger(__name__)


PASSWORD = "password"  # noqa: S105 - the name of its file
"""File of the work folder with the password of the server's login, for its owner alone; it may be replaced."""


END_WITHIN_S = 5
"""How long requests may go on once the server is told to end."""

MOST_OPEN_FILES = 16_384
"""Connections and files that may be open, where the system allows more than its usual 1024."""

STAND_INS = {"torchvision": "no_torchvision", "pydicom_seg": "no_pydicom_seg"}
"""Modules that MONAI Label 0.8.5 imports although nothing here uses them, and the folders with ours."""

MAIN = '''"""What MONAI Label loads; the app itself is in the installed package."""

from voxelgate.apps.label.app import VoxelgateApp

__all__ = ["VoxelgateApp"]
'''


def serve_label(serving: Serving) -> None:
    """Check, prepare and run the server until it is stopped.

    Raises:
        UsageError: MONAI Label is not installed here, the port is taken, the label maps that are there are those of
            other labels, or as `prepare_server` says.
        OutputError: a server works in the same folder.
        BundleError: a bundle was changed, its weights do not fit, or its labels are not named.
    """
    refuse_without_monai_label()
    _refuse_taken_port(serving)
    serving.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(serving.work):
        prepare_server(serving)
        _run_server(serving)


def _run_server(serving: Serving) -> None:
    work = serving.work.resolve()
    os.chdir(work)  # MONAI Label takes settings from a file `.env` of the current folder, whoever wrote it
    logging.getLogger("monailabel").setLevel(logging.ERROR)
    import uvicorn  # noqa: PLC0415 - of the optional extra
    from monailabel.config import settings  # noqa: PLC0415 - made of what `prepare_server` set, as the next ones
    from monailabel.utils.others.generic import init_log_config  # noqa: PLC0415

    from voxelgate.apps.label.login import login_of  # noqa: PLC0415
    from voxelgate.apps.label.patient_protocol import PatientProtocol  # noqa: PLC0415
    from voxelgate.apps.label.web import check_login_of, make_web, voxelgate_app  # noqa: PLC0415

    store = voxelgate_app().datastore()  # what it refuses is said before the server listens
    hide_secrets()
    login = login_of(work) if serving.asks_login and not settings.MONAI_LABEL_AUTH_ENABLE else None
    check_login = check_login_of(login)
    hosts = (serving.host, LOOPBACK, "localhost") if serving.is_loopback else ()
    most_bytes = serving.most_mib * 2**20
    web = make_web(serving.origins, login)
    guard = Guard(web, most_bytes, hosts, serving.origins, check_login)
    log_config = init_log_config(None, str(work), "app.log", "WARNING")
    for sentence in (*store.said_of_images(), *_said_of_login(serving, work, login, check_login)):
        logger.info("%s", sentence)
    start_network_thread(torch.get_num_threads())
    _allow_files()
    uvicorn.run(
        guard,
        host=serving.host,
        port=serving.port,
        http=PatientProtocol,
        log_config=log_config,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=END_WITHIN_S,
    )


def _said_of_login(serving: Serving, work: Path, login: object, check_login: object) -> list[str]:
    """Return what to say of who is let in, and by what."""
    if login is not None:
        return [f"annotators log in with a name of their own and the password that is in {work / PASSWORD}"]
    if check_login is None and not serving.is_loopback:
        return [f"everybody who reaches {serving.host} may read and change all images and label maps"]
    return []


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def prepare_server(serving: Serving) -> None:
    """Check the bundles, fill the work folder, and tell MONAI Label by its settings, which its processes inherit.

    Raises:
        UsageError: the bundles segment different structures, or one of them takes other images than MONAI Label.
        BundleError: a bundle cannot be used, or lacks the codes of the SEG that go back to a PACS.
    """
    work = serving.work.resolve()
    _refuse_other_labels(serving.bundles)
    if serving.is_pacs:
        _refuse_uncoded(serving.bundles)
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    for bundle in serving.bundles:
        opened = open_bundle(import_bundle(bundle, work / MODELS).current_path)
        if opened.image_spec.is_picture or opened.image_spec.files > 1:
            taken = "pictures" if opened.image_spec.is_picture else f"{opened.image_spec.files} channels"
            raise UsageError(
                f"{bundle.name}: takes {taken}, but MONAI Label serves volumes of one channel; use voxelgate segment."
            )
    write_text(work / "main.py", MAIN)
    (work / "logs").mkdir(exist_ok=True)
    for emptied in ("tmp", "sessions"):  # what a server that was killed left behind, images among it
        shutil.rmtree(work / emptied, ignore_errors=True)
        (work / emptied).mkdir(mode=0o700)
    tempfile.tempdir = str(work / "tmp")
    sys.path += missing_modules()
    studies = serving.studies if serving.is_pacs else str(Path(serving.studies).resolve())
    os.environ |= {
        "TMPDIR": str(work / "tmp"),
        "MONAI_LABEL_APP_DIR": str(work),
        "MONAI_LABEL_STUDIES": studies,
        "MONAI_LABEL_APP_CONF": json.dumps({"most_mib": str(serving.most_mib)}),
        "MONAI_LABEL_SERVER_PORT": str(serving.port),
        "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(["*.nii.gz", "*.nii", "*.nrrd"]),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "0",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_TRACKING_ENABLED": "false",
    }
    refuse_current_folder()


def _refuse_taken_port(serving: Serving) -> None:
    try:
        found = socket.getaddrinfo(serving.host, serving.port, type=socket.SOCK_STREAM)
        socket.create_server(found[0][4][:2], family=found[0][0]).close()
    except OSError as error:
        raise UsageError(
            f"the server cannot listen to {serving.host}, port {serving.port} ({error.strerror}); choose others with "
            "--host and --port."
        ) from error


def _refuse_other_labels(bundles: Sequence[Path]) -> None:
    """Refuse bundles whose label maps mean different things, for the images have one label map each."""
    first, *others = [(bundle.name, Metadata.read(bundle).labels.names) for bundle in bundles]
    for name, names in others:
        if names != first[1]:
            raise UsageError(f"{name} segments other structures than {first[0]}; start a server for each of them.")


def _refuse_uncoded(bundles: Sequence[Path]) -> None:
    """Refuse bundles whose label maps no PACS could take, before anybody has annotated an image."""
    for bundle in bundles:
        labels = Metadata.read(bundle).labels
        if uncoded := [name for value, name in labels.foreground.items() if labels.find_coding(value) is None]:
            raise BundleError(
                f"{bundle.name}: no code is known for {', '.join(uncoded)}, and label maps go back to the PACS as SEG, "
                "which demands one; write codes with `voxelgate bundle codes`."
            )


def missing_modules() -> list[str]:
    """Return the folders that stand in for modules which are not installed, for `PYTHONPATH`."""
    root = Path(__file__).parent / "stand_ins"
    return [str(root / folder) for name, folder in STAND_INS.items() if _is_missing(name, root)]


def _is_missing(name: str, root: Path) -> bool:
    found = importlib.util.find_spec(name)
    return found is None or (found.origin is not None and Path(found.origin).is_relative_to(root))
