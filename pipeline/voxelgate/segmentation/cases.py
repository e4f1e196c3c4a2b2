"""Find what there is to segment below some paths, and name each case so that no two share a file."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from voxelgate.core.errors import InputError, reading_problem
from voxelgate.core.files import LOCK_NAME
from voxelgate.core.findings import Allow, Finding, FindingCode, Severity, remark
from voxelgate.core.progress import Progress
from voxelgate.datasets.manifest import is_manifest, load_manifest
from voxelgate.dicom.choose import SeriesRule, choose, is_called, names_one
from voxelgate.dicom.read.dicom_files import FileRef, list_files
from voxelgate.dicom.read.series import LookAtFiles, Series, look_at_each, scan_files
from voxelgate.dicom.read.series_paths import series_at
from voxelgate.evaluation.pairs import ONLY_CHANNEL
from voxelgate.images.passed_over import count_kinds, kinds_text
from voxelgate.images.spec import ONE_VOLUME, PICTURE_NAMES, ImageSpec, Paths, as_paths
from voxelgate.images.volume_bytes import member_of
from voxelgate.images.volumes import SUFFIXES, volume_stem

CHANNEL_ENDING = re.compile(r"(?<=.)_(\d{4})$")
"""What the names of files of one image differ in: the number of the channel, as in nnU-Net."""

PICTURES = f"picture ({PICTURE_NAMES})"

HASH_DIGITS = 8
"""Hex digits that tell files of one name apart; two of 1000 such files share them once in 8000 runs."""

HASHED_NAME_DIGITS = 16
"""Hex digits that a hashed name has; two of a million files share them once in 37 million runs."""


@dataclass(frozen=True)
class Case:
    """One image to segment.

    Args:
        case_id: its name in reports and logs, and of its results: a relative path without a suffix. For DICOM it is
            made of hashes, never of what the header or a folder is called.
        image: file or series to read, of the first channel if it has several; None if there is none. The path of a file
            in a zip leads through the archive, as if that were a folder.
        findings: each thing worth knowing before it is read; without image, the reasons.
        unusable: without image, the series of its study.
        further_channels: files of the second channel and those that follow; some may be missing.
        hides_names: nothing that is said of it may name its files, which are called after patients perhaps.
    """

    case_id: str
    image: Path | Series | None
    findings: tuple[Finding, ...] = ()
    unusable: tuple[Series, ...] = ()
    further_channels: tuple[Path, ...] = ()
    hides_names: bool = False

    @property
    def channels(self) -> tuple[Path, ...]:
        """Return the files of the image, most often one; none of a series."""
        return (self.image, *self.further_channels) if isinstance(self.image, Path) else ()

    @property
    def identity(self) -> str:
        """Return what tells its input from every other, whatever it holds now: a SHA-256, hex.

        A file is its resolved path, several are theirs in the order of the channels. A series is its UID, its study and
        its patient, wherever it lies; where its images name nobody, it is its folders too, since anonymisers give one
        UID to several patients.
        """
        if isinstance(self.image, Path):
            return _sha256_of(*(path.resolve() for path in self.channels))
        if self.image is None:
            return _study_identity(self.unusable) if self.unusable else _sha256_of("nothing", self.case_id)
        return _sha256_of("series", self.image.series_id, self.image.study_id, *_patients_of((self.image,)))

    @property
    def supersedes(self) -> str:
        """Return the identity of the case without image that its study was before the series came; empty for files."""
        return _study_identity((self.image,)) if isinstance(self.image, Series) else ""

    @property
    def input_files(self) -> tuple[FileRef, ...]:
        """Return every file that is named as its input; those that a header file points to are not among them."""
        if isinstance(self.image, Path):
            return tuple(map(file_of, self.channels))
        series = self.unusable if self.image is None else (self.image,)
        return tuple(sorted({file for one in series for file in one.files}))

    def redacted(self, text: str) -> str:
        """Return what is said of the case without the names of its files, if they are to be hidden."""
        if not self.hides_names:
            return text
        places = {place for path in self.channels for place in (path, path.resolve())}
        folders = {place.parent for place in places if place.parent.name}  # a library may name another file there
        names = {path.name for path in self.channels}.union(map(str, places | folders))
        for name in sorted(names, key=len, reverse=True):  # a path before the name it ends in
            text = text.replace(name, self.case_id)
        return text

    @property
    def files(self) -> list[str]:
        """Return the files of the image, for MONAI's `LoadImage`.

        Raises:
            InputError: there is no image, or its files are inside an archive.
        """
        if self.image is None:
            raise InputError(f"{self.case_id}: {' '.join(map(str, self.findings))}")
        files = self.input_files if isinstance(self.image, Path) else [header.file for header in self.image.headers]
        if any(file.member for file in files):
            raise InputError(f"{self.case_id}: lies in an archive, which MONAI cannot open; unpack it first.")
        return [str(file.path) for file in files]


class Found(NamedTuple):
    """What some inputs hold.

    Args:
        cases: what there is to segment.
        passed_over: how many files of which kind are neither images nor DICOM.
    """

    cases: list[Case]
    passed_over: dict[str, int]


def find_cases(  # noqa: PLR0913  # each is one rule of what is a case
    inputs: Paths,
    *,
    rule: SeriesRule | None = None,
    images: ImageSpec = ONE_VOLUME,
    data_root: Path | None = None,
    allow: Iterable[Allow] = (),
    out_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[Case]:
    """List what there is to segment in files, folders and manifests: images, and one DICOM series of each study.

    An image of several channels is the files of one folder whose names differ in `_0000`, `_0001`, ... at their end, as
    in nnU-Net, or a case of a manifest; of one channel `CASE_0000` is called `CASE`, unless a file beside it is called
    so too, or `CASE_0001`. Where pictures are looked for, nothing else is, and the other way round.

    A folder or zip is searched with all its sub-folders. Volume files keep them in their case id; hidden files are
    passed over, and a volume that is named twice counts once. Volumes that would share an id all get a hash of their
    resolved path, so that two patients' `ct.nii.gz` never overwrite each other. DICOM files of all inputs are taken
    together, so that a series in two folders is one. A study without a series that can be used is a case without image.

    Args:
        inputs: files, folders, zips, DICOMDIRs, and manifests (`.json`), whose cases are all taken.
        rule: which series of a study to take; without a rule the one with the thinnest slices.
        images: what an image consists of.
        data_root: folder that the paths of manifests start from; their own folder if None.
        allow: faults of DICOM series that will be mended instead of refused.
        out_dir: folder that is passed over, so that results are not taken for images; those of older runs that lie
            within an input are passed over too.
        progress: called with the number of DICOM files that were looked at and of all.

    Raises:
        InputError: an input does not exist, is no readable volume, or holds none; a manifest whose channels are others.

    >>> [case.case_id for case in vg.find_cases("scan.nii.gz")]
    ['scan']
    """
    return find_inputs(
        inputs,
        rule=rule,
        images=images,
        data_root=data_root,
        allow=allow,
        out_dir=out_dir,
        progress=progress,
    ).cases


def find_inputs(  # noqa: PLR0913  # as for `find_cases`
    inputs: Paths,
    *,
    rule: SeriesRule | None = None,
    images: ImageSpec = ONE_VOLUME,
    data_root: Path | None = None,
    allow: Iterable[Allow] = (),
    out_dir: Path | None = None,
    progress: Progress | None = None,
    look: LookAtFiles = look_at_each,
) -> Found:
    """List what there is to segment as `find_cases` does, and count what is passed over.

    Raises:
        InputError: as for `find_cases`.
    """
    paths = as_paths(inputs)
    manifests = [given for given in paths if is_manifest(given)]
    others = [given for given in paths if given not in manifests]
    listings = [list_input(given, out_dir, images) for given in others]
    dicom_files = dict.fromkeys(file for listing in listings for file in listing.may_be_dicom if not images.is_picture)
    closed = [file for file in dicom_files if file.is_archive]
    found = scan_files([file for file in dicom_files if not file.is_archive], allow=allow, progress=progress, look=look)
    used = {file for series in found for file in series.files}.union(closed)
    for given, listing in zip(others, listings, strict=True):
        if not listing.volumes and used.isdisjoint(listing.others):
            raise InputError(_why_nothing(given, listing, images))
    if rule is not None and rule.asked and not any(is_called(series, rule.asked) for series in found):
        raise InputError(
            f"{rule.asked}: no series has this UID, number or description; `voxelgate inspect` lists those there are."
        )
    named = [case for path in manifests for case in manifest_cases(path, images, data_root, allow)]
    cases = with_own_ids([*named, *image_cases(listings, images)]) + study_cases(found, rule or SeriesRule())
    cases += map(_archive_case, closed)
    left = [file for file in dict.fromkeys(file for listing in listings for file in listing.others) if file not in used]
    return Found(
        cases, count_kinds(map(path_through, left), [path for listing in listings for path, _ in listing.volumes])
    )


def _archive_case(file: FileRef) -> Case:
    """Return a case without image for an archive that was not looked into; it says why, and not what it is called."""
    reason = "it is no zip, although it is named like one; copy it again."
    try:
        list_files(file.path)
    except InputError as error:
        reason = reading_problem(error, file.path)
    name = f"archive-{_sha256_of(file.path.resolve())[:HASHED_NAME_DIGITS]}"
    found = Finding(FindingCode.UNREADABLE_FILE, Severity.REFUSE, f"an archive that was not looked into: {reason}")
    return Case(name, None, (found,), (Series(name, name, (), (found,), (file,)),))


def _why_nothing(given: Path, listing: "Listing", images: ImageSpec) -> str:
    wanted = PICTURES if images.is_picture else f"volume ({', '.join(SUFFIXES)}) and no DICOM image"
    kinds = kinds_text(count_kinds(map(path_through, listing.others), ()))
    return f"{given.name}: holds no {wanted}{f', but {kinds}' if kinds else ''}; check the path, or convert the images."


class Listing(NamedTuple):
    """The files of an input: images with their path relative to it, and all others."""

    volumes: list[tuple[Path, Path]]
    others: list[FileRef]

    @property
    def may_be_dicom(self) -> list[FileRef]:
        """Return the others but for archives inside archives, which are not looked into."""
        return [file for file in self.others if not (file.member and file.is_archive)]


def list_input(
    given: Path,
    out_dir: Path | None = None,
    images: ImageSpec = ONE_VOLUME,
    list_all: Callable[[Path], list[FileRef]] = list_files,
) -> Listing:
    """List the files of an input; those below `out_dir`, and below folders of older results within it, are passed over.

    Args:
        given: file or folder; a folder of results that is given itself is listed.
        out_dir: of the results.
        images: what an image consists of.
        list_all: what lists the files.

    Raises:
        InputError: as for `list_files`.
    """
    skipped = None if out_dir is None else out_dir.resolve()
    if skipped is not None and given.is_dir() and skipped == given.resolve():
        raise InputError(
            f"{given.name}: is the folder of the results too, which would be taken for images; choose another."
        )
    is_within = skipped is not None and given.resolve() in skipped.parents
    files = [file for file in list_all(given) if not is_within or skipped not in file.path.resolve().parents]
    older = {folder for folder in {file.path.parent for file in files} if _is_of_results(folder, given)}
    files = [file for file in files if file.path.parent not in older]
    start = given if given.is_dir() else given.parent
    taken = [file for file in files if _is_taken(file, images)]
    volumes = [(path_through(file), _place_below(file, start)) for file in taken]
    return Listing(volumes, [file for file in files if not _is_taken(file, images)])


def _is_of_results(folder: Path, given: Path) -> bool:
    """Return whether a folder is, or lies in, one below `given` that a run wrote into: it left its lock there."""
    for above in (folder, *folder.parents):
        with suppress(OSError):  # a path may be too long to be asked for
            if given in above.parents and (above / LOCK_NAME).is_file():
                return True
    return False


def _is_taken(file: FileRef, images: ImageSpec) -> bool:
    """Return whether a file is named like an image; pictures are not read out of archives."""
    return images.admits(Path(file.name)) and not (file.member and images.is_picture)


def _place_below(file: FileRef, start: Path) -> Path:
    """Return where a file lies below a folder; an archive counts as a folder of its name."""
    place = file.path.relative_to(start)
    return place.with_suffix("") / file.member if file.member else place


def path_through(file: FileRef) -> Path:
    """Return the path of a file; that of one in an archive leads through it."""
    return file.path / file.member if file.member else file.path


def file_of(path: Path) -> FileRef:
    """Return the file that the path of an image means, inside an archive if it leads through one."""
    member = member_of(path)
    return FileRef(path) if member is None else FileRef(member.archive, member.name)


def image_cases(listings: Iterable[Listing], images: ImageSpec = ONE_VOLUME) -> list[Case]:
    """Return a case for each image; files that are named twice count once."""
    places: dict[Path, tuple[Path, Path]] = {}
    for path, relative in (pair for listing in listings for pair in listing.volumes):
        places.setdefault(path.resolve(), (path, relative))
    if images.files == 1:
        uses = Counter(_shared_name(path) for path, _ in places.values())
        return [
            _single_case(path, relative, is_alone=uses[_shared_name(path)] == 1) for path, relative in places.values()
        ]
    groups: dict[tuple[Path, str], dict[Path, Path]] = defaultdict(dict)
    for path, relative in places.values():  # a link counts where it lies
        groups[_shared_name(path)][path] = relative
    return [_channel_case(name, group, images) for (_, name), group in groups.items()]


def _shared_name(path: Path) -> tuple[Path, str]:
    """Return the folder of a file and its name, without the number of a channel."""
    return path.parent.resolve(), CHANNEL_ENDING.sub("", volume_stem(path))


def _single_case(path: Path, relative: Path, *, is_alone: bool) -> Case:
    """Return the case of an image of one file, which needs no number of its only channel if no other has its name."""
    stem = volume_stem(relative)
    short = _shared_name(path)[1] if is_alone and stem.endswith(ONLY_CHANNEL) else stem
    return Case((relative.parent / short).as_posix(), path)


def _channel_case(name: str, relative_of: Mapping[Path, Path], images: ImageSpec) -> Case:
    """Return the case of some files of one name; those that are missing stand in it too, by the name they would have.

    A file without a number, or with one that is too high or there twice, makes more files than channels.
    """
    some = next(iter(relative_of))
    stem = volume_stem(some)
    names = [f"{name}_{number:04d}" for number in range(images.files)]
    found = {volume_stem(path) for path in relative_of}
    missing = [some.with_name(f"{one}{some.name[len(stem) :]}") for one in names if one not in found]
    wanted = missing if found & set(names) else []
    first, *further = sorted([*relative_of, *wanted], key=lambda path: path.name)
    return Case((relative_of[some].parent / name).as_posix(), first, further_channels=tuple(further))


def manifest_cases(
    path: Path, images: ImageSpec, data_root: Path | None = None, allow: Iterable[Allow] = ()
) -> list[Case]:
    """Return a case for each image of a manifest, those for training and those for testing.

    Raises:
        ManifestError: it cannot be used.
        InputError: its images are not those of the rule; in channels the order counts.
    """
    manifest = load_manifest(path, data_root)
    if manifest.images.is_picture != images.is_picture or not _same_channels(manifest.images, images):
        raise InputError(
            f"{path.name}: its images have the channels {', '.join(manifest.images.channels)}, but "
            f"the bundle takes {images}; use a manifest whose channels have these names in this order."
        )
    return [
        Case(case.case_id, series_at(case.image, allow=allow))
        if case.is_dicom
        else Case(case.case_id, case.image, further_channels=case.further_channels)
        for case in manifest.all_cases
    ]


def _same_channels(found: ImageSpec, wanted: ImageSpec) -> bool:
    """Return whether channels have the same names in the same order; a single one may be called anything."""
    return found.channels == wanted.channels or len(found.channels) == len(wanted.channels) == 1


def with_own_ids(found: Sequence[Case]) -> list[Case]:
    """Return each case once, with an id of its own: those that would share one all get a hash of their place."""
    cases = list({case.identity: case for case in reversed(found)}.values())[::-1]
    uses = Counter(case.case_id.casefold() for case in cases)  # one file where a file system ignores case
    return [case if uses[case.case_id.casefold()] == 1 else replace(case, case_id=with_hash(case)) for case in cases]


def with_hash(case: Case, digits: int = HASH_DIGITS) -> str:
    """Return the case's id with the start of its identity appended, for where another input has the id."""
    return f"{case.case_id}-{case.identity[:digits]}"


def with_hashed_name(case: Case) -> Case:
    """Return the case of some files under a name that says nothing of theirs; a series has none of its files anyway."""
    if not case.channels:
        return case
    return replace(case, case_id=f"case-{case.identity[:HASHED_NAME_DIGITS]}", hides_names=True)


def _sha256_of(*facts: Path | str) -> str:
    return hashlib.sha256(b"\0".join(map(os.fsencode, facts))).hexdigest()


def _study_identity(study: Sequence[Series]) -> str:
    return _sha256_of("study", study[0].study_id, *_patients_of(study))


def _patients_of(study: Sequence[Series]) -> list[str]:
    """Return the hashed patients of some series, or where nobody is named, their folders."""
    patients = {header.patient for series in study for header in series.headers}
    if any(map(any, patients)):
        return sorted(map(str, patients))
    folders = {file.folder for series in study for file in series.files}
    return sorted(f"{path.resolve()}\0{member}" for path, member in folders)


def study_cases(found: Sequence[Series], rule: SeriesRule) -> list[Case]:
    """Return a case for each study of some series: the one that fits the rule best, or none with the reasons.

    If one series is asked for, studies that do not hold it make no cases.
    """
    cases = []
    for study in _studies(found):
        if names_one(rule.asked) and not any(is_called(series, rule.asked) for series in study):
            continue
        taken, reasons = choose(study, rule)
        others = tuple(remark(f"{name} was not taken: {reason.rstrip('.')}.") for name, reason in reasons.items())
        if taken is None:
            cases.append(Case(_name_of_study(study, found), None, others, tuple(study)))
        else:
            cases.append(Case(taken.series_id, taken, others))
    return cases


def _studies(found: Sequence[Series]) -> list[list[Series]]:
    """Return the series of each study of each patient: UIDs that an anonymiser emptied or shared join nobody."""
    patients: dict[str, set[str]] = defaultdict(set)
    for series in found:
        patients[series.study_id] |= series.patient_ids
    studies: dict[tuple[str, ...], list[Series]] = defaultdict(list)
    for series in found:
        known = sorted(series.patient_ids or patients[series.study_id])
        names = known if series.patient_ids or len(known) == 1 else ()
        place = (series.study_id, "") if series.has_study else (series.frame_of_reference_uid, "without study")
        is_told = series.has_study or names or series.frame_of_reference_uid
        studies[(*place, *names) if is_told else (series.series_id,)].append(series)
    return list(studies.values())


def _name_of_study(study: Sequence[Series], found: Sequence[Series]) -> str:
    """Return what to call a study of which nothing can be used; its own id if no other patient shares it."""
    first = study[0]
    is_shared = any(series.study_id == first.study_id for series in found if series not in study)
    return f"study-{first.study_id}" if first.study_id and not is_shared else first.series_id
