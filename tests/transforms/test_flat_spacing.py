"""`Spacingd` with the same bits in less memory."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Spacingd
from scipy.spatial.transform import Rotation

from voxelgate.core import machine
from voxelgate.core.errors import InputError
from voxelgate.transforms import affine_slabs
from voxelgate.transforms.affine_slabs import AffineSampling
from voxelgate.transforms.flat_spacing import FlatSpacingd


def image(rng: np.random.Generator, *, oblique: bool) -> MetaTensor:
    affine = np.eye(4)
    turn = Rotation.from_rotvec(rng.normal(size=3)).as_matrix() if oblique else np.eye(3)
    affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.5, 3, 3), rng.normal(size=3) * 50
    voxels = torch.from_numpy(rng.normal(size=(2, *rng.integers(3, 20, 3))).astype(np.float32))
    return MetaTensor(voxels, affine=torch.from_numpy(affine), meta={"pixdim": np.ones(8)})


@given(
    st.integers(0, 2**20),
    st.booleans(),
    st.sampled_from(["bilinear", "nearest"]),
    st.sampled_from(["border", "zeros", "reflection"]),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_it_gives_the_bits_of_spacingd(seed: int, oblique: bool, mode: str, padding: str, aligned: bool) -> None:
    rng = np.random.default_rng(seed)
    source = image(rng, oblique=oblique)
    words = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    spacing_mm = tuple(rng.uniform(0.4, 3, 3).tolist())
    stock, flat = Spacingd("image", spacing_mm, **words), FlatSpacingd("image", spacing_mm, **words)

    expected, found = (step({"image": copy.deepcopy(source)})["image"] for step in (stock, flat))

    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert torch.equal(found.affine, expected.affine)
    assert found.meta.keys() == expected.meta.keys()
    back, expected_back = flat.inverse({"image": found})["image"], stock.inverse({"image": expected})["image"]
    assert torch.equal(back.as_tensor(), expected_back.as_tensor())


def test_the_bits_do_not_depend_on_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    source = image(np.random.default_rng(3), oblique=True)
    whole = FlatSpacingd("image", (0.7, 0.8, 0.9))({"image": source})["image"]
    monkeypatch.setattr(affine_slabs, "SLAB_POSITIONS", 7)

    assert torch.equal(
        FlatSpacingd("image", (0.7, 0.8, 0.9))({"image": source})["image"].as_tensor(), whole.as_tensor()
    )


@pytest.mark.parametrize("spacing_mm", [1.0, 0.7])
def test_whole_numbers_give_what_they_give_as_floats(spacing_mm: float) -> None:
    voxels = torch.randint(-1000, 2000, (1, 7, 8, 9), dtype=torch.int16)
    images = [MetaTensor(one, affine=torch.eye(4, dtype=torch.float64)) for one in (voxels, voxels.float())]

    whole, floats = (FlatSpacingd("image", (spacing_mm,) * 3)({"image": one})["image"] for one in images)

    assert whole.dtype == torch.float32
    assert torch.equal(whole.as_tensor(), floats.as_tensor())


def test_a_spacing_that_agrees_leaves_the_voxels() -> None:
    source = MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.eye(4, dtype=torch.float64))

    assert torch.equal(
        FlatSpacingd("image", (1.0, 1.0, 1.0))({"image": source})["image"].as_tensor(), source.as_tensor()
    )


def test_splines_are_left_to_monai() -> None:
    source = MetaTensor(torch.rand(1, 6, 6, 6), affine=torch.eye(4, dtype=torch.float64))
    words = {"pixdim": (0.8, 0.8, 0.8), "mode": 3, "padding_mode": "nearest"}

    stock, flat = (step("image", **words)({"image": source})["image"] for step in (Spacingd, FlatSpacingd))

    assert torch.equal(flat.as_tensor(), stock.as_tensor())


def test_a_grid_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_host_bytes", lambda: 10_000)
    source = MetaTensor(torch.rand(1, 9, 9, 9), affine=torch.eye(4, dtype=torch.float64))

    with pytest.raises(
        InputError, match=r"9x9x9 voxels would become 17x17x17 .* 0\.0 GiB .* finer grid than the image"
    ):
        FlatSpacingd("image", (0.5, 0.5, 0.5))({"image": source})


def test_rows_of_positions_are_those_of_affine_grid() -> None:
    theta = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 4)))
    sampling = AffineSampling(theta, (5, 6, 7), (9, 8, 7), is_corner_aligned=False)
    whole = torch.nn.functional.affine_grid(theta, [1, 1, 9, 8, 7], align_corners=False)

    for start, stop in itertools.pairwise((0, 2, 3, 9)):
        box = (slice(start, stop), slice(0, 8), slice(0, 7))
        assert torch.equal(sampling.grid(box), whole[:, start:stop])
