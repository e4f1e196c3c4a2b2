"""Time a few training steps of a plan on this machine, so that its minutes can be kept."""

import time
from dataclasses import dataclass

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
TIMED_STEPS = 5

SLOWED = 1.3
"""A step that takes so many times its processor time waits for other work of the machine."""


@dataclass(frozen=True)
class StepTime:
    """What a training step takes.

    Args:
        free_s: on a machine that does nothing else.
        clock_s: on this machine now.
    """

    free_s: float
    clock_s: float

    @property
    def is_slowed(self) -> bool:
        """Return whether other work makes it longer."""
        return self.clock_s > SLOWED * self.free_s


def step_time(plan: Plan, device: torch.device) -> StepTime:
    """Return the time of one optimiser step of a plan, patches included, on values made up.

    Of several steps the fastest counts. On a CPU it is the processor time of the thread that leads the others, which is
    that of the whole step where nothing else runs; of a GPU there is the time by the clock alone.

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
    times = []
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        start_s, start_thread_s = time.perf_counter(), time.thread_time()
        patches = [draw(dict(case)) for _ in range(plan.training.batch_size)]
        image, label = (torch.stack([patch[key] for patch in patches]).to(device) for key in ("image", "label"))
        optimizer.zero_grad()
        criterion(run(image, module), label).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.thread_time() - start_thread_s, time.perf_counter() - start_s))
    threads_s, clocks_s = zip(*times[WARMUP_STEPS:], strict=True)
    return StepTime(min(threads_s if device.type == "cpu" else clocks_s), min(clocks_s))


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
