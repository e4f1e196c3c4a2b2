"""What MONAI itself makes of an image: its loader, its evaluator, and a bundle's steps, in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from torch import nn

from voxelgate.core.geometry import Grid
from voxelgate.transforms.io import as_image


def stock_labels(path: Path, before: Sequence[Any], inferer: Any, network: nn.Module, after: Sequence[Any]) -> Any:
    """Return the labels (I, J, K) float32 that a bundle of these steps would save."""
    (labels,) = stock_result(path, before, inferer, network, after)
    return labels


def stock_result(path: Path, before: Sequence[Any], inferer: Any, network: nn.Module, after: Sequence[Any]) -> Any:
    """Return what a bundle of these steps leaves, (C, I, J, K) float32."""
    preprocessing = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), *before])
    found: list[MetaTensor] = []
    steps = Compose([*after, lambda data: found.append(data["pred"]) or data])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": str(path)}], preprocessing), batch_size=1),
        network=network,
        inferer=inferer,
        postprocessing=steps,
    )
    evaluator.run()
    return found[0].numpy()


def prepared(path: Path, before: Sequence[Any]) -> MetaTensor:
    """Return (1, C, i, j, k) as `Bundle.prepare` would, with the same steps."""
    read = nib.load(path)
    image = as_image(np.asarray(read.dataobj, np.float32)[None], Grid(read.shape, read.affine))
    return Compose(list(before))({"image": image})["image"][None]
