"""Find which image and which label of a folder belong together, and name every file that has no partner."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxelgate.core.errors import InputError, reading_problem
from voxelgate.core.geometry import Grid
from voxelgate.dicom.labels.label_voxels import DicomLabels
from voxelgate.images.label_maps import LabelValues, read_label_map
from voxelgate.images.pictures import PICTURE_SUFFIXES, is_picture
from voxelgate.images.spec import ONE_VOLUME, ImageSpec
from voxelgate.images.volumes import SUFFIXES, Voxels, is_volume, read_channels, read_grid, volume_stem

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"), ("images", "masks"))
"""Folders of images and labels: ours, those of the Decathlon and of nnU-Net, and those of most sets of pictures."""

IMAGE_ENDING = re.compile(r"_(image|img)$", re.IGNORECASE)
"""What an image's name may carry behind the case id."""

CHANNEL_ENDING = re.compile(r"_(00\d\d)$")
"""What nnU-Net puts behind the case id for the channels: `_0000`, `_0001`, ..."""

ONLY_CHANNEL = "_0000"
"""How it ends where an image has one channel."""

LABEL_ENDING = re.compile(r"_(seg|segmentation|label|labels|mask)$", re.IGNORECASE)
"""What a label's name may carry behind the case id; it tells labels from images where both lie in one folder."""

FEW_VALUES = 64
"""A file with no more distinct values, all of them whole, looks like a label map; even small images have over 100."""


Reference = Path | DicomLabels
"""What a label map is compared with: a file, or labels of DICOM on the grid of their series."""

LabelMapPair = tuple[str, Path, Reference]
"""Case id, prediction and reference."""


def grid_of_reference(reference: Reference) -> Grid:
    """Return where the voxels of a reference lie."""
    return reference.grid() if isinstance(reference, DicomLabels) else read_grid(reference)


def read_reference(reference: Reference, values: LabelValues | int) -> tuple[Voxels, Grid]:
    """Return the label map (I, J, K) of a reference with the values 0, 1, 2, ... and its grid.

    Args:
        reference: file or DICOM labels.
        values: what those of a file stand for, as for `read_label_map`.
    """
    return reference.read() if isinstance(reference, DicomLabels) else read_label_map(reference, values)


@dataclass(frozen=True)
class Pair:
    """The files of an image, one for each channel, and the label map drawn on it."""

    case_id: str
    images: tuple[Path, ...]
    label: Path

    @property
    def image(self) -> Path:
        """Return the file of the first channel."""
        return self.images[0]


def find_pairs(root: Path, rule: ImageSpec = ONE_VOLUME) -> tuple[list[Pair], list[str]]:
    """Return the pairs of a folder by ascending case id, and one line for each file that is in no pair or lacks.

    `CASE_0000`, `CASE_0001`, ... are the channels of one image, unless a label map is called so too.

    Args:
        root: holds `images/` and `labels/` or `masks/`, or `imagesTr/` and `labelsTr/`, or all files flat, where labels
            end in `_seg`, `_segmentation`, `_label`, `_labels` or `_mask`. Other kinds of files, and hidden ones, are
            ignored.
        rule: which files are images.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        return [], [f"{root}: {found}, expected a folder with images and labels; check the path."]
    there = [[(root / name).is_dir() for name in folders] for folders in FOLDERS]
    for folders, both in sorted(zip(FOLDERS, there, strict=True), key=lambda pair: not all(pair[1])):
        if all(both):
            return _pair_folders(root, *folders, rule)
        if any(both):
            missing = folders[both.index(False)]
            return [], [f"{missing}/: there is no such folder beside the other one; every case needs image and label."]
    return _pair_flat(root, rule)


def _pair_folders(root: Path, image_folder: str, label_folder: str, rule: ImageSpec) -> tuple[list[Pair], list[str]]:
    images, labels = _files(root / image_folder, rule), _files(root / label_folder, rule)
    label_of, problems = _label_by_case_id(labels, images, root)
    images_of, doubles = _images_by_case_id(images, label_of, root)
    problems = [*doubles, *problems]
    for case_id in sorted(images_of.keys() ^ label_of.keys()):
        if case_id in images_of:
            found, kind, partner = next(iter(images_of[case_id].values())), "image", f"label in {label_folder}/"
        else:
            found, kind, partner = label_of[case_id], "label", f"image in {image_folder}/"
        problems.append(f"{_name(found, root)}: {kind} without {partner}; add it or take the {kind} away.")
    return _matched(images_of, label_of, problems, root)


def _pair_flat(root: Path, rule: ImageSpec) -> tuple[list[Pair], list[str]]:
    files = _files(root, rule)
    labels = [path for path in files if LABEL_ENDING.search(volume_stem(path))]
    label_of, problems = _label_by_case_id(labels, (), root)
    images_of, doubles = _images_by_case_id(sorted(set(files) - set(labels)), label_of, root)
    problems = [*doubles, *problems]
    for case_id in sorted(images_of.keys() ^ label_of.keys()):
        if case_id in label_of:
            problems.append(f"{label_of[case_id].name}: label without image {case_id}; add it or take the label away.")
        else:
            found = next(iter(images_of[case_id].values()))
            problems.append(f"{found.name}: {_looks(found)}")
    return _matched(images_of, label_of, problems, root)


def _looks(path: Path) -> str:
    """Say what a file without partner seems to be, since its name does not tell."""
    try:
        values = np.unique(read_channels(path)[0])
    except InputError as error:
        return reading_problem(error, path)
    if values.size <= FEW_VALUES and np.array_equal(values, np.rint(values)):
        return (
            f"looks like a label (whole numbers {values[0]:g} to {values[-1]:g}) without image; "
            "put its image beside it and name the label like the image plus _seg, or take it away."
        )
    return (
        f"looks like an image ({values.size} distinct values) without label; "
        f"put its label beside it as {volume_stem(path)}_seg, or take it away."
    )


def _files(folder: Path, rule: ImageSpec) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if rule.admits(path) and not path.name.startswith(".") and path.is_file()
    )


def _label_by_case_id(labels: Iterable[Path], images: Iterable[Path], root: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the label of every case id, and a line for each whose case id is taken.

    An ending is part of the case id where an image carries it too.
    """
    image_stems = {volume_stem(path) for path in images}
    label_of: dict[str, Path] = {}
    problems = []
    for path in labels:
        stem = volume_stem(path)
        first = label_of.setdefault(stem if stem in image_stems else LABEL_ENDING.sub("", stem), path)
        if first != path:
            problems.append(_double_line(path, first, root))
    return label_of, problems


def _images_by_case_id(
    images: Iterable[Path], case_ids: Collection[str], root: Path
) -> tuple[dict[str, dict[int, Path]], list[str]]:
    """Return the files of every case id by the number of their channel, and a line for each whose place is taken.

    An ending is part of the case id where a label carries it too.
    """
    images_of: dict[str, dict[int, Path]] = {}
    problems = []
    for path in images:
        case_id, channel = (stem := volume_stem(path)), 0
        if stem not in case_ids:
            ending = CHANNEL_ENDING.search(stem)
            case_id = stem[: ending.start()] if ending else IMAGE_ENDING.sub("", stem)
            channel = int(ending[1]) if ending else 0
        first = images_of.setdefault(case_id, {}).setdefault(channel, path)
        if first != path:
            problems.append(_double_line(path, first, root))
    return images_of, problems


def _double_line(path: Path, first: Path, root: Path) -> str:
    return f"{_name(path, root)}: of the same case as {_name(first, root)}; keep one."


def _matched(
    images_of: Mapping[str, Mapping[int, Path]], label_of: Mapping[str, Path], problems: list[str], root: Path
) -> tuple[list[Pair], list[str]]:
    """Return the cases with image and label, and with the lines of before those of channels that lack."""
    both = sorted(images_of.keys() & label_of.keys())
    counts = Counter(max(images_of[case_id]) + 1 for case_id in both)
    usual = max(counts, key=lambda channels: (counts[channels], channels), default=1)
    found = [line for case_id in both for line in _channel_lines(case_id, images_of[case_id], usual, root)]
    whole = [case_id for case_id in both if sorted(images_of[case_id]) == list(range(usual))]
    in_order = {case_id: tuple(path for _, path in sorted(images_of[case_id].items())) for case_id in whole}
    return [Pair(case_id, in_order[case_id], label_of[case_id]) for case_id in whole], [*problems, *found]


def _channel_lines(case_id: str, files: Mapping[int, Path], usual: int, root: Path) -> Iterator[str]:
    there = _name(next(iter(files.values())), root)
    for number in range(usual):
        if number not in files:
            yield (
                f"{there}: case {case_id} has no channel {number:04d} beside it, which the other cases have "
                f"({case_id}_{number:04d}); add it, or take the case away."
            )
    for number in sorted(files):
        if number >= usual:
            yield f"{_name(files[number], root)}: the other cases have channels up to {usual - 1:04d}; take it away."


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def pair_files(
    prediction: Path, reference: Path, is_other: Callable[[Path], bool] = lambda _: False
) -> list[LabelMapPair]:
    """LabelMapPair label maps with their references: one file with one file, or two folders by relative path and name.

    Folders are searched to any depth; `volume_stem` makes `a/case.nii` and `a/case.nii.gz` partners; names that begin
    with a dot are passed over.

    Args:
        prediction: label map, or folder of them.
        reference: label map, or folder of them.
        is_other: which volumes in a folder are no label maps, such as the maps of attention gates beside them.

    Returns:
        Case id, prediction and reference of each pair, ordered by case id; the id is the path without suffix,
        relative to the folder.

    Raises:
        InputError: something does not exist, a file meets a folder, a folder holds no volumes or two of one name, or
            files on either side have no partner; all of them are listed, for a case left out would change the result.
    """
    for path in (prediction, reference):
        if not path.exists():
            raise InputError(f"{path} does not exist; name a label map or a folder of label maps.")
    if prediction.is_dir() != reference.is_dir():
        file, folder = (reference, prediction) if prediction.is_dir() else (prediction, reference)
        raise InputError(f"{file} is a file and {folder} a folder; name two files or two folders.")
    if not prediction.is_dir():
        return [(volume_stem(reference), prediction, reference)]
    return pair_cases(prediction, label_maps_in(reference, is_other), is_other)


def pair_cases(
    prediction: Path, references: Mapping[str, Reference], is_other: Callable[[Path], bool] = lambda _: False
) -> list[LabelMapPair]:
    """Return the pairs of references that have a case id, such as those of a manifest, and label maps called so.

    `CASE_0000`, as nnU-Net names images of one channel, and `CASE` are partners where nothing else is.

    Args:
        prediction: label map, or folder of them.
        references: by case id.
        is_other: as for `pair_files`.

    Raises:
        InputError: as for `pair_files`.
    """
    if not prediction.exists():
        raise InputError(f"{prediction} does not exist; name a label map or a folder of label maps.")
    predictions = {volume_stem(prediction): prediction}
    if prediction.is_dir():
        predictions = _by_case(label_maps_in(prediction, is_other), references)
    lonely = [
        *(f"{predictions[case_id]} has no reference" for case_id in sorted(predictions.keys() - references.keys())),
        *(f"{references[case_id]} has no prediction" for case_id in sorted(references.keys() - predictions.keys())),
    ]
    if lonely:
        raise InputError(f"cases without a partner: {'; '.join(lonely)}. Add what is missing, or move the others away.")
    return [(case_id, predictions[case_id], references[case_id]) for case_id in sorted(references)]


def _by_case(predictions: Mapping[str, Path], references: Collection[str]) -> dict[str, Path]:
    """Return label maps by their case id, with the ending of an image's only channel where a reference has it."""
    cases = {stem: _other_name(stem) for stem in predictions.keys() - set(references)}
    renamed = {stem: case for stem, case in cases.items() if case in references and case not in predictions}
    return {renamed.get(stem, stem): path for stem, path in predictions.items()}


def _other_name(stem: str) -> str:
    """Return a name without the ending of an only channel, or with it if it has none."""
    return stem.removesuffix(ONLY_CHANNEL) if stem.endswith(ONLY_CHANNEL) else stem + ONLY_CHANNEL


def label_maps_in(folder: Path, is_other: Callable[[Path], bool] = lambda _: False) -> dict[str, Path]:
    """Return all label maps in a folder by their case id, which is the path without suffix, relative to the folder.

    Args:
        folder: searched to any depth; names that begin with a dot are passed over.
        is_other: which volumes are no label maps.

    Raises:
        InputError: there are none, or two of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not (is_volume(path) or is_picture(path)) or not path.is_file():
            continue
        if is_other(path):
            continue
        case_id = (path.relative_to(folder).parent / volume_stem(path)).as_posix()
        if case_id in found:
            raise InputError(f"{found[case_id]} and {path} have one name; keep only one of them.")
        found[case_id] = path
    if not found:
        endings = ", ".join((*SUFFIXES, *PICTURE_SUFFIXES))
        raise InputError(f"{folder} holds no volumes or pictures ({endings}); name a folder of label maps.")
    return found
