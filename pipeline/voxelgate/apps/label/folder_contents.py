"""What a folder of images holds beside those that are served: counted by kind, and told when the server starts."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from stat import S_ISREG

MOST_FILES = 100_000
"""Files that are looked at; the server shall start."""

DICOM_PREAMBLE = 128
"""Bytes before `DICM` (PS3.10 7.1)."""

DICOM = "DICOM"

IN_FOLDERS = "images in sub-folders"


def said_of_folder(folder: Path, served: int, suffixes: Collection[str], own: Collection[str]) -> list[str]:
    """Return sentences on what of a folder is served, what is not, and what to do about it.

    Args:
        folder: with the images; only its own files are served.
        served: how many images are.
        suffixes: of images.
        own: names of files and folders that the server keeps there.
    """
    found = Counter(islice(_kinds_of_files(folder, tuple(suffixes), own), MOST_FILES))
    sentences = [f"{served} images of {folder} are served"]
    if found:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
        sentences.append(f"not served, for images are {', '.join(suffixes)} in the folder itself: {listed}")
    if DICOM in found:
        sentences.append(
            "DICOM is served from a PACS: put it into one that speaks DICOMweb, such as Orthanc, and give its address "
            "as --studies, or convert it to NIfTI"
        )
    if not served:
        sentences.append(f"there is nothing to annotate yet: put {' or '.join(suffixes)} files into {folder}")
    return sentences


def _kinds_of_files(folder: Path, suffixes: tuple[str, ...], own: Collection[str]) -> Iterator[str]:
    """Yield the kind of each file that is not served; what cannot be listed is left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in own]
        is_top = Path(place) == folder
        for name in names:
            if name.startswith(".") or name in own or (is_top and name.endswith(suffixes)):
                continue
            yield IN_FOLDERS if name.endswith(suffixes) else _kind_of_file(Path(place) / name)


def _kind_of_file(path: Path) -> str:
    """Return what a file is, by its name, and where that says nothing, by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in {".dcm", ".dicom"} or path.name.upper() == "DICOMDIR" or _starts_like_dicom(path):
        return DICOM
    return suffix if suffix[1:].isalpha() else "files without a suffix"


def _starts_like_dicom(path: Path) -> bool:
    try:
        if not S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(DICOM_PREAMBLE + 4)[DICOM_PREAMBLE:] == b"DICM"
    except OSError:
        return False
