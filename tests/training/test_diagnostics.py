"""Watching a real training: what is written for TensorBoard, and what is said when gradients, gates or losses fail."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from voxelgate.networks import AttentionUNet
from voxelgate.networks.losses import NetworkLoss
from voxelgate.training.diagnostics import GateValues, TrainingHealth, WatchTraining, layer_gradients

Batch = dict[str, Any]
Train = Callable[..., None]


def batch(*cases: str, seed: int = 0) -> Batch:
    image = torch.randn(len(cases), 1, 9, 8, generator=torch.Generator().manual_seed(seed))
    return {"image": image, "label": (image > 0).float(), "case_id": list(cases)}


def network(**arguments: Any) -> AttentionUNet:
    torch.manual_seed(0)
    sizes = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8, 8)}
    return AttentionUNet(**sizes | arguments)


@pytest.fixture
def train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Train:
    """Run MONAI's trainer over batches, watched at every step."""

    def run(net: nn.Module, batches: list[Batch], **arguments: Any) -> None:
        watch = WatchTraining(network=net, log_dir=tmp_path, **{"interval": 1} | arguments)
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=batches,
            network=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=1e-3),
            loss_function=NetworkLoss(DiceCELoss(softmax=True, to_onehot_y=True)),
            train_handlers=[watch],
            decollate=False,
        )
        with caplog.at_level(logging.WARNING, logger="voxelgate.training.diagnostics"):
            trainer.run()

    return run


# --- a training -----------------------------------------------------------------------------------------------------


def test_a_healthy_training_is_written_down_and_not_warned_of(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = network(deep_supervision=1, checkpointing=True)
    train(net, [batch("a", "b", seed=n) for n in range(12)], interval=3)
    assert caplog.messages == []
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"gradient_norm", "gradient/encoder.0.0", "gradient/heads.0", "gate_mean/decoder.1.gate"} <= tags
    assert {tag for tag in tags if tag.startswith("gate_range/")} == {f"gate_range/decoder.{n}.gate" for n in (0, 1)}
    assert [event.step for event in events.Scalars("gradient_norm")] == [3, 6, 9, 12]
    assert all(0 < event.value < 1 for event in events.Scalars("gate_mean/decoder.0.gate"))
    assert not any(module._forward_hooks for module in net.modules())


def test_dead_gates_are_named_once_each(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    nn.init.constant_(net.gates[0].psi[0].bias, 30.0)
    train(net, [batch("a", "b")] * 15)
    (message,) = [message for message in caplog.messages if " is dead, " in message]
    assert message.startswith("step 10: decoder.1.gate is dead, its coefficients lie between 1.000 and 1.000")


def test_a_layer_that_gets_no_gradient_is_named_once(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    net = network(attention=False)
    closed = net.decoder[1].block[0].weight  # what lies in front of it gets nothing
    closed.requires_grad_(requires_grad=False).zero_()
    train(net, [batch("a", "b")] * 15)
    vanished = {message.split(" vanishes")[0] for message in caplog.messages}
    assert "step 10: the gradient of decoder.0.block.0" in vanished
    assert all("heads" not in message for message in vanished)
    assert len(vanished) == len(caplog.messages)


def test_a_leap_of_the_gradients_is_told(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    net = network(norm="none")
    leap = batch("a", "b")
    leap["image"] = leap["image"] * 1e6
    train(net, [batch("a", "b", seed=n) for n in range(11)] + [leap])
    assert any("step 12: the gradients explode, norm" in message for message in caplog.messages)


# --- no number ------------------------------------------------------------------------------------------------------


def messages_of(train: Train, caplog: pytest.LogCaptureFixture, net: nn.Module, bad: Batch) -> str:
    train(net, [batch("a", "b"), bad])
    return caplog.messages[0]


def test_an_image_that_is_no_number_is_named(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    bad = batch("c", "d", "e")
    bad["image"][1, 0, 3, 3] = torch.nan
    message = messages_of(train, caplog, network(), bad)
    assert message.startswith("step 2: the loss is no number; the images of d have voxels that are NaN or infinite")


def test_a_case_whose_own_loss_is_no_number_is_named(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    bad = batch("c", "d", "e")
    bad["image"][2] *= 1e38  # finite, but not behind a convolution; batch norm then spoils all cases
    message = messages_of(train, caplog, network(), bad)
    assert message.startswith("step 2: the loss is no number; e made it: look at image and label")


def test_weights_that_are_no_numbers_are_not_blamed_on_the_cases(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    net = network()
    net.heads[0].weight.data[0] = torch.inf
    message = messages_of(train, caplog, net, batch("c"))
    assert "step 1: the loss is no number; the weights have been none since an earlier step" in message


class RootOfNothing(nn.Module):
    """Finite everywhere; its slope is not, where the image is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat((torch.sqrt(self.scale * image.abs()), image), dim=1)


def test_a_gradient_that_is_no_number_is_told_with_the_cases_of_its_step(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    bad = batch("c", "d")
    bad["image"][0, 0, 0, 0] = 0
    message = messages_of(train, caplog, RootOfNothing(), bad)
    assert message.startswith("step 2: the gradient of RootOfNothing is infinite or no number, on c, d; look at these")


def test_cases_without_a_name_are_counted(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    bad = batch("c", "d")
    del bad["case_id"]
    bad["image"][1] = torch.inf
    assert "the images of case 1 of the batch" in messages_of(train, caplog, network(), bad)


# --- judgement ------------------------------------------------------------------------------------------------------


def test_a_sign_counts_only_when_it_lasts() -> None:
    health = TrainingHealth(patience=3)
    dead, alive = {"gate": GateValues(0.5, 0.5, 0.5)}, {"gate": GateValues(0.2, 0.5, 0.8)}
    said = [bool(health.of_gates(gate)) for gate in (dead, dead, alive, dead, dead, dead, dead)]
    assert said == [False, False, False, False, False, True, False]


def test_a_norm_that_grows_slowly_is_no_explosion() -> None:
    health = TrainingHealth(patience=5)
    assert not any(health.of_gradients({"layer": 1.0}, 1.2**step) for step in range(40))
    assert health.of_gradients({"layer": 1.0}, 1e9)


def test_the_gradient_of_a_layer_is_the_root_of_its_mean_square() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    net[2].weight.requires_grad_(requires_grad=False)
    net[2].bias.requires_grad_(requires_grad=False)
    assert layer_gradients(net) == {"0": 0.0}
    net[0].weight.grad, net[0].bias.grad = torch.full((2, 3), 3.0), torch.full((2,), 1.0)
    assert layer_gradients(net) == {"0": pytest.approx(((6 * 9 + 2) / 8) ** 0.5)}
    assert layer_gradients(nn.ReLU()) == {}
