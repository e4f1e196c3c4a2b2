"""See which studies and volume files of a folder are complete while something else fills it."""

import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from voxelgate.core.errors import InputError
from voxelgate.core.findings import Allow
from voxelgate.dicom.choose import SeriesRule
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.dicom_files import DICOMDIR_CLASS, FileRef, list_files
from voxelgate.dicom.read.headers import Header, UnreadableFile, UnreadableFileError, read_header
from voxelgate.dicom.read.series import group
from voxelgate.images.spec import ONE_VOLUME, ImageSpec
from voxelgate.segmentation.cases import Case, Listing, file_of, image_cases, list_input, study_cases, with_own_ids

logger = logging.getLogger(__name__)

LOOKS_PER_SETTLING = 4
"""How often a folder is looked at in the time after which something is complete."""

REST = 4
"""Looking takes at most one part in this many and one of the time, however many files there are."""


@dataclass(frozen=True)
class _Seen:
    """A file as it was last seen.

    Args:
        size_and_time: bytes, and nanoseconds of its last change.
        since_s: monotonic time at which it was first seen so.
        header: None if it is no DICOM, or damaged.
        damage: why it cannot be read though it is DICOM; empty if it can.
    """

    size_and_time: tuple[int, int]
    since_s: float
    header: Header | None = None
    damage: str = ""


class Inbox:
    """What lies in some folders, and what of it was handed out.

    Args:
        folders: that something else fills.
        rule: which series of a study to take.
        allow: as for `find_cases`.
        out_dir: folder that is passed over.
        images: what an image consists of: one file.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        rule: SeriesRule,
        allow: Iterable[Allow],
        out_dir: Path,
        images: ImageSpec = ONE_VOLUME,
    ) -> None:
        self._folders, self._rule, self._allow, self._out_dir = folders, rule, tuple(allow), out_dir
        self._images = images
        self._files: dict[FileRef, _Seen] = {}
        self._closed = 0
        self._oldest_s = -math.inf
        self._taken: dict[tuple[str, ...], frozenset[tuple[FileRef, tuple[int, int]]]] = {}

    def look(self, now_s: float, settle_s: float) -> list[Case]:
        """Return the cases that are complete now and were not handed out as they are.

        A study counts as a whole: while one of its files is young, it is not complete. A folder that cannot be listed,
        as a transfer makes them, is passed over until a later look finds it open; what was seen in it before stays.

        Args:
            now_s: monotonic time.
            settle_s: age from which a file is not expected to change.

        Raises:
            InputError: a folder is gone.
        """
        closed: list[OSError] = []
        list_open = partial(list_files, on_closed=closed.append)
        listings = [list_input(folder, self._out_dir, self._images, list_open) for folder in self._folders]
        if any(isinstance(error, FileNotFoundError) for error in closed):  # moved away; the next look finds the rest
            return []
        self._tell_closed(closed)
        volumes = {file_of(path) for listing in listings for path, _ in listing.volumes}
        others = {file for listing in listings for file in listing.may_be_dicom if not self._images.is_picture}
        with quiet_pydicom():
            seen = {file: self._seen(file, now_s, is_dicom=file in others) for file in sorted(volumes | others)}
        places = [Path(os.fsdecode(error.filename)) for error in closed]
        hidden = {file: one for file, one in self._files.items() if not set(places).isdisjoint(file.path.parents)}
        self._files = hidden | {file: one for file, one in seen.items() if one is not None}
        self._oldest_s = now_s - settle_s
        complete = {file for file in volumes if self._is_complete(("file", str(file.path)), [file])}
        found = [Listing([pair for pair in one.volumes if file_of(pair[0]) in complete], []) for one in listings]
        return with_own_ids(image_cases(found, self._images)) + self._studies()

    def _tell_closed(self, closed: Sequence[OSError]) -> None:
        """Say that folders are passed over, whenever their number changes; not which, for they may name patients."""
        if len(closed) != self._closed and closed:
            some = "a folder" if len(closed) == 1 else f"{len(closed)} folders"
            logger.warning("%s cannot be listed (%s); its images wait until it can be.", some, closed[0].strerror)
        self._closed = len(closed)

    @property
    def is_settled(self) -> bool:
        """Return whether no file was young at the last look."""
        return all(one.since_s <= self._oldest_s for one in self._files.values())

    def _seen(self, file: FileRef, now_s: float, *, is_dicom: bool) -> _Seen | None:
        """Return what is known of a file, None if it cannot be looked at now; its header is read when it changed."""
        try:
            facts = file.path.stat()
            changed_ns = max(facts.st_mtime_ns, facts.st_ctime_ns)  # it may get the right to be read, too
            known, found = self._files.get(file), (facts.st_size, changed_ns)
            if known is not None and known.size_and_time == found:
                return known
            return _Seen(found, now_s, read_header(file) if is_dicom else None)
        except OSError:
            return None
        except UnreadableFileError as error:
            return _Seen(found, now_s, damage=error.reason)

    def _is_complete(self, key: tuple[str, ...], files: Sequence[FileRef]) -> bool:
        """Return whether files that belong together have settled, and are not as they were handed out."""
        now = frozenset((file, self._files[file].size_and_time) for file in files if file in self._files)
        is_settled = bool(now) and all(self._files[file].since_s <= self._oldest_s for file, _ in now)
        if not is_settled or self._taken.get(key) == now:
            return False
        self._taken[key] = now
        return True

    def _studies(self) -> list[Case]:
        studies: dict[tuple[str, ...], list[FileRef]] = defaultdict(list)
        damaged: dict[tuple[Path, str], list[UnreadableFile]] = defaultdict(list)
        for file, one in self._files.items():
            if one.damage:
                damaged[file.folder].append(UnreadableFile(file, one.damage))
                studies[("damaged", *map(str, file.folder))].append(file)
            elif one.header is not None and one.header.sop_class_uid != DICOMDIR_CLASS:
                studies[("study", one.header.study_uid)].append(file)
        cases: list[Case] = []
        for key, files in studies.items():
            if not self._is_complete(key, files):
                continue
            headers = [one.header for one in map(self._files.__getitem__, files) if one.header is not None]
            beside = [one for folder in {file.folder for file in files} for one in damaged[folder]]
            found = group(headers, beside, allow=self._allow)
            cases += study_cases([series for series in found if series.headers or not headers], self._rule)
        return cases


def watched_folders(given: Iterable[Path]) -> list[Path]:
    """Return folders to watch, as workers with another working directory find them.

    Raises:
        InputError: one of them is no folder.
    """
    folders = [path.absolute() for path in given]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder.name}: is no folder, and only folders can be watched; leave out --watch.")
    return folders


def complete_cases(inbox: Inbox, settle_s: float, idle_s: float | None) -> Iterator[Sequence[Case]]:
    """Yield cases as they become complete, and nothing very often meanwhile, so that the caller can do other work.

    Args:
        inbox: what is looked at.
        settle_s: time for which no file of a study may appear, grow or change.
        idle_s: end when nothing new came for this time; None for never.

    Raises:
        InputError: a folder is gone.
    """
    last_news_s = time.monotonic()
    with ThreadPoolExecutor(1) as reader:
        while True:
            started_s = time.monotonic()
            looking = reader.submit(inbox.look, started_s, settle_s)
            while not looking.done():
                yield ()
            ended_s = time.monotonic()
            if (cases := looking.result()) or not inbox.is_settled:
                last_news_s = ended_s
            yield cases
            if idle_s is not None and ended_s - last_news_s > idle_s:
                return
            next_s = ended_s + max(settle_s / LOOKS_PER_SETTLING, REST * (ended_s - started_s))
            while time.monotonic() < next_s:
                yield ()
