"""The volume that `inference.py` segments, and networks that have learnt to segment it; both kept in a cache folder."""

import math
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import AttentionUnet
from nibabel.affines import apply_affine
from torch import nn
from torch.nn import functional as F

from voxelgate.apps.demo.cohort import Anatomy, Tissue, draw_anatomy, render
from voxelgate.core.geometry import Affine, Grid
from voxelgate.inference.precision import choose_precision, keep_large_buffers
from voxelgate.networks import AttentionUNet
from voxelgate.transforms.intensity import window

LABELS = ("background", "fat", "liver", "enhancing", "bone")
CHANNELS = (16, 32, 64, 128, 256)
NETWORK_MM = 1.5
LOW_HU, HIGH_HU = -150.0, 250.0
SOURCE_MM = (0.8, 0.8, 1.5)
ADULT = 2.4
"""The demo's patients are small children; this factor makes 336 mm of width."""

NOISE_HU = 15.0
BASE_SLICES = 200
"""Longer volumes repeat these, mirrored in turn, so that every part holds as much as every other."""

TRAINING_VOLUMES, TRAINING_STEPS, PATCH_VOX, BATCH = 4, 200, 32, 5
STEPS_WITH_OWN_STATISTICS = 100
"""Afterwards batch norm uses its running averages, as it will when it segments whole volumes, which are mostly air."""

FAT_HU, ENHANCING_HU, BONE_HU = -50.0, 115.0, 300.0
"""Mean above which a tissue is no longer fat, takes up contrast medium, is bone."""

NEVER_LOGIT = -20.0
"""Bias of the classes that were not trained."""


def network(kind: str, classes: int, weights: Path | None = None) -> nn.Module:
    """Return a network in evaluation mode; classes beyond those that were trained are never the likeliest.

    Args:
        kind: whose network.
        classes: channels of the output, at least those of `LABELS`.
        weights: from `trained`; None for random ones, which is all there is for `monai`.
    """
    torch.manual_seed(0)
    net = _network(kind, classes)
    if weights is not None:
        state = torch.load(weights, weights_only=True)
        for name, own in net.state_dict().items():
            if state[name].shape != own.shape:  # of the head
                wider = torch.full_like(own, NEVER_LOGIT) if own.ndim == 1 else own.clone()
                wider[: len(LABELS)] = state[name]
                state[name] = wider
        net.load_state_dict(state)
    return net.eval()


def volume(cache: Path, plane_vox: int, slices: int) -> tuple[Path, Path]:
    """Return files of a CT (int16, axes to left, back and head) and of its true labels; made if they are not there."""
    image_path, label_path = (cache / f"{name}-{plane_vox}-{slices}.nii.gz" for name in ("ct", "truth"))
    if not (image_path.exists() and label_path.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        base = min(slices, BASE_SLICES)
        affine = np.diag([-SOURCE_MM[0], -SOURCE_MM[1], SOURCE_MM[2], 1.0])
        rng = np.random.default_rng(0)
        image_hu, labels = _phantom(_adult(rng), affine, (plane_vox, plane_vox, base), (4, 4, 2), rng)
        for path, voxels in ((image_path, image_hu), (label_path, labels)):
            repeated = np.pad(voxels, ((0, 0), (0, 0), (0, slices - base)), mode="symmetric")
            nib.save(nib.Nifti1Image(repeated, affine), path)
    return image_path, label_path


def trained(cache: Path) -> Path:
    """Return weights of our network that segment such volumes; trained in a few minutes if they are not there."""
    path = cache / f"weights-{TRAINING_STEPS}.pt"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    keep_large_buffers()
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    volumes = [_training_volume(rng) for _ in range(TRAINING_VOLUMES)]
    net = _network("ours", len(LABELS)).to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=TRAINING_STEPS, pct_start=0.1)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    dtype = getattr(torch, choose_precision(torch.device("cpu")).value)
    for step in range(TRAINING_STEPS):
        if step == STEPS_WITH_OWN_STATISTICS:
            net.eval()
        image, labels = volumes[step % TRAINING_VOLUMES].patches(rng)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = net(image.contiguous(memory_format=torch.channels_last_3d))
        loss = loss_of(logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 25 == 24:
            print(f"training: step {step + 1} of {TRAINING_STEPS}, loss {loss.item():.3f}", flush=True)
    torch.save(net.state_dict(), path)
    return path


def _network(kind: str, classes: int) -> nn.Module:
    if kind == "monai":
        strides = [2] * (len(CHANNELS) - 1)
        return AttentionUnet(spatial_dims=3, in_channels=1, out_channels=classes, channels=CHANNELS, strides=strides)
    return AttentionUNet(in_channels=1, out_channels=classes, channels=CHANNELS, norm="batch")


def _adult(rng: np.random.Generator) -> Anatomy:
    child = draw_anatomy(rng)
    grown = {name: _grown(organ) for name, organ in child.organs.items()}
    return Anatomy(tuple(_grown(tissue) for tissue in child.surroundings), grown)


def _grown(tissue: Tissue) -> Tissue:
    return Tissue(tissue.solid.tilted(np.eye(3), ADULT), tissue.mean_hu)


def _phantom(
    anatomy: Anatomy,
    affine: Affine,
    shape: tuple[int, int, int],
    coarser: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Render a volume centred on the patient at a coarser grid, enlarge it, and add noise of its own voxels."""
    small = tuple(math.ceil(n / factor) for n, factor in zip(shape, coarser, strict=True))
    coarse = affine @ np.diag([*coarser, 1.0])
    coarse[:3, 3] = -coarse[:3, :3] @ (np.array(small) - 1) / 2
    grid = Grid((small[0], small[1], small[2]), coarse)
    image_hu, _ = render(anatomy, grid, rng)
    labels = _labels(anatomy, grid)
    size = tuple(n * factor for n, factor in zip(small, coarser, strict=True))
    fine_hu = F.interpolate(torch.from_numpy(image_hu)[None, None].float(), size=size, mode="trilinear")[0, 0].numpy()
    fine_labels = F.interpolate(torch.from_numpy(labels)[None, None], size=size)[0, 0].numpy()
    inside = tuple(slice(n) for n in shape)
    voxels = np.empty(shape, np.int16)
    for plane, clean in zip(voxels, fine_hu[inside], strict=True):
        noisy = clean + NOISE_HU * rng.standard_normal(clean.shape, dtype=np.float32)
        plane[...] = np.rint(noisy.clip(-1024, 3071))
    return voxels, np.ascontiguousarray(fine_labels[inside])


def _labels(anatomy: Anatomy, grid: Grid) -> npt.NDArray[np.uint8]:
    """Say what each voxel is by the mean of its tissue; air, gas, bowel and muscle are background."""
    centres_mm = apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1)).astype(np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    liver = anatomy.organs["liver"]
    for tissue in (*anatomy.surroundings, *anatomy.organs.values()):
        bounds_hu = (-200.0, FAT_HU, ENHANCING_HU, BONE_HU)
        named = ("background", "fat", "background", "enhancing", "bone")[bisect(bounds_hu, tissue.mean_hu)]
        labels[tissue.solid.level(centres_mm) <= 1] = LABELS.index("liver" if tissue is liver else named)
    return labels


@dataclass(frozen=True, eq=False)
class _Example:
    """A training volume.

    Args:
        image: (1, i, j, k) as the network sees it.
        labels: (1, i, j, k).
        places: some voxels of each class, (n, 3).
    """

    image: torch.Tensor
    labels: torch.Tensor
    places: tuple[npt.NDArray[np.int64], ...]

    def patches(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut a batch (BATCH, 1, n, n, n) around voxels of classes in turn; one alone loses its mean there."""
        cuts = []
        for number in range(BATCH):
            centre = rng.choice(self.places[number % len(LABELS)])
            start = centre - PATCH_VOX // 2 + rng.integers(-8, 9, size=3)
            start = start.clip(0, np.array(self.labels.shape[1:]) - PATCH_VOX)
            cuts.append((slice(None), *(slice(n, n + PATCH_VOX) for n in start.tolist())))
        return torch.stack([self.image[cut] for cut in cuts]), torch.stack([self.labels[cut] for cut in cuts])


def _training_volume(rng: np.random.Generator) -> _Example:
    affine = np.diag([NETWORK_MM, NETWORK_MM, NETWORK_MM, 1.0])
    image_hu, labels = _phantom(_adult(rng), affine, (256, 256, 208), (2, 2, 2), rng)
    places = tuple(np.argwhere(labels == value)[::101] for value in range(len(LABELS)))
    return _Example(window(torch.from_numpy(image_hu)[None], LOW_HU, HIGH_HU), torch.from_numpy(labels)[None], places)
