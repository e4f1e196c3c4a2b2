"""The only door to OpenVINO: a network of PyTorch, built for windows of one shape and kept on disk."""

import hashlib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.inference.files import write_atomically

logger = logging.getLogger(__name__)

DIGEST_BYTES = hashlib.sha256().digest_size
TELEMETRY = "openvino_telemetry"


def build(network: nn.Module, patch: torch.Tensor, stored: Path | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what gives the logits of a network on the CPU, in float32 and with as many threads as PyTorch has.

    Args:
        network: in evaluation mode, on the CPU.
        patch: (B, C, i, j, k) float32, of the only shape that the result takes, C order.
        stored: file of the built model, or None to keep none. What is read was checked against its SHA-256, but that it
            belongs to `network` is for the caller to know, or to compare.

    Raises:
        UsageError: OpenVINO is not installed, or cannot run this network or device.
    """
    if patch.device.type != "cpu":
        raise UsageError(f"runtime openvino runs on the CPU, not on {patch.device.type}.")
    core = _library().Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    built = _read(stored)
    if built is not None:
        model = core.import_model(built, "CPU", settings)
    else:
        model = core.compile_model(_converted(network, patch), "CPU", settings)
        _keep(bytes(model.export_model().getvalue()), stored)

    def run(windows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model(windows.numpy(), share_inputs=True)[0])

    return run


def _library() -> Any:  # an optional extra, so mypy cannot count on its types
    """Import OpenVINO without its telemetry, which would report every import to Google Analytics unless opted out.

    `openvino/tools/ovc/telemetry_utils.py` takes a stub where the package of the reports cannot be imported.
    """
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # None: cannot be imported (importlib reference)
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise UsageError("runtime openvino is not installed; pip install 'voxelgate[openvino]'.") from error


def _converted(network: nn.Module, patch: torch.Tensor) -> Any:
    """Return OpenVINO's model; its `convert_model` does the same, and reports each use."""
    decoder = importlib.import_module("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    frontend = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    with torch.no_grad(), _quiet():
        program = torch.export.export(network, (patch,))
        decoded = decoder.from_exported_program(program, dynamic_shapes=False)  # must outlive the conversion
        return frontend.convert(frontend.load(decoded))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back warnings of the conversion, which tell of operators that no network here has."""
    root = logging.getLogger()

    def is_grave(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    root.addFilter(is_grave)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(is_grave)


def _keep(built: bytes, stored: Path | None) -> None:
    if stored is None:
        return
    try:
        write_atomically(stored, hashlib.sha256(built).digest() + built)
    except OSError as error:  # it is built again next time
        logger.warning("OpenVINO's model cannot be kept in %s: %s", stored, error.strerror)


def _read(stored: Path | None) -> bytes | None:
    """Return a model that was kept, None if there is none or it is damaged."""
    if stored is None or not stored.is_file():
        return None
    content = stored.read_bytes()
    digest, built = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return built if hashlib.sha256(built).digest() == digest else None
