"""The opened bundle: it prepares an image, predicts what is in it, and judges the result."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from torch import nn

from voxelgate.bundle.observing import observe
from voxelgate.bundle.passing import adjusted_inferer, averages_mirrorings, labels_looked_for, structures_named
from voxelgate.bundle.probabilities import probabilities_of
from voxelgate.bundle.reading import Image, read_source, series_in, take_array
from voxelgate.core.dice import dice_of_labels
from voxelgate.core.errors import BundleError, UsageError, VoxelgateError, cause_of
from voxelgate.core.findings import Allow, Finding
from voxelgate.core.geometry import Affine, Grid, Shape, triple
from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import Structure, measure_structures
from voxelgate.core.verdict import Quality
from voxelgate.dicom.choose import SeriesRule
from voxelgate.dicom.read.series import Series
from voxelgate.evaluation.expectations import Expected
from voxelgate.evaluation.image_look import look_of
from voxelgate.evaluation.observation import Observation
from voxelgate.evaluation.predicted_dice import QualityModel
from voxelgate.evaluation.review import assess, assess_foretold
from voxelgate.images.pictures import is_picture
from voxelgate.images.spec import ImageSpec
from voxelgate.images.volumes import Voxels, is_volume
from voxelgate.inference.attention.maps import GateMap, gate_levels, gate_maps
from voxelgate.inference.mirroring import mirror_image
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.restoring.label_sums import Sum, Sums
from voxelgate.inference.runtimes.choice import RuntimeChoice
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.inference.sliding_window import SUMS, UNSTREAMED, RestoringSlidingWindowInferer
from voxelgate.inference.source_grid import part_around
from voxelgate.transforms.io import as_image, file_facts_of

WITHOUT_RANGES = (
    "ranges: the imported model does not say how structures looked in its training, so their volumes were not judged."
)
"""What is said beside each verdict on a result of such a model."""

FLAT_AXES = 2
"""Of the windows of a network that sees slices."""

FAST = "fast"
"""How a run is called whose inferer leaves exactness for speed."""

AGREEMENT = "agreement"
"""Key under which an inferer itself says how well its fast pass agrees with the exact one."""

LARGEST_COMPARED_VOX = (128, 128, 128)
"""Part of an image on which a fast pass is compared, where the inferer has no window."""

Source: TypeAlias = Path | str | Sequence[Path | str] | Series | MetaTensor | tuple[Voxels, Affine]
"""An image as `Bundle.segment` takes it."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network found in an image.

    Args:
        labels: (I, J, K) on the grid of the image, cleaned as the bundle asks for.
        runtime: how the network ran.
        confidence: mean probability of each class where it won, background first; None if the inferer does not say.
        flip_dice: agreement with the mirrored image by structure, if asked for.
        gates: maps of the attention gates, if asked for.
        is_unstreamed: windows were taken because there was too little memory to stream, which changes labels a little.
        agreement: part of the voxels of a window at which a fast pass gives the labels of the exact one, as measured on
            the first image; None of a pass that is not asked to be fast.
        probabilities: (I, J, K) float32 of each structure by name, if they were asked for.
        sums: (labels, `Sum`), what else scores and image say of each label; None if the inferer does not say.
        look: numbers of the image as the network got it, if the inferer says `sums`.
    """

    labels: npt.NDArray[Any]
    runtime: str
    confidence: Sequence[float] | None = None
    flip_dice: Mapping[str, float] | None = None
    gates: Sequence[GateMap] = ()
    is_unstreamed: bool = False
    agreement: float | None = None
    probabilities: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    sums: Sums | None = None
    look: Mapping[str, float] = field(default_factory=dict)


class Segmentation(NamedTuple):
    """A segmented image, in memory.

    Args:
        labels: (I, J, K) label values; `Bundle.labels` says what they mean.
        grid: of the labels, which is that of the image; RAS+ mm.
        volumes_ml: of each structure by name, 0 if it was not found.
        review: whether the result can be taken as it is.

    >>> found = vg.open_bundle("my_bundle").segment("scan.nii.gz")
    >>> found.labels.shape == found.grid.shape, sorted(found.volumes_ml)
    (True, ['femur'])
    """

    labels: npt.NDArray[Any]
    grid: Grid
    volumes_ml: dict[str, float]
    review: Quality


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, ready to segment.

    Args:
        root: its folder.
        name: from its metadata.
        version: from its metadata.
        fingerprint: SHA-256 over the checksums of its files, hex.
        labels: what the label values mean.
        preprocessing: `{"image": MetaTensor (C, I, J, K)}` on the source grid to `{"image": MetaTensor (C, i, j, k)}`
            on the network grid; the steps of `inference.json` after those that read the file.
        inferer: gives labels (1, 1, I, J, K) on the source grid.
        network: in eval mode, on `device`, weights loaded.
        device: where the network runs.
        series_rule: which series of a DICOM study it wants.
        expected: what images it was trained on, if its metadata say so.
        cleaning: labels (1, 1, I, J, K) from the inferer to labels without what cross-validation found to be mistakes;
            the steps of `postprocessing` in `inference.json` before it saves.
        image_spec: what its images consist of.
        exact: the inferer with which `inferer`, which is faster, is compared; None if that is not fast.
        looked_for: label values of the structures that are looked for; empty for all.
        is_imported: whether others have trained it.
        licence: of an imported model, as its metadata state it.
        quality: foretells the Dice of its results as it is run here; None if no cross-validation taught it that.

    >>> bundle = vg.open_bundle("my_bundle")
    >>> bundle.name, bundle.version
    ('bright_ct', '1.0.0')
    """

    root: Path
    name: str
    version: str
    fingerprint: str
    labels: LabelTable
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    inferer: Callable[..., Any]
    network: nn.Module
    device: torch.device
    series_rule: SeriesRule
    expected: Expected | None
    cleaning: Callable[[MetaTensor], MetaTensor]
    image_spec: ImageSpec
    exact: Callable[..., Any] | None = None
    looked_for: tuple[int, ...] = ()
    is_imported: bool = False
    licence: str = ""
    quality: QualityModel | None = None

    @property
    def sliding(self) -> RestoringSlidingWindowInferer | None:
        """Return the inferer if it is ours, which can be told how to run; None if the bundle brings another kind."""
        return self.inferer if isinstance(self.inferer, RestoringSlidingWindowInferer) else None

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Return the networks one by one: several where folds, parts or stages are run together."""
        return tuple(self.network) if isinstance(self.network, nn.ModuleList) else (self.network,)

    @property
    def window_vox(self) -> Shape | None:
        """Return the window of the inferer in voxels of the network grid; None if it has none.

        That of a network of two axes is one slice thick.
        """
        stated = getattr(self.inferer, "roi_size", None) or getattr(self.inferer, "patch_size", None)
        if stated is None:
            return None
        size = [int(n) for n in stated]
        if len(size) == FLAT_AXES:
            size.insert(getattr(self.inferer, "slice_axis", None) or 0, 1)
        return triple(size)

    @property
    def are_regions(self) -> bool:
        """Return whether the channels of the network are regions that may overlap (sigmoid), not classes (softmax)."""
        return getattr(self.inferer, "regions", None) is not None

    @property
    def streams(self) -> bool:
        """Return whether volumes pass through all networks slice by slice, as far as memory allows."""
        return self.sliding is not None and self.sliding.all_stream(self.networks)

    def prepare(self, image: MetaTensor) -> MetaTensor:
        """Bring an image to the network grid as the bundle's configs say.

        Args:
            image: (C, I, J, K) as it was read, for instance by `as_image`.

        Returns:
            (C, i, j, k), normalised; its metadata name the grid of the image.

        Raises:
            InputError: a step of ours refuses the image, as one that is too small.
        """
        try:
            return cast("MetaTensor", self.preprocessing({"image": image})["image"])
        except RuntimeError as error:  # MONAI's, around whatever a step raises
            if not isinstance(cause := cause_of(error), VoxelgateError):
                raise
            ours = cause
        raise ours  # outside, lest it became the cause of its own cause

    def predict(
        self,
        prepared: MetaTensor,
        grid: Grid,
        *,
        runtime: Runtime | None = None,
        check_flips: bool = False,
        attention: tuple[int, ...] = (),
        probabilities: bool = False,
    ) -> Prediction:
        """Run the network over a prepared image, and clean what it gives.

        Args:
            prepared: (C, i, j, k) from `prepare`.
            grid: of the image before, on which the labels must lie.
            runtime: how the network runs; None for the fastest that is known here to give the same labels.
            check_flips: run the network on the mirrored image too, and compare.
            attention: levels of the gates whose maps are returned, all that the network has; or none.
            probabilities: return the probability of each structure too, in a second pass.

        Raises:
            InputError: the network cannot take this image.
            UsageError: the runtime cannot be used, gates are asked for that are not there, a structure has a side but
                no partner while flips are checked, or probabilities are asked of a model that tells none, or that no
                memory holds.
            BundleError: the labels do not lie on the grid.
        """
        image = prepared[None].to(self.device)
        chosen = _choice(self, runtime).for_image(image)
        result = self.inferer(image, chosen.network)
        confidence, is_unstreamed = _confidence(result), bool(torch.as_tensor(result.meta.get(UNSTREAMED, False)).any())
        labels = self._kept(_labels_on(grid, self.cleaning(result)))
        stated, sums = result.meta.get(AGREEMENT), _sums(result)
        del result
        flips = self._flip_dice(image, labels) if check_flips else None
        return Prediction(
            labels,
            chosen.name if self.exact is None else FAST,
            None if confidence is None else _of_length(confidence, len(self.labels.names)),
            flips,
            self._gates(image, attention),
            is_unstreamed,
            _agreement_of(self, image, labels, grid) if stated is None else float(stated),
            probabilities_of(self.inferer, image, chosen.network, self.labels) if probabilities else {},
            sums,
            {} if sums is None else look_of(prepared.as_tensor(), Grid.of(prepared)),
        )

    def _kept(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return labels without those of structures that are not looked for."""
        if not self.looked_for:
            return labels
        kept: npt.NDArray[Any] = np.where(np.isin(labels, self.looked_for), labels, 0).astype(labels.dtype)
        return kept

    def flip_dice(self, prepared: MetaTensor) -> dict[str, float]:
        """Return how well the result agrees with that of the mirrored image, both cleaned; see `flip_dice`.

        An inferer that averages over mirrorings would agree with itself, so it is asked without them.

        Args:
            prepared: (C, i, j, k) from `prepare`.

        Raises:
            UsageError: a structure has a side but no partner to change places with.
        """
        return self._flip_dice(prepared[None].to(self.device), None)

    def _flip_dice(self, image: MetaTensor, labels: npt.NDArray[Any] | None) -> dict[str, float]:
        """Compare with the mirrored image (1, C, i, j, k); labels are those of the image, if they are known."""
        plain = self.inferer
        if averages_mirrorings(plain):
            plain, labels = plain.adjusted(PassOptions(mirroring=False)), None  # type: ignore[attr-defined]  # as all that mirror

        def cleaned(image: MetaTensor, network: nn.Module) -> MetaTensor:
            found = self.cleaning(plain(image, network))
            return found if not self.looked_for else found * torch.isin(found, torch.tensor(self.looked_for))

        if labels is None:
            labels = cleaned(image, self.network).as_tensor()[0, 0].cpu().numpy()
        return flip_dice(image, self.network, cleaned, labels, self.labels)

    def _gates(self, image: MetaTensor, asked: tuple[int, ...]) -> list[GateMap]:
        """Return the maps of all gates for an image (1, C, i, j, k) as it is; none if none are asked for."""
        if not asked:
            return []
        if (levels := gate_levels(self.network)) != asked:
            raise UsageError(
                f"attention maps of gates {asked}, but the network has gates {levels}; ask for all of them."
            )
        grid = Grid.of(image)
        return gate_maps(self.network, image.as_tensor(), grid, self.window_vox or grid.shape)

    def review(self, found: Prediction, grid: Grid, findings: Sequence[Finding] = ()) -> Segmentation:
        """Measure and judge what was found.

        Args:
            found: labels (I, J, K) and what is known of them.
            grid: of the labels, RAS+ mm.
            findings: on the image; warnings among them are doubts.

        Raises:
            BundleError: a label has no name.
        """
        measured = self._measured(found.labels, grid)
        volumes_ml = dict.fromkeys(self.labels.foreground.values(), 0.0)
        volumes_ml |= {name: round(one.volume_ml, 4) for name, one in measured.items()}
        review = self._judged(found, grid, measured, findings)
        if self.is_imported and not (self.expected and self.expected.structures):
            review = replace(review, reasons=(*review.reasons, WITHOUT_RANGES))
        return Segmentation(found.labels, grid, volumes_ml, review)

    def observe(self, found: Prediction, grid: Grid) -> Observation | None:
        """Return all that is measured of a result to foretell its quality; None if the inferer says too little.

        Args:
            found: from `predict`.
            grid: of the labels, RAS+ mm.
        """
        return self._observed(found, grid, self._measured(found.labels, grid))

    def _observed(self, found: Prediction, grid: Grid, measured: Mapping[str, Structure]) -> Observation | None:
        if found.sums is None:
            return None
        return observe(found.labels, grid, self.labels, measured, (found.sums, found.look))

    def _judged(
        self, found: Prediction, grid: Grid, measured: Mapping[str, Structure], findings: Sequence[Finding]
    ) -> Quality:
        observation = None if self.quality is None else self._observed(found, grid, measured)
        what, flips = (measured, self.labels, self.expected), found.flip_dice
        if self.quality is None or observation is None:
            return assess(*what, findings=findings, confidence=found.confidence, flip_dice=flips)
        return assess_foretold(*what, self.quality.foretell(observation), findings=findings, flip_dice=flips)

    def _measured(self, labels: npt.NDArray[Any], grid: Grid) -> dict[str, Structure]:
        if (highest := int(labels.max())) >= len(self.labels.names):
            raise BundleError(f"the network gives label {highest}, but the bundle names only {len(self.labels.names)}.")
        measured = measure_structures(labels, grid, self.labels)
        if "" in measured:
            raise BundleError("the network gives a label that the bundle does not name; name it in metadata.json.")
        return measured

    def segment(
        self,
        image: Source,
        *,
        allow: Iterable[Allow] = (),
        runtime: Runtime | None = None,
        check_flips: bool = False,
    ) -> Segmentation:
        """Segment one image in memory; nothing is written, and the labels are those that `segment` writes.

        Args:
            image: a file (or one file for each channel, in their order), a DICOM series from `scan_dicom`, a folder or
                zip with the series of one study, an array (I, J, K) or (C, I, J, K) with its affine (voxel index to
                RAS+ mm), or a MetaTensor of these shapes. CT in HU.
            allow: faults of a DICOM series to mend by resampling instead of refusing it: `gaps`, `tilt`.
            runtime: how the network runs; None for the fastest that is known here to give the same labels.
            check_flips: segment the mirrored image too, and let the review say where the results differ.

        Returns:
            Labels (I, J, K) on the grid of the image, the grid, the volume of each structure in ml, and the review.

        Raises:
            InputError: the image cannot be read, or is not what the bundle takes.
            UsageError: the runtime cannot be used here, or flips cannot be checked for structures without a partner.
            BundleError: the network gives what the bundle does not name.

        >>> found = bundle.segment("scan.nii.gz")
        >>> found.labels.shape == found.grid.shape
        True
        >>> sorted(found.volumes_ml)
        ['femur']
        """
        prepared, grid, findings = self._read_and_prepare(image, tuple(allow))
        found = self.predict(prepared, grid, runtime=runtime, check_flips=check_flips)
        return self.review(found, grid, findings)

    def _read_and_prepare(self, source: Source, allow: Sequence[Allow]) -> tuple[MetaTensor, Grid, tuple[Finding, ...]]:
        """Return the prepared image, and grid and findings of the one that was read, whose voxels are let go."""
        read = self._read(source, allow)
        return self.prepare(as_image(read.voxels, read.grid, read.facts)), read.grid, read.findings

    def _read(self, source: Source, allow: Sequence[Allow]) -> Image:
        if isinstance(source, MetaTensor):
            affine = source.affine.reshape(4, 4).cpu().numpy()
            array = source.as_tensor().cpu().numpy()
            read = take_array(array, affine, expected=self.expected, images=self.image_spec)
            return read._replace(facts=file_facts_of(source))
        if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray):  # voxels and affine
            affine = np.asarray(source[1])
            return take_array(source[0], affine, expected=self.expected, images=self.image_spec)
        given = source if isinstance(source, Series) else _paths(source)
        if not isinstance(given, Series) and not all(is_volume(path) or is_picture(path) for path in given):
            given = series_in(given, self.series_rule, allow)
        name = given.series_id if isinstance(given, Series) else given[0].name
        return read_source(given, name, self.labels, expected=self.expected, allow=allow, images=self.image_spec)

    def adjusted(self, asked: PassOptions) -> "Bundle":
        """Return the bundle as it is asked to run.

        Raises:
            UsageError: its inferer cannot be asked for that, or a structure is none of its own.
        """
        if not asked.changes:
            return self
        exact = adjusted_inferer(self.inferer, replace(asked, fast=False), self.labels)
        return replace(
            self,
            inferer=adjusted_inferer(self.inferer, asked, self.labels),
            labels=labels_looked_for(asked, self.labels),
            looked_for=structures_named(asked, self.labels),
            exact=exact if asked.fast else None,
            quality=None,
        )

    def within(self, network_bytes: int | None) -> "Bundle":
        """Return the bundle with an inferer that keeps to a limit: where streaming takes more, it takes windows."""
        if network_bytes is None:
            return self
        limit = getattr(self.inferer, "within", None)
        return self if limit is None else replace(self, inferer=limit(network_bytes))


def _paths(source: object) -> list[Path]:
    given = list(source) if isinstance(source, list | tuple) else [source]
    if not given:
        raise UsageError("no image is given; name its files.")
    paths = [Path(one) for one in given if isinstance(one, Path | str)]
    if len(paths) < len(given):
        other = next(one for one in given if not isinstance(one, Path | str))
        raise UsageError(
            "an image is a path, several paths, a DICOM series, a MetaTensor, or an array with its affine, "
            f"(voxels, affine); found {type(other).__name__}."
        )
    return paths


@functools.lru_cache(maxsize=4)
def _choice(bundle: Bundle, runtime: Runtime | None) -> RuntimeChoice:
    """Return what a process knows of a bundle's runtimes; each is prepared and checked once."""
    return RuntimeChoice(bundle.network, bundle.inferer, bundle.fingerprint, runtime)


@functools.lru_cache(maxsize=4)
def _agreements(_bundle: Bundle) -> list[float]:
    """Return where a process keeps what it measured of a bundle's fast pass."""
    return []


def _agreement_of(bundle: Bundle, image: MetaTensor, labels: npt.NDArray[Any], grid: Grid) -> float | None:
    """Return at which part of the voxels around what was found a fast pass gives the labels of the exact one.

    It is measured on the first image of a process, in a part of it as large as a window.
    """
    if bundle.exact is None:
        return None
    known = _agreements(bundle)
    if not known:
        found = np.argwhere(labels)
        centre = found.mean(axis=0) if len(found) else (np.array(grid.shape) - 1) / 2
        centre_mm = grid.affine[:3, :3] @ centre + grid.affine[:3, 3]
        part = part_around(image, centre_mm, bundle.window_vox or LARGEST_COMPARED_VOX)
        fast, exact = (one(part, bundle.network).as_tensor() for one in (bundle.inferer, bundle.exact))
        known.append(float((fast == exact).double().mean()))
    return known[0]


def _confidence(result: MetaTensor) -> list[float] | None:
    """Return what an inferer says of its own result, from metadata as they are or collated to a batch of one."""
    stated = result.meta.get("confidence")
    return None if stated is None else torch.as_tensor(stated).flatten().tolist()


def _sums(result: MetaTensor) -> Sums | None:
    """Return what else an inferer says of each label, from metadata as they are or collated to a batch of one."""
    stated = result.meta.get(SUMS)
    return None if stated is None else torch.as_tensor(stated).reshape(-1, len(Sum)).numpy()


def _of_length(confidence: Sequence[float], length: int) -> list[float]:
    """Return the confidences of so many labels; NaN of those for which no network was asked."""
    return [*confidence[:length], *[math.nan] * (length - len(confidence))]


def _labels_on(grid: Grid, labels: MetaTensor) -> npt.NDArray[Any]:
    """Return labels (I, J, K), provided that they lie on the grid of the file."""
    found = Grid.of(labels)
    if (difference := grid.difference(found)) is not None:
        raise BundleError(
            f"the bundle's result does not lie on the image's grid: {difference}; let the bundle infer with "
            "RestoringSlidingWindowInferer."
        )
    array: npt.NDArray[Any] = labels.as_tensor()[0, 0].cpu().numpy()
    return array


def flip_dice(
    image: MetaTensor,
    network: torch.nn.Module,
    inferer: Callable[[MetaTensor, torch.nn.Module], MetaTensor],
    labels: npt.NDArray[Any],
    table: LabelTable,
) -> dict[str, float]:
    """Return how well a result agrees with that of the mirrored image: Dice of each structure, NaN if in neither.

    The network sees left and right exchanged, and the two sides of paired structures are exchanged in what it says. An
    inferer that averages over this mirroring agrees with itself and should be asked without.

    Args:
        image: (1, C, i, j, k) on the network grid, as `inferer` takes it.
        network: as `inferer` takes it.
        inferer: gives labels (1, 1, I, J, K) on the source grid.
        labels: (I, J, K), what it gave for `image`.
        table: what the labels mean.

    Raises:
        UsageError: a structure has a side but no partner, so that nobody knows what its mirror image should be called.
    """
    if table.unpaired_sides:
        raise UsageError(
            f"{', '.join(table.unpaired_sides)}: has no structure of the other side to be compared with in a mirrored "
            "image; leave out --check-flips."
        )
    mirror_of = np.arange(len(table.names), dtype=np.uint16)
    for low, high in table.side_pairs:
        mirror_of[[low, high]] = high, low
    mirrored = inferer(_seen_in_mirror(image), network).as_tensor()[0, 0].cpu().numpy()
    return dice_of_labels(labels, (mirror_of[plane] for plane in mirrored), table)


def _seen_in_mirror(image: MetaTensor) -> MetaTensor:
    """Return an image (1, C, i, j, k) as a network sees it in a mirror."""
    affine = image.affine.reshape(4, 4)
    axis = int((affine[0, :3].abs() / affine[:3, :3].norm(dim=0)).argmax())  # the one that runs from left to right
    return mirror_image(image, axis)
