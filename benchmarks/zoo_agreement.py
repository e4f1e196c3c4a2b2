"""Whether imported zoo bundles give the labels of `python -m monai.bundle run`, voxel by voxel, on three grids.

python -m benchmarks.zoo_agreement ZOO OUT [BUNDLE ...]      with einops installed

ZOO holds the bundles with weights of any kind. Each is centred first: the mean of each class's scores on one image is
taken off the last bias, so that all labels are found. Stock runs with the fewest overrides that let it run on MONAI
1.6.1 and a CPU: arguments that are gone left out, search code loaded on the CPU. Both run the same number of threads.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
import yaml
from scipy import ndimage
from torch import nn

from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.imports.weights import read_arrays
from voxelgate.bundle.imports.zoo import read_zoo
from voxelgate.bundle.imports.zoo_networks import network_of
from voxelgate.bundle.imports.zoo_references import ZooConfig
from voxelgate.bundle.imports.zoo_scripts import scripts_of
from voxelgate.bundle.opened import forget_opened, open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.bundle.workflow import build_component
from voxelgate.images.spec import read_image
from voxelgate.transforms.io import as_image

CHANNELS = {"brats_mri_segmentation": 4, "renalStructures_CECT_segmentation": 3}
PHASES = ("artery", "vein", "excret")

THIN: dict[str, dict[str, Any]] = {
    "brats_mri_segmentation": {"init_filters": 8},
    "multi_organ_segmentation": {"channel_mul": 0.25},
    "pancreas_ct_dints_segmentation": {"channel_mul": 0.25},
    "pediatric_abdominal_ct_segmentation": {"filters": [8, 16, 32, 32, 32, 32]},
    "prostate_mri_anatomy": {"channels": [8, 8, 16, 16, 32, 32], "num_res_units": 1},
    "renalStructures_CECT_segmentation": {"init_filters": 8},
    "spleen_deepedit_annotation": {"filters": [8, 16, 32, 32, 32, 32]},
    "swin_unetr_btcv_segmentation": {"feature_size": 12},
    "ventricular_short_axis_3label": {"channels": [4, 8, 8, 16, 16]},
    "wholeBody_ct_segmentation": {"init_filters": 8},
    "wholeBrainSeg_Large_UNEST_segmentation": {
        "feature_size": 4,
        "embed_dim": [32, 64, 128],
        "num_heads": [1, 2, 4],
        "depths": [2, 2, 2],
    },
}
"""Arguments of networks with fewer channels, for `--thin`; all else of the bundle stays."""

GRIDS = {
    "isotropic": ((64, 52, 70), (1.25, 1.25, 1.25), 0.0),
    "anisotropic": ((76, 72, 22), (1.0, 1.0, 4.5), 0.0),
    "oblique": ((48, 56, 40), (1.5, 1.4, 2.5), 0.3),
}
"""Voxels, spacing as a multiple of the bundle's, and angle in radians of each image."""

EXPRESSION_OF_CODE = "$torch.load(@arch_ckpt_path, map_location='cpu', weights_only=False)"


def write_image(path: Path, grid: str, scale: tuple[float, ...], seed: int) -> Path:
    """Write an image of blobs in HU on a grid; the oblique one is stored with two axes turned."""
    shape, spacing, angle = GRIDS[grid]
    rng = np.random.default_rng(seed)
    voxels = sum(
        weight * ndimage.gaussian_filter(rng.normal(size=shape), sigma) * sigma**1.5
        for sigma, weight in ((1.0, 60), (4.0, 260))
    )
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    tilt = np.eye(3)
    tilt[1:, 1:] = turn[:2, :2]
    axes = np.diag([-1.0, -1.0, 1.0]) if angle else np.eye(3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ axes @ np.diag(np.multiply(spacing, scale))
    affine[:3, 3] = (-35.25, 12.5, -60.75)
    nib.save(nib.Nifti1Image(np.clip(voxels, -1000, 1500).astype(np.int16), affine), path)
    return path


def make_thin(root: Path) -> None:
    """Give a bundle a network with fewer channels, if one is known, and random weights for it."""
    name, config = read_config(root)
    fewer = THIN.get(root.name)
    if fewer is None:
        return
    part = config["dints_space"] if "channel_mul" in fewer else config["network_def"]
    part |= fewer
    (root / "configs" / name).write_text(yaml.safe_dump(config) if name.endswith("yaml") else json.dumps(config))
    torch.manual_seed(1)
    with opened_source(root) as source:
        told = ZooConfig(config, name, lambda path: read_arrays(source, path.removeprefix("./")))
        scripts = scripts_of(source, trusted=True)
        network = build_component(network_of(told.value("network_def"), name, scripts)[0])
    torch.save(network.state_dict(), weights_of(root))


def weights_of(root: Path) -> Path:
    """Return where the weights of a bundle lie."""
    (path,) = [path for path in (root / "models").glob("*.pt") if not path.name.startswith("search_code")]
    return path


def scale_of(config: dict[str, Any]) -> tuple[float, ...]:
    """Return the spacing of the network's grid, so that each bundle sees images of like size in voxels."""
    steps = config["preprocessing"].get("transforms")
    for step in steps if isinstance(steps, list) else []:
        if step["_target_"] == "Spacingd":
            stated = step["pixdim"]
            return (1.5, 1.5, 1.5) if isinstance(stated, str) else tuple(map(float, stated))
    return (1.0, 1.0, 1.0)


def read_config(root: Path) -> tuple[str, dict[str, Any]]:
    """Return name and content of a bundle's inference config."""
    path = next(path for path in (root / "configs/inference.json", root / "configs/inference.yaml") if path.is_file())
    return path.name, yaml.safe_load(path.read_text())


def case_of(bundle: str, folder: Path, grid: str, scale: tuple[float, ...]) -> dict[str, Any]:
    """Write the images of one case; return it as the bundle's data list names it."""
    count = CHANNELS.get(bundle, 1)
    seeds = range(len(grid) * 10, len(grid) * 10 + count)
    paths = [str(write_image(folder / f"{grid}_{n}.nii.gz", grid, scale, seed)) for n, seed in enumerate(seeds)]
    if bundle == "renalStructures_CECT_segmentation":
        label = shutil.copyfile(paths[0], folder / f"{grid}_label.nii.gz")  # which stock reads, and saves again
        return dict(zip(PHASES, paths, strict=True)) | {"label": str(label)}
    return {"image": paths if count > 1 else paths[0]}


def files_of(case: dict[str, Any]) -> list[str]:
    """Return the files of a case in the order of the channels."""
    if "image" not in case:
        return [case[phase] for phase in PHASES]
    return case["image"] if isinstance(case["image"], list) else [case["image"]]


def overrides_for(bundle: str, config: dict[str, Any], cases: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Return what stock is told beside the config, as little as lets it run on these images and a CPU."""
    told: dict[str, Any] = {
        "bundle_root": ".",
        "dataset_dir": str(out.parent / f"{bundle}-images"),
        "output_dir": str(out),
        "device": "$torch.device('cpu')",
        "dataset#data": cases,
        "dataloader#num_workers": 0,
        "dataloader#shuffle": False,
    }
    if "arch_ckpt" in config:
        told |= {"arch_ckpt": EXPRESSION_OF_CODE, "dints_space#device": "$torch.device('cpu')"}
    if bundle == "prostate_mri_anatomy":  # linear there, which makes labels that nobody found
        told["postprocessing#transforms#2#nearest_interp"] = True
    return told


def run_stock(root: Path, cases: list[dict[str, Any]], out: Path) -> float:
    """Run a bundle with MONAI alone; return the seconds."""
    name, config = read_config(root)
    config["network_def"].pop("img_size", None)
    (root / "configs" / "stock.json").write_text(json.dumps(config))
    told = overrides_for(root.name, config, cases, out)
    (root / "configs" / "told.json").write_text(json.dumps(told))
    run = next(run for run in ("run", "evaluating", "inference") if isinstance(config.get(run), list))
    files = "['configs/stock.json','configs/told.json']"
    command = [sys.executable, "-m", "monai.bundle", "run", run, "--config_file", files]
    path = os.pathsep.join([str(root), *sys.path])
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    for other in ("stock.json", "told.json"):
        (root / "configs" / other).unlink()
    if done.returncode:
        raise RuntimeError(f"{root.name} ({name}): stock ended with {done.stderr[-2000:]}")
    return time.perf_counter() - began


def import_bundle(root: Path, out: Path, *, faithful: bool) -> Bundle:
    """Import a bundle, its scripts trusted, and open it."""
    forget_opened()
    with opened_source(root) as source:
        options = ImportOptions(trusts_code=True, is_faithful=faithful)
        write_imported(out, read_zoo(source, options), source, overwrite=True)
    return open_bundle(out, "cpu")


def centre(root: Path, bundle: Bundle, case: dict[str, Any]) -> None:
    """Take the mean of each class's scores on an image off the last bias of the network that the source holds."""
    voxels, grid = read_image([Path(file) for file in files_of(case)], bundle.image_spec)
    image = bundle.prepare(as_image(voxels, grid)).as_tensor()[None]
    size = bundle.window_vox or image.shape[2:]
    if getattr(bundle.inferer, "windows", None) is not None and bundle.inferer.windows.slice_axis is not None:
        image, size = image[..., image.shape[-1] // 2], size[:2]
    window = image[(..., *(slice(0, span) for span in size))]
    short = [
        part for have, want in zip(reversed(window.shape[2:]), reversed(size), strict=True) for part in (0, want - have)
    ]
    with torch.no_grad():
        scores = bundle.network(nn.functional.pad(window, short))
    scores = scores[(..., *(slice(0, span) for span in window.shape[2:]))]
    means = scores.mean(dim=[0, *range(2, scores.ndim)])
    path = weights_of(root)
    state = torch.load(path, weights_only=True)
    biases = [name for name, value in state.items() if name.endswith("bias") and value.shape == means.shape]
    if biases:
        state[biases[-1]] = state[biases[-1]] - means
        torch.save(state, path)


def segment(bundle: Bundle, case: dict[str, Any]) -> npt.NDArray[Any]:
    """Return the labels of a case."""
    files = files_of(case)
    return bundle.segment(files if len(files) > 1 else files[0]).labels


def stock_labels(out: Path, grid: str) -> npt.NDArray[Any]:
    """Return the labels that stock saved for a case."""
    found = [path for path in out.rglob(f"{grid}_0*.nii.gz") if not path.name.endswith("_0.nii.gz")]
    saved = np.asarray(nib.load(sorted(found)[0]).dataobj)
    return np.rint(saved.reshape(saved.shape[:3])).astype(np.int64)


def compare(zoo: Path, work: Path, name: str, *, faithful: bool, thin: bool) -> Iterator[str]:
    """Yield a row of the table for each grid of one bundle."""
    root = work / name
    shutil.copytree(zoo / name, root)
    if thin:
        make_thin(root)
    _, config = read_config(root)
    images = work / f"{name}-images"
    images.mkdir()
    cases = {grid: case_of(name, images, grid, scale_of(config)) for grid in GRIDS}
    centre(root, import_bundle(root, work / f"{name}-first", faithful=faithful), cases["isotropic"])
    bundle = import_bundle(root, work / f"{name}-ours", faithful=faithful)
    stock_s = run_stock(root, list(cases.values()), work / f"{name}-stock")
    for grid, case in cases.items():
        began = time.perf_counter()
        found = segment(bundle, case)
        ours_s = time.perf_counter() - began
        wanted = stock_labels(work / f"{name}-stock", grid)
        values, counts = np.unique(wanted, return_counts=True)
        rarest = counts.min() / counts.sum()
        differing = int((found != wanted).sum())
        yield (
            f"| {name} | {grid} | {'x'.join(map(str, wanted.shape))} | {len(values)} ({rarest:.2%}) | {differing} | "
            f"{ours_s:.0f} | {stock_s / len(GRIDS):.0f} |"
        )


def main() -> None:
    """Compare the asked bundles, or all."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("zoo", type=Path)
    options.add_argument("work", type=Path)
    options.add_argument("bundles", nargs="*")
    options.add_argument("--faithful", action="store_true")
    options.add_argument("--thin", action="store_true", help="networks with fewer channels, random weights made here")
    asked = options.parse_args()
    asked.work.mkdir(parents=True)
    print("| bundle | grid | voxels | labels (rarest) | differing | s | s of stock |\n|---|---|---|---|---|---|---|")
    for name in asked.bundles or sorted(path.name for path in asked.zoo.iterdir() if (path / "models").is_dir()):
        for row in compare(asked.zoo, asked.work, name, faithful=asked.faithful, thin=asked.thin):
            print(row, flush=True)


if __name__ == "__main__":
    main()
