"""A MONAI inferer that gives the labels of nnU-Net's predictor, voxel for voxel, on the grid of the file."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import nn

from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.geometry import Grid, Shape
from voxelgate.core.machine import free_host_bytes
from voxelgate.inference.class_planes import Planes, Probabilities, confidence_of, gathered, probabilities_in
from voxelgate.inference.nnunet.decisions import LogitDecision, decision_of
from voxelgate.inference.nnunet.fast_networks import fast_body
from voxelgate.inference.nnunet.logit_planes import logit_planes
from voxelgate.inference.nnunet.source_box import SourceBox, source_box
from voxelgate.inference.nnunet.source_planes import LogitPlane, PlaneRestorer, neighbours
from voxelgate.inference.nnunet.taps import restoring_taps
from voxelgate.inference.nnunet.tiles import Tiles, check_tiles
from voxelgate.inference.nnunet.torch_planes import TorchRestorer
from voxelgate.inference.nnunet.window_scores import Layer, WindowNetwork, window_network
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.restoring.placement import in_file_order
from voxelgate.inference.source_grid import grids_of, on_source
from voxelgate.inference.threads import LoneWorkers, Result
from voxelgate.inference.windows import is_finite
from voxelgate.transforms.nnunet.preprocess import SOURCE_SPACING
from voxelgate.transforms.nnunet.resample import Resampling, ResamplingFunction

AnyRestorer: TypeAlias = PlaneRestorer | TorchRestorer


@dataclass(frozen=True, eq=False)
class _Way:
    """The way of one image through the networks and back."""

    image: torch.Tensor
    networks: Sequence[WindowNetwork]
    tiles: Tiles
    restorer: AnyRestorer
    source: Grid
    box: SourceBox
    max_bytes: int

    def restored(self, restore: Callable[[int, tuple[LogitPlane, ...]], Result]) -> Iterator[Result]:
        """Yield what some function makes of each plane of the source grid, given its index and `neighbours`."""
        with LoneWorkers() as workers:
            planes = logit_planes(self.image, self.networks, self.tiles, workers, self.max_bytes)
            groups = neighbours(planes, self.restorer.taps[0], self.restorer.decision)
            yield from workers.in_order(partial(restore, index, group) for index, group in enumerate(groups))


class NnUNetInferer(Inferer):  # type: ignore[misc]  # MONAI ships no stubs
    """Run networks of nnU-Net v2 over a prepared image as its predictor does, and return labels on the source grid.

    On a CPU, with the same version and number of threads of PyTorch, the labels are those of `nnUNetPredictor` and its
    export, voxel for voxel: windows, weights, mirroring, sums in float16, mean of the folds, resampling of the logits
    and the decision are its own. Class scores exist for one row of windows and two planes at a time.

    Args:
        patch_size: window in voxels of the prepared image; two sizes for a 2D network, which takes slices of the first
            axis.
        spacing: of the network grid as the plans have it, in mm, one for each size of the window.
        step_size: largest distance of two windows as a part of their size.
        mirror_axes: axes of the window along which it is mirrored too, in every combination.
        regions: labels of overlapping regions in the order of their channels (`regions_class_order`); None for classes.
        resampling: how logits are brought back: the plans' `resampling_fn_probabilities` under `function`, and its
            keywords; splines of order 1 only, with the nearest plane along an axis that is resampled apart.
        exact: whether networks compute as nnU-Net's do, to the last bit; if not, as fast as they can (`fast_body`).
        max_memory: bytes that the sums of one row of windows may take; None for what is free.
        probabilities_of: channels whose probability is returned, as float32 channels, instead of labels.

    Raises:
        UsageError: a value out of its range.

    >>> infer = vg.NnUNetInferer(patch_size=(16, 16, 16), spacing=(2.0, 1.0, 1.0))
    >>> load = LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True)
    >>> infer(load({"image": "scan.nii.gz"})["image"][None], torch.nn.Conv3d(1, 2, 1)).shape
    torch.Size([1, 1, 32, 36, 28])
    """

    def __init__(  # noqa: PLR0913 - one keyword for each number of the plans
        self,
        *,
        patch_size: Sequence[int],
        spacing: Sequence[float],
        step_size: float = 0.5,
        mirror_axes: Sequence[int] = (),
        regions: Sequence[int] | None = None,
        resampling: Mapping[str, Any] | None = None,
        exact: bool = True,
        max_memory: int | None = None,
        probabilities_of: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_tiles(patch_size, step_size)
        if len(spacing) != len(patch_size) or min(spacing) <= 0:
            raise UsageError(f"spacing {tuple(spacing)}: expected {len(patch_size)} numbers of mm above 0.")
        if not set(mirror_axes) <= set(range(len(patch_size))):
            raise UsageError(f"mirror_axes {tuple(mirror_axes)}: expected axes of a window of {tuple(patch_size)}.")
        self.patch_size = tuple(patch_size)
        self.spacing = tuple(spacing)
        self.step_size = step_size
        self.mirror_axes = tuple(mirror_axes)
        self.regions = None if regions is None else tuple(regions)
        self.resampling = Resampling(order=1) if resampling is None else Resampling.from_mapping(resampling)
        self.exact = exact
        self.max_memory = max_memory
        self.probabilities_of = tuple(probabilities_of)
        self._decision: LogitDecision = decision_of(self.regions)
        self._fast: dict[nn.Module, Layer] = {}
        _check_resampling(self.resampling)

    def __call__(self, inputs: MetaTensor, network: nn.Module | Sequence[nn.Module]) -> MetaTensor:
        """Return the label map of one image on the grid it was read from.

        Args:
            inputs: `MetaTensor` (1, C, a, b, c) in nnU-Net's axes, as `NnUNetPreprocessd` prepares it.
            network: gives logits (1, classes, ...) for windows (1, C, ...); in evaluation mode. Several, a list or
                `ModuleList`, are folds.

        Returns:
            (1, 1, I, J, K) on the source grid; uint8, int32 where a label above 255 is possible. `meta["confidence"]`
            holds the mean probability of each label on the network grid, where it was found. With `probabilities_of`,
            (1, asked, I, J, K) float32.

        Raises:
            InputError: more than one volume, none, voxels that are not finite, or metadata without the source grid.
            UsageError: channels asked for that the network does not give; sums that need more memory than there is.
            BundleError: the network gives other shapes than its windows, or values that are not finite.
        """
        way = self._way(inputs, network)
        if not self.probabilities_of:
            labels, confidence = _found_on_source(way)
            return on_source(torch.from_numpy(labels), inputs, way.source, {"confidence": confidence})
        found = gathered(
            Planes(way.box.view, way.restored(partial(self._probabilities, way.restorer))),
            way.source.shape,
            self.probabilities_of,
            are_regions=self.regions is not None,
        )
        return on_source(torch.from_numpy(found), inputs, way.source, {})

    def planes(self, image: MetaTensor, network: nn.Module | Sequence[nn.Module]) -> Planes:
        """Return the logits of an image on its source grid, as nnU-Net resamples them, plane by plane.

        Args:
            image: as for a call.
            network: as for a call.

        Returns:
            Logits (classes, b, c) of each plane of the part that the prepared image covers, in its axes; float16, or
            float32 that PyTorch interpolated.
        """
        way = self._way(image, network)
        return Planes(way.box.view, way.restored(way.restorer.logits))

    def adjusted(self, asked: PassOptions) -> Self:
        """Return a copy that runs as it is asked to: fast, in other steps, or without mirroring."""
        changed = copy.copy(self)
        changed.exact = self.exact and not asked.fast
        changed.step_size = self.step_size if asked.step_size is None else asked.step_size
        changed.mirror_axes = self.mirror_axes if asked.mirroring else ()
        return changed

    def within(self, max_bytes: int) -> Self:
        """Return a copy that refuses images whose sums need more memory than this."""
        limited = copy.copy(self)
        limited.max_memory = min(max_bytes, self.max_memory or max_bytes)
        return limited

    def _way(self, inputs: MetaTensor, network: nn.Module | Sequence[nn.Module]) -> _Way:
        source, grid = grids_of(inputs)
        image = inputs.as_tensor().float()
        if not is_finite(image):
            raise InputError(
                "the image has voxels that are not finite (NaN or infinite); repair or leave out the file."
            )
        box = source_box(source, grid)
        networks = network if isinstance(network, Sequence | nn.ModuleList) else [network]
        return _Way(
            image,
            [self._windowed(one, image) for one in networks],
            Tiles(grid.shape, self.patch_size, self.step_size),
            self._restorer(grid.shape, box.size_vox, self._separate_axis(inputs, source, box)),
            source,
            box,
            self.max_memory or free_host_bytes(),
        )

    def _restorer(self, network: Shape, source: Shape, apart: int | None) -> AnyRestorer:
        """Return what brings logits from the network grid to the source grid, in its axes."""
        function = self.resampling.function
        if function is ResamplingFunction.TORCH:
            return TorchRestorer.of(network, source, apart, self._decision)
        if function is ResamplingFunction.NONE and network != source:
            raise BundleError(
                f"an image of {source} voxels was resampled to {network}, but its logits are not brought back "
                f"({function}); the plans contradict each other."
            )
        return PlaneRestorer(restoring_taps(network, source, apart), self._decision)

    def _windowed(self, network: nn.Module, image: torch.Tensor) -> WindowNetwork:
        """Return a network for windows of an image (1, C, a, b, c)."""
        if self.exact:
            return window_network(network, self.mirror_axes)
        if network not in self._fast:
            window = torch.zeros((1, image.shape[1], *self.patch_size), device=image.device)
            self._fast[network] = fast_body(network, window)
        return window_network(network, self.mirror_axes, self._fast[network])

    def _separate_axis(self, inputs: MetaTensor, source: Grid, box: SourceBox) -> int | None:
        """Return the axis that is brought back by nearest neighbours."""
        stated = inputs.meta.get(SOURCE_SPACING)
        measured = [source.spacing_mm[axis] for axis in box.axes]
        spacing = measured if stated is None else np.asarray(stated, np.float64).reshape(-1).tolist()
        current = self.spacing if len(self.spacing) == 3 else (spacing[0], *self.spacing)
        return self.resampling.separate_axis(current, spacing)

    def _probabilities(self, restorer: AnyRestorer, index: int, planes: tuple[LogitPlane, ...]) -> Probabilities:
        """Return the probabilities (classes, b, c) of a plane of the source grid."""
        return probabilities_in(restorer.logits(index, planes), are_regions=self.regions is not None)


def _found_on_source(way: _Way) -> tuple[npt.NDArray[Any], torch.Tensor]:
    """Return labels (1, I, J, K), 0 outside the part that was prepared, and how sure the network is of each."""
    labels = view = np.zeros((0, 0, 0), np.uint8)
    certainty: dict[int, npt.NDArray[np.float64]] = {}
    for index, (plane, of_planes) in enumerate(way.restored(partial(_labelled, way.restorer))):
        certainty |= of_planes
        if not index:
            labels = in_file_order(1, way.source.shape, plane.numpy().dtype)
            view = way.box.view(labels)[0]
        view[index] = plane.numpy()
    return labels, confidence_of(certainty.values())


def _labelled(
    restorer: AnyRestorer, index: int, planes: tuple[LogitPlane, ...]
) -> tuple[torch.Tensor, dict[int, npt.NDArray[np.float64]]]:
    """Return the labels of a plane of the source grid, and how certain the planes are that it is made of."""
    return restorer.labels(index, planes), {plane.number: plane.certainty for plane in planes}


def _check_resampling(resampling: Resampling) -> None:
    is_spline = resampling.function is ResamplingFunction.DEFAULT
    if is_spline and (resampling.order != 1 or resampling.order_z != 0):
        raise UsageError(
            f"logits brought back by splines of order {resampling.order} and {resampling.order_z}, expected 1 and 0."
        )
