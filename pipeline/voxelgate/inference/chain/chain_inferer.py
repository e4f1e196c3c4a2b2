"""The labels of a stock MONAI bundle slab by slab, so that the class scores of the whole volume never exist."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Self

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms.utils import convert_applied_interp_mode
from monai.utils import BlendMode, PytorchPadMode, ensure_tuple

from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.geometry import Grid, Shape, triple
from voxelgate.core.machine import GIB
from voxelgate.inference.chain.adjusting import check_limit, limit_bytes, refuse_fast
from voxelgate.inference.chain.blending import BlendedWindows, Slab, at_once, blended
from voxelgate.inference.chain.chain_steps import Certainty, ChainStep, Decision, LabelStep, StepChain, activated
from voxelgate.inference.chain.inverting import labels_from
from voxelgate.inference.chain.scores_back import ScoresBack
from voxelgate.inference.chain.way_back import check_way_back, nearest_back, placed_like, turned_back
from voxelgate.inference.mirroring import one_of_batch
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.source_grid import grids_of, on_source
from voxelgate.inference.windows import PIECE_SCORES

SLABS = 6
"""Pieces of scores that are alive at a time: sums, activated, those that rows to come need, in work, and as float64."""

LABEL_BYTES = 4
"""Labels of a grid, and a copy of them while they are turned."""


class ChainInferer(Inferer):  # type: ignore[misc]  # MONAI ships no stubs
    """Return the labels that a MONAI bundle's inferer and steps would give, in flat memory.

    Windows lie, weigh and add up as those of MONAI's `SlidingWindowInferer`; steps are done in their order, and what
    was done to the image is read from the operations that MONAI recorded in it. Scores are decided on as soon as no
    later window changes them, and brought back slab by slab where they are interpolated. Labels differ from MONAI's
    only where two classes are equal but for the rounding of float64, of float32 behind a trilinear `Resize`.

    Args:
        steps: in their order, each one of "softmax", "sigmoid", "argmax", "invert" (scores are interpolated as the
            image was), "invert_nearest", `{"threshold": 0.5, "regions": [[channel, label], ...]}` (of the channels that
            are at least so high, the first one named gives the label), or a component that changes labels (1, i, j, k).
        roi_size: window in voxels, one number for each axis of the network; None lets the network see all at once, as
            MONAI's `SimpleInferer` does.
        slice_axis: for a network of two dimensions, the axis along which it sees slice after slice.
        overlap: part of a window that the next one repeats, one for all axes or one each.
        mode: weight of a window, "constant" or "gaussian".
        sigma_scale: of gaussian weights, as part of the window.
        padding_mode: "constant", "reflect", "replicate" or "circular", where the image is smaller than a window.
        cval: what constant padding is made of.
        sw_batch_size: windows for each call of the network.
        max_memory: bytes that scores and labels may take; None for nine tenths of what is free.

    Raises:
        UsageError: steps that give no labels, or a value out of its range.

    >>> infer = vg.ChainInferer(steps=["softmax", "invert", "argmax"], roi_size=[16, 16, 16])
    >>> load = LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True)
    >>> infer(load({"image": "scan.nii.gz"})["image"][None], torch.nn.Conv3d(1, 2, 1)).shape
    torch.Size([1, 1, 32, 36, 28])
    """

    def __init__(  # noqa: PLR0913 - one keyword for each number of the bundle's config
        self,
        *,
        steps: Sequence[str | Mapping[str, Any] | Callable[[torch.Tensor], torch.Tensor]],
        roi_size: Sequence[int] | None = None,
        slice_axis: int | None = None,
        overlap: float | Sequence[float] = 0.25,
        mode: str = "constant",
        sigma_scale: float | Sequence[float] = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_batch_size: int = 1,
        max_memory: int | None = None,
    ) -> None:
        super().__init__()
        check_limit(max_memory)
        self.chain = StepChain.of(steps)
        self.windows = None
        if roi_size is not None:
            _check_windows_of(roi_size, slice_axis, ensure_tuple(overlap), sw_batch_size)
            self.windows = BlendedWindows(
                roi_size=tuple(map(int, roi_size)),
                overlap=tuple(map(float, ensure_tuple(overlap))),
                batch=sw_batch_size,
                mode=_known_word(mode, BlendMode, "mode"),
                sigma_scale=sigma_scale if isinstance(sigma_scale, int | float) else tuple(sigma_scale),
                padding_mode=_known_word(padding_mode, PytorchPadMode, "padding_mode"),
                cval=cval,
                slice_axis=slice_axis,
            )
        self.max_memory = max_memory

    @property
    def roi_size(self) -> tuple[int, int, int] | None:
        """Return the window in voxels of the network grid; None if the network sees all at once along some axis."""
        if self.windows is None or min(self.windows.roi_size) < 1:
            return None
        return self.windows.window_vox((0, 0, 0))

    @property
    def regions(self) -> tuple[int, ...] | None:
        """Return the label of each channel, 0 of one that gives none; None for classes that exclude each other."""
        label_of = dict(reversed(self.chain.decision.regions))
        return tuple(label_of.get(channel, 0) for channel in range(1 + max(label_of))) if label_of else None

    def __call__(self, inputs: MetaTensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> MetaTensor:
        """Return the label map of one image on the grid it was read from.

        Args:
            inputs: `MetaTensor` (1, C, i, j, k) on the network grid, with the operations that were applied to it; its
                metadata name the source grid, as MONAI's `LoadImage` records it.
            network: gives class scores for windows, in eval mode.
            args: passed to the network.
            kwargs: passed to the network.

        Returns:
            (1, 1, I, J, K) on the source grid; uint8, int32 for labels above 255. `meta["confidence"]` holds the mean
            probability of each class on the network grid, where it is the likeliest and the scores were softmaxed.

        Raises:
            InputError: not one volume, no source grid in its metadata, or what would not fit into memory.
            BundleError: an operation that cannot be taken back slab by slab, a network that does not fit the steps, or
                labels that do not lie on the source grid.
        """
        source, _ = grids_of(inputs)
        image = one_of_batch(inputs)
        check_way_back(image)
        with torch.no_grad():
            labels, means = self._labels(image, inputs.as_tensor().float(), _bound_to(network, args, kwargs), source)
        difference = source.difference(Grid.of(labels))
        if difference is not None:
            raise BundleError(
                f"the steps of this bundle do not bring the labels back onto the image's grid: {difference}; they need "
                "invert or invert_nearest."
            )
        return on_source(labels.as_tensor(), inputs, source, {} if means is None else {"confidence": means})

    def adjusted(self, asked: PassOptions) -> Self:
        """Return a copy that runs in other steps.

        Raises:
            UsageError: it is asked to be fast, or for steps without windows.
        """
        refuse_fast(asked)
        if asked.step_size is None:
            return self
        if self.windows is None:
            raise UsageError("--step-size: this bundle runs without windows; leave it out.")
        changed = copy.copy(self)
        changed.windows = replace(self.windows, overlap=(1 - asked.step_size,))
        return changed

    def within(self, max_bytes: int) -> Self:
        """Return a copy that keeps to a limit in bytes."""
        limited = copy.copy(self)
        limited.max_memory = min(max_bytes, self.max_memory or max_bytes)
        return limited

    def _labels(
        self, image: MetaTensor, inputs: torch.Tensor, predict: Callable[..., Any], source: Grid
    ) -> tuple[MetaTensor, torch.Tensor | None]:
        """Return labels (1, i, j, k) where the steps leave them, and how sure the network is of each class."""
        chain, axis = self.chain, 0 if self.windows is None else self.windows.axis
        if chain.inversion is ChainStep.INVERT_NEAREST:
            image.applied_operations = convert_applied_interp_mode(image.applied_operations)
        back = ScoresBack(image, axis, chain.decision) if chain.inversion is not None else None
        check = functools.partial(self._check, inputs, source, back.held_slices if back is not None else 0)
        if self.windows is None:
            found = at_once(inputs, predict, check)
        else:
            found = blended(inputs, predict, self.windows, check)
        certainty = Certainty()
        slabs = _activated_slabs(found, chain, certainty)
        if back is not None and back.interpolates:
            labels = turned_back(back.labels(slabs), chain.decision.outside_label)
        else:
            labels = placed_like(decided(slabs, image, axis, chain.decision), image)
            labels = labels if back is None else nearest_back(labels, chain.decision.outside_label)
        for step in chain.label_steps:
            labels = _stepped(labels, step)
        return labels, certainty.means()

    def _check(self, inputs: torch.Tensor, source: Grid, held_slices: int, classes: int) -> None:
        problem = self.chain.decision.refusal(classes)
        if problem is not None:
            raise BundleError(f"{problem}; the steps do not fit it.")
        size = triple(inputs.shape[2:])
        needed = self._needed_bytes(size, held_slices, classes) + LABEL_BYTES * math.prod(source.shape)
        limit = limit_bytes(self.max_memory, inputs.device)
        if needed > limit:
            raise InputError(
                f"{classes} classes on a network grid of {'x'.join(map(str, size))} voxels need about "
                f"{needed / GIB:.1f} GiB, {limit / GIB:.1f} GiB may be used; use a machine with more memory."
            )

    def _needed_bytes(self, size: Shape, held_slices: int, classes: int) -> int:
        """Return what windows, sums and slabs take, and labels on the network grid."""
        grid = math.prod(size)
        if self.windows is None:
            return SLABS * 4 * classes * grid
        window = self.windows.window_vox(size)
        plane = math.prod(max(n, w) for n, w in zip(size, window, strict=True)) // max(
            size[self.windows.axis], window[self.windows.axis]
        )
        ring = (classes + 1) * plane * (window[self.windows.axis] + held_slices)
        piece = min(PIECE_SCORES, ring)
        return 4 * (ring + SLABS * piece + 2 * self.windows.batch * classes * math.prod(window)) + LABEL_BYTES * grid


def _bound_to(network: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
    return lambda windows: network(windows, *args, **kwargs)


def _activated_slabs(slabs: Iterator[Slab], chain: StepChain, certainty: Certainty) -> Iterator[Slab]:
    """Yield slabs after their activation, and count how probable the likeliest classes are."""
    for start, scores in slabs:
        values = activated(scores, chain.activation)
        if chain.activation is ChainStep.SOFTMAX and chain.decision.threshold is None:
            certainty.add(values)
        yield start, values


def decided(slabs: Iterator[Slab], image: MetaTensor, axis: int, decision: Decision) -> torch.Tensor:
    """Return labels (i, j, k) on the network grid, on the CPU.

    Args:
        slabs: scores after their activation.
        image: (C, i, j, k), as the network saw it.
        axis: along which slabs come.
        decision: what scores become.
    """
    out: torch.Tensor | None = None
    for start, scores in slabs:
        labels = decision.labels(decision.codes(scores)).cpu()
        out = torch.zeros(image.shape[1:], dtype=labels.dtype) if out is None else out
        out.movedim(axis, 0)[start : start + len(labels)] = labels
    if out is None:
        raise InputError("an image without voxels; there is nothing to label.")
    return out


def _stepped(labels: MetaTensor, step: LabelStep | ChainStep) -> MetaTensor:
    """Return labels after one step, with their place."""
    if step is ChainStep.INVERT_NEAREST:
        labels.applied_operations = convert_applied_interp_mode(labels.applied_operations)
        return nearest_back(labels)
    if isinstance(step, ChainStep):
        raise UsageError(f"step {step}: cannot follow the decision.")
    changed = step(labels.as_tensor())
    return MetaTensor(labels_from(torch.as_tensor(changed))).copy_meta_from(labels)


def _check_windows_of(roi_size: Sequence[int], slice_axis: int | None, overlap: Sequence[float], batch: int) -> None:
    axes = 3 if slice_axis is None else 2
    if len(roi_size) != axes or slice_axis not in {None, 0, 1, 2} or batch < 1:
        raise UsageError(
            f"roi_size {list(roi_size)}, slice_axis {slice_axis}, sw_batch_size {batch}: expected three sizes, or two "
            "and an axis 0 to 2, and at least one window at a time."
        )
    if len(overlap) not in {1, 3} or not all(0 <= one < 1 for one in overlap):
        raise UsageError(f"overlap {list(overlap)}: expected one or three numbers from 0 to below 1.")


def _known_word(word: str, words: type[Enum], name: str) -> str:
    known = [str(one.value) for one in words]
    if str(word) not in known:
        raise UsageError(f"{name} {word!r}: expected one of {', '.join(known)}.")
    return str(word)
