"""How well a foretold Dice tells bad results from good ones, on cases that neither network nor model has seen.

python -m benchmarks.verdicts TRAINED MANIFEST DATA --rows rows.jsonl --foreign OTHER_DATA

TRAINED is a bundle of `voxelgate train --folds`. Each fold's network segments its cases and damaged copies of them; of
each fold, Dice is foretold by a model that learnt from the others. Images of another kind are all volumes in the
folders of `--foreign`, parts of them as large as the cases, noise, and halves of the cases.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from tqdm import tqdm

from voxelgate.bundle.opened import open_fold
from voxelgate.bundle.predict import Bundle
from voxelgate.core.errors import VoxelgateError
from voxelgate.core.geometry import Grid
from voxelgate.core.verdict import Doubt, Quality, Verdict
from voxelgate.datasets.manifest import Manifest, Split, load_manifest, part_cases
from voxelgate.evaluation.observation import Observation, QualityRow
from voxelgate.evaluation.predicted_dice import PERFECT, Foretold, fit_quality
from voxelgate.evaluation.review import doubts_about_foretold
from voxelgate.images.volumes import Voxels, is_volume, read_volume
from voxelgate.training.quality import quality_rows

WORST = 0.25
"""Part of the results of each structure that shall be told from the others."""

FALL = 0.1
"""Mean Dice that a damage must cost to count as one."""

SHOWN = 160
"""Characters of a reason that are printed."""

PARTS_OF_FOREIGN = 3
"""Parts as large as a case that are cut from each foreign volume."""


@dataclass(frozen=True)
class Told:
    """What was foretold of a result by a model that had not seen its subject."""

    row: QualityRow
    foretold: Foretold
    levels: Mapping[str, float]

    def doubt(self, name: str) -> float:
        """Return how much worse than usual a structure is foretold."""
        return float(np.log(1 + PERFECT - self.foretold.structures[name].value) - self.levels[name])

    @property
    def verdict(self) -> Verdict:
        """Return the verdict by what is foretold alone, and by what was not found."""
        found = self.row.observation.structures
        missing = [Doubt(Verdict.REVIEW, name) for name in self.levels if name not in found]
        return Quality.of([*missing, *doubts_about_foretold(self.foretold, found)]).verdict


LARGEST = 100
"""Times the volume of a case above which a foreign image is not segmented whole, which would take its time."""


def rows_of_folds(trained: Path, manifest: Manifest, path: Path) -> list[tuple[int, QualityRow]]:
    """Return the rows of all folds; those in the file are taken from there, and new ones added to it."""
    known = [] if not path.is_file() else [_row_of(line) for line in path.read_text(encoding="utf-8").splitlines()]
    done = {row.case_id for _, row in known}
    for fold in manifest.folds:
        cases = part_cases(manifest, fold, Split.VALIDATION)
        if all(case.case_id in done for case in cases):
            continue
        bundle = open_fold(trained, trained / "models" / f"fold_{fold}.pt")
        for number, case in enumerate(tqdm(cases, f"fold {fold}")):
            if case.case_id in done:
                continue
            new = [(fold, row) for row in quality_rows(bundle, manifest, [case], first=number)]
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"fold": fold} | asdict(row)) + "\n" for _, row in new)
            known += new
    return known


def _row_of(line: str) -> tuple[int, QualityRow]:
    document = json.loads(line)
    observation = Observation(**document.pop("observation"))
    return document.pop("fold"), QualityRow(observation=observation, **document)


def foretold_by_others(rows: Sequence[tuple[int, QualityRow]]) -> list[Told]:
    """Return what is foretold of each row by what the other folds teach; of one fold, of its subjects in four parts."""
    folds = sorted({fold for fold, _ in rows})
    if len(folds) == 1:
        subjects = sorted({row.subject for _, row in rows})
        rows = [(subjects.index(row.subject) % 4, row) for _, row in rows]
        folds = sorted({fold for fold, _ in rows})
    told = []
    for fold in folds:
        model = fit_quality([row for other, row in rows if other != fold])
        told += [Told(row, model.foretell(row.observation), model.levels) for other, row in rows if other == fold]
    return told


def auc(bad: Sequence[float], good: Sequence[float]) -> float:
    """Return how often something bad has the higher doubt; ties count half."""
    ranks = rankdata([*bad, *good])[: len(bad)]
    return float((ranks.sum() - len(bad) * (len(bad) + 1) / 2) / (len(bad) * len(good)))


def figures(told: Sequence[Told]) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured, what it shall be, and what it is."""
    sound = [one for one in told if not one.row.damage]
    names = dict.fromkeys(name for one in sound for name in one.row.dice)
    limits = {name: np.quantile([one.row.dice[name] for one in sound if name in one.row.dice], WORST) for name in names}
    pairs = [(one, name) for one in sound for name in one.row.dice]
    bad = [one.doubt(name) for one, name in pairs if one.row.dice[name] <= limits[name]]
    good = [one.doubt(name) for one, name in pairs if one.row.dice[name] > limits[name]]
    yield "AUC of the worst quarter of each structure", "0.75", f"{auc(bad, good):.3f}"
    before = {one.row.case_id: one.row.dice for one in sound}
    fallen = [one for one in told if one.row.damage and _fall(one.row, before) >= FALL]
    usual = [_case_doubt(one) for one in sound]
    yield f"AUC of {len(fallen)} damaged cases", "0.90", f"{auc([_case_doubt(one) for one in fallen], usual):.3f}"
    for kind in sorted({one.row.damage for one in fallen}):
        of_kind = [_case_doubt(one) for one in fallen if one.row.damage == kind]
        yield f"... {len(of_kind)} by {kind}", "", f"{auc(of_kind, usual):.3f}"
    yield "Dice within the interval, sound", "85 to 95 %", f"{_held(sound):.1%}"
    yield "Dice within the interval, damaged", "", f"{_held([one for one in told if one.row.damage]):.1%}"
    yield "Dice within the interval, all", "85 to 95 %", f"{_held(told):.1%}"


def _fall(row: QualityRow, before: Mapping[str, Mapping[str, float]]) -> float:
    falls = [before[row.case_id][name] - dice for name, dice in row.dice.items() if name in before.get(row.case_id, {})]
    return float(np.mean(falls)) if falls else 0.0


def _case_doubt(told: Told) -> float:
    """Return by how much a case is foretold below what is usual."""
    of_structures = told.foretold.structures
    names = told.row.dice or of_structures
    return float(np.mean([told.foretold.floors[name] - of_structures[name].value for name in names]))


def _held(told: Sequence[Told]) -> float:
    held = [
        within.low - 5e-4 <= one.row.dice[name] <= within.high + 5e-4  # they are rounded to 3 digits
        for one in told
        for name, within in one.foretold.structures.items()
        if name in one.row.dice
    ]
    return float(np.mean(held))


def foreign_images(folders: Sequence[Path], manifest: Manifest) -> Iterator[tuple[str, Voxels, Grid]]:
    """Yield images of another kind and what they are."""
    rng = np.random.default_rng(0)
    own, grid = read_volume(Path(manifest.cases[0].image))
    for path in sorted(path for folder in folders for path in folder.rglob("*") if is_volume(path)):
        voxels, of_file = read_volume(path)
        if voxels.ndim != 3 or voxels.min() == voxels.max():
            continue
        if voxels.size * of_file.voxel_ml <= LARGEST * own.size * grid.voxel_ml:
            yield f"{path.name}, whole", voxels, of_file
        for number in range(PARTS_OF_FOREIGN):
            corner = [
                int(rng.integers(0, max(1, n - size + 1))) for n, size in zip(voxels.shape, own.shape, strict=True)
            ]
            box = tuple(slice(at, at + size) for at, size in zip(corner, own.shape, strict=True))
            part = voxels[box]
            if part.min() < part.max():
                yield f"{path.name}, part {number}", part, Grid(part.shape, grid.affine)
    scale = float(own.std())
    for number, noise in enumerate((rng.normal, rng.gumbel, rng.laplace, rng.logistic)):
        yield f"noise {number}", noise(0, scale, own.shape).astype(np.float32), grid
    yield from _halves(manifest)


def _halves(manifest: Manifest) -> Iterator[tuple[str, Voxels, Grid]]:
    for number, case in enumerate(manifest.cases[:12]):
        voxels, grid = read_volume(Path(case.image))
        axis, is_upper = number % 3, number % 2 == 0
        middle = voxels.shape[axis] // 2
        spans = [slice(0, n) for n in voxels.shape]
        spans[axis] = slice(middle, voxels.shape[axis]) if is_upper else slice(0, middle)
        box = (spans[0], spans[1], spans[2])
        yield f"half of a case along axis {axis}", voxels[box], grid.cropped(box)


def verdict_on(bundle: Bundle, voxels: npt.NDArray[np.float32], grid: Grid) -> tuple[str, str]:
    """Return what becomes of an image, and why."""
    try:
        review = bundle.segment((voxels, grid.affine)).review
    except VoxelgateError as error:
        return "rejected", str(error)
    return str(review.verdict), " ".join(review.reasons)


def verdicts(told: Sequence[Told]) -> Iterator[str]:
    """Yield how many results get which verdict by what is foretold or missing, and their mean Dice."""
    for is_damaged in (False, True):
        for verdict in Verdict:
            of_verdict = [one.row for one in told if bool(one.row.damage) is is_damaged and one.verdict is verdict]
            dice = [float(np.mean(list(row.dice.values()))) for row in of_verdict if row.dice]
            mean = f"{np.mean(dice):.3f}" if dice else ""
            yield f"| {'damaged' if is_damaged else 'sound'} | {verdict} | {len(of_verdict)} | {mean} |"


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="file that keeps what was measured of each case")
    parser.add_argument("--foreign", type=Path, nargs="*", default=[], help="folders of images of another kind")
    asked = parser.parse_args()
    manifest = load_manifest(asked.manifest, asked.data_root)
    rows = rows_of_folds(asked.trained, manifest, asked.rows)
    told = foretold_by_others(rows)
    print("| what | wanted | found |\n|---|---|---|")
    for what, wanted, found in figures(told):
        print(f"| {what} | {wanted} | {found} |")
    print("\n| cases | verdict | how many | mean Dice |\n|---|---|---|---|", *verdicts(told), sep="\n")
    bundle = open_fold(asked.trained, asked.trained / "models" / f"fold_{rows[0][0]}.pt")
    bundle = replace(bundle, quality=fit_quality([row for _, row in rows]))
    print("\n| image of another kind | verdict | why |\n|---|---|---|")
    kept = []
    for what, voxels, grid in foreign_images(asked.foreign, manifest):
        verdict, why = verdict_on(bundle, voxels, grid)
        kept.append(verdict == Verdict.ACCEPT)
        print(f"| {what} | {verdict} | {why[:SHOWN]} |")
    print(f"\n{1 - np.mean(kept):.1%} of {len(kept)} images of another kind are refused or for review.")


if __name__ == "__main__":
    main()
