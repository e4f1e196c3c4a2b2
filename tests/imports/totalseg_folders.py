"""Folders of the make of TotalSegmentator's weights, made by nnU-Net itself, and TotalSegmentator's own labels.

Needs TotalSegmentator (`make import-test`): import this after `pytest.importorskip("totalsegmentator")`.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import totalsegmentator.nnunet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS
from totalsegmentator.map_to_binary import class_map, class_map_5_parts, map_taskid_to_partname_ct
from totalsegmentator.python_api import totalsegmentator

from tests.imports.nnunet_folders import FULL, Json, Kind, make_folder

SPACING_MM = {297: 3.0, 298: 6.0}
OTHERS_MM = 1.5
ROUGH_TRAINER = "nnUNetTrainer_4000epochs_NoMirroring"


def structures_of(number: int) -> dict[int, str]:
    """Return the structures of a data set of the task `total`."""
    part = map_taskid_to_partname_ct.get(number)
    return dict(class_map["total"] if part is None else class_map_5_parts[part])


def make_weights(root: Path, data_sets: Mapping[int, Mapping[int, str]], spacings: Mapping[int, Any] = {}) -> Path:
    """Let nnU-Net save untrained networks as TotalSegmentator keeps its own, and return the folder of all.

    Args:
        root: of the folders; it is made.
        data_sets: structures by label value, by the number of the data set.
        spacings: of the networks (z, y, x) where it is not that of `total`.
    """
    for number, structures in data_sets.items():
        spacing = spacings.get(number, [SPACING_MM.get(number, OTHERS_MM)] * 3)
        kind = Kind(
            labels={"background": 0, **{name: value for value, name in structures.items()}},
            channels=("CT",),
            trainer=ROUGH_TRAINER if number in SPACING_MM else "nnUNetTrainerNoMirroring",
            mirroring=None,
            change=lambda plans, spacing=spacing: plans["configurations"][FULL].update(spacing=spacing),
        )
        make_folder(root, kind, name=TASK_ID_WEIGHTS_CONFIGS[number]["foldername"], steps=0)
    return root


@contextlib.contextmanager
def pointed_at(weights: Path, home: Path) -> Iterator[None]:
    """Let TotalSegmentator find these weights, tell nobody of it, and predict in this process."""
    home.mkdir(exist_ok=True)
    told: Json = {"totalseg_id": "test", "send_usage_stats": False, "prediction_counter": 0}
    told["statistics_disclaimer_shown"] = True
    (home / "config.json").write_text(json.dumps(told), encoding="utf-8")

    def in_this_process(self: Any, given: str, out: str, **options: Any) -> Any:
        options = {key: options[key] for key in ("save_probabilities", "overwrite")}
        return self.predict_from_files_sequential(given, out, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOTALSEG_WEIGHTS_PATH", str(weights))
        patch.setenv("TOTALSEG_HOME_DIR", str(home))
        patch.setattr(nnUNetPredictor, "predict_from_files", in_this_process)
        yield


def their_labels(path: Path, **options: Any) -> np.ndarray:
    """Return the labels (i, j, k) that TotalSegmentator finds in a file, with the weights that it is pointed at.

    It writes them, since without a file to write it does not stop where a rough model finds nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "labels.nii.gz"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            totalsegmentator(path, out, ml=True, device="cpu", quiet=True, **options)
        return np.asarray(nib.load(out).dataobj).astype(np.uint8)


def make_scans(root: Path) -> dict[str, Path]:
    """Write CT images that each are a difficulty of their own, and return them by name."""
    root.mkdir(parents=True, exist_ok=True)
    turn = np.linalg.qr(np.array([[0.96, 0.2, -0.1], [-0.22, 0.95, 0.15], [0.12, -0.12, 0.98]]))[0]
    turn *= np.sign(np.diag(turn))
    affines = {
        "LPS": ((40, 44, 21), np.diag([-0.9, -0.9, 3.0])),
        "oblique": ((41, 36, 33), turn @ np.diag([1.1, 1.0, 1.4])),
        "turned": ((25, 40, 37), np.array([[0.0, 0.0, 1.2], [-1.0, 0.0, 0.0], [0.0, 1.6, 0.0]])),
        "as wanted": ((30, 28, 26), np.diag([1.5, 1.5, 1.5])),
    }
    found = {}
    for number, (name, (shape, turned)) in enumerate(affines.items()):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turned, (-20.0, 13.0, 7.5)
        voxels = np.random.default_rng(number).normal(300, 250, shape).astype(np.int16)
        found[name] = root / f"{name.replace(' ', '_')}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, affine), found[name])
    return found
