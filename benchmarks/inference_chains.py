"""One contender of `inference.py`, in a process of its own: from file to file, then its seconds and memory as JSON."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from monai.inferers import sliding_window_inference
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
)
from torch import nn

from benchmarks.inference_clock import CLOCKS, Stopwatch, resident_mib
from benchmarks.inference_phantom import HIGH_HU, LABELS, LOW_HU, NETWORK_MM, network
from voxelgate.bundle.predict import Bundle
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.choose import SeriesRule
from voxelgate.images.spec import ONE_VOLUME
from voxelgate.inference.mirroring import MirroredViews
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.inference.restoring.restorer import Restorer
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.read import read_case
from voxelgate.segmentation.report import CaseStatus
from voxelgate.segmentation.segment import segment_case
from voxelgate.transforms import ResampleToSpacingd, WindowHUd
from voxelgate.transforms.io import VolumeReader

WINDOW = (96, 96, 96)
SKIP_BELOW = 0.0
"""Of our inferer: air is not run."""

LARGE_WINDOWS = {"window": "largest", "max_memory": 2**31}
"""Of our inferer, for windows."""

KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Environment in which glibc keeps freed buffers, for programs that do not ask it to."""


def noted(stream: Callable[..., Any], streamed_vox: list[int]) -> Callable[..., Any]:
    """Return `Views.stream`, noting the size of what it is given: (i, j, k) without the air around the body."""

    def run(views: MirroredViews, image: torch.Tensor, *args: Any) -> Any:
        streamed_vox[:] = image.shape[2:]
        return stream(views, image, *args)

    return run


def ours(image: Path, out: Path, net: nn.Module, watch: Stopwatch, **inferer: Any) -> list[int]:
    """Do what `voxelgate segment` does for one NIfTI file, and return the size of what was streamed."""
    classes = net.heads[0].weight.shape[0]
    names = LABELS + tuple(f"structure {value}" for value in range(len(LABELS), classes))
    sliding = RestoringSlidingWindowInferer(roi_size=WINDOW, **inferer)
    bundle = Bundle(
        root=Path(),
        name="benchmark",
        version="0",
        fingerprint="0",
        labels=LabelTable(names),
        preprocessing=watch.measured("preprocess", preprocessing()),
        inferer=watch.measured("network", sliding),
        network=net,
        device=torch.device("cpu"),
        series_rule=SeriesRule(),
        expected=None,
        cleaning=lambda labels: labels,
        image_spec=ONE_VOLUME,
    )
    streamed_vox: list[int] = []
    with (
        watch.stage("write"),  # and what else there is
        patch("voxelgate.segmentation.segment.read_case", watch.measured("read", read_case)),
        patch.object(Restorer, "push", watch.measured("restore", Restorer.push)),
        patch.object(MirroredViews, "stream", noted(MirroredViews.stream, streamed_vox)),
    ):
        report = segment_case(Case(image.name.removesuffix(".nii.gz"), image), bundle, out, Options(overwrite=True))
    if report.status is not CaseStatus.DONE:
        raise SystemExit(f"not done: {' '.join(map(str, report.findings))}")
    return streamed_vox


def preprocessing() -> Compose:
    """Return what our bundles do to a CT."""
    return Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            ResampleToSpacingd("image", spacing_mm=NETWORK_MM),
            WindowHUd("image", low_hu=LOW_HU, high_hu=HIGH_HU),
        ]
    )


def stock(image: Path, out: Path, net: nn.Module, watch: Stopwatch, *, overlap: float) -> None:
    """Do the same with MONAI alone."""
    prepare = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(NETWORK_MM,) * 3, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=LOW_HU, a_max=HIGH_HU, b_min=0.0, b_max=1.0, clip=True),
        ]
    )
    with watch.stage("read"):
        case = prepare({"image": image}, end=2)
    with watch.stage("preprocess"):
        case = prepare(case, start=2)
    with watch.stage("network"), torch.inference_mode():
        case["pred"] = sliding_window_inference(case["image"][None], WINDOW, 1, net, overlap, "gaussian")[0]
    _invert_and_save(case, prepare, out, watch)


def whole(image: Path, out: Path, net: nn.Module, watch: Stopwatch) -> None:
    """Run the network once over everything, and restore as MONAI does: what all others should agree with."""
    prepare = Compose([LoadImaged("image", reader=VolumeReader()), EnsureChannelFirstd("image"), preprocessing()])
    with watch.stage("read"):
        case = prepare({"image": image}, end=2)
    with watch.stage("preprocess"):
        case = prepare(case, start=2)
    with watch.stage("network"), torch.inference_mode():
        net = net.to(memory_format=torch.channels_last_3d)
        case["pred"] = net(case["image"][None].contiguous(memory_format=torch.channels_last_3d))[0].contiguous()
    _invert_and_save(case, prepare, out, watch)


def _invert_and_save(case: dict[str, Any], prepare: Compose, out: Path, watch: Stopwatch) -> None:
    finish = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform=prepare, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
        ]
    )
    with watch.stage("restore"):
        case = finish(case)
    saving = {"output_dir": out, "output_postfix": "", "separate_folder": False, "print_log": False}
    with watch.stage("write"):
        SaveImaged("pred", output_dtype="uint8", resample=False, **saving)(case)


@dataclass(frozen=True)
class Contender:
    """One way from file to file.

    Args:
        title: for the tables.
        network: "ours", "monai" or "nnunet", which `inference_nnunet` runs.
        environment: variables of its process.
        is_ours: our chain, else one of MONAI's transforms.
        streaming: of our inferer.
    """

    title: str
    network: str = "ours"
    environment: dict[str, str] = field(default_factory=dict)
    is_ours: bool = False
    streaming: bool = False


CONTENDERS = {
    "streaming": Contender("voxelgate, streaming", is_ours=True, streaming=True),
    "windows": Contender("voxelgate, windows", is_ours=True),
    "stock": Contender("MONAI", "monai"),
    "stock-tuned": Contender("MONAI, allocator tuned", "monai", KEEP),
    "stock-same": Contender("the same with our network", "ours", KEEP),
    "nnunet": Contender("nnU-Net's predictor", "nnunet"),
    "nnunet-tuned": Contender("nnU-Net's predictor, allocator tuned", "nnunet", KEEP),
    "reference": Contender("whole volume at once", "ours", KEEP),
}


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--overlap", type=float, required=True)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    return parser.parse_args()


def main() -> None:
    """Run one contender and print what it took."""
    asked = arguments()
    contender = CONTENDERS[asked.contender]
    if contender.is_ours:
        keep_large_buffers()
    weights = asked.weights if contender.network == "ours" else None
    net, watch = network(contender.network, asked.classes, weights), Stopwatch(CLOCKS[asked.clock])
    before_mib, streamed_vox = resident_mib("VmRSS"), []
    if contender.is_ours:
        way: dict[str, Any] = {"streaming": True} if contender.streaming else LARGE_WINDOWS
        streamed_vox = ours(asked.image, asked.out, net, watch, overlap=asked.overlap, skip_below=SKIP_BELOW, **way)
    elif asked.contender == "reference":
        whole(asked.image, asked.out, net, watch)
    else:
        stock(asked.image, asked.out, net, watch, overlap=asked.overlap)
    seconds = watch.seconds | {"total": sum(watch.seconds.values())}
    taken = {"seconds": seconds, "peaks_mib": watch.peaks_mib, "libraries_mib": before_mib}
    print(json.dumps(taken | {"streamed_vox": streamed_vox}))


if __name__ == "__main__":
    main()
