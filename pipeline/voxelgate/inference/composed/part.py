"""One of several models that make up a larger one, with its own preprocessing, networks and inferer."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from scipy import ndimage

from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Grid
from voxelgate.images.spec import meta_of
from voxelgate.inference.class_planes import Planes
from voxelgate.inference.sliding_window import Networks, networks_of
from voxelgate.inference.source_grid import Facts, grids_of, on_source
from voxelgate.transforms.nnunet.source_layout import header_spacing

Labels = npt.NDArray[Any]
"""(i, j, k), whole numbers."""


Whole = TypeVar("Whole")
"""An inferer that holds parts."""


class PartResult(NamedTuple):
    """What a part found in an image.

    Args:
        labels: (i, j, k) on the grid of the image it was given.
        confidence: mean probability of each class where it won, background first; None if the inferer does not say.
    """

    labels: Labels
    confidence: Labels | None

    def facts(self) -> dict[str, torch.Tensor]:
        """Return what it says beside the labels, as the metadata of a result hold it."""
        return {} if self.confidence is None else {"confidence": torch.from_numpy(self.confidence)}


@dataclass(frozen=True, eq=False)
class Part:
    """A model within a larger one: `PartsInferer`, `CascadeInferer`, `EnsembleInferer` and `CroppedInferer` hold some.

    Args:
        inferer: gives labels (1, 1, i, j, k) on the grid of the image that `preprocessing` was given.
        networks: which of the bundle's networks it takes, by their places in the list; several are its folds.
        preprocessing: `{"image": (C, i, j, k)}` to the same on the grid of the networks; None to take images as they
            are.
        labels: value in the whole of each of its labels, background first; None if they are the same.

    Raises:
        UsageError: no network, or labels that do not begin with the background.

    >>> part = vg.Part(vg.RestoringSlidingWindowInferer(roi_size=(8, 8, 8)), networks=[1], labels=[0, 5])
    >>> part.networks, part.labels
    ((1,), (0, 5))
    """

    inferer: Callable[..., Any]
    networks: Sequence[int] = (0,)
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    labels: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "networks", tuple(self.networks))
        if not self.networks or min(self.networks) < 0:
            raise UsageError(f"networks {self.networks} of a part, expected at least one place in the list.")
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
            if self.labels[:1] != (0,) or min(self.labels) < 0:
                raise UsageError(f"labels {self.labels} of a part, expected 0 for the background and values above.")

    def of(self, network: Networks) -> Networks:
        """Return its network among all of a bundle, or its folds as a list."""
        among = networks_of(network)
        if max(self.networks) >= len(among):
            raise UsageError(f"a part takes network {max(self.networks)}, but there are {len(among)}.")
        chosen = [among[place] for place in self.networks]
        return chosen[0] if len(chosen) == 1 else chosen

    def prepared(self, image: MetaTensor, **others: MetaTensor) -> MetaTensor:
        """Return what the networks see of an image: (1, C, a, b, c).

        Args:
            image: (1, C, i, j, k); its own grid counts as that of the source.
            others: more of the same grid that `preprocessing` takes, (c, i, j, k).
        """
        alone = on_own_grid(image.as_tensor()[0], grids_of(image)[1])
        alone.meta["spacing"] = np.array(header_spacing(image))
        data = {"image": alone, **others}
        ready = alone if self.preprocessing is None else self.preprocessing(data)["image"]
        return cast("MetaTensor", ready[None].to(image.device))

    def find(self, image: MetaTensor, network: Networks, **others: MetaTensor) -> PartResult:
        """Return what its networks find in an image (1, C, i, j, k), on the grid of the image."""
        result = self.inferer(self.prepared(image, **others), self.of(network))
        stated = result.meta.get("confidence")
        confidence = None if stated is None else torch.as_tensor(stated).flatten().numpy(force=True)
        return PartResult(result.as_tensor()[0, 0].numpy(force=True), confidence)

    def planes(self, image: MetaTensor, network: Networks, **others: MetaTensor) -> Planes:
        """Return the logits of an image (1, C, i, j, k), of which a few planes are made at a time.

        Raises:
            UsageError: the inferer gives labels only.
        """
        planes = getattr(self.inferer, "planes", None)
        if planes is None:
            raise UsageError(f"{type(self.inferer).__name__} gives labels only, of which there is no average.")
        return cast("Planes", planes(self.prepared(image, **others), self.of(network)))

    def in_whole(self, labels: Labels) -> Labels:
        """Return labels of the part as those of the whole; one that has no value there is background."""
        if self.labels is None:
            return labels
        size = max(len(self.labels), int(labels.max(initial=0)) + 1)
        values = np.zeros(size, np.uint8 if max(self.labels) < 256 else np.uint16)
        values[: len(self.labels)] = self.labels
        return np.asarray(values[labels])

    def asked(self, method: str, *args: Any) -> "Part":
        """Return the part with an inferer changed by one of its own methods.

        Raises:
            UsageError: the inferer has no such method.
        """
        change = getattr(self.inferer, method, None)
        if change is None:
            raise UsageError(f"{type(self.inferer).__name__} cannot be {method.replace('_', ' ')} what is asked for.")
        return replace(self, inferer=change(*args))


def parts_in(inferer: object) -> list[Part]:
    """Return the parts that an inferer joins; none of one that joins none."""
    held = list(vars(inferer).values()) if hasattr(inferer, "__dict__") else []
    return [one for value in held for one in (value if isinstance(value, list) else [value]) if isinstance(one, Part)]


def ask_parts(inferer: Whole, method: str, *args: Any) -> Whole:
    """Return an inferer whose parts were all changed by a method of their own inferers."""
    changed = copy.copy(inferer)
    for name, held in vars(inferer).items():
        if isinstance(held, Part):
            setattr(changed, name, held.asked(method, *args))
        elif isinstance(held, list):
            setattr(changed, name, [part.asked(method, *args) for part in held])
    return changed


def on_own_grid(channels: torch.Tensor, grid: Grid) -> MetaTensor:
    """Return (C, i, j, k) as an image whose own grid counts as that of its source."""
    meta = meta_of(grid) | {"original_channel_dim": 0}
    return MetaTensor(channels, affine=torch.from_numpy(meta.pop("affine")), meta=meta)


def brought_back(found: Labels, image: MetaTensor, facts: Facts) -> MetaTensor:
    """Return what was found on the grid of an image as (1, c, I, J, K) on that of its source, by nearest neighbours.

    Both grids share their first and last voxels, as after `CanonicalZoomd`, and have parallel axes in any order. The
    neighbours are those of `scipy.ndimage.zoom`.

    Args:
        found: labels (i, j, k), or channels (c, i, j, k).
        image: (1, C, i, j, k), which knows the grid of its source.
        facts: what else is known of the result.

    Raises:
        InputError: the image does not know the grid of its source.
    """
    source, own = grids_of(image)
    steps = np.abs(np.linalg.solve(own.affine[:3, :3], source.affine[:3, :3]))
    towards_mm = steps * np.reshape(own.spacing_mm, (3, 1))
    order = [int(axis) for axis in towards_mm.argmax(axis=0)]  # the axis of the image along each one of the source
    channels = found.reshape(-1, *own.shape)
    for axis, along in enumerate(order):
        channels = channels.take(_nearest(own.shape[along], source.shape[axis]), axis=1 + along)
    is_flipped = (np.sum(own.affine[:3, order] * source.affine[:3, :3], axis=0)) < 0
    turned = channels.transpose(0, *(1 + axis for axis in order))
    placed = turned[:, *(slice(None, None, -1 if flip else 1) for flip in is_flipped)]
    return on_source(torch.from_numpy(np.ascontiguousarray(placed)), image, source, facts)


def _nearest(size: int, wanted: int) -> npt.NDArray[np.intp]:
    """Return which voxel of an axis stands for each of a number of voxels."""
    places = ndimage.zoom(np.arange(size, dtype=np.float64), wanted / size, order=0, mode="nearest")
    return np.asarray(places, dtype=np.intp)
