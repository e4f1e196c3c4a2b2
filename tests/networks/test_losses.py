"""Losses against their formulas, and that they pull where they should."""

import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceFocalLoss, DiceLoss
from torch import nn
from torch.nn import functional as F

from voxelgate.networks import GatedLogits, GuidedOutput
from voxelgate.networks.losses import BCEDiceLoss, NetworkLoss, gate_loss, guided_loss

SEGMENTATION = DiceCELoss(softmax=True, to_onehot_y=True)


def logits(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def labels(*size: int, classes: int = 3) -> torch.Tensor:
    return torch.randint(classes, (2, 1, *size), generator=torch.Generator().manual_seed(9)).float()


# --- cross-entropy and Dice -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 6), (5, 6, 4)])
def test_bce_and_dice_are_their_formulas_with_the_smoothing_in_both_parts(size: tuple[int, ...]) -> None:
    x, y, smooth = logits(*size), labels(*size), 1.0
    p = torch.sigmoid(x)
    truth = torch.stack([y[:, 0] == c for c in range(3)], dim=1).float()
    axes = tuple(range(2, x.ndim))
    dice = (2 * (p * truth).sum(axes) + smooth) / (p.sum(axes) + truth.sum(axes) + smooth)
    entropy = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    torch.testing.assert_close(BCEDiceLoss()(x, y), entropy + (1 - dice).mean())


def test_a_single_channel_is_a_mask() -> None:
    x, y = logits(5, 6)[:, :1], labels(5, 6, classes=2)
    expected = F.binary_cross_entropy_with_logits(x, y) + DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1)(x, y)
    torch.testing.assert_close(BCEDiceLoss()(x, y), expected)


def test_with_the_smoothing_an_absent_class_costs_nothing_once_it_is_not_predicted() -> None:
    x, y = torch.full((1, 2, 8, 8), -30.0), torch.zeros(1, 1, 8, 8)
    x[:, 0] = 30
    assert BCEDiceLoss()(x, y) == pytest.approx(0, abs=1e-6)


# --- whatever a network returns -------------------------------------------------------------------------------------


def test_one_loss_takes_logits_and_lists_of_them() -> None:
    y, levels = labels(8, 8), [logits(8, 8), logits(4, 4, seed=1)]
    assert NetworkLoss(SEGMENTATION)(levels[0], y) == SEGMENTATION(levels[0], y)
    assert NetworkLoss(SEGMENTATION)(levels, y) == DeepSupervisionLoss(SEGMENTATION)(levels, y)


def test_gated_logits_cost_the_segmentation_and_a_part_of_the_gates() -> None:
    y, levels, maps = labels(8, 8), [logits(8, 8)], [torch.rand(2, 1, 8, 8), torch.rand(2, 1, 4, 4)]
    loss = NetworkLoss(SEGMENTATION, attention_weight=0.3)(GatedLogits(levels, maps), y)
    torch.testing.assert_close(loss, SEGMENTATION(levels[0], y) + 0.3 * gate_loss(maps, y))


def test_guided_output_costs_the_sum_of_its_parts() -> None:
    y, predictions = labels(8, 8), [logits(8, 8, seed=n) for n in range(8)]
    pairs = [(torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)) for _ in range(4)]
    loss = NetworkLoss(SEGMENTATION, guide_weight=0.5, reconstruction_weight=0.2)
    expected = sum(SEGMENTATION(p, y) for p in predictions)
    expected += 0.5 * sum(F.mse_loss(a, b) for a, b in pairs[:3]) + 0.2 * F.mse_loss(*pairs[3])
    torch.testing.assert_close(loss(GuidedOutput(predictions, pairs[:3], pairs[3:]), y), expected)


@pytest.mark.parametrize("loss", [SEGMENTATION, BCEDiceLoss(), DiceFocalLoss(softmax=True, to_onehot_y=True)], ids=str)
def test_every_loss_of_logits_fits_and_falls_with_better_logits(loss: nn.Module) -> None:
    y = labels(6, 5, 4)
    good = 4 * F.one_hot(y[:, 0].long(), 3).movedim(-1, 1).float()
    bad = logits(6, 5, 4).requires_grad_()
    value = NetworkLoss(loss)(bad, y)
    assert NetworkLoss(loss)(good, y) < value
    value.backward()
    assert bad.grad is not None
    assert bad.grad.isfinite().all()


# --- gates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(9, 8), (9, 8, 7)])
def test_gates_are_compared_with_the_part_of_each_voxel_that_is_foreground(size: tuple[int, ...]) -> None:
    y = labels(*size)
    half = tuple(-(-n // 2) for n in size)
    maps = [torch.rand(2, 1, *size), torch.rand(2, 1, *half)]
    shrink = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
    truths = [(y > 0).float(), shrink((y > 0).float(), half)]
    expected = sum(F.binary_cross_entropy(a, t) for a, t in zip(maps, truths, strict=True)) / 2
    torch.testing.assert_close(gate_loss(maps, y), expected)


def test_supervised_gates_open_on_the_foreground() -> None:
    y = torch.zeros(1, 1, 8, 8)
    y[..., :4] = 2
    psi = torch.zeros(1, 1, 4, 4, requires_grad=True)
    for _ in range(20):
        (gradient,) = torch.autograd.grad(gate_loss([torch.sigmoid(psi)], y), psi)
        psi = (psi - 20 * gradient).detach().requires_grad_()
    assert (torch.sigmoid(psi[..., :2]) > 0.8).all()
    assert (torch.sigmoid(psi[..., 2:]) < 0.2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_closed_and_open_gates_give_finite_gradients(dtype: torch.dtype) -> None:
    alpha = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=dtype).reshape(1, 1, 2, 2).requires_grad_()
    loss = gate_loss([alpha], torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2))
    loss.backward()
    assert loss.isfinite()
    assert alpha.grad is not None
    assert alpha.grad.isfinite().all()


def test_without_gates_there_is_nothing_to_supervise() -> None:
    assert gate_loss([], labels(4, 4)) == 0


def test_the_guided_loss_is_zero_only_for_equal_pairs() -> None:
    a = torch.randn(2, 3, 4, 4)
    assert guided_loss([(a, a), (a, a)]) == 0
    torch.testing.assert_close(guided_loss([(a, a + 2), (a, a)]), torch.tensor(4.0))
