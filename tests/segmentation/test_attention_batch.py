"""Attention maps in a batch: made when asked for later, made again when gone, and never over what is foreign."""

from pathlib import Path

import pytest

from tests.attention_bundle import LEVELS, make_attention_bundle
from tests.batch_bundle import save_case
from tests.batch_runs import tree
from voxelgate.evaluation.pairs import pair_files
from voxelgate.segmentation.batch.ledger import read_ledger
from voxelgate.segmentation.batch.run_batch import segment
from voxelgate.segmentation.output_names import is_no_label_map
from voxelgate.segmentation.report import CaseReport, CaseStatus


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_attention_bundle(tmp_path_factory.mktemp("bundles") / "gated")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with `in`, which holds one case."""
    save_case(tmp_path / "in" / "a.nii.gz")
    return tmp_path


def segmented(folder: Path, bundle: Path, *, attention: bool = True) -> CaseReport:
    (report,) = segment(bundle, folder / "in", folder / "out", workers="serial", attention=attention)
    return report


def test_maps_asked_for_later_are_made_and_stay_when_they_are_not_asked_for(folder: Path, bundle: Path) -> None:
    assert segmented(folder, bundle, attention=False).attention == ()

    report = segmented(folder, bundle)

    assert [gate.level for gate in report.attention] == list(LEVELS)
    made = tree(folder / "out")
    assert {"a.nii.gz", "a.attention-0.nii.gz", "a.attention-1.nii.gz"} <= made.keys()
    segmented(folder, bundle, attention=False)
    assert tree(folder / "out").items() >= {name: made[name] for name in made if name.endswith(".nii.gz")}.items()


def test_a_case_whose_maps_stand_is_not_done_again(folder: Path, bundle: Path) -> None:
    first = segmented(folder, bundle)
    inode = (folder / "out" / "a.attention-0.nii.gz").stat().st_ino

    assert segmented(folder, bundle) == first
    assert (folder / "out" / "a.attention-0.nii.gz").stat().st_ino == inode


def test_a_map_that_is_gone_is_made_again(folder: Path, bundle: Path) -> None:
    segmented(folder, bundle)
    before = tree(folder / "out")
    (folder / "out" / "a.attention-1.nii.gz").unlink()

    assert segmented(folder, bundle).status is CaseStatus.DONE
    assert tree(folder / "out") == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_map_of_somebody_else_is_not_overwritten(folder: Path, bundle: Path, when: str) -> None:
    if when == "after":
        segmented(folder, bundle)
    path = folder / "out" / "a.attention-1.nii.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")

    report = segmented(folder, bundle)

    assert report.status is CaseStatus.REJECTED
    assert str(report.findings[0]).startswith("a.attention-1.nii.gz: ")
    assert path.read_bytes() == b"mine"
    (entry,) = read_ledger(folder / "out")[0]
    assert entry.attempts == (when == "after")  # refused before any work


def test_results_with_maps_among_them_are_paired_with_their_references(folder: Path, bundle: Path) -> None:
    segmented(folder, bundle)

    pairs = pair_files(folder / "out", folder / "in", is_no_label_map)

    assert pairs == [("a", folder / "out" / "a.nii.gz", folder / "in" / "a.nii.gz")]
