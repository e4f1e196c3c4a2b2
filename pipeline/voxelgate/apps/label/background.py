"""Trainings, batches and scorings in processes of their own, in the books by which MONAI Label shows and stops them.

MONAI Label's own starts them with `python -m` in the current folder, from which any module would be loaded, with the
server's whole environment, passwords too, and with what clients said on the command line, which everybody sees.
"""

import json
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from threading import Lock
from typing import Any

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.utils.async_tasks.utils import (
    background_executors,
    background_processes,
    background_tasks,
    stop_background_task,
)

from voxelgate.apps.label.environment import child_environment
from voxelgate.apps.label.server import missing_modules

MOST_LINES = 20
"""Last lines of a task that its state shows, as in MONAI Label."""

_turn = Lock()


class TaskKind(StrEnum):
    """What is done in the background, as MONAI Label calls it."""

    TRAIN = "train"
    BATCH_INFER = "batch_infer"
    SCORING = "scoring"


def start_task(kind: TaskKind, request: Mapping[str, Any], *, enqueue: bool = False) -> dict[str, Any]:
    """Start a task, or let it wait for the one before it; return its state, which changes as it goes on.

    Raises:
        HTTPException: 429 where one of its kind runs, and it shall not wait.
    """
    with _turn:
        known = background_tasks.setdefault(kind, [])
        if not enqueue and any(task["status"] in {"SUBMITTED", "RUNNING"} for task in known):
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, f"a {kind} task is running already; wait for its end.")
        task: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "status": "SUBMITTED",
            "request": dict(request),
            "start_ts": _now(),
            "details": deque(maxlen=MOST_LINES),
        }
        known.append(task)
        background_processes.setdefault(kind, {})
        executor = background_executors.setdefault(kind, ThreadPoolExecutor(1, f"task-{kind}"))
    executor.submit(_run, kind, task)
    return task


def stop_all() -> None:
    """End every task; those that wait do not begin."""
    for kind in TaskKind:
        if kind in background_executors:
            background_executors[kind].shutdown(wait=False, cancel_futures=True)
        while background_processes.get(kind):
            stop_background_task(kind)


def _run(kind: TaskKind, task: dict[str, Any]) -> None:
    command = [sys.executable, "-P", "-m", "voxelgate.apps.label.task_process"]
    with subprocess.Popen(  # noqa: S603 - this program
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=settings.MONAI_LABEL_APP_DIR,
        env=child_environment(missing_modules()) | {"MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"},
    ) as process:
        background_processes[kind][task["id"]] = process
        task["status"] = "RUNNING"
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a process has no pipes")
        order = {"kind": kind, "request": task["request"], "settings": _settings_for(kind)}
        process.stdin.write(f"{json.dumps(order)}\n")
        process.stdin.flush()  # and it stays open: the process ends when the server does
        for line in process.stdout:
            if said := line.strip():
                task["details"].append(said)
        code = process.wait()
    background_processes[kind].pop(task["id"], None)
    task["end_ts"] = _now()
    if task["status"] == "RUNNING":
        task["status"] = "ERROR" if code else "DONE"


def _settings_for(kind: TaskKind) -> dict[str, str]:
    """Return the secrets that a task needs: those of the PACS, if it asks the PACS; a training works on copies."""
    if kind is TaskKind.TRAIN or not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        return {}
    return {
        "MONAI_LABEL_DICOMWEB_USERNAME": settings.MONAI_LABEL_DICOMWEB_USERNAME,
        "MONAI_LABEL_DICOMWEB_PASSWORD": settings.MONAI_LABEL_DICOMWEB_PASSWORD,
    }


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"  # noqa: DTZ005 - local, as MONAI Label's
