"""Plans of any kind, drawn at random, against nnU-Net's own predictor and writer on images of any kind: every voxel."""

import contextlib
import io
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter

pytest.importorskip("nnunetv2", reason="needs nnU-Net, in the environment that `make import-test` builds")

from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from tests.imports.nnunet_files import UNET, Json, checkpoint, configuration, data_set, network, plans, write_folder
from tests.imports.nnunet_folders import predict
from voxelgate.bundle.imports.data_set import read_data_set
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.nnunet import read_nnunet
from voxelgate.bundle.imports.plans import read_plans
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import InputError
from voxelgate.inference.pass_options import PassOptions
from voxelgate.transforms.nnunet.resample import ResamplingFunction
from voxelgate.transforms.nnunet.source_layout import NnUNetReader

pytestmark = pytest.mark.peers

SEEDS = 24
TORCH = ResamplingFunction.TORCH

READERS = [reader for reader in NnUNetReader if reader is not NnUNetReader.PICTURE]
SCHEMES = ["ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization"]
TURNS = [[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1], [2, 1, 0]]
REGIONS = {"background": 0, "a": [1, 2, 3], "b": [2, 3], "c": 3, "ignore": 4}


@dataclass
class Draw:
    """Random choices, from one seed each."""

    rng: np.random.Generator

    def one(self, choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def often(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def sizes(self, low: float, high: float, count: int = 3) -> list[float]:
        """Return lengths in mm, one of them sometimes several times as long."""
        found = [round(float(size), int(self.one([1, 3]))) for size in self.rng.uniform(low, high, count)]
        if self.often(0.35):
            found[int(self.rng.integers(count))] *= 3.7
        return found


def drawn_plans(draw: Draw, channels: int) -> Json:
    dims = draw.one([2, 3, 3])
    force = draw.one([None, None, True, False])
    resampling = {"is_seg": False, "order": draw.one([3, 3, 1, 0, 2]), "order_z": draw.one([0, 0, 1])}
    stated = configuration(dims) | {
        "spacing": draw.sizes(0.7, 1.6, dims),
        "patch_size": [2 * int(n) for n in draw.rng.integers(3, 9, dims)],
        "normalization_schemes": [draw.one(SCHEMES) for _ in range(channels)],
        "use_mask_for_norm": [draw.often(0.4) for _ in range(channels)],
        "resampling_fn_data_kwargs": resampling | {"force_separate_z": draw.one([None, None, True, False])},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": force},
    }
    if draw.often(0.3):
        by_torch = {"is_seg": False, "force_separate_z": force, "memefficient_seg_resampling": False}
        for kind in ("data", "probabilities"):
            stated |= {f"resampling_fn_{kind}": str(TORCH), f"resampling_fn_{kind}_kwargs": by_torch}
    if draw.often(0.4):
        arguments = stated["architecture"]["arch_kwargs"]
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
        stated["architecture"]["network_class_name"] = f"{UNET}ResidualEncoderUNet"
    turn, document = draw.one(TURNS), plans()
    intensities = document["foreground_intensity_properties_per_channel"]["0"]
    return document | {
        "configurations": {"3d_fullres": stated},
        "transpose_forward": turn,
        "transpose_backward": [turn.index(axis) for axis in range(3)],
        "image_reader_writer": str(draw.one(READERS)),
        "foreground_intensity_properties_per_channel": {str(n): intensities for n in range(channels)},
    }


def drawn_data_set(draw: Draw, channels: int) -> Json:
    names = {str(number): f"channel {number}" for number in range(channels)}
    if draw.often(0.3):
        order = draw.one([[1, 2, 3], [3, 1, 2], [2, 2, 1]])
        return data_set(channel_names=names, labels=REGIONS, regions_class_order=order)
    values = range(1, draw.one([2, 3, 7]))
    return data_set(channel_names=names, labels={"background": 0} | {f"label {n}": n for n in values})


def undecided(config: Json, patch: list[int], seed: int) -> dict[str, torch.Tensor]:
    """Return random weights whose logits are about zero, so that the smallest difference changes labels."""
    net = network(config, seed).eval()
    noise = torch.randn(1, config["in_channels"], *patch)
    with torch.no_grad():
        logits = net(noise + noise.roll(1, -1) + noise.roll(1, -2))
        axes = [0, *range(2, logits.ndim)]
        scale = 1 / logits.std(axes).clamp_min(1e-6)
        net.head.bias.sub_(logits.mean(axes)).mul_(scale)
        net.head.weight.mul_(scale.reshape(-1, *[1] * (logits.ndim - 1)))
    return net.state_dict()


def drawn_folder(draw: Draw, root: Path, channels: int, seed: int) -> Path:
    document, described = drawn_plans(draw, channels), drawn_data_set(draw, channels)
    stated = read_plans(document, "").configuration("3d_fullres", channels)
    config = stated.network | {"in_channels": channels, "out_channels": read_data_set(described, "").heads}
    dims = len(stated.patch_size)
    mirroring = draw.one([None, None, (0,), (dims - 1,), tuple(range(dims))])
    files = {
        f"fold_{fold}/checkpoint_final.pth": checkpoint(
            undecided(config, list(stated.patch_size), 7 * seed + fold), inference_allowed_mirroring_axes=mirroring
        )
        for fold in range(draw.one([1, 1, 2, 3]))
    }
    return write_folder(root / "model", plans=document, data_set=described, checkpoints=files)


def drawn_affine(draw: Draw) -> npt.NDArray[np.float64]:
    """Return one that is straight, turned, mirrored or oblique."""
    turns = [
        np.eye(3),
        np.eye(3)[draw.rng.permutation(3)] * draw.rng.choice([-1, 1], 3),
        np.diag(draw.rng.choice([-1, 1], 3)),
        np.linalg.qr(draw.rng.normal(size=(3, 3)))[0],
    ]
    affine = np.eye(4)
    affine[:3, :3] = draw.one(turns) @ np.diag(draw.sizes(0.6, 2.2))
    affine[:3, 3] = draw.rng.normal(size=3) * 50
    return affine


def drawn_images(draw: Draw, root: Path, channels: int) -> list[Path]:
    """Write an image of some size and type, often with a border of zeros and a hole."""
    shape = [int(n) for n in draw.rng.integers(8, 26, 3)]
    if draw.often(0.3):
        shape[int(draw.rng.integers(3))] = int(draw.rng.integers(1, 7))
    affine, kind, has_border = drawn_affine(draw), draw.one(["int16", "float32", "uint8"]), draw.often(0.4)
    paths = []
    for channel in range(channels):
        voxels = gaussian_filter(draw.rng.normal(size=shape), 1.2)
        voxels = np.clip(voxels / voxels.std() * 50 + 60, 0 if kind == "uint8" else None, 255)
        if has_border:
            voxels[: shape[0] // 4], voxels[:, shape[1] // 2 :][:, -2:] = 0, 0
            voxels[tuple(slice(n // 3, n // 3 + 2) for n in shape)] = 0
        image = nib.Nifti1Image(voxels.astype(kind), affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        paths.append(root / f"x_{channel:04d}.nii.gz")
        nib.save(image, paths[-1])
    return paths


def predicted(folder: Path, files: list[Path], step_size: float) -> npt.NDArray[Any] | None:
    """Return what nnU-Net predicts and writes, which its readers that turn images turn back; None where it fails."""
    stated = read_plans(json.loads((folder / "plans.json").read_text(encoding="utf-8")), "")
    reader = recursive_find_reader_writer_by_name(str(stated.reader))()
    out = folder / "out.nii.gz"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = predict(folder, files, step_size=step_size)
        except ValueError:
            return None
        reader.write_seg(found, str(out), reader.read_images([str(path) for path in files])[1])
    return np.asarray(nib.load(out).dataobj)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_the_plans_and_the_image_are_the_labels_are_those_of_nnunet(seed: int, tmp_path: Path) -> None:
    draw = Draw(np.random.default_rng(seed))
    channels, step_size = draw.one([1, 1, 2]), draw.one([0.5, 0.5, 0.8, 1.0])
    folder, files = drawn_folder(draw, tmp_path, channels, seed), drawn_images(draw, tmp_path, channels)
    with opened_source(folder) as source:
        write_imported(tmp_path / "bundle", read_nnunet(source, ImportOptions()), source)
    bundle = open_bundle(tmp_path / "bundle", device="cpu")
    bundle = replace(bundle, inferer=bundle.inferer.adjusted(PassOptions(step_size=step_size)))

    expected = predicted(folder, files, step_size)

    if expected is None:
        with pytest.raises(InputError, match="less than half a voxel"):
            bundle.segment(files)
    else:
        assert np.count_nonzero(bundle.segment(files).labels != expected) == 0
