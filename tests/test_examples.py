"""Every public name has an example in its docstring, and each example is true."""

import doctest
import io
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.transforms import LoadImaged

import voxelgate as vg
from tests.dicom_files import stack, write_all
from tests.threshold_bundle import make_threshold_bundle

SHAPE = (32, 36, 28)
NAMES = {
    "vg": vg, "np": np, "torch": torch, "Path": Path, "MetaTensor": MetaTensor, "Engine": Engine,
    "DiceCELoss": DiceCELoss, "shutil": shutil, "LoadImaged": LoadImaged,
}  # fmt: skip
"""What examples use without an import; readers know where it comes from."""

SLOW = {"train", "train_folds"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the examples name: scans, labels, a data set, a DICOM study, a small bundle."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    rows = folder / "data"
    for case in range(4):
        centre = rng.integers(10, 18, 3)
        label = (np.linalg.norm(np.indices(SHAPE).T - centre, axis=-1).T < 6).astype(np.uint8)
        image = (rng.normal(50, 10, SHAPE) + 60 * label).astype(np.float32)
        for name, voxels in (("images", image), ("labels", label)):
            (rows / name).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), rows / name / f"case_{case}.nii.gz")
    document = {
        "name": "blobs",
        "licence": "CC0-1.0",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "blob"},
        "training": [
            {
                "image": f"images/case_{case}.nii.gz",
                "label": f"labels/case_{case}.nii.gz",
                "subject": f"s{case}",
                "fold": case % 2,
            }
            for case in range(4)
        ],
    }
    (rows / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "scan.nii.gz").write_bytes((rows / "images" / "case_0.nii.gz").read_bytes())
    (folder / "labels.nii.gz").write_bytes((rows / "labels" / "case_0.nii.gz").read_bytes())
    make_threshold_bundle(folder / "my_bundle")
    stored = (rng.integers(0, 200, (5, 48, 48)) + 924).astype(np.uint16)
    stored[:, :12] = 0
    write_all(stack(stored), folder / "study")
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in vg.__all__]
)
def test_the_example_of_a_public_name_is_true(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = getattr(vg, name)
    text = found.__doc__
    home = sys.modules[found.__name__ if isinstance(found, ModuleType) else found.__module__]
    test = doctest.DocTestParser().get_doctest(text, {**vars(home), **NAMES}, name, home.__file__, 0)
    assert test.examples, f"{name} has no example"

    report = io.StringIO()
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.write).failed

    assert failed == 0, report.getvalue()
