"""Exceptions that a user may meet; each message is one sentence that says what to do next.

```
VoxelgateError
├── InputError         an image, label map or folder cannot be used (exit code 1)
│   └── ManifestError  a manifest or the cases it names are wrong; carries all problems at once (exit code 1)
├── BundleError        a bundle is incomplete, altered or does not fit its weights (exit code 1)
├── EngineError        the workers cannot be reached or kept (exit code 1)
├── OutputError        a result cannot be written, or would overwrite something (exit code 1)
└── UsageError         an option or config value is wrong (exit code 2)
```
"""

from collections.abc import Sequence
from pathlib import Path


class VoxelgateError(Exception):
    """Base of all errors that are the user's to mend; `exit_code` is what the command line returns.

    >>> try:
    ...     raise vg.VoxelgateError("x.nii.gz: not found.")
    ... except vg.VoxelgateError as error:
    ...     print(error)
    x.nii.gz: not found.
    """

    exit_code = 1


class InputError(VoxelgateError):
    """An image, label map or folder cannot be used.

    >>> try:
    ...     raise vg.InputError("scan.nii.gz: truncated.")
    ... except vg.VoxelgateError as error:
    ...     print(error)
    scan.nii.gz: truncated.
    """


class ManifestError(InputError):
    """A manifest or the cases it names are wrong.

    Args:
        problems: one sentence for each problem, each naming its file; at least one.

    >>> print(vg.ManifestError(["a.nii.gz: missing.", "b.nii.gz: missing."]))
    a.nii.gz: missing.
    b.nii.gz: missing.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class BundleError(VoxelgateError):
    """A bundle is incomplete, altered or does not fit its weights.

    >>> try:
    ...     raise vg.BundleError("my_bundle: not sealed.")
    ... except vg.VoxelgateError as error:
    ...     print(error)
    my_bundle: not sealed.
    """


class EngineError(VoxelgateError):
    """The workers that cases are given to cannot be reached or kept.

    >>> try:
    ...     raise vg.EngineError("a worker went away.")
    ... except vg.VoxelgateError as error:
    ...     print(error)
    a worker went away.
    """


class OutputError(VoxelgateError):
    """A result cannot be written, or would overwrite something that was there.

    >>> try:
    ...     raise vg.OutputError("labels.nii.gz: exists already.")
    ... except vg.VoxelgateError as error:
    ...     print(error)
    labels.nii.gz: exists already.
    """


class UsageError(VoxelgateError):
    """An option or config value is wrong.

    >>> try:
    ...     raise vg.UsageError("--folds 1: at least two are needed.")
    ... except vg.VoxelgateError as error:
    ...     print(error)
    --folds 1: at least two are needed.
    """

    exit_code = 2


def cause_of(error: BaseException) -> BaseException:
    """Return the error of ours behind those that libraries wrap around it, or the innermost one."""
    while not isinstance(error, VoxelgateError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def reason_of(error: BaseException) -> str:
    """Return the first line of what the cause of an error says, its type where it says nothing."""
    cause = cause_of(error)
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def reading_problem(error: InputError, path: Path) -> str:
    """Return a reader's message without the file name it starts with, for lines that give the longer path."""
    return str(error).removeprefix(f"{path.name}: ")
