"""The only door to OpenVINO: a network of PyTorch, built for windows of one shape, or saved for many."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from voxelgate.core.errors import UsageError
from voxelgate.inference.runtimes.built_models import keep_built, read_built
from voxelgate.inference.runtimes.torch_programs import IMAGE, PRED, Sizes, of_many_sizes, of_one_shape, quiet

TELEMETRY = "openvino_telemetry"


def build_openvino(
    network: nn.Module, patch: torch.Tensor, stored: Path | None
) -> Callable[[torch.Tensor], torch.Tensor]:
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
    core = library().Core()
    built = read_built(stored)
    if built is not None:
        model = core.import_model(built, "CPU", _settings())
    else:
        model = core.compile_model(_as_openvino(of_one_shape(network, patch), is_dynamic=False), "CPU", _settings())
        keep_built(bytes(model.export_model().getvalue()), stored)
    return _running_openvino(model)


def save_openvino(network: nn.Module, sizes: Sizes, path: Path, texts: Mapping[str, str]) -> None:
    """Write a network in float32 as OpenVINO's `path` (.xml) and the weights beside it (.bin).

    Args:
        network: in evaluation mode, on the CPU.
        sizes: of windows.
        path: file to write.
        texts: kept in the file, as run-time information of the model.

    Raises:
        UsageError: OpenVINO is not installed.
        RuntimeError: it cannot convert this network.
    """
    openvino = library()
    model = _as_openvino(of_many_sizes(network, sizes), is_dynamic=True)
    model.inputs[0].get_tensor().set_names({IMAGE})
    model.outputs[0].get_tensor().set_names({PRED})
    model.reshape({IMAGE: openvino.PartialShape([-1, sizes.channels, *(n or -1 for n in sizes.fixed_vox)])})
    for name, text in texts.items():
        model.set_rt_info(text, [name])
    openvino.save_model(model, path, compress_to_fp16=False)


def load_openvino(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what gives the logits of a model that was saved, as `build_openvino` does.

    Raises:
        UsageError: OpenVINO is not installed.
        RuntimeError: it cannot read the file.
    """
    return _running_openvino(library().Core().compile_model(path, "CPU", _settings()))


def library() -> Any:  # an optional extra, so mypy cannot count on its types
    """Import OpenVINO without its telemetry, which would report every import to Google Analytics unless opted out.

    `openvino/tools/ovc/telemetry_utils.py` takes a stub where the package of the reports cannot be imported.

    Raises:
        UsageError: it is not installed.
    """
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # None: cannot be imported (importlib reference)
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise UsageError("OpenVINO is not installed; pip install openvino.") from error


def _settings() -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }


def _running_openvino(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(windows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model(windows.contiguous().numpy(), share_inputs=True)[0])

    return run


def _as_openvino(program: ExportedProgram, *, is_dynamic: bool) -> Any:
    """Return OpenVINO's model; its `convert_model` does the same, and reports each use."""
    decoder = importlib.import_module("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    frontend = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    with torch.no_grad(), quiet():
        decoded = decoder.from_exported_program(program, dynamic_shapes=is_dynamic)  # must outlive the conversion
        return frontend.convert(frontend.load(decoded))
