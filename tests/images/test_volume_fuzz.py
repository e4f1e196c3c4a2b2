"""Two thousand damaged headers of NIfTI, NRRD and MetaImage: equal values, a finding, or a refusal in one sentence.

Where a header still makes sense and says something else (another voxel size, another type), the values must be
those that nibabel or SimpleITK reads. The latter does so in a process of its own, which such files may end.
"""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.volume_files import AFFINE_RAS, CONTENT, VOXELS, metaimage_bytes, nifti_bytes, nrrd_bytes
from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid
from voxelgate.images.volumes import Reading, read_with_findings

SEED = 18
GRID = Grid((7, 6, 5), AFFINE_RAS)
Mutation = Callable[[np.random.Generator, bytes], bytes]

WORDS = (
    "0", "-1", "1", "2", "3", "1000", "nan", "inf", "-inf", "1e400", "1e-30", "99999999999999999999", "1_0", "0x10", "",
    "none", "None", "True", "False", "LOCAL", "LIST", "%s%n", "/etc/passwd", "../x", "(1,0,0)", "(nan,nan,nan)", "()",
    "((", "\0", "\xff", "raw", "gzip", "ascii", "short", "float", "uint8", "MET_FLOAT", "MET_UCHAR", "big",
    "scanner-xyz", "x" * 3000,
)  # fmt: skip
"""What stands in place of a word of a text header."""

ITK_READER = """
import json, sys
import numpy as np, SimpleITK as sitk
for path in sys.argv[1:]:
    try:
        image = sitk.ReadImage(path)
        affine = np.eye(4)
        affine[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        voxels = sitk.GetArrayFromImage(image).T
        found = [(np.diag((-1.0, -1, 1, 1)) @ affine).tolist(), voxels.ravel(order="F").astype(float).tolist()]
    except Exception:
        found = None
    print(json.dumps(found), flush=True)
"""


def flipped(rng: np.random.Generator, content: bytes, end: int) -> bytes:
    """Return a file with some flipped bits before a byte."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        changed[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def with_another_number(rng: np.random.Generator, content: bytes, end: int) -> bytes:
    """Return a file with a number somewhere in its binary header that no program writes there."""
    kind = rng.choice(["<f4", "<i2", "<i4", "<i8", "<f8", ">f4"])
    value = rng.choice([0, 1, -1, np.nan, np.inf, -np.inf, 127, 32767, 1e-30, 1e30, 255])
    with np.errstate(invalid="ignore", over="ignore"):
        written = np.array(value).astype(kind).tobytes()
    at = 2 * int(rng.integers((end - len(written)) // 2))
    return content[:at] + written + content[at + len(written) :]


def cut(rng: np.random.Generator, content: bytes) -> bytes:
    """Return the beginning of a file."""
    return content[: int(rng.integers(len(content)))]


def with_other_lines(rng: np.random.Generator, content: bytes, end: int) -> bytes:
    """Return a file with a line of its text header lost, repeated, moved, or with another word in it."""
    lines = content[:end].split(b"\n")
    at = int(rng.integers(len(lines)))
    how = rng.integers(5)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(int(rng.integers(len(lines))), lines[at])
    elif how == 2:
        lines.insert(int(rng.integers(len(lines))), lines.pop(at))
    else:
        words = lines[at].split(b" ")
        words[int(rng.integers(len(words)))] = rng.choice(WORDS).encode("latin-1")
        lines[at] = b" ".join(words)
    return b"\n".join(lines) + content[end:]


def nifti_mutations(content: bytes, end: int) -> list[Mutation]:
    return [
        lambda rng, _: flipped(rng, content, end),
        lambda rng, _: with_another_number(rng, content, end),
        lambda rng, _: with_another_number(rng, content, end),
        lambda rng, _: cut(rng, content),
    ]


def text_mutations(content: bytes) -> list[Mutation]:
    end = len(content) - len(CONTENT)
    return [
        lambda rng, _: flipped(rng, content, end),
        lambda rng, _: with_other_lines(rng, content, end),
        lambda rng, _: with_other_lines(rng, with_other_lines(rng, content, end), end - 40),
        lambda rng, _: cut(rng, content),
    ]


FILES: dict[str, tuple[str, bytes, Callable[[bytes], list[Mutation]]]] = {
    "nifti": (".nii", nifti_bytes(), lambda content: nifti_mutations(content, 352)),
    "nifti-2": (".nii", nifti_bytes(is_second=True), lambda content: nifti_mutations(content, 544)),
    "nifti of the other order": (".nii", nifti_bytes(order=">"), lambda content: nifti_mutations(content, 352)),
    "packed nifti": (".nii.gz", nifti_bytes(), lambda content: nifti_mutations(content, 352)),
    "nrrd": (".nrrd", nrrd_bytes(), text_mutations),
    "metaimage": (".mha", metaimage_bytes(), text_mutations),
}
VARIANTS = {
    "nifti": 400,
    "nifti-2": 250,
    "nifti of the other order": 150,
    "packed nifti": 200,
    "nrrd": 500,
    "metaimage": 500,
}


def variants(folder: Path, kind: str) -> Iterator[Path]:
    suffix, content, mutations_of = FILES[kind]
    rng = np.random.default_rng(SEED)
    mutations = mutations_of(content)
    for number in range(VARIANTS[kind]):
        changed = mutations[number % len(mutations)](rng, content)
        path = folder / f"{number}{suffix}"
        path.write_bytes(gzip.compress(changed) if suffix.endswith(".gz") else changed)
        yield path


def reading_of(path: Path) -> Reading | None:
    """Return what is read of a file; None if it is refused in one sentence that names it."""
    try:
        return read_with_findings(path)
    except InputError as error:
        sentence = str(error)
        assert sentence.startswith(f"{path.name}: ")
        assert "\n" not in sentence
        assert len(sentence) < 300
        return None


def is_as_it_was(found: Reading) -> bool:
    return np.array_equal(found.voxels[0], VOXELS) and GRID.agrees(found.grid)


def holds_what_nibabel_reads(path: Path, found: Reading) -> bool:
    image = nib.load(path)
    grid = Grid(found.grid.shape, image.affine)
    return np.array_equal(np.asarray(image.dataobj).reshape(found.grid.shape), found.voxels[0]) and grid.agrees(
        found.grid
    )


def read_by_itk(paths: list[Path]) -> list[tuple[list[list[float]], list[float]] | None]:
    """Return affine and voxels of each file; None for those that SimpleITK refuses, or that end its process."""
    found: list[tuple[list[list[float]], list[float]] | None] = []
    while len(found) < len(paths):
        done = subprocess.run(
            [sys.executable, "-c", ITK_READER, *map(str, paths[len(found) :])],
            capture_output=True,
            check=False,
            timeout=60,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith((b"[[", b"null"))]
        found += lines if done.returncode == 0 else [*lines, None]
    return found


@pytest.mark.parametrize("kind", FILES)
def test_no_damaged_header_is_read_wrongly_without_a_word(tmp_path: Path, kind: str) -> None:
    silent, counts = [], {"refused": 0, "told": 0, "as it was": 0}
    for path in variants(tmp_path, kind):
        found = reading_of(path)
        if found is None:
            counts["refused"] += 1
        elif found.findings:
            counts["told"] += 1
        elif is_as_it_was(found):
            counts["as it was"] += 1
        else:
            silent.append((path, found))

    if "nifti" in kind:
        assert [path.name for path, found in silent if not holds_what_nibabel_reads(path, found)] == []
    else:
        for (path, found), itk in zip(silent, read_by_itk([path for path, _ in silent]), strict=True):
            assert itk is not None, path.read_bytes()[:600]
            assert Grid(found.grid.shape, np.array(itk[0])).agrees(found.grid), path.read_bytes()[:600]
            np.testing.assert_array_equal(found.voxels[0].ravel(order="F"), itk[1])
    assert min(counts["refused"], counts["as it was"]) > 20
