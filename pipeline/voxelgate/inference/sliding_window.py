"""A MONAI inferer whose result lies on the grid of the file that was read, so that no caller inverts anything."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import nn

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import Box, Grid, Shape, triple
from voxelgate.inference.memory import Windows, available_bytes, measure_memory, with_less_memory
from voxelgate.inference.mirroring import MirroredViews, ViewOverlap
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.restoring.class_scores import ScoreKind
from voxelgate.inference.restoring.label_sums import Sum, Sums
from voxelgate.inference.restoring.restorer import Restored, Restorer, ScoreSlab, nothing, restore
from voxelgate.inference.source_grid import Facts, grids_of, on_source
from voxelgate.inference.streaming.stream import (
    StreamingNetwork,
    can_stream,
    reduction,
    reserved_bytes,
    streamed_axis,
    streaming_cost,
)
from voxelgate.inference.windows import (
    MODES,
    Predictor,
    body_box,
    is_finite,
    sweep,
    widened,
    with_margin,
)
from voxelgate.networks.attention_unet import AttentionUNet

Network = Callable[..., torch.Tensor]
Networks = Network | Sequence[Network] | nn.ModuleList
Tap = Callable[[torch.Tensor, ScoreKind, Grid], None]
"""Is shown each slab of scores (classes, i, j, k), what they are, and where on the network grid they lie."""


AIR_MARGIN_VOX = 8
"""Air around the body that streaming keeps. One voxel in a million then gets another label than for the whole volume,
whose air is not the zeros that pad the inner layers; three with a margin of 4, and 200 without any."""

UNSTREAMED = "unstreamed"
"""In the metadata of a result: windows were taken where there was too little memory to stream."""


SUMS = "sums"
"""In the metadata of a result: what else scores and image say of each label, (labels, `Sum`) float64."""


class WindowSize(StrEnum):
    """How large the windows are."""

    AS_TRAINED = "as_trained"
    LARGEST = "largest"


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the part that is run lies on the network grid, where its result goes, and the windows on it."""

    grid: Grid
    source: Grid
    windows: Windows


class RestoringSlidingWindowInferer(Inferer):  # type: ignore[misc]  # MONAI ships no stubs
    """Slide a window over the network grid and return labels on the source grid.

    The window is clipped to the volume, and padded (with 0) only to a multiple of `window_multiple`. Windows run in
    order along one axis; their scores are blended as MONAI blends them and brought back slice by slice, so that the
    class scores of the whole volume never exist. Probabilities, not labels, are brought back, by trilinear
    interpolation; where the two grids differ by no more than swapped, turned or cropped axes, nothing is interpolated
    and every label is the network's own.

    With mirrorings or several networks, the probabilities of all of them are averaged in each window, and the averages
    are blended; otherwise logits are blended.

    Args:
        roi_size: window in voxels of the network grid.
        overlap: part of the window that the next one repeats, 0 to below 1.
        sw_batch_size: windows for each call of the network.
        mode: weight of a window, falling to its border ("gaussian") or not ("constant").
        flip_axes: spatial axes of the network grid; the network also sees each window mirrored along every combination
            of them.
        side_pairs: class values of the two sides of a structure (`LabelTable.side_pairs`), swapped back after a
            mirroring along axis 0, which must then be the one from left to right.
        compute_dtype: "bfloat16" runs the network under `torch.autocast`; None as its weights are.
        channels_last: hand windows to the network in channels-last layout; changes the speed only.
        window_multiple: sizes the network accepts, e.g. 16 for four halvings without padding inside; 1 for any.
        window: "as_trained" keeps `roi_size`. "largest" enlarges it, up to the whole volume, as far as memory allows
            and as long as fewer voxels are computed; a network with norms over the window (instance norm) then gives
            other results than it was trained for.
        max_memory: bytes that windows, blending and restoring may take beside image and result; a small window is run
            to measure the network. None takes half of what is free where windows are enlarged, and checks nothing
            where they are not.
        skip_below: what lies outside the box of all voxels above this value becomes background without a run, e.g. 0
            for an HU window that begins above air; None runs all. The box begins where the strides of the network do,
            and streaming keeps a margin, so that it gives what it gives for the whole volume but for single voxels.
            Windows of air alone are not run; a structure that reaches into air loses what lies in them.
        streaming: where the networks can be streamed (`streaming.obstacles`), pass the volume through them slice by
            slice instead: each voxel is computed once, with all of the volume around it, and the windows' overlap, size
            and blending play no part.
        regions: labels of overlapping regions, one for each channel (sigmoid, a later one overrides an earlier); None
            for classes that exclude each other (softmax).
        probabilities_of: channels whose probability is returned, as float32 channels, instead of labels.

    Raises:
        UsageError: a value out of its range.

    >>> infer = vg.RestoringSlidingWindowInferer(roi_size=(16, 16, 16), overlap=0.25)
    >>> load = LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True)
    >>> infer(load({"image": "scan.nii.gz"})["image"][None], torch.nn.Conv3d(1, 2, 1)).shape
    torch.Size([1, 1, 32, 36, 28])
    """

    def __init__(  # noqa: PLR0913 - one keyword for each number of the bundle's config
        self,
        *,
        roi_size: Sequence[int],
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        mode: str = "gaussian",
        flip_axes: Sequence[int] = (),
        side_pairs: Sequence[Sequence[int]] = (),
        compute_dtype: str | None = None,
        channels_last: bool = True,
        window_multiple: int = 1,
        window: str = "as_trained",
        max_memory: int | None = None,
        skip_below: float | None = None,
        streaming: bool = False,
        regions: Sequence[int] | None = None,
        probabilities_of: Sequence[int] = (),
    ) -> None:
        super().__init__()
        _check_windows(roi_size, overlap, mode, (sw_batch_size, window_multiple))
        _check_views(flip_axes, side_pairs, compute_dtype)
        _check_memory(window, max_memory)
        if regions is not None and side_pairs:
            raise UsageError("regions and side_pairs: expected one of them, regions have no sides to swap.")
        self.roi_size: Shape = (roi_size[0], roi_size[1], roi_size[2])
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self.mode = mode
        self.flip_axes = tuple(sorted(set(flip_axes)))
        self.side_pairs = tuple((int(low), int(high)) for low, high in side_pairs)
        self.compute_dtype = compute_dtype
        self.channels_last = channels_last
        self.window_multiple = window_multiple
        self.window = WindowSize(window)
        self.max_memory = max_memory
        self.skip_below = skip_below
        self.streaming = streaming
        self.regions = None if regions is None else tuple(regions)
        ScoreKind(regions=self.regions)
        self.probabilities_of = tuple(probabilities_of)
        self.tap: Tap | None = None

    def tapped(self, tap: Tap) -> Self:
        """Return an inferer that also shows somebody the scores on the network grid, slab by slab, as they come."""
        shown = copy.copy(self)
        shown.tap = tap
        return shown

    def adjusted(self, asked: PassOptions) -> Self:
        """Return an inferer with other steps between windows, or without mirroring.

        Raises:
            UsageError: it is asked to be fast, or for steps where it streams.
        """
        if asked.fast:
            raise UsageError("--fast is for imported models; this bundle runs as fast as it can, or as --runtime says.")
        if asked.step_size is not None and self.streaming:
            raise UsageError("--step-size: this bundle sees each voxel once and has no windows to step; leave it out.")
        changed = copy.copy(self)
        if asked.step_size is not None:
            changed.overlap = 1 - asked.step_size
        if not asked.mirroring:
            changed.flip_axes = ()
        return changed

    def within(self, limit_bytes: int) -> Self:
        """Return an inferer that keeps to a limit of memory: where streaming takes more, it takes windows."""
        limited = copy.copy(self)
        limited.max_memory = min(limit_bytes, self.max_memory or limit_bytes)
        return limited

    def __call__(self, inputs: MetaTensor, network: Networks, *args: Any, **kwargs: Any) -> MetaTensor:
        """Return the label map of one image on the grid it was read from.

        Args:
            inputs: `MetaTensor` (1, C, i, j, k) on the network grid, float; its metadata name the source grid
                (`original_affine`, `spatial_shape`, as MONAI's `LoadImage` records them).
            network: gives logits (B, classes, i, j, k) for windows (B, C, i, j, k); in eval mode. Several networks, a
                list or `ModuleList`, are averaged.
            args: passed to each network.
            kwargs: passed to each network.

        Returns:
            (1, 1, I, J, K) on the source grid, on the device of `inputs`; uint8, int32 where a label above 255 is
            possible. With `probabilities_of`, (1, asked, I, J, K) float32. `meta["confidence"]` holds the mean
            probability of each label where it was found (`Restored`), `meta["unstreamed"]` whether windows were taken
            because there was too little memory to stream.

        Raises:
            InputError: more than one volume, none, voxels that are not finite, metadata without the source grid, or a
                volume the network cannot take.
            UsageError: sides to swap, but axis 0 does not run from left to right, or there are fewer classes; limits
                in which no window fits.
            BundleError: the network gives one class only, other shapes than its windows, or values that are not finite.
        """
        grids = grids_of(inputs)
        restored, is_unstreamed = self._run(inputs, grids, network, args, kwargs)
        channels = restored.probabilities if self.probabilities_of else restored.labels[None]
        facts: Facts = {
            "confidence": torch.from_numpy(restored.confidence),
            SUMS: torch.from_numpy(restored.sums),
            UNSTREAMED: is_unstreamed,
        }
        return on_source(torch.from_numpy(channels), inputs, grids[0], facts)

    def _run(
        self,
        inputs: MetaTensor,
        grids: tuple[Grid, Grid],
        network: Networks,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Restored, bool]:
        """Return what was found, and whether windows were taken because there was too little memory to stream."""
        source, grid = grids
        if self.side_pairs and 0 in self.flip_axes:
            _check_sagittal(grid)
        image = inputs.as_tensor().float()
        if not is_finite(image):
            raise InputError(
                "the image has voxels that are not finite (NaN or infinite); repair or leave out the file."
            )
        networks = networks_of(network)
        views = self.views([_bound(one, args, kwargs) for one in networks])
        box = self._box(image, networks)
        if box is None:
            return nothing(source, len(self.probabilities_of)), False
        place = _Place(grid.cropped(box), source, self.windows(networks))
        part = image[(slice(None), slice(None), *box)]
        is_streamed = self.all_stream(networks) and not (args or kwargs)
        with torch.no_grad():
            if is_streamed and (prepared := self._prepared(networks, place.grid.shape)) is not None:
                watched = _watched(views)
                slabs = self._shown(watched.stream(part, prepared), place, prepared[0].axis, views.kind)
                return _with_overlap(
                    restore(slabs, self._restorer(place, prepared[0].axis, part, views)), watched
                ), False
            return self._windowed(part, views, place), is_streamed

    def _windowed(self, image: torch.Tensor, views: MirroredViews, place: _Place) -> Restored:
        if self.window is WindowSize.AS_TRAINED:
            return self._swept(image, views, place, self.max_memory)
        limit = self.max_memory or available_bytes(image.device)
        return with_less_memory(lambda most: self._swept(image, views, place, most), limit)

    def _box(self, image: torch.Tensor, networks: Sequence[Network] | nn.ModuleList) -> Box | None:
        """Return the part of the network grid that is run; None if all is air."""
        i, j, k = size = triple(image.shape[2:])
        if self.skip_below is None:
            return slice(0, i), slice(0, j), slice(0, k)
        body = body_box(image, self.skip_below)
        if body is None:
            return None
        windows = self.windows(networks)
        steps = windows.steps_vox
        if self.all_stream(networks):
            return with_margin(body, size, AIR_MARGIN_VOX, steps, self.flip_axes)
        return widened(with_margin(body, size, 0, steps), size, windows.clipped(size), steps)

    def views(self, networks: Sequence[Network] | nn.ModuleList) -> MirroredViews:
        """Return some networks as one, which also sees windows mirrored."""
        return MirroredViews(
            list(networks),
            self.flip_axes,
            self.side_pairs,
            compute_dtype=self.compute_dtype,
            channels_last=self.channels_last,
            regions=self.regions,
        )

    def windows(self, networks: Sequence[Network] | nn.ModuleList) -> Windows:
        """Return the windows that some networks get."""
        return Windows(
            self.roi_size,
            self.overlap,
            self.sw_batch_size,
            self.window_multiple,
            self.window is WindowSize.LARGEST,
            self.mode,
            self._steps(networks),
        )

    def _steps(self, networks: Sequence[Network] | nn.ModuleList) -> Shape:
        """Return in what steps windows begin, so that all meet the strides of the network alike."""
        if self.window is WindowSize.AS_TRAINED and self.skip_below is None:
            return 1, 1, 1  # places of MONAI
        step = self.window_multiple
        return next((reduction(one) for one in networks if isinstance(one, AttentionUNet)), (step, step, step))

    def all_stream(self, networks: Sequence[Network] | nn.ModuleList) -> bool:
        """Return whether volumes pass through all of some networks slice by slice, as far as memory allows."""
        return len(networks) > 0 and all(self.streams(one) for one in networks)

    def _swept(self, image: torch.Tensor, views: MirroredViews, place: _Place, limit: int | None) -> Restored:
        windows, size = place.windows, place.grid.shape
        if limit is None:
            plan = windows.smallest(size)
        else:
            model = measure_memory(_watched(views), image, windows.clipped(size), self.window_multiple)
            plan = windows.within(size, model, limit)
        watched = _watched(views)
        slabs = sweep(image, watched, plan, skip_below=self.skip_below, kind=views.kind)
        seen = self._shown(slabs, place, plan.axis, views.kind)
        return _with_overlap(restore(seen, self._restorer(place, plan.axis, image, views)), watched)

    def _shown(self, slabs: Iterable[ScoreSlab], place: _Place, axis: int, kind: ScoreKind) -> Iterator[ScoreSlab]:
        for start, scores in slabs:
            if self.tap is not None:
                spans = [slice(0, size) for size in place.grid.shape]
                spans[axis] = slice(start, start + scores.shape[1 + axis])
                self.tap(scores, kind, place.grid.cropped(triple(spans)))
            yield start, scores

    def _restorer(self, place: _Place, axis: int, image: torch.Tensor, views: MirroredViews) -> Restorer:
        asked = self.probabilities_of
        return Restorer(place.grid, place.source, axis, kind=views.kind, probabilities_of=asked, image=image[0])

    def streams(self, network: object) -> bool:
        """Return whether volumes pass through this network slice by slice, as far as memory allows."""
        return self.streamable_axes != () and isinstance(network, nn.Module) and can_stream(network)

    @property
    def streamable_axes(self) -> tuple[int, ...]:
        """Return the axes along which volumes may pass: those that are not mirrored."""
        return tuple(axis for axis in range(3) if self.streaming and axis not in self.flip_axes)

    def streaming_bytes(
        self, networks: Sequence[Network] | nn.ModuleList, plane_vox: tuple[int, int], axis: int
    ) -> int:
        """Return the size of the buffers for networks that `all_stream`, without what an allocator loses.

        Args:
            networks: whose results are averaged.
            plane_vox: of a slice.
            axis: along which slices pass.
        """
        module = cast("AttentionUNet", networks[0])
        cost = streaming_cost(module, plane_vox, axis=axis, dtype=self._streamed_dtype)
        views: int = len(networks) * 2 ** len(self.flip_axes)
        return views * cost.peak_bytes

    @property
    def _streamed_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.compute_dtype is not None else None

    def _prepared(self, networks: Sequence[Network] | nn.ModuleList, size: Shape) -> list[StreamingNetwork] | None:
        """Return networks that `all_stream` ready for a part of the network grid, or None if memory is too small."""
        axis = streamed_axis(size, self.streamable_axes)
        height, width = (n for other, n in enumerate(size) if other != axis)
        modules = [cast("AttentionUNet", one) for one in networks]
        try:
            modules[0].check_size(size)
        except ValueError as error:
            raise InputError(f"the network cannot take this volume: {error}.") from error
        buffer_bytes = 0 if self.max_memory is None else self.streaming_bytes(networks, (height, width), axis)
        if self.max_memory is not None and reserved_bytes(buffer_bytes) > self.max_memory:
            return None
        return [StreamingNetwork(module, axis=axis, dtype=self._streamed_dtype) for module in modules]


def _watched(views: MirroredViews) -> MirroredViews:
    """Return the same views, of which is told how far they agree, if there are several that could."""
    is_told = views.kind.are_probabilities and views.regions is None
    return replace(views, overlap=ViewOverlap()) if is_told else views


def _with_overlap(restored: Restored, watched: MirroredViews) -> Restored:
    if watched.overlap is None:
        return restored
    sums: Sums = restored.sums.copy()
    sums[:, [Sum.LEAST, Sum.MOST]] = watched.overlap.sums.numpy()
    return replace(restored, sums=sums)


def networks_of(network: Networks) -> Sequence[Network] | nn.ModuleList:
    """Return the networks whose probabilities are averaged, most often the one."""
    return network if isinstance(network, Sequence | nn.ModuleList) else [network]


def _check_windows(roi_size: Sequence[int], overlap: float, mode: str, counts: tuple[int, int]) -> None:
    if len(roi_size) != 3 or min(*roi_size, *counts) < 1:
        raise UsageError(
            f"roi_size {tuple(roi_size)}, sw_batch_size {counts[0]}, window_multiple {counts[1]}: expected three "
            "sizes, and counts of at least 1."
        )
    if not 0 <= overlap < 1:
        raise UsageError(f"overlap {overlap}: expected 0 to below 1.")
    if mode not in MODES:
        raise UsageError(f"mode {mode!r}: expected one of {MODES}.")


def _check_memory(window: str, max_memory: int | None) -> None:
    if window not in list(WindowSize) or (max_memory is not None and max_memory < 1):
        raise UsageError(
            f"window {window!r}, max_memory {max_memory}: expected one of {[*map(str, WindowSize)]}, and null or a "
            "number of bytes above 0."
        )


def _check_views(flip_axes: Sequence[int], side_pairs: Sequence[Sequence[int]], compute_dtype: str | None) -> None:
    if compute_dtype not in {None, "bfloat16"}:
        raise UsageError(f"compute_dtype {compute_dtype!r}: expected null or 'bfloat16'.")
    if not set(flip_axes) <= {0, 1, 2} or any(len(pair) != 2 or min(pair) < 1 for pair in side_pairs):
        raise UsageError(
            f"flip_axes {tuple(flip_axes)}, side_pairs {tuple(side_pairs)}: expected axes 0 to 2, and pairs of class "
            "values above 0."
        )


def _bound(network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Predictor:
    return lambda windows: network(windows, *args, **kwargs)


def _check_sagittal(grid: Grid) -> None:
    towards_right = np.abs(grid.affine[0, :3]) / grid.spacing_mm
    if towards_right.argmax() != 0:
        raise UsageError(
            f"side_pairs with mirroring along axis 0, but axis {towards_right.argmax()} runs from left to right; "
            "reorient the image to RAS in preprocessing."
        )
