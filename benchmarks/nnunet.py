"""nnU-Net's training against ours: the same cases, the same minutes of a processor, unseen cases measured.

Both are trained on all cases outside of one fold, which neither looks at before the end. nnU-Net is planned, prepared
(which costs it nothing here) and run as it comes: its planner, network, augmentation, loss, and polynomial learning
rate, which ends with the minutes. Ours is `plan` and `train`; reading the cases counts.

Run with a Python that has both (`make import-test` makes it), and the stand-ins of the tests:

    PYTHONPATH=tests/imports/stand_ins .venv-peers/bin/python -m benchmarks.nnunet MANIFEST DATA --out FOLDER
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dice_plot import draw
from voxelgate import open_bundle
from voxelgate.core.geometry import Grid
from voxelgate.datasets.build_manifest import write_manifest
from voxelgate.datasets.manifest import ALL_FOLDS, Manifest, ManifestCase, Modality, Split, load_manifest, part_cases
from voxelgate.evaluation.pairs import read_reference
from voxelgate.evaluation.scores import Measure, score
from voxelgate.evaluation.table import summarise
from voxelgate.images.pictures import read_picture, write_picture
from voxelgate.images.volumes import write_label_map
from voxelgate.training.distributed import STATE
from voxelgate.training.planning import Budget, Device
from voxelgate.training.planning.make_bundle import make_bundle
from voxelgate.training.train import TRAINING, TrainingJob, train

DATASET = "Dataset001_Benchmark"
PLANS = "nnUNetPlans"
DECAY = 0.9
"""Power of nnU-Net's learning rate (`PolyLRScheduler`)."""

Labels = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Result:
    """What a training brought.

    Args:
        minutes: of processors, granted.
        used_minutes: of processors, by this process and those that it started.
        steps: of the optimiser.
        dice: of each structure, and of their mean, over the subjects that were not seen.
    """

    minutes: float
    used_minutes: float
    steps: int
    dice: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """The data, and where everything lies.

    Args:
        manifest: all cases.
        fold: that neither sees.
        out: folder to work in.
    """

    manifest: Manifest
    fold: int
    out: Path

    @property
    def unseen(self) -> list[ManifestCase]:
        """Return the cases that are measured."""
        return part_cases(self.manifest, self.fold, Split.VALIDATION)

    def seen_manifest(self) -> Path:
        """Return the manifest of the cases that both are trained on."""
        path = self.out / "seen.json"
        write_manifest(self.manifest.without({case.case_id for case in self.unseen}), path, overwrite=True)
        return path

    def measured(self, segment: Callable[[ManifestCase], Labels]) -> dict[str, float]:
        """Return the mean Dice of each structure over the unseen subjects."""
        scores = []
        for case in self.unseen:
            labels, grid = self.reference(case)
            scores += score(segment(case), labels, grid, self.manifest.labels, case.case_id)
        subject_of = {case.case_id: case.subject for case in self.unseen}
        return {row.label: row.statistics[Measure.DICE].mean for row in summarise(scores, subject_of)}

    def reference(self, case: ManifestCase) -> tuple[Labels, Grid]:
        """Return the labels of a case and where they lie."""
        reference = self.manifest.reference_of(case)
        if reference is None:
            raise ValueError(f"{case.case_id} has no labels")
        return read_reference(reference, self.manifest.values)


def used_s() -> float:
    """Return the seconds that this process and its children have spent on processors."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(given: Comparison, minutes: float) -> Result:
    """Plan, train and measure; the minutes of the clock are those of one processor here."""
    folder = given.out / f"ours_{minutes:g}"
    shutil.rmtree(folder, ignore_errors=True)
    manifest, root = given.seen_manifest(), given.manifest.data_root
    made = make_bundle(manifest, folder / "bundle", Budget(Device.CPU, minutes=minutes), data_root=root)
    start_s = used_s()
    trained = train(TrainingJob(folder / "bundle", made.manifest, folder / "trained", data_root=root, fold=ALL_FOLDS))
    spent_s = used_s() - start_s
    bundle, state = open_bundle(trained), torch.load(trained / TRAINING / STATE, weights_only=True)
    dice = given.measured(lambda case: bundle.segment(case.channels).labels)
    return Result(minutes, spent_s / 60, state["keep_time"]["steps"], dice)


# --- nnU-Net ----------------------------------------------------------------------------------------------------------


def theirs(given: Comparison, minutes: float) -> Result:
    """Let nnU-Net prepare the cases if it has not, train and measure."""
    prepared, configuration = _prepare(given)
    trainer = _trainer(prepared, configuration, given.out / f"nnunet_{minutes:g}")
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    start_s, steps = used_s(), 0
    while (share := (used_s() - start_s) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** DECAY
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
    spent_s = used_s() - start_s
    return Result(minutes, spent_s / 60, steps, given.measured(_predicted_by(trainer, prepared / "imagesTs")))


def _prepare(given: Comparison) -> tuple[Path, str]:
    """Return nnU-Net's folder of prepared cases, and its configuration for them."""
    is_flat = given.manifest.modality is Modality.PICTURE
    configuration, folders = "2d" if is_flat else "3d_fullres", [given.out / name for name in ("raw", "prepared")]
    for name, folder in zip(
        ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), [*folders, given.out], strict=True
    ):
        os.environ[name] = str(folder)
    prepared = folders[1] / DATASET
    if not (prepared / "done").exists():
        _write_raw(given, folders[0] / DATASET)
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api  # noqa: PLC0415

        api.extract_fingerprints([1], num_processes=1, check_dataset_integrity=False)
        api.plan_experiments([1])
        api.preprocess([1], configurations=[configuration], num_processes=[1])
        shutil.copytree(folders[0] / DATASET / "imagesTs", prepared / "imagesTs")
        (prepared / "done").touch()
    return prepared, configuration


def _write_raw(given: Comparison, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (root / name).mkdir(parents=True)
    unseen = {case.case_id for case in given.unseen}
    ending = ".png" if given.manifest.modality is Modality.PICTURE else ".nii.gz"
    for case in given.manifest.cases:
        _write_images(case, root / ("imagesTs" if case.case_id in unseen else "imagesTr"), ending)
        if case.case_id not in unseen:
            labels, grid = given.reference(case)
            write_label_map(root / "labelsTr" / f"{case.case_id}{ending}", labels, grid)
    names = given.manifest.channel_names if ending != ".png" else ("R", "G", "B")[: len(given.manifest.channel_names)]
    kind = "CT" if given.manifest.modality is Modality.CT else None
    description = {
        "channel_names": {str(number): kind or name for number, name in enumerate(names)},
        "labels": {name: value for value, name in enumerate(given.manifest.labels.names)},
        "numTraining": len(given.manifest.cases) - len(unseen),
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def _write_images(case: ManifestCase, folder: Path, ending: str) -> None:
    for channel, path in enumerate(case.channels):
        place = folder / f"{case.case_id}_{channel:04d}{ending}"
        if ending == ".png":
            write_picture(place, read_picture(path)[0])
        elif path.name.endswith(ending):
            shutil.copyfile(path, place)
        else:
            raise ValueError(f"{path.name}: nnU-Net takes one kind of file, expected {ending}")


def _trainer(prepared: Path, configuration: str, out: Path) -> Any:
    os.environ |= {"nnUNet_results": str(out), "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: PLC0415

    plans = json.loads((prepared / f"{PLANS}.json").read_text(encoding="utf-8")) | {"continue_training": False}
    description = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # from which nnU-Net draws
    return nnUNetTrainer(plans, configuration, "all", description, device=torch.device("cpu"))


def _predicted_by(trainer: Any, images: Path) -> Callable[[ManifestCase], Labels]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: PLC0415

    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    reader = trainer.plans_manager.image_reader_writer_class()

    def predicted(case: ManifestCase) -> Labels:
        files = sorted(str(path) for path in images.glob(f"{case.case_id}_????.*"))
        return np.asarray(predictor.predict_single_npy_array(*reader.read_images(files))).transpose(2, 1, 0)

    return predicted


# --- both, one after the other ----------------------------------------------------------------------------------------

WAYS = {"voxelgate": ours, "nnU-Net": theirs}


def results(arguments: Sequence[str], given: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Yield what each way reached with each number of minutes; each is run in a process of its own, once."""
    for minutes in sorted(given.minutes):
        for way in WAYS:
            path = given.out / f"{way}_{minutes:g}.json"
            if not path.exists():
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.nnunet",
                    *arguments,
                    "--run",
                    way,
                    "--minutes",
                    f"{minutes:g}",
                ]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
            yield way, Result(**json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    """Read the arguments; run one way, or all, and print and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder to work in; results that are there are kept")
    parser.add_argument("--minutes", type=float, nargs="+", default=[30.0])
    parser.add_argument("--fold", type=int, default=0, help="that neither sees")
    parser.add_argument("--run", choices=WAYS, help="one way in this process, for the others")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.run:
        comparison = Comparison(load_manifest(given.manifest, given.data_root), given.fold, given.out.resolve())
        result = WAYS[given.run](comparison, given.minutes[0])
        (given.out / f"{given.run}_{result.minutes:g}.json").write_text(json.dumps(asdict(result)), encoding="utf-8")
        return
    lines: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    print("| way | minutes of one core | used | steps | Dice of unseen cases |\n|---|---|---|---|---|")
    same = [str(given.manifest), str(given.data_root), "--out", str(given.out), "--fold", str(given.fold)]
    for way, result in results(same, given):
        *_, mean = result.dice.values()
        lines[way].append((result.minutes, mean))
        each = ", ".join(f"{name} {dice:.3f}" for name, dice in result.dice.items())
        print(f"| {way} | {result.minutes:g} | {result.used_minutes:.1f} | {result.steps} | {each} |", flush=True)
    draw(given.out / "nnunet.svg", "Mean Dice of unseen cases, against minutes of one core", lines)


if __name__ == "__main__":
    main()
