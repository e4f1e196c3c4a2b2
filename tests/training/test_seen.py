"""What a bundle knows of its training: enough to warn, and nobody's name."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import REPOSITORY, Run
from tests.training.test_resume import tiny_job
from voxelgate.bundle.checksums import seal, verify
from voxelgate.core.errors import BundleError
from voxelgate.datasets.manifest import Manifest, load_manifest
from voxelgate.training.cross_validation import FOLD_MANIFEST, train_folds
from voxelgate.training.seen import SEEN, Seen, contents_of, read_seen, seen_of
from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold, train

NAME = "doe_jane_1950"
SHORT = {"epochs": 1, "steps_per_epoch": 1, "precision": "float32"}
TRAINED_ON = {"hippocampus_mri_segmentation": ("hippocampus", -1), "head_neck_ct_segmentation": ("head_neck_ct", 0)}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """Return the training on a data set whose files and subjects are called by names."""
    job = tiny_job(tmp_path_factory.mktemp("seen"))
    document = json.loads(job.manifest.read_text(encoding="utf-8"))
    for row in document["training"]:
        for kind in ("image", "label"):
            old = row[kind]
            row[kind] = old.replace("case", NAME)
            shutil.move(job.manifest.parent / old, job.manifest.parent / row[kind])
        row["subject"] = f"{NAME} {row['subject']}"
    job.manifest.write_text(json.dumps(document), encoding="utf-8")
    return replace(job, overrides=SHORT)


@pytest.fixture(scope="module")
def trained(job: TrainingJob) -> Path:
    return train(job)


@pytest.fixture(scope="module")
def manifest(job: TrainingJob) -> Manifest:
    return load_manifest(job.manifest)


def texts_of(root: Path) -> Iterator[bytes]:
    return (path.name.encode() + path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_nothing_in_a_trained_bundle_names_a_case_or_a_subject(trained: Path, job: TrainingJob) -> None:
    evaluate_fold(trained, job.manifest, trained / TRAINING)
    assert (trained / TRAINING / "scores.csv").read_text().count("\n") == 4
    assert not [text for text in texts_of(trained) if NAME.encode() in text]


def test_scores_with_names_go_where_the_user_wants_them(job: TrainingJob, tmp_path: Path, run: Run) -> None:
    settings = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]
    result = run("train", job.bundle, job.manifest, "--out", "trained", "--csv", "new/scores.csv", *settings)
    assert result.returncode == 0, result.stderr
    assert f"{NAME}_" in (tmp_path / "new/scores.csv").read_text()
    assert not [text for text in texts_of(tmp_path / "trained") if NAME.encode() in text]


def test_nothing_in_a_bundle_of_all_folds_names_a_case_or_a_subject(job: TrainingJob, tmp_path: Path) -> None:
    document = json.loads(job.manifest.read_text(encoding="utf-8"))
    document["training"] = [{**row, "fold": 0} for row in document["training"]]
    (tmp_path / "m.json").write_text(json.dumps(document), encoding="utf-8")
    job = replace(job, manifest=tmp_path / "m.json", data_root=job.manifest.parent, out=tmp_path / "folds")
    train_folds(job, 2)
    assert not [text for text in texts_of(job.out) if NAME.encode() in text]
    assert not (job.out / TRAINING / FOLD_MANIFEST).exists()


def test_the_record_is_sealed(trained: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(trained, tmp_path / "copied"))
    (copied / SEEN).unlink()
    with pytest.raises(BundleError, match=r"seen\.json changed since the bundle was sealed"):
        verify(copied)


def test_an_image_is_known_under_another_name_and_packing_and_a_subject_by_another_image(
    trained: Path, manifest: Manifest, tmp_path: Path
) -> None:
    known, seen_case = read_seen(trained), next(case for case in manifest.cases if case.fold == 1)
    voxels = np.asarray(nib.load(seen_case.image).dataobj)
    nib.save(nib.Nifti1Image(voxels.astype(np.float64), np.eye(4)), tmp_path / "other.nii")
    same_image = replace(seen_case, case_id="other", subject="nobody", image=tmp_path / "other.nii")
    nib.save(nib.Nifti1Image(voxels[::-1] + 1, np.eye(4)), tmp_path / "new.nii")
    same_subject = replace(seen_case, case_id="new", image=tmp_path / "new.nii")
    stranger = replace(same_subject, subject="nobody")
    renamed = replace(manifest, name="another data set")
    for case, data_set, count in (
        (same_image, manifest, 1), (same_image, renamed, 1), (same_subject, manifest, 1), (same_subject, renamed, 0),
        (stranger, manifest, 0),
    ):  # fmt: skip
        assert known.count(data_set, [case], contents_of([case])) == count


def test_what_weights_had_seen_before_a_training_on_them_stays_known(
    trained: Path, job: TrainingJob, manifest: Manifest, tmp_path: Path
) -> None:
    weights = {"init_weights": str(trained / "models/model.pt")}
    tuned = train(replace(job, out=tmp_path / "tuned", fold=1, overrides=SHORT | weights))
    assert read_seen(tuned) == seen_of(manifest, manifest.cases, contents_of(manifest.cases))


@pytest.mark.parametrize(
    "text",
    ["[]", "5", "{", '{"subjects": 5}', '{"images": {}, "names": []}', "[" * 100_000, '{"subjects": ["\\ud800"]}'],
)
def test_a_record_that_is_none_is_one_sentence(trained: Path, tmp_path: Path, text: str) -> None:
    copied = Path(shutil.copytree(trained, tmp_path / "copied"))
    (copied / SEEN).write_text(text, encoding="utf-8")
    seal(copied)
    with pytest.raises(BundleError, match=r"^copied: seen\.json is no record of a training \(.*\); restore the bundle"):
        read_seen(copied)


def test_a_bundle_without_record_knows_nothing(tmp_path: Path) -> None:
    assert read_seen(tmp_path) == Seen()


@pytest.mark.parametrize("name", sorted(TRAINED_ON))
def test_shipped_bundles_know_what_they_were_trained_on(name: str, real_data: Path) -> None:
    data, fold = TRAINED_ON[name]
    manifest = load_manifest(REPOSITORY / "data_manifests" / f"{data}.json", real_data / data)
    training = [case for case in manifest.cases if fold == -1 or case.fold != fold]
    assert read_seen(REPOSITORY / "bundles" / name) == seen_of(manifest, training, contents_of(training))


def test_evaluating_a_shipped_bundle_on_its_training_cases_says_so(hippocampus: Path, tmp_path: Path, run: Run) -> None:
    for number in ("001", "003"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(
                hippocampus / kind / f"hippocampus_{number}.nii.gz", tmp_path / "data" / kind / f"{number}.nii.gz"
            )
    assert run("manifest", "data", "--modality", "MRI", "--labels", "anterior,posterior").returncode == 0
    result = run("evaluate", "hippocampus_mri_segmentation", "data/manifest.json")
    assert "1 of the 1 cases of fold 0, or others of their subjects, were seen in training" in result.stderr
