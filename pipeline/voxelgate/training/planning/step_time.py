"""Time a few training steps of a plan on this machine, so that its minutes can be kept."""

import statistics
import time

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn

from voxelgate.bundle.workflow import build_component
from voxelgate.inference.precision import MixedPrecisionInferer, Precision, choose_precision, keep_large_buffers
from voxelgate.training.configs.steps import augmentation_steps, network_config
from voxelgate.training.configs.train_config import loss
from voxelgate.training.planning.plan import Plan

WARMUP_STEPS = 1
TIMED_STEPS = 4


def step_time_s(plan: Plan, device: torch.device) -> float:
    """Return the median time of one optimiser step of a plan, patches included, on values made up.

    Args:
        plan: says network, patch, batch, loss and random changes.
        device: where the training is to run.
    """
    keep_large_buffers()
    module: nn.Module = build_component(network_config(plan)).to(device, memory_format=torch.channels_last_3d).train()
    optimizer = torch.optim.AdamW(module.parameters())
    criterion, run = build_component(loss(plan)), MixedPrecisionInferer(_precision(device))
    draw = build_component({"_target_": "Compose", "transforms": augmentation_steps(plan)})
    case = _random_case(plan)
    times_s = []
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        start_s = time.perf_counter()
        patches = [draw(dict(case)) for _ in range(plan.training.batch_size)]
        image, label = (torch.stack([patch[key] for patch in patches]).to(device) for key in ("image", "label"))
        optimizer.zero_grad()
        criterion(run(image, module), label).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s[WARMUP_STEPS:])


def _precision(device: torch.device) -> Precision:
    return choose_precision(device, Precision.AUTO)


def _random_case(plan: Plan) -> dict[str, MetaTensor]:
    """Return an image of noise a little larger than a patch, with one structure in its middle."""
    rng = np.random.default_rng(0)
    shape = [n if n == 1 else n + n // 2 for n in plan.patch_vox]
    label = np.zeros((1, *shape), np.float32)
    label[0][tuple(slice(n // 3, n // 3 + max(1, n // 3)) for n in shape)] = 1
    image = rng.random((len(plan.image_channels), *shape), np.float32)
    affine = torch.eye(4, dtype=torch.float64)
    return {"image": MetaTensor(torch.from_numpy(image), affine), "label": MetaTensor(torch.from_numpy(label), affine)}
