"""What is wrong with a command is said in one sentence, before PyTorch is imported, which takes seconds."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

WRONG = (
    ("segment", "hippocampus_mri_segmentation", "missing.nii.gz", "--out", "o"),
    ("segment", "hippocampus_mri_segmentation", "notes.txt", "--out", "o"),
    ("segment", "hippocampus_mri_segmentation", "scan.nii.gz", "--out", "notes.txt"),
    ("segment", "hippocampus_mri_segmentation", "scan.nii.gz", "--out", "o", "--outputs", "pdf"),
    ("segment", "hippocampus_mri_segmentation", "scan.nii.gz", "--out", "o", "--outputs", "sr"),
    ("segment", "hippocampus_mri_segmentation", "scan.nii.gz", "--out", "o", "--allow", "everything"),
    ("segment", "hippocampus_mri_segmentation", "scan.nii.gz", "--out", "o", "--engine", "fast"),
    ("segment", "hippocampus_mri_segmentation", "scan.nii.gz", "--out", "o", "--roi-subset", 'a,"b, c'),
    ("segment", "hippocampus_mri_segmentation", "scan.nii.gz", "--out", "o", "--data-root", "."),
    ("segment", "hippocampus_mri_segmentation", "scan.nii.gz", "--out", "o", "--idle-exit", "3"),
    ("segment", "hippocampus_mri_segmentation", "missing", "--out", "o", "--watch"),
    ("segment", "hippocampus_mri_segmentation", "broken.json", "--out", "o"),
    ("segment", "missing_bundle", "scan.nii.gz", "--out", "o"),
    ("segment", "./empty", "scan.nii.gz", "--out", "o"),
    ("segment", "scan.nii.gz", "scan.nii.gz", "--out", "o"),
    ("inspect", "missing"),
    ("inspect", "empty", "--allow", "everything"),
    ("inspect", "broken.json"),
    ("inspect", "empty", "--page", "p.html"),
    ("evaluate", "missing", "scan.nii.gz"),
    ("evaluate", "notes.txt", "scan.nii.gz"),
    ("evaluate", "scan.nii.gz", "missing.nii.gz"),
    ("evaluate", "empty", "empty"),
    ("evaluate", "hippocampus_mri_segmentation", "broken.json"),
    ("evaluate", "scan.nii.gz", "scan.nii.gz", "--labels-from", "missing"),
    ("evaluate", "scan.nii.gz", "scan.nii.gz", "--csv", "missing/folder/x.csv"),
    ("manifest", "missing"),
    ("manifest", "scan.nii.gz"),
    ("manifest", "empty"),
    ("plan", "missing.json", "--out", "b"),
    ("plan", "broken.json", "--out", "b"),
    ("plan", "scan.nii.gz", "--out", "b"),
    ("plan", "good.json", "--out", "empty"),
    ("plan", "good.json", "--out", "b", "--override", "missing.json"),
    ("train", "missing", "good.json", "--out", "t"),
    ("train", "hippocampus_mri_segmentation", "missing.json", "--out", "t"),
    ("train", "./empty", "good.json", "--out", "t"),
    ("train", "hippocampus_mri_segmentation", "good.json", "--out", "t", "--set", "epochs"),
    ("train", "hippocampus_mri_segmentation", "good.json", "--out", "t", "--fold", "99"),
    ("train", "hippocampus_mri_segmentation", "good.json", "--out", "empty"),
    ("train", "hippocampus_mri_segmentation", "good.json", "--out", "hippocampus_mri_segmentation"),
    ("train", "hippocampus_mri_segmentation", "good.json", "--out", "t", "--folds", "2", "--engine", "fast"),
    ("report", "missing"),
    ("report", "empty"),
    ("report", "notes.txt"),
    ("status", "missing"),
    ("status", "notes.txt"),
    ("demo", "--out", "notes.txt"),
    ("demo", "--out", "."),
    ("bundle", "verify", "missing"),
    ("bundle", "verify", "./empty"),
    ("bundle", "verify", "notes.txt"),
    ("bundle", "seal", "hippocampus_mri_segmentation"),
    ("bundle", "seal", "./empty"),
    ("bundle", "describe", "./empty"),
    ("bundle", "export", "hippocampus_mri_segmentation", "--to", "onnx"),
    ("bundle", "export", "hippocampus_mri_segmentation", "--to", "onnx", "--out", "model.pt2"),
    ("bundle", "export", "hippocampus_mri_segmentation", "--to", "onnx", "--out", "m.onnx", "--image", "missing.nii"),
    ("bundle", "calibrate", "hippocampus_mri_segmentation", "missing.nii.gz"),
    ("import", "missing"),
    ("import", "notes.txt"),
    ("import", "empty"),
    ("import", "nnunet", "--folds", "first"),
    ("import", "nnunet", "--folds", "0,0"),
    ("import", "nnunet", "--labels", "liver"),
    ("import", "nnunet", "--codes", "missing.json"),
    ("import", "nnunet", "--codes", "broken.json"),
    ("import", "nnunet", "--dicom-order", "ras"),
    ("import", "nnunet", "--trust-code"),
    ("import", "nnunet", "--out", "empty"),
    ("import", "nnunet", "--out", "nnunet/bundle"),
    ("label", "missing", "--studies", "empty"),
    ("label", "./empty", "--studies", "empty"),
    ("label", "hippocampus_mri_segmentation", "--studies", "missing"),
    ("label", "hippocampus_mri_segmentation", "--studies", "notes.txt"),
    ("label", "hippocampus_mri_segmentation", "--studies", "empty", "--port", "99999999"),
)
"""Commands that cannot be done where there are `scan.nii.gz`, two texts, `good.json`, `empty/`, `nnunet/`."""

TRY_EACH = """
import contextlib, io, json, sys
from voxelgate.apps.cli.main import main
for line in sys.stdin:
    errors, code = io.StringIO(), 0
    sys.argv = ["voxelgate", *json.loads(line)]
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
        import voxelgate.apps.cli.terminal as terminal
        terminal.errors.file = terminal.console.file = errors
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, errors.getvalue(), "torch" in sys.modules]), flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, bool]]:
    """Give each command to one interpreter, one after the other, until one of them imports PyTorch: then to another."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "data").mkdir()
    (folder / "nnunet").mkdir()
    for name in ("plans.json", "dataset.json"):
        (folder / "nnunet" / name).write_text("{}")
    (folder / "notes.txt").write_text("notes\n")
    (folder / "broken.json").write_text('{"name": ')
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), folder / "scan.nii.gz")
    case = {"image": "scan.nii.gz", "label": "scan.nii.gz", "subject": "a", "fold": 0}
    known = {"name": "n", "licence": "none", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "x"}}
    (folder / "good.json").write_text(json.dumps({**known, "training": [case]}))
    found: dict[tuple[str, ...], tuple[int, str, bool]] = {}
    while missing := [command for command in WRONG if command not in found]:
        lines = "".join(f"{json.dumps(command)}\n" for command in missing)
        tried = subprocess.run(
            [sys.executable, "-c", TRY_EACH],
            input=lines,
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        assert tried.stdout, tried.stderr
        for command, answer in zip(missing, map(json.loads, tried.stdout.splitlines()), strict=False):
            found[command] = tuple(answer)
            if answer[2]:
                break
    return found


@pytest.mark.parametrize("command", WRONG, ids=" ".join)
def test_a_wrong_command_is_answered_in_a_sentence_without_pytorch(
    command: tuple[str, ...], answers: dict[tuple[str, ...], tuple[int, str, bool]]
) -> None:
    code, said, has_torch = answers[command]

    assert code in {1, 2}, said
    assert "Traceback" not in said
    assert said.strip()
    assert not has_torch, said
