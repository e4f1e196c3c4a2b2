"""CT that is stored as HU plus an offset: told from HU by its air, brought back, and refused where it is neither."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from voxelgate.core.errors import InputError, UsageError
from voxelgate.transforms import OffsetToHUd, WindowHUd, from_offset

OFFSET_HU = 1000.0


def ct(seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    voxels = rng.integers(-200, 1500, (1, 6, 6, 6))
    voxels[0, 0] = -1000
    return torch.from_numpy(voxels.astype(np.float32))


@given(st.integers(0, 1000))
def test_stored_values_and_hu_become_the_same_network_input(seed: int) -> None:
    hu = ct(seed)
    for image in (hu, hu + OFFSET_HU):
        assert torch.equal(from_offset(image, OFFSET_HU), hu)


def test_the_argument_stays_as_it_was_and_geometry_is_kept() -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(ct() + OFFSET_HU, affine)
    before = image.clone()
    result = OffsetToHUd("image", OFFSET_HU)({"image": image})["image"]
    assert torch.equal(image, before)
    assert torch.equal(result.affine, affine)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("darkest", [-499.0, -1.0, float("nan")])
def test_what_is_neither_hu_nor_stored_is_refused(darkest: float) -> None:
    image = ct().clamp(min=0.0)
    image[0, 0, 0, 0] = darkest
    with pytest.raises(InputError, match="neither HU, which show air below -500, nor HU plus 1000"):
        from_offset(image, OFFSET_HU)


def test_an_offset_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="offset_hu must be positive, found 0"):
        OffsetToHUd("image", 0)


def test_what_was_set_to_zero_outside_the_body_looks_like_air_to_the_network() -> None:
    stored = (ct() + OFFSET_HU).clamp(min=0.0)
    chain = [OffsetToHUd("image", OFFSET_HU), WindowHUd("image", low_hu=-170.0, high_hu=400.0)]
    data = {"image": stored}
    for step in chain:
        data = step(data)
    assert float(data["image"][0, 0].max()) == 0.0
