"""The bundles in `bundles/` follow from facts, budget and overrides that lie beside their plan, and pass all gates."""

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from voxelgate.datasets.manifest import load_manifest
from voxelgate.datasets.survey import Fingerprint, survey
from voxelgate.training.bundle_checks import CHECKS, pass_checks
from voxelgate.training.configs.bundle_files import FINGERPRINT
from voxelgate.training.planning import Plan, plan
from voxelgate.training.planning.plan import PLAN_VERSION

BUNDLES = sorted((REPOSITORY / "bundles").iterdir())
DATA = {"hippocampus_mri_segmentation": "hippocampus", "head_neck_ct_segmentation": "head_neck_ct"}


@pytest.fixture(params=BUNDLES, ids=lambda root: root.name)
def root(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_the_plan_is_what_the_planner_makes_of_the_facts(root: Path) -> None:
    made = Plan.from_json(root / "plan.json")
    if made.plan_version != PLAN_VERSION:
        pytest.skip(f"version {made.plan_version} of the rules made this plan, and they changed since")
    assert plan(Fingerprint.from_json(root / FINGERPRINT), made.budget, made.overrides) == made


@pytest.mark.slow
def test_the_facts_are_those_of_the_data(root: Path, real_data: Path) -> None:
    name = DATA[root.name]
    manifest = load_manifest(REPOSITORY / "data_manifests" / f"{name}.json", real_data / name)
    assert survey(manifest).fingerprint == Fingerprint.from_json(root / FINGERPRINT)


@pytest.mark.slow
def test_the_bundle_passes_every_gate(root: Path) -> None:
    assert [passed.name for passed in pass_checks(root)] == list(CHECKS)
