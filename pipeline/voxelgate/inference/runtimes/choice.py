"""How the network of a bundle is run on this machine: streamed, or on windows by the runtime that was asked for."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from voxelgate.core.errors import UsageError
from voxelgate.inference.runtimes.agreement import Evidence, central_patch
from voxelgate.inference.runtimes.calibration import (
    Calibration,
    CalibrationPlace,
    cache_folder,
    calibrate,
    checked,
    fastest,
    place_of,
    window_ways,
)
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.inference.runtimes.runtimes import Network
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer

STREAMED = "streaming"
"""Name of the way that needs no runtime: folded weights, float32, each voxel computed once."""

MANY_WINDOWS = 10**6
"""Windows to come, for a runtime that was calibrated: somebody who measures means to use it."""


class Chosen(NamedTuple):
    """A network ready to run, and the name of the way for reports."""

    name: str
    network: Network


@dataclass
class RuntimeChoice:
    """Choose once for each shape of window, and check the choice on the first volume before it is used.

    Args:
        network: in evaluation mode.
        inferer: of the same bundle; with one of another kind, and no module, the network runs as it is.
        fingerprint: of the bundle.
        asked: a runtime, or None for what is known to be fastest here.
    """

    network: Network
    inferer: object
    fingerprint: str
    asked: Runtime | None = None
    _ready: dict[tuple[int, ...], Chosen] = field(default_factory=dict, repr=False)

    def for_image(self, image: torch.Tensor) -> Chosen:
        """Return the network for the windows of an image (1, C, i, j, k).

        Raises:
            UsageError: the runtime that was asked for cannot be used here, or its labels are not those of eager.
        """
        if not isinstance(self.inferer, RestoringSlidingWindowInferer) or not isinstance(self.network, nn.Module):
            return Chosen(Runtime.EAGER, self.network)
        if isinstance(self.network, nn.ModuleList):
            return Chosen(Runtime.EAGER, self.network)
        if self.asked is None and self.inferer.streams(self.network):
            return Chosen(STREAMED, self.network)
        patch = central_patch(image.as_subclass(torch.Tensor).float(), self.inferer.roi_size)
        shape = tuple(patch.shape)
        if shape not in self._ready:
            self._ready[shape] = self._choose(self.network, patch)
        return self._ready[shape]

    def _choose(self, network: nn.Module, patch: torch.Tensor) -> Chosen:
        place = _place(self.fingerprint, patch)
        ways = window_ways(network, patch, stored=place.stored)
        evidence = _evidence(network, self.inferer, patch)
        if self.asked is not None:
            return Chosen(self.asked, checked(ways, self.asked, evidence))
        runtime, run = fastest(ways, evidence, place.load(), MANY_WINDOWS)
        return Chosen(runtime, run)


def calibrate_windows(network: nn.Module, inferer: object, fingerprint: str, image: torch.Tensor) -> Calibration:
    """Measure every runtime on the windows of an image, and keep the result for this machine.

    Args:
        network: in evaluation mode.
        inferer: of the same bundle.
        fingerprint: of the bundle.
        image: preprocessed, (1, C, i, j, k), with structures in its middle.

    Raises:
        UsageError: the bundle does not run by windows.
    """
    if not isinstance(inferer, RestoringSlidingWindowInferer) or inferer.streams(network):
        raise UsageError("this bundle streams, or has an inferer of its own; there is no runtime to choose.")
    patch = central_patch(image.as_subclass(torch.Tensor).float(), inferer.roi_size)
    place = _place(fingerprint, patch)
    measured = calibrate(window_ways(network, patch, stored=place.stored), _evidence(network, inferer, patch))
    place.save(measured)
    return measured


def _place(fingerprint: str, patch: torch.Tensor) -> CalibrationPlace:
    return place_of(fingerprint, patch.shape, patch.device, way="windows", folder=cache_folder())


def _evidence(network: nn.Module, inferer: object, patch: torch.Tensor) -> Evidence:
    return Evidence(network, (patch,), are_regions=getattr(inferer, "regions", None) is not None)
