"""Runtimes are chosen by what was measured, refused where they disagree, and never used unchecked."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from voxelgate.core.errors import InputError, UsageError
from voxelgate.inference.runtimes import calibration as calibration_module
from voxelgate.inference.runtimes.agreement import (
    MIN_DICE,
    MIN_STRUCTURE_VOXELS,
    SMALL_VOX,
    Agreement,
    Evidence,
    central_patch,
)
from voxelgate.inference.runtimes.calibration import (
    MUST_GAIN,
    Calibration,
    CalibrationPlace,
    RuntimeTrial,
    cache_folder,
    calibrate,
    checked,
    fastest,
    place_of,
    streaming_ways,
    window_ways,
)
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.inference.runtimes.runtimes import Network
from voxelgate.networks import AttentionUNet

CPU = torch.device("cpu")
SAME = Agreement(difference=1e-7, dice=(1.0, 1.0), structure_voxels=5000)
Change = Callable[[torch.Tensor], torch.Tensor]


class Threshold(nn.Module):
    """Class 1 where the image is above 0; slow on request."""

    def __init__(self, wait_s: float = 0.0) -> None:
        super().__init__()
        self.wait_s = wait_s
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        time.sleep(self.wait_s)
        return torch.cat((-image, image), dim=1)


def patch_with(structure_voxels: int, side: int = 16) -> torch.Tensor:
    flat = torch.full((side**3,), -1.0)
    flat[:structure_voxels] = 1.0
    return flat.reshape(1, 1, side, side, side)


@pytest.fixture
def evidence() -> Evidence:
    return Evidence(Threshold().eval(), (patch_with(2000),))


def changed(change: Change, wait_s: float = 0.0) -> Network:
    network = Threshold(wait_s)
    return lambda image: change(network(image))


def flipped(voxels: int) -> Change:
    """Let as many voxels of the structure become background."""

    def change(logits: torch.Tensor) -> torch.Tensor:
        turned = logits.clone()
        turned.flatten(2)[:, :, :voxels] *= -1
        return turned

    return change


def test_a_patch_is_cut_from_the_middle_and_never_padded() -> None:
    image = torch.arange(6.0 * 5 * 4).reshape(1, 1, 6, 5, 4)
    assert torch.equal(central_patch(image, (2, 9, 3)), image[:, :, 2:4, :, 0:3])


def trial(runtime: Runtime, gain: float, *, setup_s: float = 0.0, objection: str = "") -> RuntimeTrial:
    return RuntimeTrial(runtime, setup_s, 1 / gain, gain, SAME, objection)


def calibration(*others: RuntimeTrial) -> Calibration:
    return Calibration((1, 1, 16, 16, 16), (trial(Runtime.EAGER, 1.0), *others), {Runtime.OPENVINO: "absent"})


def test_every_class_and_every_patch_must_agree() -> None:
    patches = (patch_with(2000), patch_with(1500))
    evidence = Evidence(Threshold().eval(), patches)
    agreement = evidence.compare(changed(flipped(10)))
    assert agreement.dice[1] == pytest.approx(2 * 1490 / (1490 + 1500), abs=1e-12)
    assert agreement.dice[0] == pytest.approx(2 * 2096 / (2096 + 2106), abs=1e-12)
    assert agreement.structure_voxels == 1500
    assert agreement.difference == pytest.approx(1.0)  # from one end of the range to the other


def test_a_class_that_neither_shows_agrees() -> None:
    evidence = Evidence(Threshold().eval(), (patch_with(0),))
    assert evidence.compare(Threshold()).dice == (1.0, 1.0)


def test_overlapping_regions_are_compared_one_by_one() -> None:
    evidence = Evidence(Threshold().eval(), (patch_with(2000),), are_regions=True)

    def one_region_larger(image: torch.Tensor) -> torch.Tensor:
        logits = Threshold()(image)
        logits[:, 1] = 1.0
        return logits

    agreement = evidence.compare(one_region_larger)
    assert agreement.dice == pytest.approx((1.0, 2 * 2000 / (2000 + 4096)))
    assert agreement.structure_voxels == 4096


@pytest.mark.parametrize(("voxels", "is_refused"), [(0, False), (3, False), (5, True), (200, True)])
def test_labels_below_the_least_dice_are_refused(evidence: Evidence, voxels: int, is_refused: bool) -> None:
    objection = evidence.compare(changed(flipped(voxels))).objection(MIN_DICE, is_float32=False)
    assert bool(objection) is is_refused
    assert objection.startswith("Dice 0.9") is is_refused


def test_float32_logits_must_agree_even_where_labels_do(evidence: Evidence) -> None:
    agreement = evidence.compare(changed(lambda logits: logits * 1.01))
    assert "logits differ by 5.0e-03 of their range" in agreement.objection(MIN_DICE, is_float32=True)
    assert not agreement.objection(MIN_DICE, is_float32=False)


def test_a_patch_without_structures_is_no_evidence_for_reduced_precision() -> None:
    few = Evidence(Threshold().eval(), (patch_with(MIN_STRUCTURE_VOXELS - 1),)).compare(Threshold())
    assert "999 voxels of structures proves nothing" in few.objection(MIN_DICE, is_float32=False)
    assert not few.objection(MIN_DICE, is_float32=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(evidence: Evidence, value: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        evidence.compare(changed(lambda logits: logits + value))


def test_logits_of_another_shape_are_refused(evidence: Evidence) -> None:
    with pytest.raises(InputError, match=r"logits of shape \(1, 2, 15, 16, 16\), expected \(1, 2, 16, 16, 16\)"):
        evidence.compare(changed(lambda logits: logits[:, :, 1:]))


def test_evidence_needs_patches_of_one_shape_and_a_network_that_does_not_train() -> None:
    with pytest.raises(InputError, match="0 patches"):
        Evidence(Threshold().eval(), ())
    with pytest.raises(InputError, match="2 patches of shapes"):
        Evidence(Threshold().eval(), (patch_with(9), patch_with(9, side=8)))
    with pytest.raises(UsageError, match=r"call eval\(\)"):
        Evidence(Threshold().train(), (patch_with(9),))


def test_the_reference_is_float32_whatever_the_caller_casts_to() -> None:
    network = nn.Conv3d(1, 2, 3, padding=1).eval()
    evidence = Evidence(network, (torch.randn(1, 1, 8, 8, 8),))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evidence.references[0].dtype is torch.float32


def test_a_fast_runtime_with_wrong_labels_is_timed_and_refused(evidence: Evidence) -> None:
    ways = {
        Runtime.EAGER: lambda: Threshold(0.02),
        Runtime.BFLOAT16: lambda: changed(flipped(100)),
        Runtime.FOLDED: lambda: Threshold(0.005),
    }
    found = calibrate(ways, evidence)
    eager, wrong, right = found.trials
    assert (eager.objection, right.objection) == ("", "")
    assert "Dice 0.9744 of class 1" in wrong.objection
    assert wrong.gain > MUST_GAIN
    assert found.best() is right
    assert "| folded |" in str(found)
    assert "| best |" in str(found)


def test_what_cannot_run_is_recorded_with_its_reason(evidence: Evidence) -> None:
    def broken() -> Network:
        raise RuntimeError("no such operator.\nlong story")

    found = calibrate({Runtime.EAGER: Threshold, Runtime.OPENVINO: broken}, evidence)
    assert found.unavailable == {Runtime.OPENVINO: "no such operator"}
    assert found.best().runtime is Runtime.EAGER
    assert "| openvino | - |" in str(found)


def test_eager_that_cannot_run_ends_the_calibration(evidence: Evidence) -> None:
    with pytest.raises(InputError, match="not finite"):
        calibrate({Runtime.EAGER: lambda: changed(lambda logits: logits / 0)}, evidence)


def test_a_small_gain_is_taken_for_noise() -> None:
    assert calibration(trial(Runtime.FOLDED, MUST_GAIN - 0.01)).best().runtime is Runtime.EAGER
    assert calibration(trial(Runtime.FOLDED, MUST_GAIN + 0.01)).best().runtime is Runtime.FOLDED


def test_what_is_refused_is_never_the_best() -> None:
    found = calibration(trial(Runtime.BFLOAT16, 9.0, objection="Dice 0.99"), trial(Runtime.FOLDED, 1.2))
    assert found.best().runtime is Runtime.FOLDED


@pytest.mark.parametrize(
    ("passes", "runtime"),
    [(1, Runtime.EAGER), (5, Runtime.EAGER), (20, Runtime.OPENVINO), (1000, Runtime.COMPILED)],
)
def test_a_runtime_must_pay_for_its_setup_and_check(passes: int, runtime: Runtime) -> None:
    found = calibration(trial(Runtime.OPENVINO, 2.0, setup_s=2.0), trial(Runtime.COMPILED, 2.5, setup_s=30.0))
    assert found.best_for(passes).runtime is runtime


def test_without_a_calibration_or_folding_eager_runs_at_no_cost(evidence: Evidence) -> None:
    runtime, _ = fastest({Runtime.EAGER: Threshold}, evidence, None, passes=10**6)
    assert runtime is Runtime.EAGER
    assert isinstance(evidence.network, Threshold)
    assert evidence.network.calls == 0


def test_without_a_calibration_folded_runs_after_a_look_at_a_small_patch() -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(Threshold):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(image.shape))
            return super().forward(image)

    evidence = Evidence(Watched().eval(), (patch_with(0, side=40),))
    ways = {Runtime.EAGER: Threshold, Runtime.FOLDED: Threshold}
    runtime, _ = fastest(ways, evidence, None, passes=1)
    assert runtime is Runtime.FOLDED
    assert seen == [(1, 1, 40, *SMALL_VOX[1:])]
    ways[Runtime.FOLDED] = lambda: changed(flipped(100))
    runtime, _ = fastest(ways, evidence, None, passes=1)
    assert runtime is Runtime.EAGER


def test_a_promise_that_holds_is_used(evidence: Evidence) -> None:
    ways = {Runtime.EAGER: Threshold, Runtime.FOLDED: Threshold}
    runtime, _ = fastest(ways, evidence, calibration(trial(Runtime.FOLDED, 3.0)), passes=100)
    assert runtime is Runtime.FOLDED


def test_a_promise_that_no_longer_holds_is_not_used(evidence: Evidence, caplog: pytest.LogCaptureFixture) -> None:
    ways = {Runtime.EAGER: Threshold, Runtime.FOLDED: lambda: changed(flipped(100))}
    with caplog.at_level(logging.WARNING):
        runtime, run = fastest(ways, evidence, calibration(trial(Runtime.FOLDED, 3.0)), passes=100)
    assert runtime is Runtime.EAGER
    assert torch.equal(run(evidence.patches[0]), evidence.references[0])
    assert "runtime folded is refused: Dice 0.9744" in caplog.text


def test_a_runtime_asked_for_is_refused_if_it_disagrees_or_does_not_run(evidence: Evidence) -> None:
    def broken() -> Network:
        raise RuntimeError("no such operator")

    ways = {Runtime.EAGER: Threshold, Runtime.BFLOAT16: lambda: changed(flipped(100)), Runtime.OPENVINO: broken}
    with pytest.raises(UsageError, match=r"bfloat16 is refused: Dice 0\.9744 of class 1"):
        checked(ways, Runtime.BFLOAT16, evidence)
    with pytest.raises(UsageError, match=r"openvino cannot be used here \(no such operator\)"):
        checked(ways, Runtime.OPENVINO, evidence)
    with pytest.raises(UsageError, match="choose of eager, bfloat16, openvino"):
        checked(ways, Runtime.ONNX, evidence)


@pytest.fixture
def unet() -> nn.Module:
    torch.manual_seed(0)
    return AttentionUNet(in_channels=1, out_channels=3, channels=(4, 8)).eval()


def test_a_real_network_is_calibrated_from_end_to_end(unet: nn.Module) -> None:
    patch = torch.randn(1, 1, 16, 16, 16)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    cheap = (Runtime.FOLDED, Runtime.BFLOAT16)
    found = calibrate(window_ways(unet, patch, candidates=cheap), Evidence(unet, (patch,)))
    assert [one.runtime for one in found.trials] == [Runtime.EAGER, *cheap]
    assert not any(one.objection for one in found.trials[:2])
    assert all("Dice" in one.objection for one in found.trials[2:])  # random weights: classes are close
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("axis", [0, 2])
def test_streaming_is_checked_in_the_same_way(unet: nn.Module, axis: int) -> None:
    patch = torch.randn(1, 1, 12, 10, 14)
    found = calibrate(streaming_ways(unet, axis), Evidence(unet, (patch,)))
    in_float32, in_bfloat16 = found.trials
    assert in_float32.agreement.dice == (1.0, 1.0, 1.0)
    assert not in_float32.objection
    assert "Dice" in in_bfloat16.objection


@pytest.fixture
def place(tmp_path: Path) -> CalibrationPlace:
    return place_of("abc", (1, 1, 16, 16, 16), CPU, way="windows", folder=tmp_path / "cache")


def test_what_was_kept_is_found_again(place: CalibrationPlace) -> None:
    kept = calibration(trial(Runtime.FOLDED, 1.5), trial(Runtime.BFLOAT16, 2.0, objection="Dice 0.9975"))
    assert place.load() is None
    place.save(kept)
    assert place.load() == kept
    assert [path.name for path in place.folder.iterdir()] == [place.calibration.name]


def test_a_calibration_that_names_a_runtime_of_an_earlier_version_is_measured_again(place: CalibrationPlace) -> None:
    place.save(calibration(trial(Runtime.FOLDED, 1.5)))
    text = place.calibration.read_text(encoding="utf-8")
    place.calibration.write_text(text.replace('"folded"', '"bfloat16_inner"'), encoding="utf-8")
    assert place.load() is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '{"circumstances": {}}', '{"circumstances": {}, "calibration": {}}', "\x00\xff"],
)
def test_a_damaged_file_is_no_calibration(place: CalibrationPlace, content: str) -> None:
    place.save(calibration())
    place.calibration.write_bytes(content.encode("latin-1"))
    assert place.load() is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", None), ("trials", []), ("trials", [{}]), ("trials", "eager"), ("unavailable", {"warp": "x"})],
)
def test_a_record_with_a_wrong_value_is_no_calibration(place: CalibrationPlace, key: str, value: object) -> None:
    place.save(calibration())
    record = json.loads(place.calibration.read_text())
    record["calibration"][key] = value
    place.calibration.write_text(json.dumps(record))
    assert place.load() is None


def test_a_calibration_that_does_not_begin_with_eager_is_none() -> None:
    with pytest.raises(ValueError, match="begins with eager"):
        Calibration((1,), (trial(Runtime.FOLDED, 2.0),), {})


def test_a_file_of_other_circumstances_is_no_calibration(place: CalibrationPlace) -> None:
    foreign = replace(place, circumstances={**place.circumstances, "torch": "0.1"})
    foreign.save(calibration())
    foreign.calibration.rename(place.calibration)
    assert place.load() is None


def test_network_shape_way_and_threads_each_have_a_place_of_their_own(place: CalibrationPlace) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        other_threads = place_of("abc", (1, 1, 16, 16, 16), CPU, way="windows", folder=place.folder)
    finally:
        torch.set_num_threads(threads)
    others = [
        place_of("abd", (1, 1, 16, 16, 16), CPU, way="windows", folder=place.folder),
        place_of("abc", (1, 1, 16, 16, 32), CPU, way="windows", folder=place.folder),
        place_of("abc", (1, 1, 16, 16, 16), CPU, way="streaming 0", folder=place.folder),
        other_threads,
    ]
    names = {one.name for one in (place, *others)}
    assert len(names) == 5
    assert {path.stem for path in place.stored.values()} == {place.calibration.stem} == {place.name}
    assert len(set(place.stored.values())) == len(place.stored)


def test_the_processor_is_told_by_model_and_flags_alone(tmp_path: Path) -> None:
    table = tmp_path / "cpuinfo"

    def of(model: str, flags: str, mhz: str) -> str:
        table.write_text(
            f"processor\t: 0\nmodel name\t: {model}\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
        )
        return calibration_module._cpu(table)

    first = of("Xeon", "avx512f", "2000")
    assert of("Xeon", "avx512f", "2700") == first
    assert of("Xeon", "avx2", "2000") != first
    assert of("Epyc", "avx512f", "2000") != first
    assert calibration_module._cpu(tmp_path / "none")


def test_the_cache_lies_where_the_platform_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "voxelgate"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/to/be/ignored")
    assert cache_folder() == Path.home() / ".cache" / "voxelgate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "voxelgate"
