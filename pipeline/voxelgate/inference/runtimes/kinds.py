"""What a network can run as, and become: the names of the runtimes and of the file formats, without PyTorch."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from voxelgate.core.errors import UsageError


class Runtime(StrEnum):
    """How a network runs; `eager` is what all others must agree with.

    `compiled`, `openvino` and `onnx` are made for windows of one shape; windows of another shape run as `folded`.
    """

    EAGER = "eager"
    """PyTorch layer by layer, float32, channels-last."""

    FOLDED = "folded"
    """Batch norms folded into the convolutions before them; on a CPU all convolutions by oneDNN."""

    COMPILED = "compiled"
    """`torch.compile` of the folded network with frozen weights; CUDA graphs on a GPU."""

    OPENVINO = "openvino"
    """OpenVINO on the CPU, float32; needs the extra `openvino`."""

    ONNX = "onnx"
    """ONNX Runtime on the CPU, float32; needs the extra `onnx`."""

    BFLOAT16 = "bfloat16"
    """Folded, convolutions in bfloat16."""


FLOAT32_RUNTIMES = frozenset({Runtime.EAGER, Runtime.FOLDED, Runtime.COMPILED, Runtime.OPENVINO, Runtime.ONNX})
"""Those that compute in the same format as `eager`, and differ by the order of sums."""


class Format(StrEnum):
    """Kinds of files that a network can become."""

    TORCH_EXPORT = "torch-export"
    """A program of `torch.export`, which refuses sizes that it was not made for."""

    ONNX = "onnx"
    """One ONNX file; needs the extra `onnx`."""

    TORCHSCRIPT = "torchscript"
    """Traced, with the extra files of MONAI's `ckpt_export`."""

    OPENVINO = "openvino"
    """OpenVINO's `.xml` and, beside it, the weights in `.bin`; needs the extra `openvino`."""


SUFFIXES: Mapping[Format, tuple[str, ...]] = {
    Format.TORCH_EXPORT: (".pt2",),
    Format.ONNX: (".onnx",),
    Format.TORCHSCRIPT: (".ts",),
    Format.OPENVINO: (".xml", ".bin"),
}
"""Endings of the files of each format; a user names the first."""


def paths_of_format(path: Path, form: Format) -> list[Path]:
    """Return the files of a network in a format, of which `path` names the first.

    Raises:
        UsageError: it ends in something else.
    """
    if path.suffix != SUFFIXES[form][0]:
        raise UsageError(f"--out {path.name}: a file of format {form} ends in {SUFFIXES[form][0]}; name it so.")
    return [path.with_suffix(suffix) for suffix in SUFFIXES[form]]
