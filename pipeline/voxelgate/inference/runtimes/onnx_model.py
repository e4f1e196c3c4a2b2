"""The only door to ONNX and ONNX Runtime: a network of PyTorch, built for windows of one shape, or saved for many."""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from voxelgate.core.errors import UsageError
from voxelgate.inference.runtimes.built_models import keep_built, read_built
from voxelgate.inference.runtimes.torch_programs import IMAGE, PRED, Sizes, of_many_sizes, of_one_shape, quiet

EXPORTER = ("onnx", "onnxscript")
"""What `torch.onnx` needs."""

ENGINE = "onnxruntime"

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"

ONLY_ERRORS = 3
"""Level of ONNX Runtime's log (`OrtLoggingLevel`)."""


def build_onnx(network: nn.Module, patch: torch.Tensor, stored: Path | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what gives the logits of a network on the CPU, in float32 and with as many threads as PyTorch has.

    Args:
        network: in evaluation mode, on the CPU.
        patch: (B, C, i, j, k) float32, of the only shape that the result takes.
        stored: file of the ONNX model, or None to keep none. What is read was checked against its SHA-256, but that it
            belongs to `network` is for the caller to know, or to compare.

    Raises:
        UsageError: ONNX Runtime is not installed, or runs on another device.
        RuntimeError: it cannot convert or run this network.
    """
    if patch.device.type != "cpu":
        raise UsageError(f"runtime onnx runs on the CPU, not on {patch.device.type}.")
    engine = _library(ENGINE)
    built = read_built(stored)
    if built is None:
        built = _as_onnx(of_one_shape(network, patch)).model_proto.SerializeToString()
        keep_built(built, stored)
    return _running_onnx(engine, built)


def save_onnx(network: nn.Module, sizes: Sizes, path: Path, texts: Mapping[str, str]) -> None:
    """Write a network as one ONNX file.

    Args:
        network: in evaluation mode, on the CPU.
        sizes: of windows.
        path: file to write.
        texts: kept in the file, as its metadata properties.

    Raises:
        UsageError: the exporter's packages are not installed.
        RuntimeError: it cannot convert this network.
    """
    program = _as_onnx(of_many_sizes(network, sizes))
    program.model.metadata_props.update(texts)
    program.save(path, external_data=False)


def load_onnx(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what gives the logits of a model that was saved, as `build_onnx` does.

    Raises:
        UsageError: ONNX Runtime is not installed.
        RuntimeError: it cannot read the file.
    """
    return _running_onnx(_library(ENGINE), str(path))


def require_onnx() -> None:
    """Import everything that exporting and running need.

    Raises:
        UsageError: a package is not installed.
    """
    for name in (*EXPORTER, ENGINE):
        _library(name)


def _library(name: str) -> Any:  # an optional extra, so mypy cannot count on its types
    """Import a package without the telemetry of ONNX Runtime, which would report every model to Microsoft.

    On Linux too since version 1.29; `Privacy.md` of its wheel names the variable, which counts at the first import.
    """
    os.environ[NO_TELEMETRY] = "1"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"ONNX needs {name}, which is not installed; pip install onnx onnxruntime onnxscript."
        ) from error


def _as_onnx(program: ExportedProgram) -> Any:
    for name in EXPORTER:
        _library(name)
    with torch.no_grad(), quiet():
        return torch.onnx.export(program, dynamo=True, input_names=[IMAGE], output_names=[PRED], verbose=False)


def _running_onnx(engine: Any, model: bytes | str) -> Callable[[torch.Tensor], torch.Tensor]:
    options = engine.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = ONLY_ERRORS
    with _as_runtime_error():
        session = engine.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(windows: torch.Tensor) -> torch.Tensor:
        with _as_runtime_error():
            return torch.from_numpy(session.run([PRED], {IMAGE: windows.contiguous().numpy()})[0])

    return run


@contextmanager
def _as_runtime_error() -> Iterator[None]:
    """Make `RuntimeError`s of ONNX Runtime's own, which have no other common base than `Exception`."""
    named = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    own = tuple(one for one in named if isinstance(one, type) and issubclass(one, Exception))
    try:
        yield
    except own as error:
        raise RuntimeError(str(error)) from error
