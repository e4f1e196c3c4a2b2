"""Slab by slab or all at once: the source grid gets the likeliest class of interpolated probabilities."""

import subprocess
import sys
from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.inference.restoring.class_scores import ScoreKind
from voxelgate.inference.restoring.label_sums import Sum
from voxelgate.inference.restoring.restorer import Restored, Restorer, restore

ORIENTATIONS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]
ROUNDING = 1e-5


def turned(rng: np.random.Generator, spacing_mm: np.ndarray, angle: float) -> np.ndarray:
    """Return an affine with axes in any order and direction, turned by up to `angle` radians about two axes."""
    axes, signs = ORIENTATIONS[rng.integers(48)]
    direction = np.zeros((3, 3))
    direction[axes, range(3)] = signs
    (a, b) = rng.uniform(-angle, angle, 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ direction * spacing_mm
    return affine


def around(grid: Grid, shape: tuple[int, ...], affine: np.ndarray, shift_mm: Any = 0) -> Grid:
    """Return a grid of that shape and direction whose middle is that of `grid`, shifted."""
    centred = affine.copy()
    middle = grid.corners_mm().mean(axis=0) + shift_mm
    centred[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, centred)


def draw_grids(rng: np.random.Generator, angle: float, is_aligned: bool) -> tuple[Grid, Grid]:
    """Return a network grid and a source grid that overlap, the source cropped or reaching beyond."""
    network_mm = rng.uniform(0.5, 2, 3)
    network = around(
        Grid((1, 1, 1), np.eye(4)), tuple(int(n) for n in rng.integers(1, 10, 3)), turned(rng, network_mm, 0.5)
    )
    if is_aligned:  # axes swapped, turned and cropped only
        order = np.array(ORIENTATIONS[rng.integers(48)][0])
        change = np.eye(4)
        change[:3, :3] = np.eye(3)[order] * rng.choice((-1, 1), 3)
        change[:3, 3] = rng.integers(0, 9, 3)
        return network, Grid(tuple(int(n) for n in rng.integers(1, 12, 3)), network.affine @ change)
    source_shape = tuple(int(n) for n in rng.integers(2, 14, 3))
    if angle > 0:
        return network, around(network, source_shape, turned(rng, rng.uniform(0.3, 2, 3), angle), rng.uniform(-1, 1, 3))
    # parallel to the network, in any order and direction
    parallel = np.eye(4)
    parallel[:3, :3] = (network.affine[:3, :3] / network.spacing_mm)[:, ORIENTATIONS[rng.integers(48)][0]]
    parallel[:3, :3] *= rng.choice((-1, 1), 3) * rng.uniform(0.3, 2, 3)
    return network, around(network, source_shape, parallel, rng.uniform(-1, 1, 3))


def draw_scores(rng: np.random.Generator, classes: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return logits with large areas of one class, and areas of none."""
    coarse = rng.normal(0, rng.choice((0.5, 3, 20)), (classes, *(-(-n // 3) for n in shape)))
    fine = coarse.repeat(3, 1).repeat(3, 2).repeat(3, 3)[:, : shape[0], : shape[1], : shape[2]]
    return (fine + rng.normal(0, 0.3, (classes, *shape))).astype(np.float32)


def interpolated(values: np.ndarray, network: Grid, source: Grid, snap_vox: float = 1e-3) -> np.ndarray:
    """Return values (c, i, j, k) at all source voxels, (c, I, J, K); NaN further than half a voxel outside."""
    to_network = np.linalg.inv(network.affine) @ source.affine
    position = (
        np.einsum("ab,bijk->aijk", to_network[:3, :3], np.indices(source.shape)) + to_network[:3, 3, None, None, None]
    )
    nearest = np.rint(position)
    position = np.where(np.abs(position - nearest) < snap_vox, nearest, position)
    last = np.array(network.shape)[:, None, None, None] - 1
    is_outside = ((position < -0.501) | (position > last + 0.501)).any(axis=0)
    clipped = np.clip(position, 0, last)
    low = np.floor(clipped).astype(int)
    total = np.zeros((len(values), *source.shape))
    for corner in product((0, 1), repeat=3):
        offset = np.array(corner)[:, None, None, None]
        weight = np.where(offset, clipped - low, 1 - (clipped - low)).prod(axis=0)
        i, j, k = np.minimum(low + offset, last)
        total += weight * values[:, i, j, k]
    total[:, is_outside] = np.nan
    return total


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores.astype(np.float64) - scores.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


def in_slabs(rng: np.random.Generator, scores: np.ndarray, restorer: Restorer) -> Restored:
    """Push random slabs along the restorer's axis."""
    size = scores.shape[1 + restorer.axis]
    cuts = [0, *(n for n in range(1, size) if rng.random() < 0.4), size]
    slabs = [(low, torch.from_numpy(scores.take(range(low, high), 1 + restorer.axis))) for low, high in pairwise(cuts)]
    return restore(slabs, restorer)


def check(labels: np.ndarray, wanted: np.ndarray) -> None:
    """Compare labels with interpolated probabilities; two classes closer than rounding count as equal."""
    outside = np.isnan(wanted[0])
    assert not labels[outside].any()
    chosen = np.take_along_axis(wanted, labels[None].astype(int), 0)[0]
    assert (chosen[~outside] >= wanted.max(axis=0)[~outside] - ROUNDING).all()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 12),
    st.sampled_from(["aligned", "parallel", "oblique"]),
    st.integers(0, 2),
    st.booleans(),
)
def test_any_slabs_on_any_grids_give_the_likeliest_interpolated_class(
    seed: int, classes: int, case: str, axis: int, are_probabilities: bool
) -> None:
    rng = np.random.default_rng(seed)
    network, source = draw_grids(rng, 0.7 if case == "oblique" else 0, case == "aligned")
    scores = draw_scores(rng, classes, network.shape)
    if are_probabilities:
        scores = softmax(scores).astype(np.float32)
    restorer = Restorer(network, source, axis, kind=ScoreKind(are_probabilities=are_probabilities))

    labels = in_slabs(rng, scores, restorer).labels

    assert labels.shape == source.shape
    probabilities = scores if are_probabilities else softmax(scores)
    check(labels, interpolated(probabilities, network, source, 0 if case == "oblique" else 1e-3))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 0.7]), st.integers(0, 2))
def test_probabilities_are_interpolated_in_the_same_places(seed: int, angle: float, axis: int) -> None:
    rng = np.random.default_rng(seed)
    network, source = draw_grids(rng, angle, False)
    scores = draw_scores(rng, 4, network.shape)

    restored = in_slabs(rng, scores, Restorer(network, source, axis, probabilities_of=(3, 1)))

    snap_vox = 0 if angle else 1e-3
    wanted = np.nan_to_num(interpolated(softmax(scores), network, source, snap_vox))
    np.testing.assert_allclose(restored.probabilities, wanted[[3, 1]], atol=ROUNDING)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.sampled_from([0, 0.7]), st.booleans())
def test_overlapping_regions_are_thresholded_and_the_later_one_wins(
    seed: int, count: int, angle: float, are_probabilities: bool
) -> None:
    rng = np.random.default_rng(seed)
    network, source = draw_grids(rng, angle, False)
    scores = draw_scores(rng, count, network.shape)
    probabilities = 1 / (1 + np.exp(-scores.astype(np.float64)))
    order = tuple(int(n) for n in rng.integers(1, 300, count))
    kind = ScoreKind(are_probabilities=are_probabilities, regions=order)

    pushed = probabilities.astype(np.float32) if are_probabilities else scores
    labels = in_slabs(rng, pushed, Restorer(network, source, kind=kind)).labels

    wanted = np.nan_to_num(interpolated(probabilities, network, source, 0 if angle else 1e-3))
    expected = np.zeros(source.shape, int)
    for label, region in zip(order, wanted, strict=True):
        expected[region > 0.5] = label
    is_clear = (np.abs(wanted - 0.5) > ROUNDING).all(axis=0)
    np.testing.assert_array_equal(labels[is_clear], expected[is_clear])


@pytest.mark.parametrize("regions", [None, (2, 1, 2)])
def test_the_confidence_of_a_label_is_its_mean_probability_where_it_was_found(regions: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(0, 2, (3, 5, 4, 6)).astype(np.float32))
    scores[2] -= 20  # never found
    grid, kind = Grid((5, 4, 6), np.eye(4)), ScoreKind(regions=regions)

    slabs = [(0, scores[..., :2]), (2, scores[..., 2:3]), (3, scores[..., 3:])]
    found = restore(slabs, Restorer(grid, grid, 2, kind=kind)).confidence

    if regions is None:
        probabilities, labels = scores.softmax(dim=0), scores.argmax(dim=0)
        expected = [np.nan, probabilities[1][labels == 1].mean(), np.nan]
    else:
        of_2, of_1 = scores[:2].sigmoid()
        expected = [np.nan, of_1[of_1 > 0.5].mean(), of_2[of_2 > 0.5].mean()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("are_probabilities", [False, True])
def test_sums_tell_what_scores_and_image_say_of_each_label_wherever_it_may_be(are_probabilities: bool) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 3, (3, 5, 4, 6)).astype(np.float32))
    p, labels, image = logits.softmax(dim=0), logits.argmax(dim=0), torch.from_numpy(rng.normal(size=(2, 5, 4, 6)))
    grid, kind = Grid((5, 4, 6), np.eye(4)), ScoreKind(are_probabilities=are_probabilities)
    scores = p if are_probabilities else logits

    found = restore([(0, scores[..., :4]), (4, scores[..., 4:])], Restorer(grid, grid, 2, kind=kind, image=image)).sums

    may_be, of_2, values = p[2][p[0] < 0.99], labels == 2, image.mean(dim=0)
    assert found[2, Sum.VOXELS] == of_2.sum()
    assert found[2, Sum.OWN] == pytest.approx(float(p[2][of_2].sum()), rel=1e-5)
    assert found[2, Sum.ALL] == pytest.approx(float(may_be.sum()), rel=1e-2)
    assert found[2, Sum.SQUARED] == pytest.approx(float((may_be**2).sum()), rel=1e-2)
    assert found[2, [Sum.WIDE, Sum.NARROW]].tolist() == [(may_be > 0.1).sum(), (may_be > 0.9).sum()]
    assert found[2, Sum.VALUE] == pytest.approx(float(values[of_2].sum()), rel=1e-5)
    assert found[2, Sum.VALUE_SQUARED] == pytest.approx(float((values[of_2] ** 2).sum()), rel=1e-5)


def test_a_class_that_is_second_everywhere_can_win_between() -> None:
    # 0.49 against 0.51 of two others that fade into each other: at the middle 0.49 against 0.255
    scores = np.log(np.array([[0.51, 1e-9], [1e-9, 0.51], [0.49, 0.49]], np.float32)).reshape(3, 1, 1, 2)
    source = Grid((1, 1, 3), np.diag((1, 1, 0.5, 1)))

    labels = restore([(0, torch.from_numpy(scores))], Restorer(Grid((1, 1, 2), np.eye(4)), source)).labels

    assert labels.ravel().tolist() == [0, 2, 1]


def test_the_first_of_equal_classes_wins() -> None:
    network, source = Grid((3, 3, 3), np.eye(4)), Grid((5, 5, 5), np.diag((0.5, 0.5, 0.5, 1)))
    scores = np.zeros((4, 3, 3, 3), np.float32)
    scores[1:3, 1] = 5

    labels = restore([(0, torch.from_numpy(scores))], Restorer(network, source)).labels

    assert set(np.unique(labels)) == {0, 1}
    assert (labels[2] == 1).all()


def test_in_the_middle_between_two_classes_the_first_wins() -> None:
    scores = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0]]).reshape(3, 1, 1, 2)
    source = Grid((1, 1, 3), np.diag((1, 1, 0.5, 1)))

    for mirrored, wanted in ((scores, [0, 0, 1]), (scores.flip(3), [1, 0, 0])):
        labels = restore([(0, mirrored)], Restorer(Grid((1, 1, 2), np.eye(4)), source)).labels
        assert labels.ravel().tolist() == wanted


@pytest.mark.parametrize("angle", [0.0, 0.4])
@pytest.mark.parametrize("kind", [ScoreKind(), ScoreKind(regions=(1, 2, 3, 4, 5))], ids=["classes", "regions"])
def test_block_sizes_and_memory_layout_change_nothing(
    monkeypatch: pytest.MonkeyPatch, angle: float, kind: ScoreKind
) -> None:
    rng = np.random.default_rng(4)
    network = Grid((9, 8, 10), np.eye(4))
    source = around(network, (17, 14, 13), turned(rng, np.array((0.5, 0.6, 0.7)), angle))
    scores = torch.from_numpy(rng.normal(0, 3, (5, 9, 8, 10)).astype(np.float32))
    whole = restore([(0, scores)], Restorer(network, source, 0, kind=kind)).labels
    monkeypatch.setattr("voxelgate.inference.restoring.restorer.BLOCK_SCORES", 40)
    monkeypatch.setattr("voxelgate.inference.restoring.restorer.GROUP_VOXELS", 7)
    monkeypatch.setattr("voxelgate.inference.restoring.placement.GROUP_VOXELS", 7)
    channels_last = scores.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)

    assert whole.any()
    np.testing.assert_array_equal(restore([(0, scores)], Restorer(network, source, 0, kind=kind)).labels, whole)
    np.testing.assert_array_equal(restore([(0, channels_last)], Restorer(network, source, 0, kind=kind)).labels, whole)


@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_a_source_that_the_network_never_saw_is_background(angle: float) -> None:
    rng = np.random.default_rng(5)
    network = Grid((8, 8, 8), np.eye(4))
    source = around(network, (5, 6, 7), turned(rng, np.ones(3), angle), (0, 900, 0))
    scores = torch.from_numpy(draw_scores(rng, 4, network.shape))

    restored = restore([(0, scores)], Restorer(network, source, 0, probabilities_of=(0,)))

    assert restored.labels.shape == (5, 6, 7)
    assert not restored.labels.any()
    assert not restored.probabilities.any()


def test_more_than_256_classes_keep_their_values() -> None:
    scores = torch.nn.functional.one_hot(torch.tensor([[[299, 256, 3]]]), 301).float().movedim(-1, 0) * 9
    grid = Grid((1, 1, 3), np.eye(4))

    labels = restore([(0, scores)], Restorer(grid, grid)).labels

    assert labels.ravel().tolist() == [299, 256, 3]


def test_slabs_out_of_order_or_missing_or_of_another_size_are_refused() -> None:
    grid = Grid((4, 5, 6), np.eye(4))
    restorer = Restorer(grid, grid)
    restorer.push(0, torch.zeros(2, 4, 5, 2))

    with pytest.raises(
        UsageError, match=r"2 slices of \(4, 5\) at slice 3, expected 1 to 4 slices of \(4, 5\) at slice 2"
    ):
        restorer.push(3, torch.zeros(2, 4, 5, 2))
    with pytest.raises(UsageError, match="expected 1 to 4 slices"):
        restorer.push(2, torch.zeros(2, 4, 4, 2))
    with pytest.raises(UsageError, match="expected 1 to 4 slices"):
        restorer.push(2, torch.zeros(2, 4, 5, 5))
    with pytest.raises(UsageError, match="slices 2 to 5 were not pushed"):
        restorer.result()


def test_scores_that_say_nothing_are_refused() -> None:
    grid = Grid((2, 2, 2), np.eye(4))

    def push(scores: torch.Tensor, **changes: Any) -> None:
        Restorer(grid, Grid((3, 3, 3), np.diag((0.5, 0.5, 0.5, 1))), **changes).push(0, scores)

    with pytest.raises(BundleError, match="one class"):
        push(torch.zeros(1, 2, 2, 2))
    with pytest.raises(BundleError, match="2 channels, expected 3, one a region"):
        push(torch.zeros(2, 2, 2, 2), kind=ScoreKind(regions=(1, 2, 3)))
    for kind in (ScoreKind(), ScoreKind(regions=(1, 2, 3))):
        for wrong in (torch.nan, torch.inf):
            scores = torch.zeros(3, 2, 2, 2)
            scores[2, 1, 1, 0] = wrong
            with pytest.raises(BundleError, match="not finite"):
                push(scores, kind=kind)
    with pytest.raises(BundleError, match="do not sum to 1"):
        push(torch.rand(3, 2, 2, 2) * 5, kind=ScoreKind(are_probabilities=True))
    with pytest.raises(UsageError, match=r"classes \[3\] are asked for, but the network gives 3"):
        push(torch.zeros(3, 2, 2, 2), probabilities_of=(0, 3))
    with pytest.raises(UsageError, match="expected 1 to 30 labels"):
        ScoreKind(regions=())


MEMORY = """
import resource, sys
import numpy as np, torch
from voxelgate.core.geometry import Grid
from voxelgate.inference.restoring.restorer import Restorer
slices = int(sys.argv[1])
network, source = Grid((96, 96, slices), np.eye(4)), Grid((192, 192, slices), np.diag((0.5, 0.5, 1, 1)))
coarse = np.random.default_rng(0).normal(0, 4, (20, 6, 6, 1)).astype(np.float32)
scores = torch.from_numpy(coarse.repeat(16, 1).repeat(16, 2).repeat(4, 3))
restorer = Restorer(network, source)
for start in range(0, slices, 4):
    restorer.push(start, scores)
assert restorer.result().labels.any()
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - restorer.result().labels.nbytes
print(used)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    used = [
        int(subprocess.run([sys.executable, "-c", MEMORY, str(slices)], capture_output=True, check=True).stdout)
        for slices in (60, 240)
    ]

    whole = 20 * 96 * 96 * 240 * 4  # bytes that the scores of all slices would take
    assert used[1] - used[0] < whole / 10
