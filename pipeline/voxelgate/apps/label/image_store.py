"""Images and label maps in a folder: MONAI Label's store, with everything checked on its way in, and nothing lost."""

import copy
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag

from voxelgate.apps.label.folder_contents import said_of_folder
from voxelgate.apps.label.ids import check_id, check_tag, is_id, is_tag
from voxelgate.apps.label.label_names import remember_label_names
from voxelgate.apps.label.submitted import read_submitted, segments_of
from voxelgate.core.errors import InputError, VoxelgateError
from voxelgate.core.files import copy_file, write_text
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.images.volumes import read_grid, read_volume, write_label_map
from voxelgate.segmentation.cases import Case

logger = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
"""Images that MONAI Label's clients can show."""

LABEL_SUFFIX = ".nii.gz"

PATTERNS = [f"*{suffix}" for suffix in SUFFIXES]

EARLIER = "earlier_labels"
"""Folder beside the images with the label maps that were replaced by later ones, `<image>/<tag>-1.nii.gz` first."""

LOCK = ".voxelgate-label.lock"

HELD_S = 1800
"""How long an image counts as in the hands of the annotator who was given it."""

Objects = dict[str, ImageLabelModel]


class ImageStore(LocalDatastore):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Images in a folder, and below `labels/<tag>/` their label maps, each on the grid of its image.

    MONAI Label's own copies whatever it is given to wherever id and tag point; threads and processes that write at a
    time undo what the others wrote; and who reads meets files that are half there. Here a change is made to a copy of
    what is known, under a lock, and then takes its place, as files do.

    Args:
        studies: the folder.
        table: what the values of label maps mean.

    Raises:
        InputError: what is known of the images cannot be read.
        UsageError: the label maps that are there mean something else.
    """

    _datastore: LocalDatastoreModel
    _config_ts: Any

    def __init__(self, studies: Path, table: LabelTable) -> None:
        self.table = table
        self._turn = FileLock(studies / LOCK)
        self._passed_over = 0
        LocalDatastore.__init__(
            self, str(studies), extensions=PATTERNS, auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
        )
        if self._auto_reload:
            self._handler.on_moved = self._on_any_event  # so a file comes that was written under another name
        has_maps = any(known.labels for known in self._datastore.objects.values())
        remember_label_names(Path(self._datastore.label_path(None)), table, has_maps=has_maps)

    def said_of_images(self) -> list[str]:
        """Return sentences on which images are served and which are not, for whoever starts the server."""
        own = (self._datastore.labels_dir, EARLIER, Path(self._datastore_config_path).name)
        return said_of_folder(Path(self._datastore_path), len(self.list_images()), SUFFIXES, own)

    def case(self, image_id: str) -> Case:
        """Return an image as the pipeline takes it.

        Raises:
            InputError: there is none of that id.
        """
        return Case(image_id, Path(self.case_file(image_id)))

    def case_file(self, image_id: str) -> str:
        """Return the volume file of an image.

        Raises:
            InputError: there is none of that id.
        """
        if not (path := self.get_image_uri(check_id(image_id))):
            raise InputError("there is no image of this id; ask /datastore/?output=all which there are.")
        return str(path)

    def image_grid(self, image_id: str) -> Grid:
        """Return where the voxels of an image lie.

        Raises:
            InputError: there is none of that id, or it cannot be read.
        """
        return read_grid(Path(self.case_file(image_id)))

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Take an image.

        Raises:
            InputError: the id is none, or belongs to another image; the file is no volume.
        """
        path = Path(image_filename)
        suffix = _suffix_of_image(path.name)
        check_id(image_id)
        if not suffix:
            raise InputError(f"an image of this format is not taken; send {', '.join(SUFFIXES)}.")
        voxels, grid = read_volume(path)
        with self._changing() as objects:
            if known := self.get_image_uri(image_id):
                present, place = read_volume(Path(known))
                if not place.agrees(grid) or not np.array_equal(present, voxels):
                    raise InputError("another image has this id already; choose another id.")
                return image_id
            copy_file(path, self._image_path(image_id, suffix))
            facts = {**image_info, **file_stamp(f"{image_id}{suffix}")}
            objects[image_id] = ImageLabelModel(image=DataModel(info=facts, ext=suffix))
        return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]) -> str:
        """Take a label map: checked, with the values of the bundle, as NIfTI without free text in its header.

        One that was there and differs is kept in `EARLIER`, unless it was a proposal.

        Args:
            image_id: of the image it belongs to.
            label_filename: the file, which stays as it is.
            label_tag: "final" for what an annotator submits, "original" for a proposal.
            label_info: of the client; `label_info` in it names the segments.

        Raises:
            InputError: no such image, a tag that is none, or a label map that `read_submitted` refuses.
        """
        tag = check_tag(str(getattr(label_tag, "value", label_tag)))
        grid, segments = self.image_grid(image_id), segments_of(label_info.get("label_info"))
        labels = read_submitted(Path(label_filename), grid, self.table, segments)
        annotator = str(label_info.get("user") or "")
        facts = self.on_final(image_id, labels, annotator) if tag == DefaultLabelTag.FINAL.value else {}
        with self._changing() as objects:
            known = self._changed(objects, image_id)
            former = known.labels.get(tag)
            kept = self._keep_earlier(image_id, tag, labels, former)
            path = self._label_path(image_id, tag, LABEL_SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_label_map(path, labels, grid, like=Path(self.get_image_uri(image_id)), overwrite=True)
            if former is not None and former.ext != LABEL_SUFFIX:
                self._label_path(image_id, tag, former.ext).unlink(missing_ok=True)
            info = {**label_info, **facts, **kept, **file_stamp(path.name)}
            known.labels[tag] = DataModel(info=info, ext=LABEL_SUFFIX)
        return image_id

    def on_final(self, image_id: str, labels: npt.NDArray[Any], annotator: str) -> Mapping[str, str]:  # noqa: ARG002  # for a PACS
        """Return facts to keep with a final label map."""
        return {}

    def remove_image(self, image_id: str) -> None:
        """Remove an image with all its label maps, also those that were replaced.

        Raises:
            InputError: there is none of that id.
        """
        with self._changing() as objects:
            known = self._changed(objects, image_id)
            for tag, label in known.labels.items():
                self._label_path(image_id, tag, label.ext).unlink(missing_ok=True)
            shutil.rmtree(self._earlier_path(image_id), ignore_errors=True)
            self._image_path(image_id, known.image.ext).unlink(missing_ok=True)  # of a link the link alone
            del objects[image_id]

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label map; those that it replaced stay.

        Raises:
            InputError: there is no such image or label map.
        """
        with self._changing() as objects:
            label = self._changed(objects, label_id).labels.pop(check_tag(label_tag), None)
            if label is None:
                raise InputError("the image has no label map of this tag; ask /datastore/?output=all which there are.")
            self._label_path(label_id, label_tag, label.ext).unlink(missing_ok=True)

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Keep facts with an image.

        Raises:
            InputError: there is none of that id.
        """
        with self._changing() as objects:
            self._changed(objects, image_id).image.info.update(info)

    def hand_out(self, image_ids: Sequence[str], client_id: str | None, strategy: str) -> str | None:
        """Give an annotator the first of some images that is in nobody else's hands, and note it; else the first.

        Both happen under one lock: of several who ask at the same moment each is given another.

        Args:
            image_ids: the best first.
            client_id: of who asks; who does not say so holds no image.
            strategy: by which it was chosen.

        Returns:
            The image, or None if none is left that is not annotated.
        """
        with self._changing() as objects:
            left = [image_id for image_id in image_ids if self._is_open(objects, image_id)]
            if not left:
                return None
            free = [image_id for image_id in left if not is_in_other_hands(self._facts(objects, image_id), client_id)]
            chosen = next(iter(free or left))
            given = self._changed(objects, chosen).image.info.setdefault("strategy", {})
            given[strategy] = {"ts": int(time.time()), "client_id": client_id}
        return chosen

    @staticmethod
    def _facts(objects: Objects, image_id: str) -> Mapping[str, Any]:
        """Return what is known of an image; of a series that was never opened, nothing."""
        known = objects.get(image_id)
        return {} if known is None else known.image.info

    @staticmethod
    def _is_open(objects: Objects, image_id: str) -> bool:
        """Return whether an image may still be given to somebody."""
        known = objects.get(image_id)
        return known is None or DefaultLabelTag.FINAL.value not in known.labels

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        """Keep facts with a label map.

        Raises:
            InputError: there is no such image or label map.
        """
        with self._changing() as objects:
            label = self._changed(objects, label_id).labels.get(label_tag)
            if label is None:
                raise InputError("the image has no label map of this tag; ask /datastore/?output=all which there are.")
            label.info.update(info)

    def _keep_earlier(
        self, image_id: str, tag: str, labels: npt.NDArray[Any], label: DataModel | None
    ) -> dict[str, list[dict[str, Any]]]:
        """Copy a label map that is about to be replaced; return all that were, with who submitted them and when."""
        if label is None or tag == DefaultLabelTag.ORIGINAL.value:
            return {}
        earlier = list(label.info.get("earlier", ()))
        path = self._label_path(image_id, tag, label.ext)
        if path.is_file() and not _holds_label(path, labels):
            folder = self._earlier_path(image_id)
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / f"{tag}-{len(list(folder.iterdir())) + 1}{label.ext}"
            copy_file(path, kept)
            earlier.append({"file": kept.name, "user": label.info.get("user"), "ts": label.info.get("ts")})
        return {"earlier": earlier} if earlier else {}

    def _changed(self, objects: Objects, image_id: str) -> ImageLabelModel:
        if check_id(image_id) not in objects:
            raise InputError("there is no image of this id; ask /datastore/?output=all which there are.")
        return objects[image_id]

    def _image_path(self, image_id: str, suffix: str) -> Path:
        return Path(self._datastore.image_path()) / f"{check_id(image_id)}{suffix}"

    def _label_path(self, image_id: str, tag: str, suffix: str) -> Path:
        return Path(self._datastore.label_path(check_tag(tag))) / f"{check_id(image_id)}{suffix}"

    def _earlier_path(self, image_id: str) -> Path:
        return Path(self._datastore_path) / EARLIER / check_id(image_id)

    @contextmanager
    def _changing(self) -> Iterator[Objects]:
        """Let nobody else change the store; what is yielded is kept if the block ends well."""
        with self._turn:
            self._init_from_datastore_file()
            known = copy.deepcopy(self._datastore)
            yield known.objects
            if known != self._datastore:
                self._datastore = known
                self._update_datastore_file()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  # MONAI Label's interface
        """Read what is known if another process changed it.

        Raises:
            InputError: the file is damaged.
        """
        path = Path(self._datastore_config_path)
        if not path.is_file() or self._config_ts == _label_version(path):
            return
        version = _label_version(path)
        try:
            known = LocalDatastoreModel.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise InputError(
                f"{path} is damaged, so nobody knows who annotated what; bring back a copy of it, or move it away: "
                "images and label maps are found again."
            ) from error
        known.base_path = self._datastore_path
        self._datastore, self._config_ts = known, version

    def _update_datastore_file(self, lock: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002  # MONAI Label's interface
        path = Path(self._datastore_config_path)
        write_text(path, self._datastore.model_dump_json(exclude={"base_path"}, indent=2))
        self._config_ts = _label_version(path)

    def _on_any_event(self, event: Any) -> None:  # noqa: ARG002  # watchdog's interface
        try:
            self._reconcile_datastore()
        except (VoxelgateError, OSError) as error:
            logger.error("the studies cannot be listed: %s", error)  # noqa: TRY400  # of a thread that must go on

    def _on_modify_event(self, event: Any) -> None:
        if event.src_path == self._datastore_config_path:
            self._on_any_event(event)

    def _reconcile_datastore(self) -> None:
        """List the images in the folder and their label maps, and keep what is known of each."""
        with self._changing() as objects:
            found = self._images(objects)
            for image_id in objects.keys() - found.keys():
                del objects[image_id]
            for image_id, suffix in found.items():
                if image_id not in objects or objects[image_id].image.ext != suffix:
                    image = DataModel(info=file_stamp(f"{image_id}{suffix}"), ext=suffix)
                    objects[image_id] = ImageLabelModel(image=image)
            self._list_labels(objects)

    def _images(self, known: Objects) -> dict[str, str]:
        """Return id and suffix of each image; names that are no ids, or that several files share, are told."""
        suffixes: dict[str, list[str]] = defaultdict(list)
        names = [path.name for path in Path(self._datastore.image_path()).iterdir() if path.is_file()]
        for suffix in SUFFIXES:
            for name in sorted(name for name in names if _suffix_of_image(name) == suffix):
                suffixes[name.removesuffix(suffix)].append(suffix)
        found = {image_id: offered for image_id, offered in suffixes.items() if is_id(image_id)}
        passed_over = sum(map(len, suffixes.values())) - len(found)
        if passed_over not in (0, self._passed_over):
            logger.warning(
                "%d images are passed over, for their names are no ids (letters, digits, spaces and . , ( ) + = @ - _) "
                "or differ in the suffix only; rename them",
                passed_over,
            )
        self._passed_over = passed_over
        return {
            image_id: _ext_of(known[image_id].image if image_id in known else None, offered)
            for image_id, offered in found.items()
        }

    def _list_labels(self, objects: Objects) -> None:
        folders = [path for path in Path(self._datastore.label_path(None)).iterdir() if path.is_dir()]
        listed = {folder.name: {path.name for path in folder.iterdir()} for folder in folders if is_tag(folder.name)}
        for image_id, known in objects.items():
            labels = {}
            for tag, names in listed.items():
                if offered := [suffix for suffix in SUFFIXES if f"{image_id}{suffix}" in names]:
                    label = known.labels.get(tag)
                    ext = _ext_of(label, offered)
                    is_same = label is not None and label.ext == ext
                    labels[tag] = label if is_same else DataModel(info=file_stamp(f"{image_id}{ext}"), ext=ext)
            known.labels = labels


def is_in_other_hands(facts: Mapping[str, Any], client_id: str | None) -> bool:
    """Return whether an image was given to another client a short while ago."""
    given = facts.get("strategy", {}).values()
    since = time.time() - HELD_S
    return any(one.get("client_id") not in {None, "", client_id} and one.get("ts", 0) > since for one in given)


def _suffix_of_image(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def _ext_of(known: DataModel | None, offered: Sequence[str]) -> str:
    """Return which of the files of one id counts: the one that was there before, else the first."""
    return str(known.ext) if known is not None and known.ext in offered else offered[0]


def file_stamp(name: str) -> dict[str, Any]:
    """Return what MONAI Label's clients are told of a file: what it is called, and since when it is there."""
    return {"ts": int(time.time()), "name": name}


def _label_version(path: Path) -> tuple[int, int, int]:
    """Return what changes with every write: another file takes the name each time."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _holds_label(path: Path, labels: npt.NDArray[Any]) -> bool:
    try:
        return np.array_equal(read_volume(path)[0], labels)
    except InputError:
        return False
