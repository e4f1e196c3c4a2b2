"""Learn on cases that a network has not seen, and on damaged copies of them, how good its results are."""

import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from voxelgate.bundle.checksums import QUALITY
from voxelgate.bundle.observing import form_values
from voxelgate.bundle.opened import open_fold
from voxelgate.bundle.predict import Bundle
from voxelgate.bundle.reading import Image, read_source
from voxelgate.core.dice import dice_of_labels
from voxelgate.core.errors import VoxelgateError
from voxelgate.core.files import write_text
from voxelgate.core.forms import measure_forms
from voxelgate.core.labels import IGNORED
from voxelgate.core.progress import Progress
from voxelgate.datasets.manifest import Manifest, ManifestCase, Split, part_cases
from voxelgate.dicom.read.series_paths import series_at
from voxelgate.evaluation.observation import QualityRow
from voxelgate.evaluation.pairs import read_reference
from voxelgate.evaluation.predicted_dice import fit_quality
from voxelgate.training.damage import DAMAGES, LabelledImage, damaged
from voxelgate.transforms.io import as_image

logger = logging.getLogger(__name__)

FEWEST_SUBJECTS = 10
"""Of which intervals can be learnt that hold nine in ten."""

DAMAGES_A_CASE = 2
"""Damaged copies of each case; all kinds come up in turn."""


def quality_rows(
    bundle: Bundle, manifest: Manifest, cases: Sequence[ManifestCase], copies: int = DAMAGES_A_CASE, first: int = 0
) -> Iterator[QualityRow]:
    """Yield what came of cases and of their damaged copies; those that are refused are left out.

    Args:
        bundle: that has seen none of these subjects.
        manifest: of the cases.
        cases: with a reference.
        copies: damaged ones of each case.
        first: number of the first case, which says what kinds of damage come up.
    """
    kinds = list(DAMAGES)
    for number, case in enumerate(cases, start=first):
        reference = manifest.reference_of(case)
        if reference is None:
            continue
        source = series_at(case.image) if case.is_dicom else case.channels
        read = read_source(source, case.case_id, bundle.labels, expected=bundle.expected, images=bundle.image_spec)
        truth, _ = read_reference(reference, manifest.values)
        sound = LabelledImage(read.voxels.astype(np.float32), read.grid, truth)
        yield from _row(bundle, read, sound, case, "")
        for turn in range(copies):
            kind = kinds[(copies * number + turn) % len(kinds)]
            rng = np.random.default_rng([zlib.crc32(case.case_id.encode()), turn])
            yield from _row(bundle, read, damaged(sound, kind, rng), case, kind)


def _row(bundle: Bundle, read: Image, image: LabelledImage, case: ManifestCase, damage: str) -> Iterator[QualityRow]:
    try:
        prepared = bundle.prepare(as_image(image.voxels, image.grid, read.facts))
        found = bundle.predict(prepared, image.grid)
    except VoxelgateError:
        return
    observation = bundle.observe(found, image.grid)
    counted = np.where(image.truth == IGNORED, 0, image.truth)
    labels = np.where(image.truth == IGNORED, 0, found.labels)
    overlaps = dice_of_labels(labels, counted, bundle.labels)
    dice = {name: value for name, value in overlaps.items() if not math.isnan(value)}
    truth = {name: form_values(form) for name, form in measure_forms(counted, image.grid, bundle.labels).items()}
    if observation is not None:
        yield QualityRow(case.case_id, case.subject, damage, observation, dice, truth)


def write_quality(root: Path, manifest: Manifest, folds: int, progress: Progress | None = None) -> None:
    """Learn how good the results of a cross-validated bundle are, and write that into the bundle, to be sealed.

    Each case is segmented by the network of its fold, as the bundle is run, and so are damaged copies of it. Fewer than
    `FEWEST_SUBJECTS` teach nothing; verdicts then rest on fixed rules.

    Args:
        root: the bundle, with the weights of all folds; not sealed yet.
        manifest: with these folds.
        folds: how many.
        progress: told how many of how many cases are done.
    """
    (root / QUALITY).unlink(missing_ok=True)
    subjects = len({case.subject for case in manifest.cases})
    if subjects < FEWEST_SUBJECTS:
        logger.warning(
            "%s: verdicts are not calibrated, for the cross-validation has %d subjects, and %d are needed",
            root.name,
            subjects,
            FEWEST_SUBJECTS,
        )
        return
    rows: list[QualityRow] = []
    for fold in range(folds):
        bundle = open_fold(root, root / "models" / f"fold_{fold}.pt")
        for row in quality_rows(bundle, manifest, part_cases(manifest, fold, Split.VALIDATION)):
            rows.append(row)
            if progress is not None:
                progress(len({one.case_id for one in rows}), len(manifest.cases))
    try:
        model = fit_quality(rows)
    except ValueError as error:
        logger.warning("%s: verdicts are not calibrated: %s", root.name, error)
        return
    write_text(root / QUALITY, model.to_json())
