"""The tutorial on models from elsewhere is followed from end to end, with a folder that nnU-Net itself made."""

import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import Run
from tests.docs.test_commands import blocks
from tests.imports.totalseg_files import PARTS, ROUGH, write_weights
from tests.imports.zoo_bundles import write_zoo_bundle

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed here")

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
        ours = np.asarray(nib.load(tmp_path / "of_nnunet" / path.name).dataobj)
        assert np.count_nonzero(ours) > 0
        assert np.count_nonzero(ours != theirs) == 0
