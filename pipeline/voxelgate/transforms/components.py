"""Keep the largest connected component of labels, or all that are large enough, as other segmenters do."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from scipy import ndimage

from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Grid
from voxelgate.transforms.io import plain_tensor


class KeepComponentsd(MapTransform):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Turn small connected components of labels into background.

    Without a volume it is nnU-Net's `remove_all_but_largest_component_from_segmentation`: components that touch at a
    corner are one, and of several largest ones all are kept (MONAI's `KeepLargestConnectedComponentd` keeps one). With
    a volume it is TotalSegmentator's `remove_small_blobs`: components that touch at a face are one.

    Args:
        keys: label maps, (1, I, J, K).
        groups: labels of which the components are made, one group after the other; those of one group count as one.
        above_mm3: volume that a component must have more than; None to keep the largest.

    Raises:
        UsageError: no groups, or one without labels or with the background.

    >>> labels = MetaTensor(torch.tensor([1, 1, 0, 1, 0, 2]).reshape(1, 6, 1, 1))
    >>> vg.KeepComponentsd("pred", groups=[[1], [2]])({"pred": labels})["pred"].flatten().tolist()
    [1, 1, 0, 0, 0, 2]
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        groups: Sequence[Sequence[int]],
        above_mm3: float | None = None,
    ) -> None:
        super().__init__(keys)
        if not groups or any(not group or min(group) < 1 for group in groups):
            raise UsageError(f"groups {groups}, expected at least one of labels above 0.")
        self.groups = [sorted(group) for group in groups]
        self.above_mm3 = above_mm3

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the label maps cleaned."""
        return {**data, **{key: self._cleaned(data[key]) for key in self.key_iterator(data)}}

    def _cleaned(self, image: MetaTensor) -> MetaTensor:
        labels = plain_tensor(image)[0].numpy(force=True).copy()
        boxes = dict(enumerate(ndimage.find_objects(labels), start=1))
        for group in self.groups:
            around = [box for label in group if (box := boxes.get(label)) is not None]
            if around:
                part = labels[_hull(around)]
                inside = np.isin(part, group)
                part[inside & ~self._kept(inside, image)] = 0
        cleaned: MetaTensor = convert_to_dst_type(torch.from_numpy(labels)[None], image)[0]
        return cleaned

    def _kept(self, mask: npt.NDArray[np.bool_], image: MetaTensor) -> npt.NDArray[np.bool_]:
        structure = np.ones((3, 3, 3)) if self.above_mm3 is None else None
        components, _ = ndimage.label(mask, structure)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        if self.above_mm3 is None:
            is_kept = sizes == max(int(sizes.max()), 1)
        else:
            is_kept = sizes > self.above_mm3 / np.prod(np.array(Grid.of(image).spacing_mm, np.float32))
        return np.asarray(is_kept[components])


def _hull(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Return the box around boxes."""
    return tuple(
        slice(min(span.start for span in spans), max(span.stop for span in spans)) for spans in zip(*boxes, strict=True)
    )
