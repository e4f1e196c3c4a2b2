"""Which cases the weights of a bundle were trained on, without naming anybody: hashes of subjects and of images."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from voxelgate.core.documents import read_json
from voxelgate.core.errors import BundleError
from voxelgate.core.files import write_text
from voxelgate.core.records import record_problem
from voxelgate.datasets.check_manifest import MOST_READERS, image_content
from voxelgate.datasets.manifest import Manifest, ManifestCase

SEEN = "seen.json"
"""File in a trained bundle, sealed and handed on with it."""

DIGITS = 32
"""Hexadecimal digits of a hash that are kept: 128 bits."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Seen:
    """What a training saw.

    Args:
        subjects: hash of each subject's pseudonym together with the name of the data set.
        images: hash of the voxels of each image, whatever the file is called and however it is packed.
    """

    subjects: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()

    def __or__(self, other: "Seen") -> "Seen":
        """Return what either saw."""
        return Seen(self.subjects | other.subjects, self.images | other.images)

    def count(self, manifest: Manifest, cases: Iterable[ManifestCase], content: Mapping[str, str]) -> int:
        """Return how many cases were seen; another image of a subject that was seen counts too.

        Args:
            manifest: the data set of the cases.
            cases: some of them.
            content: hash of the image of each case; a case without one is told by its subject alone.
        """
        known = self.subjects | self.images
        return sum(not _hashes_of(manifest, case, content).isdisjoint(known) for case in cases)


def seen_of(manifest: Manifest, cases: Iterable[ManifestCase], content: Mapping[str, str]) -> Seen:
    """Return what a training on some cases of a data set sees.

    Args:
        manifest: the data set.
        cases: that are trained on.
        content: hash of the image of each case, as `CheckedManifest` has it.
    """
    chosen = list(cases)
    return Seen(
        frozenset(_subject_hash(manifest, case) for case in chosen),
        frozenset(content[case.case_id][:DIGITS] for case in chosen),
    )


def read_seen(bundle: Path) -> Seen:
    """Return what the weights of a bundle have seen, as far as the bundle knows.

    Raises:
        BundleError: its record is none.
    """
    path = bundle / SEEN
    if not path.is_file():
        return Seen()
    try:
        stated = read_json(path)
        return Seen(**stated)
    except (OSError, ValueError, TypeError) as error:
        reason = record_problem(error) if isinstance(error, ValidationError) else error
        raise BundleError(f"{bundle.name}: {SEEN} is no record of a training ({reason}); restore the bundle") from error


def write_seen(bundle: Path, seen: Seen) -> None:
    """Write what the weights of a bundle have seen."""
    document = {"subjects": sorted(seen.subjects), "images": sorted(seen.images)}
    write_text(bundle / SEEN, json.dumps(document, indent=0) + "\n")


def contents_of(cases: Iterable[ManifestCase]) -> dict[str, str]:
    """Return the hash of the image of every case, some read at a time.

    Raises:
        InputError: an image cannot be read.
    """
    chosen = list(cases)
    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool:
        return dict(zip([case.case_id for case in chosen], pool.map(image_content, chosen), strict=True))


def _hashes_of(manifest: Manifest, case: ManifestCase, content: Mapping[str, str]) -> set[str]:
    return {_subject_hash(manifest, case), content.get(case.case_id, "")[:DIGITS]}


def _subject_hash(manifest: Manifest, case: ManifestCase) -> str:
    return hashlib.sha256(f"{manifest.name}\0{case.subject}".encode()).hexdigest()[:DIGITS]
