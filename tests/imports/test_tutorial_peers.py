"""The tutorial on models from elsewhere is followed from end to end, with a folder that nnU-Net itself made."""

import json
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import Run
from tests.docs.test_commands import blocks
from tests.imports.totalseg_files import PARTS, ROUGH, write_weights
from tests.imports.zoo_bundles import write_zoo_bundle

pytest.importorskip("nnunetv2", reason="needs nnU-Net, in the environment that `make import-test` builds")

pytestmark = pytest.mark.peers

PAGE = "docs/tutorials/bring-your-model.md"
CASES = ("fine", "thick", "oblique")


def test_its_commands_give_the_labels_of_nnunet(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.imports.nnunet_folders import make_folder, make_images, predict  # noqa: PLC0415 - needs nnunetv2

    folder = make_folder(tmp_path / "nnUNet_results", "plain")
    images = make_images(tmp_path / "ct_scans")
    for case in images.keys() - set(CASES):
        images.pop(case)[0].unlink()
    write_weights(tmp_path / "totalsegmentator_weights", PARTS | ROUGH)
    write_zoo_bundle(tmp_path / "blobs_of_monai")
    monkeypatch.setenv("VOXELGATE_BUNDLES", str(tmp_path / "kept"))

    for command in (command for block in blocks(PAGE) for command in block.commands):
        words = shlex.split(command)[1:]
        result = run(*words, *(("--require", "any") if words[0] == "segment" else ()))
        assert "failed" not in result.stderr, f"{command}\n{result.stdout}\n{result.stderr}"

    for (path,) in images.values():
        theirs = predict(folder.of(), [path]).transpose(2, 1, 0)
        name = path.name.replace("_0000", "")
        ours = np.asarray(nib.load(tmp_path / "of_nnunet" / name).dataobj)
        assert np.count_nonzero(ours) > 0
        assert np.count_nonzero(ours != theirs) == 0


def test_a_zip_of_nnunets_own_export_is_what_its_folder_is(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.model_sharing import model_export  # noqa: PLC0415 - needs nnunetv2

    from tests.imports.nnunet_folders import make_folder  # noqa: PLC0415 - needs nnunetv2

    results = tmp_path / "results"
    folder = make_folder(results, "plain", name="Dataset007_Seven", steps=1)
    for name in ("fold_0/progress.png", "fold_0/validation/summary.json", "dataset_fingerprint.json"):
        (folder.of() / name).parent.mkdir(exist_ok=True)
        (folder.of() / name).write_text("{}")
    for place in ("get_output_folder", "maybe_convert_to_dataset_name"):
        monkeypatch.setitem(getattr(model_export, place).__globals__, "nnUNet_results", str(results))
    monkeypatch.setattr(model_export, "nnUNet_results", str(results))
    monkeypatch.setattr(model_export, "maybe_convert_to_dataset_name", lambda _: "Dataset007_Seven")
    model_export.export_pretrained_model(7, str(tmp_path / "seven.zip"), configurations=("3d_fullres",), folds=(0,))

    for source, name in ((folder.path, "folder"), (tmp_path / "seven.zip", "zip")):
        assert run("import", source, "--out", tmp_path / name, "--name", "seven").returncode == 0

    stated = [json.loads((tmp_path / name / "configs" / "metadata.json").read_text()) for name in ("folder", "zip")]
    assert stated[0]["imported_from"]["files"] == stated[1]["imported_from"]["files"]
    configs = [(tmp_path / name / "configs" / "inference.json").read_text() for name in ("folder", "zip")]
    assert configs[0] == configs[1]
