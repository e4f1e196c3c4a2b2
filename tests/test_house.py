"""What holds of the house as a whole: its rooms, its public names, and who may name what."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import voxelgate
from tests.conftest import REPOSITORY
from voxelgate.datasets.manifest import Modality
from voxelgate.training.configs.bundle_files import bundle_files
from voxelgate.training.configs.train_config import LOSSES
from voxelgate.training.planning import Cleaning, Intensity, Plan

SOURCE = REPOSITORY / "pipeline" / "voxelgate"
ROOMS = {
    "apps", "bundle", "core", "datasets", "dicom", "evaluation", "images", "inference", "networks", "segmentation",
    "training", "transforms",
}  # fmt: skip
COMMANDS = SOURCE / "apps" / "cli"
STAND_INS = SOURCE / "apps" / "label" / "stand_ins"
PUBLIC = """
AppendZerosd AttentionUNet BCEDiceLoss Budget Bundle BundleError CanonicalZoomd CascadeInferer CaseReport CaseStatus
ChainInferer ChannelsReader CheckedDicomReader CroppedInferer CrossValidation Despeckled DrawCases EngineError
EnsembleInferer
Finding Fingerprint FlatNetwork FlatSpacingd ForegroundIndicesd Grid GuidedAttentionNet HeaderSizesd ImageOnGrid
ImageSpec InputError InvertingInferer KeepBest KeepComponentsd KeepTime LabelMapWriter LabelScores LabelTable
LoadLabeld Manifest ManifestError MixedPrecisionInferer NetworkLoss NnUNetInferer NnUNetPreprocessd NonLocalUNet
NormalizeImaged OffsetToHUd OneHotLabelsd OrderDicomd Output OutputError Part PartsInferer PlaceLabeld PlainConvUNet
Plan Quality RandBalancedPatchd RandSideSafeFlipd Reports ResampleToSpacingd ResidualEncoderUNet
RestoringSlidingWindowInferer ResumeState ScoreCases ScoreCleanings ScriptedNetwork SeedEpochs Segmentation Series
Severity ShardedRandomSampler ShowProgress Status StopOnBadLoss Survey TrainingJob UpdateAverage UsageError
ValidateEpochs Verdict VolumeReader VoxelgateError WatchTraining WindowHUd WriteProgressPage build_manifest
choose_precision datalist
evaluate export find_cases growing_average identify image_spec_of keep_large_buffers load_manifest needs_scaler
open_bundle plan presets read_image scan_dicom segment set_aside start_from start_process_group status stream survey
train train_folds watch world_size write_bundle write_label_map write_manifest write_page
"""


def modules() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if not path.is_relative_to(STAND_INS)]


def test_there_are_twelve_rooms_and_no_loose_module() -> None:
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"} == ROOMS
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py"}
    for room in sorted(ROOMS):
        assert ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8")))


def test_no_two_modules_share_a_file_name() -> None:
    names = Counter(path.name for path in modules() if path.name != "__init__.py" and path.parent != COMMANDS)

    assert [name for name, count in names.items() if count > 1] == []


def test_no_function_or_class_is_defined_twice_under_one_name() -> None:
    homes = defaultdict(list)
    for path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                homes[node.name].append(path.relative_to(SOURCE).as_posix())

    assert {name: where for name, where in homes.items() if len(where) > 1 and name != "run"} == {}


def test_nothing_inside_imports_the_root_package() -> None:
    pattern = re.compile(r"^\s*(import voxelgate( as \w+)?$|from voxelgate import)", re.MULTILINE)

    assert [path.name for path in modules() if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_monai_bundle_has_one_door() -> None:
    importing = {path.parent.name for path in modules() if "from monai.bundle" in path.read_text("utf-8")}

    assert importing == {"bundle"}


def test_public_names_change_on_purpose_only() -> None:
    assert voxelgate.__all__ == sorted(PUBLIC.split())
    assert dir(voxelgate) == voxelgate.__all__
    for name in voxelgate.__all__:
        assert getattr(voxelgate, name).__doc__, name


def test_a_stub_lists_what_it_offers() -> None:
    stub = ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
    imported = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))

    assert sorted(imported) == sorted(listed) == voxelgate.__all__


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, voxelgate; dir(voxelgate); print({'torch', 'numpy', 'monai', 'pydicom'} & sys.modules.keys())"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def named_in(config: object) -> set[str]:
    """Return what a config names of the package."""
    text = json.dumps(config)
    imported = re.findall(r"from (voxelgate[\w.]*) import (\w+)", text)
    return {f"{module}.{name}" for module, name in imported} | set(re.findall(r'"(voxelgate\.[\w.]+)', text))


PRESETS = {f"voxelgate.presets.{name}" for name in vars(voxelgate.presets) if not name.startswith("_")}
PUBLIC_PATHS = {f"voxelgate.{name}" for name in voxelgate.__all__} | PRESETS


@pytest.mark.parametrize("bundle", sorted((REPOSITORY / "bundles").iterdir()), ids=lambda path: path.name)
def test_shipped_configs_name_only_public_names(bundle: Path) -> None:
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((bundle / "configs").glob("*.json"))]
    named = named_in(configs)

    assert named
    assert named <= PUBLIC_PATHS


SHIPPED = Plan.from_json(REPOSITORY / "bundles" / "head_neck_ct_segmentation" / "plan.json")
KINDS: dict[str, dict[str, Any]] = {
    "MRI": {"modality": Modality.MRI, "intensity": Intensity()},
    "CT with an offset": {"intensity": Intensity(-1000.0, 1000.0, offset_hu=1024.0)},
    "several channels": {"modality": Modality.MRI, "intensity": Intensity(), "image_channels": ("T1", "T2")},
    "grey pictures": {"modality": Modality.PICTURE, "intensity": Intensity()},
    "pictures in colours": {
        "modality": Modality.PICTURE,
        "intensity": Intensity(),
        "image_channels": ("red", "green", "blue"),
    },
    "cleaned": {"cleaning": Cleaning(keep_largest=(1,), fill_holes=(2,))},
    "a preset": {"network": {"_target_": "voxelgate.presets.oktay"}},
    **{f"loss {name}": {"training": replace(SHIPPED.training, loss=name)} for name in LOSSES},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_configs_of_every_kind_of_plan_name_only_public_names(kind: dict[str, Any]) -> None:
    plan = replace(SHIPPED, **kind)
    files = bundle_files(plan)
    named = named_in(
        [json.loads(text) for name, text in files.items() if name.endswith(".json") and "plan" not in name]
    )

    assert named
    assert named <= PUBLIC_PATHS


def test_asking_how_far_a_run_is_loads_no_torch() -> None:
    code = "import sys, voxelgate.apps.cli.status; print({'torch', 'monai'} & sys.modules.keys())"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
