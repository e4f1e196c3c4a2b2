"""What MONAI's losses lack: binary cross-entropy of several classes with Dice, and the aims of supervised attention.

Dice, cross-entropy, focal and deep supervision are MONAI's own: `DiceCELoss`, `DiceFocalLoss`, `DeepSupervisionLoss`.
"""

import torch
from monai.losses import DeepSupervisionLoss, DiceLoss
from monai.networks import one_hot
from torch import nn
from torch.nn import functional as F

from voxelgate.networks import GatedLogits, GuidedOutput

ATTENTION_WEIGHT = 0.1
"""Of the supervision of gates, against 1 for the segmentation."""

GUIDE_WEIGHT = 0.25
RECONSTRUCTION_WEIGHT = 0.1
"""Of guided and reconstruction loss, against 1 for the segmentation (arXiv:1906.02849, section 4)."""

CERTAIN = 1e-6
"""Gates count as open or closed up to this, so that the logarithm and its slope stay finite."""

Output = torch.Tensor | list[torch.Tensor] | GatedLogits | GuidedOutput
"""What the networks of this package return while training."""


class BCEDiceLoss(nn.Module):
    """Binary cross-entropy of every class plus soft Dice with a smoothing term, both of sigmoids.

    `mean(BCE) + mean(1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s))`, the sums over the voxels of one image and class.
    `DiceCELoss(sigmoid=True)` of MONAI takes the softmax cross-entropy as soon as there are two channels.

    Args:
        smooth: `s`, voxels; with 1 a class that is absent and not predicted costs nothing.
        include_background: whether the Dice of the first class counts.

    >>> loss = vg.BCEDiceLoss()
    >>> bool(loss(torch.zeros(1, 2, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)) > 0)
    True
    """

    def __init__(self, *, smooth: float = 1.0, include_background: bool = True) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, smooth_nr=smooth, smooth_dr=smooth, include_background=include_background)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (B, classes, i, j[, k]) and label values (B, 1, i, j[, k])."""
        truth = one_hot(target, logits.shape[1], dtype=logits.dtype) if logits.shape[1] > 1 else target.to(logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits, truth)
        dice: torch.Tensor = self.dice(logits, truth)
        return entropy + dice


class CountedVoxels(nn.Module):
    """A segmentation loss of the voxels that somebody labelled; those with a value below 0 are left out.

    Where all are labelled it is the loss itself. Otherwise each image is taken alone, as a row of its voxels, or, for
    a Dice over the whole batch, all images together.

    Args:
        loss: of logits (B, classes, ...) and label values (B, 1, ...).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.is_of_batch = bool(getattr(getattr(loss, "dice", loss), "batch", False))

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (B, classes, i, j[, k]) and label values (B, 1, i, j[, k])."""
        counts = target >= 0
        loss: torch.Tensor
        if bool(counts.all()):
            loss = self.loss(logits, target)
            return loss
        rows = [
            (one[:, where], truth[:, where])
            for one, truth, where in zip(logits, target, counts[:, 0], strict=True)
            if bool(where.any())
        ]
        if not rows:
            return logits.sum() * 0.0
        if self.is_of_batch:
            rows = [(torch.cat([one for one, _ in rows], dim=1), torch.cat([truth for _, truth in rows], dim=1))]
        return torch.stack([self.loss(one[None], truth[None]) for one, truth in rows]).mean()


class NetworkLoss(nn.Module):
    """The loss of whatever a network of this package returns while training, so that a config may exchange networks.

    Logits: the segmentation loss. A list of them: deep supervision with halving weights. `GatedLogits`: both, and the
    supervision of the gates. `GuidedOutput`: the sum over its predictions, and the guided and the reconstruction loss.

    Args:
        loss: of logits (B, classes, i, j[, k]) and label values (B, 1, i, j[, k]).
        attention_weight: of the supervision of the gates.
        guide_weight: of the guided loss.
        reconstruction_weight: of the reconstruction loss.

    >>> loss = vg.NetworkLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    >>> bool(loss(torch.zeros(1, 2, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)) > 0)
    True
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        attention_weight: float = ATTENTION_WEIGHT,
        guide_weight: float = GUIDE_WEIGHT,
        reconstruction_weight: float = RECONSTRUCTION_WEIGHT,
    ) -> None:
        super().__init__()
        self.supervised = DeepSupervisionLoss(CountedVoxels(loss))
        self.attention_weight = attention_weight
        self.guide_weight = guide_weight
        self.reconstruction_weight = reconstruction_weight

    def forward(self, output: Output, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of one batch.

        Args:
            output: of the network.
            target: label values, (B, 1, i, j[, k]); voxels below 0 do not count.
        """
        loss: torch.Tensor
        if isinstance(output, GatedLogits):
            loss = self.supervised(output.logits, target)
            return loss + self.attention_weight * gate_loss(output.maps, target)
        if isinstance(output, GuidedOutput):
            predictions = torch.stack([self.supervised(logits, target) for logits in output.predictions])
            guided = self.guide_weight * guided_loss(output.latents)
            return predictions.sum() + guided + self.reconstruction_weight * guided_loss(output.reconstructions)
        loss = self.supervised(output, target)
        return loss


def gate_loss(maps: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of gate maps with the part of each of their voxels that is foreground.

    Args:
        maps: alpha of each gate, (B, 1, ...) in 0..1, at sizes up to that of `target`.
        target: label values, (B, 1, i, j[, k]); all above 0 are foreground, those below 0 are left out.
    """
    foreground, counts = (target > 0).float(), (target >= 0).float()
    shrink = F.adaptive_avg_pool2d if target.ndim == 4 else F.adaptive_avg_pool3d
    losses = []
    for alpha in maps:
        truth = shrink(foreground, alpha.shape[2:])  # type: ignore[arg-type]  # a size, of 2 or of 3 numbers
        certain = alpha.float().clamp(CERTAIN, 1 - CERTAIN)
        entropy = -(truth * certain.log() + (1 - truth) * (1 - certain).log())
        weights = shrink(counts, alpha.shape[2:])  # type: ignore[arg-type]  # as above
        losses.append((entropy * weights).sum() / weights.sum().clamp(min=1))
    return torch.stack(losses).mean() if losses else foreground.new_zeros(())


def guided_loss(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the sum over pairs of their mean squared difference: encodings, or features and their reconstruction."""
    return torch.stack([F.mse_loss(one.float(), other.float()) for one, other in pairs]).sum()
