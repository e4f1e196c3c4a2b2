"""Run a network over cases that it has not seen, as it will be run on any other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events

from voxelgate.bundle.workflow import read_configs, run_workflow
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.evaluation.handler import ScoreCases, values_of_channels
from voxelgate.evaluation.scores import LabelScores
from voxelgate.inference.restoring.class_scores import ScoreKind
from voxelgate.training.class_offsets import Border, Undecided
from voxelgate.training.cleaning import CleaningTrial, Step, trials_of
from voxelgate.training.configs.train_config import evaluate_config
from voxelgate.training.planning.plan import Plan

SCORE_CLEANINGS = {"score_cases#_target_": "voxelgate.ScoreCleanings"}
AFTER = "validate#postprocessing"
"""Part of the configs that says what is done to a label map before it is compared."""


class ScoreCleanings(ScoreCases):
    """`ScoreCases` that also tries each step of cleaning on each structure, and sees where classes nearly tie.

    `trials` holds what came of the steps, `undecided` what offsets of the classes would change; that stays empty if the
    inferer does not show its scores.

    >>> scores = vg.ScoreCleanings(path="scores.csv", names={"0": "background", "1": "blob"})
    >>> scores.attach(Engine(lambda engine, batch: None))
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.trials: list[CleaningTrial] = []
        self.undecided: list[Undecided] = []
        self._border: Border | None = None

    def attach(self, engine: Engine) -> None:
        """Listen to each case and to the end."""
        engine.add_event_handler(Events.STARTED, self._tap)
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        super().attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._try)

    def _tap(self, engine: Engine) -> None:
        if hasattr(engine.inferer, "tapped"):
            engine.inferer = engine.inferer.tapped(self._show)

    def _show(self, scores: torch.Tensor, kind: ScoreKind, grid: Grid) -> None:
        if self._border is not None:
            self._border.show(scores, kind, grid)

    def _begin(self, engine: Engine) -> None:
        label = engine.state.batch[self.label_key]
        values = label.as_tensor()[0, 0].cpu().numpy().round().astype(np.int32)
        self._border = Border(values, Grid.of(label), np.random.default_rng(0))

    def _try(self, engine: Engine) -> None:
        (row,), (case,) = engine.state.output, engine.state.batch
        prediction, reference = (row[key].cpu().numpy() > 0.5 for key in (self.pred_key, self.label_key))
        trials = trials_of(prediction, reference, self.labels)
        self.trials += trials
        if self._border is None:
            return
        labels = values_of_channels(row[self.pred_key]).clip(min=0)
        seen = self._border.of_case(
            str(case.get("subject", case["case_id"])), labels, _kept_shares(trials, self.labels)
        )
        self.undecided += [] if seen is None else [seen]


def _kept_shares(trials: list[CleaningTrial], labels: LabelTable) -> dict[Step, npt.NDArray[np.float64]]:
    kept = {step: np.ones(len(labels.names)) for step in Step}
    for trial in trials:
        for step, share in trial.kept.items():
            kept[step][trial.value] = share
    return kept


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a network does with cases that it has not seen, and what would make it better.

    Args:
        scores: of every case and structure, before any cleaning.
        trials: what cleaning would do.
        undecided: what offsets of the classes would change.
    """

    scores: tuple[LabelScores, ...] = ()
    trials: tuple[CleaningTrial, ...] = ()
    undecided: tuple[Undecided, ...] = field(default=(), repr=False)


def try_endings(root: Path, settings: Mapping[str, Any]) -> HeldOut:
    """Run a trained bundle on its validation cases without any cleaning, and see what would make it better.

    Args:
        root: the bundle.
        settings: of its configs, such as manifest and fold.
    """
    uncleaned = {AFTER: read_configs(root, ["train"], {}).get(AFTER)}
    parser = run_workflow(root, ["train", "evaluate"], {**settings, **SCORE_CLEANINGS, **uncleaned})
    found: ScoreCleanings = parser.get_parsed_content("score_cases")
    return HeldOut(tuple(found.scores), tuple(found.trials), tuple(found.undecided))


def score_as_planned(root: Path, settings: Mapping[str, Any], plan: Plan, weights: Path) -> tuple[LabelScores, ...]:
    """Return the scores of other weights of a bundle on its validation cases, with the cleaning of another plan."""
    after = evaluate_config(plan).get(AFTER, read_configs(root, ["train"], {}).get(AFTER))
    parser = run_workflow(root, ["train", "evaluate"], {**settings, AFTER: after, "model_path": str(weights)})
    found: ScoreCases = parser.get_parsed_content("score_cases")
    return tuple(found.scores)
