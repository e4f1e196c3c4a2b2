"""Windows that sweep along one axis give what MONAI's sliding window gives, and never hold more than a few slices."""

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.inference.memory import MemoryModel, available_bytes, check_memory, enlarged, measure_memory, narrowest
from voxelgate.inference.restoring.class_scores import ScoreKind
from voxelgate.inference.windows import Predictor, WindowPlan, body_box, sweep, widened, with_margin
from voxelgate.networks.describe import LiveMemory

AIR = -1.0


def swept(image: torch.Tensor, predict: Predictor, plan: WindowPlan, **changes: Any) -> torch.Tensor:
    """Return all slabs in one, and check that they follow each other."""
    parts, known = [], 0
    for start, scores in sweep(image, predict, plan, **changes):
        assert start == known
        known += scores.shape[1 + plan.axis]
        parts.append(scores)
    return torch.cat(parts, dim=1 + plan.axis)


def network(seed: int, classes: int = 3, channels: int = 1) -> Predictor:
    """Return a network that looks at neighbours and knows where in its window it is."""
    weight = torch.randn(classes, channels, 3, 3, 3, generator=torch.Generator().manual_seed(seed))

    def predict(windows: torch.Tensor) -> torch.Tensor:
        along = torch.linspace(-1, 1, windows.shape[2])[:, None, None] + torch.linspace(0, 3, windows.shape[4])
        return torch.nn.functional.conv3d(windows, weight, padding=1) + along

    return predict


SIZE = st.tuples(*[st.integers(1, 14)] * 3)
PLANS = st.builds(
    WindowPlan,
    size_vox=SIZE,
    window_vox=SIZE,
    overlap=st.floats(0, 0.9),
    axis=st.integers(0, 2),
    mode=st.sampled_from(["gaussian", "constant"]),
    batch=st.integers(1, 3),
)


@settings(max_examples=80, deadline=None)
@given(PLANS, st.integers(1, 2), st.booleans())
def test_any_windows_give_what_monai_gives(plan: WindowPlan, channels: int, is_cut: bool) -> None:
    image = torch.randn(1, channels, *plan.size_vox, generator=torch.Generator().manual_seed(sum(plan.size_vox)))
    predict = network(1, channels=channels)

    with pytest.MonkeyPatch.context() as patch:
        if is_cut:
            patch.setattr("voxelgate.inference.windows.PIECE_SCORES", 1)
        scores = swept(image, predict, plan)

    wanted = sliding_window_inference(image, plan.window_vox, plan.batch, predict, plan.overlap, plan.mode)[0]
    torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(PLANS, st.booleans(), st.integers(0, 2**31))
def test_windows_of_air_are_not_run_and_all_else_stays(plan: WindowPlan, is_averaged: bool, seed: int) -> None:
    size = plan.size_vox
    rng = torch.Generator().manual_seed(seed)
    image = torch.full((1, 1, *size), AIR)
    body = image[0, 0, size[0] // 2 :, : size[1] // 2 + 1, size[2] // 3 :]
    body[torch.rand(body.shape, generator=rng) < 0.3] = 1
    calls = []

    def predict(windows: torch.Tensor) -> torch.Tensor:
        """Say background where there is air, else class 1; as a network does that was trained to."""
        calls.append(windows)
        bright = (windows > AIR).float()
        scores = torch.cat((1 - bright, bright), dim=1)
        return scores if is_averaged else 20 * scores

    kind = ScoreKind(are_probabilities=is_averaged)
    skipped = swept(image, predict, plan, skip_below=AIR, kind=kind)
    run = [bool((window > AIR).any()) for batch in calls for window in batch]
    whole = swept(image, predict, plan, kind=kind)

    assert torch.isfinite(skipped).all()
    assert torch.equal(skipped.argmax(dim=0), whole.argmax(dim=0))
    bare = (whole[0] > 0) & (skipped != whole).any(dim=0)
    assert (skipped[0, bare] - skipped[1, bare] >= 1).all(), "what was not run is background for certain"
    assert all(run[1:]), "only the first window may hold nothing but air"


@settings(max_examples=60, deadline=None)
@given(SIZE, SIZE, SIZE, st.integers(0, 2**31), st.floats(0, 0.1), st.integers(0, 9))
def test_the_body_box_holds_the_body_and_is_as_large_as_asked(
    size: Any, window: Any, other: Any, seed: int, part: float, margin: int
) -> None:
    image = torch.full((1, 2, *size), AIR)
    is_body = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed)) < part
    image[is_body] = 3

    box = body_box(image, AIR)

    if not is_body.any():
        assert box is None
        return
    assert box is not None
    hits = is_body.any(dim=1)[0].nonzero()
    assert [span.start for span in box] == hits.amin(dim=0).tolist()
    assert [span.stop - 1 for span in box] == hits.amax(dim=0).tolist()
    padded, both_ways = (with_margin(box, size, margin, other, mirrored) for mirrored in ((), (0, 1, 2)))
    roomy = widened(padded, size, window, other)
    for body, far, mirrored, wide, n, step, least in zip(
        box, padded, both_ways, roomy, size, other, window, strict=True
    ):
        assert 0 <= wide.start <= far.start < far.stop <= wide.stop <= n
        assert wide.stop - wide.start >= min(least, n)
        assert wide.start % step == 0
        assert (wide.stop - wide.start - least) % step == 0 or wide.stop > n - step
        assert 0 <= far.start <= max(0, body.start - margin) < min(n, body.stop + margin) <= far.stop <= n
        assert far.start % step == 0
        assert far.stop - far.start > step or far.stop == n
        assert mirrored.start == far.start
        assert far.stop <= mirrored.stop <= n
        assert (n - mirrored.stop) % step == 0


def test_scores_of_few_slices_are_held_however_long_the_volume() -> None:
    peaks = []
    for slices in (64, 256):
        image, plan = torch.ones(1, 1, 6, 6, slices), WindowPlan((6, 6, slices), (6, 6, 16), 0.5)
        with LiveMemory() as memory:
            count = sum(scores.shape[3] for _, scores in sweep(image, lambda one: one.repeat(1, 4, 1, 1, 1), plan))
        assert count == slices
        peaks.append(memory.peak_bytes - image.nbytes)

    assert peaks[0] == peaks[1] < 4 * (4 * 6 * 6) * 256 / 3  # a third of the scores, four classes in float32


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_network_that_gives_no_numbers_or_another_shape_is_refused(wrong: float) -> None:
    image, plan = torch.ones(1, 1, 4, 4, 4), WindowPlan((4, 4, 4), (4, 4, 4))

    def broken(windows: torch.Tensor) -> torch.Tensor:
        scores = windows.repeat(1, 2, 1, 1, 1)
        scores[0, 1, 2, 2, 2] = wrong
        return scores

    def refusing(windows: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"too small: {windows.shape[4]}")

    with pytest.raises(BundleError, match="not finite"):
        swept(image, broken, plan)
    with pytest.raises(BundleError, match=r"gives \(1, 1, 4, 4, 3\) for windows \(1, 1, 4, 4, 4\)"):
        swept(image, lambda windows: windows[..., 1:], plan)
    with pytest.raises(InputError, match="cannot take this volume: too small: 4"):
        swept(image, refusing, plan)


@pytest.mark.parametrize(
    "wrong",
    [{"window_vox": (0, 4, 4)}, {"size_vox": (4, 4, 0)}, {"batch": 0}, {"overlap": 1.0}, {"mode": "x"}, {"axis": 3}],
    ids=str,
)
def test_wrong_plans_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        WindowPlan(**{"size_vox": (4, 4, 4), "window_vox": (2, 2, 2)} | wrong)


def test_the_first_axis_with_few_voxels_in_work_is_swept() -> None:
    assert narrowest(WindowPlan((100, 100, 100), (50, 50, 50))).axis == 0
    assert narrowest(WindowPlan((100, 100, 140), (50, 50, 50))).axis == 0  # 1.4 times as many as along the last
    assert narrowest(WindowPlan((100, 100, 400), (50, 50, 50))).axis == 2
    assert narrowest(WindowPlan((400, 800, 60), (100, 100, 60))).axis == 1


def total_voxels(plan: WindowPlan) -> int:
    return int(np.prod(plan.window_vox) * np.prod([len(starts) for starts in plan.starts]))


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(20, 400)] * 3), st.integers(1, 40), st.sampled_from([1, 8, 16]), st.floats(0, 0.7))
def test_enlarged_windows_fit_and_compute_no_more(size: Any, percent: int, multiple: int, overlap: float) -> None:
    plan = narrowest(WindowPlan(size, (32, 32, 32), overlap))
    model = MemoryModel(bytes_per_voxel=2000.0, classes=5)
    limit = model.needed_bytes(plan) * (100 + percent**2) // 100

    larger = enlarged(plan, model, limit, multiple)

    assert model.needed_bytes(larger) <= limit
    assert total_voxels(larger) <= total_voxels(plan)
    for window, smallest, n in zip(larger.window_vox, plan.window_vox, size, strict=True):
        assert window >= smallest
        assert window % multiple == 0 or window == smallest
        assert window < max(smallest, n) + multiple


def test_with_enough_memory_one_window_takes_the_whole_volume() -> None:
    plan = enlarged(WindowPlan((60, 70, 33), (32, 32, 32)), MemoryModel(100.0, 2), 2**40, 16)

    assert plan.window_vox == (64, 80, 48)


def test_a_limit_that_no_window_fits_is_refused_with_both_numbers() -> None:
    plan = WindowPlan((300, 300, 300), (128, 128, 128))

    for refuse in (check_memory, enlarged):
        with pytest.raises(UsageError, match=r"need \d\.\d\d GiB, the limit is 1\.00 GiB; raise max_memory"):
            refuse(plan, MemoryModel(2000.0, 3), 2**30)


def test_a_network_is_measured_by_the_tensors_it_makes() -> None:
    def predict(windows: torch.Tensor) -> torch.Tensor:
        wide = windows.repeat(1, 10, 1, 1, 1)
        return wide[:, :3] * 2

    model = measure_memory(predict, torch.zeros(1, 1, 500, 2, 2), (64, 16, 100), multiple=32)

    assert model.classes == 3
    assert 1.3 * 4 * (1 + 10 + 3) <= model.bytes_per_voxel <= 1.5 * 4 * (1 + 10 + 3)


def test_free_memory_is_known() -> None:
    assert 2**20 < available_bytes(torch.device("cpu")) < 2**45


@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [
        (str(3 * 2**20), str(2**20), 2**20),
        (str(2**50), str(2**20), 2**29),  # more than the machine has
        ("max", str(2**20), 2**29),
        (None, None, 2**29),
    ],
)
def test_half_of_what_the_machine_and_its_control_group_leave_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, used: str | None, available: int
) -> None:
    machine = psutil.virtual_memory()._replace(available=2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr("voxelgate.core.machine.CONTROL_GROUP", tmp_path)
    for name, text in (("memory.max", limit), ("memory.current", used)):
        if text is not None:
            (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")

    assert available_bytes(torch.device("cpu")) == available
