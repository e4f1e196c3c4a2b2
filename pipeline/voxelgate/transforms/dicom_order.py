"""The order in which converters to NIfTI store a DICOM series, for networks that were trained on stored order."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.data import MetaTensor
from monai.transforms import Flip, MapTransform, Orientation

from voxelgate.core.errors import UsageError
from voxelgate.images.file_facts import StoredOrder
from voxelgate.transforms.spatial import AXIS_DIRECTIONS, checked_grid

ROWS_AXIS = 1
"""Index axis along which the rows of a DICOM image follow each other."""


class OrderDicomd(MapTransform):  # type: ignore[misc]  # MONAI ships no types for mypy
    """Bring images that were DICOM series into the order of a converter to NIfTI; other images stay as they are.

    A network that was trained on stored order, as with nnU-Net's `SimpleITKIO`, has to see it again. What counts is
    `meta["is_dicom"]`, and `meta["is_3d"]` for MRI whose slices were acquired all at once; readers of this package give
    both. The grid of the source in the metadata stays, so that results lie on it.

    Args:
        keys: images and label maps, (C, I, J, K) MetaTensors.
        axcodes: "LAS", as dcm2niix stores them (1.0.20260724): rows from the last to the first, so that an axial series
            becomes LAS, and MRI acquired all at once turned to RAS; or "LPS", as they are read here, and by SimpleITK.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        UsageError: another order.
        InputError: at call, when a key holds no 3D MetaTensor with an invertible affine.

    >>> image = MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])))
    >>> image.meta["is_dicom"] = True
    >>> vg.OrderDicomd("image", axcodes="LAS")({"image": image})["image"].affine.diag().tolist()
    [-1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self, keys: Hashable | Sequence[Hashable], axcodes: str = StoredOrder.LAS, *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if axcodes not in list(StoredOrder):
            raise UsageError(f"DICOM in the order {axcodes}, expected one of {', '.join(StoredOrder)}.")
        self.order = StoredOrder(axcodes)
        self._flip = Flip(spatial_axis=ROWS_AXIS)
        self._turn = Orientation(axcodes="RAS", labels=tuple(map(tuple, AXIS_DIRECTIONS)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with images that were DICOM in the order."""
        out = dict(data)
        for key in self.key_iterator(out):
            checked_grid(key, out[key])
            out[key] = self._ordered(out[key])
        return out

    def _ordered(self, image: MetaTensor) -> MetaTensor:
        if self.order is StoredOrder.LPS or not image.meta.get("is_dicom"):
            return image
        return (self._turn if image.meta.get("is_3d") else self._flip)(image)
