"""Where structures lie."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from voxelgate.core.structures import structure_boxes


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 3)),
    st.permutations(range(3)),
)
def test_boxes_are_those_of_a_search_through_all_voxels(labels: npt.NDArray[np.uint8], order: list[int]) -> None:
    turned = labels.transpose(order)
    expected = {value: box for value, box in enumerate(ndimage.find_objects(turned, max_label=2), 1) if box is not None}

    assert structure_boxes(turned, 2) == expected
