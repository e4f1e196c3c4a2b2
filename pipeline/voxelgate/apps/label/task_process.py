"""The process of one background task: it is told what to do on its input, and ends when that is closed."""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from voxelgate.core.errors import VoxelgateError

logger = logging.getLogger(__name__)


def run_task(order: Mapping[str, Any]) -> None:
    """Do what the server asks for; its settings are in the environment, and some come with the order."""
    os.environ |= order["settings"]
    from monailabel.interfaces.utils.app import app_instance  # noqa: PLC0415 - made of the settings

    app = app_instance()
    tasks: dict[str, Callable[[Any], object]] = {
        "train": app.train,
        "batch_infer": app.batch_infer,
        "scoring": app.scoring,
    }
    tasks[order["kind"]](order["request"])


def run_order() -> int:
    """Read the order, carry it out, and say in one sentence why it could not be; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("voxelgate").setLevel(logging.INFO)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_server, daemon=True).start()
    try:
        run_task(order)
    except VoxelgateError as error:
        logger.error("%s", error)  # noqa: TRY400 - a sentence for annotators
        return error.exit_code
    return 0


def _end_with_server() -> None:
    """End this process when the server has closed its input, however the server ended."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(run_order())
