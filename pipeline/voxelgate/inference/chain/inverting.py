"""Run a foreign bundle's own inferer and its own steps afterwards, and see that the labels lie where the image does."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import AsDiscreted, Compose, Invertd
from torch import nn

from voxelgate.core.errors import BundleError, InputError, UsageError, VoxelgateError, cause_of, reason_of
from voxelgate.core.geometry import Grid
from voxelgate.core.machine import GIB
from voxelgate.inference.chain.adjusting import check_limit, limit_bytes, refuse_fast
from voxelgate.inference.mirroring import one_of_batch, unmirrored
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.source_grid import grids_of, on_source

STEP_FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What steps that do not fit their image raise, and `Compose` around them."""

HIGHEST_BYTE = 255

GRID_BYTES = 56
"""Bytes for each source voxel while its position is computed: `affine_grid` holds four and three float64."""


class InvertingInferer(Inferer):  # type: ignore[misc]  # MONAI ships no stubs
    """Return what a stock MONAI bundle would write: its own inferer, then its own steps, in whatever order they stand.

    The steps get what MONAI's evaluator would give them after decollation: the prepared image, with the operations
    that were applied to it, and the prediction. The class scores of the whole volume exist, as they do in MONAI; what
    would not fit into memory is refused after the first window, before they are made.

    Args:
        inferer: MONAI's `SlidingWindowInferer`, `SliceInferer`, `SimpleInferer`, or another that gives class scores.
        postprocessing: the bundle's steps up to the one that saves, on "image", as prepared, and "pred"; they leave one
            channel of label values on the source grid. `Invertd` among them names the preprocessing of the same config
            (`@preprocessing`).
        max_memory: bytes that scores and steps may take; None for nine tenths of what is free.

    Raises:
        UsageError: a limit that is not positive.

    >>> steps = Compose([AsDiscreted("pred", argmax=True)])
    >>> infer = vg.InvertingInferer(inferer=SlidingWindowInferer((16, 16, 16)), postprocessing=steps)
    >>> load = LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True)
    >>> infer(load({"image": "scan.nii.gz"})["image"][None], torch.nn.Conv3d(1, 2, 1)).shape
    torch.Size([1, 1, 32, 36, 28])
    """

    def __init__(
        self,
        *,
        inferer: Callable[..., Any],
        postprocessing: Callable[..., Any],
        max_memory: int | None = None,
    ) -> None:
        super().__init__()
        check_limit(max_memory)
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.max_memory = max_memory

    def __call__(self, inputs: MetaTensor, network: nn.Module, *args: Any, **kwargs: Any) -> MetaTensor:
        """Return the label map of one image on the grid it was read from.

        Args:
            inputs: `MetaTensor` (1, C, i, j, k) on the network grid, with the operations that were applied to it; its
                metadata name the source grid, as MONAI's `LoadImage` records it.
            network: as the bundle's inferer takes it, in eval mode.
            args: passed to the inferer.
            kwargs: passed to the inferer.

        Returns:
            (1, 1, I, J, K) on the source grid; uint8, int32 for labels above 255.

        Raises:
            InputError: not one volume, no source grid in its metadata, or scores that would not fit into memory.
            BundleError: the steps fail, or leave anything but whole numbers in one channel on the source grid.
        """
        source, _ = grids_of(inputs)
        check = functools.partial(self._check_memory, inputs, source)
        with torch.no_grad(), _shown_first(network, check):
            predicted = self.inferer(inputs, network, *args, **kwargs)
        if not isinstance(predicted, torch.Tensor):
            raise BundleError(f"the network gives a {type(predicted).__name__}, expected one tensor of class scores.")
        image = one_of_batch(inputs)
        scores = MetaTensor(predicted.as_subclass(torch.Tensor)[0]).copy_meta_from(image)
        del predicted
        labels = _on_the_image(self._stepped(unmirrored(image), unmirrored(scores)), source)
        return on_source(labels, inputs, source, {})

    def adjusted(self, asked: PassOptions) -> Self:
        """Return a changed copy; see `ChainInferer.adjusted`.

        Raises:
            UsageError: this inferer cannot do what is asked for.
        """
        refuse_fast(asked)
        if asked.step_size is None:
            return self
        if not isinstance(self.inferer, SlidingWindowInferer):
            raise UsageError("--step-size: this bundle runs without windows; leave it out.")
        changed, inner = copy.copy(self), copy.copy(self.inferer)
        inner.overlap = 1 - asked.step_size
        changed.inferer = inner
        return changed

    def within(self, max_bytes: int) -> Self:
        """Return a copy that keeps to a limit in bytes."""
        limited = copy.copy(self)
        limited.max_memory = min(max_bytes, self.max_memory or max_bytes)
        return limited

    def _stepped(self, image: MetaTensor, scores: MetaTensor) -> object:
        try:
            return self.postprocessing({"image": image, "pred": scores})["pred"]
        except torch.OutOfMemoryError:
            raise
        except STEP_FAULTS as error:
            if not isinstance(cause := cause_of(error), VoxelgateError):
                raise BundleError(f"the bundle's own steps cannot run on this image: {reason_of(error)}.") from error
            ours = cause
        raise ours

    def _check_memory(self, image: MetaTensor, source: Grid, scores: torch.Tensor) -> None:
        classes = scores.shape[1]
        kept = 1 if _decides_first(self.postprocessing) else classes
        network_vox, source_vox = image[0, 0].numel(), source.shape[0] * source.shape[1] * source.shape[2]
        stepping = 8 * classes * network_vox
        inverting = 12 * kept * network_vox + (max(GRID_BYTES, 24 + 8 * kept) + 4 * kept) * source_vox
        needed, limit = max(stepping, inverting), limit_bytes(self.max_memory, image.device)
        if needed > limit:
            size = "x".join(map(str, image.shape[2:]))
            raise InputError(
                f"the steps of this bundle hold {classes} classes of {size} voxels as a whole and need about "
                f"{needed / GIB:.1f} GiB, {limit / GIB:.1f} GiB may be used; import the bundle without --faithful, or "
                "use a machine with more memory."
            )


@contextmanager
def _shown_first(network: object, check: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Show the first result of a network to a check before anything is made of it."""
    if not isinstance(network, nn.Module):
        yield
        return

    def once(_: nn.Module, __: object, scores: object) -> None:
        handle.remove()
        if isinstance(scores, torch.Tensor):
            check(scores)

    handle = network.register_forward_hook(once)
    try:
        yield
    finally:
        handle.remove()


def _decides_first(steps: object) -> bool:
    """Return whether labels are decided before they are brought back."""
    known = steps.transforms if isinstance(steps, Compose) else ()
    kinds = [type(step) for step in known if isinstance(step, AsDiscreted | Invertd)]
    return kinds[:1] == [AsDiscreted]


def _on_the_image(result: object, source: Grid) -> torch.Tensor:
    """Return labels (1, I, J, K) that lie on the source grid."""
    if not isinstance(result, MetaTensor) or result.ndim != 4 or len(result) != 1:
        shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise BundleError(
            f"the bundle's own steps leave {shape}, expected one channel of labels (1, I, J, K) with its place; they "
            "must end in label values."
        )
    try:
        difference = source.difference(Grid.of(result))
    except ValueError as error:
        raise BundleError(f"the bundle's own steps leave labels without a place: {error}.") from error
    if difference is not None:
        raise BundleError(
            f"the bundle's own steps do not bring the labels back onto the image's grid: {difference}; they need "
            "Invertd with the preprocessing of the same config."
        )
    return labels_from(result.as_tensor())


def labels_from(labels: torch.Tensor) -> torch.Tensor:
    """Return labels as uint8, or int32 where one lies above 255.

    Raises:
        BundleError: they are no whole numbers from 0.
    """
    if labels.is_floating_point() and not bool(torch.equal(labels, labels.round())):
        raise BundleError(
            "the bundle's own steps leave values between labels; they interpolate label numbers, or never decide."
        )
    lowest, highest = (int(value) for value in torch.aminmax(labels))
    if lowest < 0:
        raise BundleError(f"the bundle's own steps leave label {lowest}, expected labels from 0.")
    return labels.to(torch.uint8 if highest <= HIGHEST_BYTE else torch.int32)
