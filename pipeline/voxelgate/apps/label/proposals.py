"""The label maps that models proposed, kept so that one that comes back unchanged is known: it measures no model."""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from voxelgate.apps.label.ids import check_id
from voxelgate.apps.label.uncertainty import mean_dice
from voxelgate.core.dice import dice_of_labels
from voxelgate.core.errors import InputError
from voxelgate.core.files import copy_file
from voxelgate.core.labels import LabelTable
from voxelgate.images.volumes import read_volume

PROPOSALS = "proposals"
"""Folder of an app with what was proposed for each image."""

MOST_KEPT = 8
"""For each image; the oldest go."""

UNCHANGED_DICE = 0.999
"""Dice from which on a label map counts as the proposal: one voxel of a thousand, a slip of the brush."""

SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class Proposals:
    """What was proposed, in a folder.

    Args:
        root: of the folder; made when needed.
    """

    root: Path

    def keep(self, image_id: str, label_map: Path) -> None:
        """Keep what was proposed for an image; the label map stays where it is."""
        folder = self.root / check_id(image_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy_file(label_map, folder / f"{secrets.token_hex(8)}{SUFFIX}")
        kept = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in kept[MOST_KEPT:]:
            old.unlink(missing_ok=True)

    def holds(self, image_id: str, label_map: Path, table: LabelTable) -> bool:
        """Return whether a label map is one that was proposed for the image, but for some voxels."""
        proposed = (self.root / check_id(image_id)).glob(f"*{SUFFIX}")
        return any(_are_alike(label_map, path, table) for path in sorted(proposed))

    def forget(self, image_id: str) -> None:
        """Remove what was proposed for an image."""
        shutil.rmtree(self.root / check_id(image_id), ignore_errors=True)


def _are_alike(first: Path, second: Path, table: LabelTable) -> bool:
    try:
        labels, others = (read_volume(path)[0] for path in (first, second))
    except InputError:  # removed meanwhile, or damaged, as whoever trains on it will be told
        return False
    return labels.shape == others.shape and mean_dice(dice_of_labels(labels, others, table).values()) >= UNCHANGED_DICE
