"""Arguments that several commands take, and what checks them."""

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.shipped import find_bundle, find_own_bundle
from voxelgate.core.errors import UsageError
from voxelgate.segmentation.cases import find_cases

_Choice = TypeVar("_Choice", bound=StrEnum)

_SEPARATOR = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')
"""A comma that an even number of quotation marks follows."""

MOST_LOOKED_AT = 20
"""Files whose headers are read twice, so that a wrong one is told at once."""

BundleArgument = Annotated[
    Path,
    typer.Argument(parser=find_bundle, metavar="bundle", help="Name or folder of a bundle.", show_default=False),
]
OwnBundleArgument = Annotated[
    Path, typer.Argument(parser=find_own_bundle, metavar="bundle", help="Folder of a bundle.", show_default=False)
]
ManifestArgument = Annotated[Path, typer.Argument(help="Manifest (JSON).", show_default=False)]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder the manifest's paths start from.", show_default="its own folder")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines for programs instead of text.")]
Allowed = Annotated[
    str, typer.Option(help="Faults of DICOM series to mend: gaps, tilt, merge-series.", show_default="none")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the bundle's config, as ID=VALUE; may be repeated.")
]


def choices(kind: type[_Choice], text: str, option: str) -> tuple[_Choice, ...]:
    """Return the members of a closed set that a text names, separated by commas, in the order of the set."""
    names = {name.strip().lower() for name in text.split(",") if name.strip()}
    if unknown := names - {member.value for member in kind}:
        raise UsageError(f"{option} {', '.join(sorted(unknown))}: expected some of {', '.join(kind)}")
    return tuple(member for member in kind if member.value in names)


def listed_names(text: str, option: str) -> tuple[str, ...]:
    """Return the names that a text lists, separated by commas; a comma between double quotes separates none.

    Raises:
        UsageError: a quotation mark has no second.

    >>> listed_names('liver,"kidney, left"', "--roi-subset")
    ('liver', 'kidney, left')
    """
    if text.count('"') % 2:
        raise UsageError(f'{option}: a quotation mark has no second; quote a name with a comma as in "kidney, left".')
    return tuple(part.replace('"', "").strip() for part in _SEPARATOR.split(text))


def refuse_unfit(bundle: Path, inputs: Sequence[Path], data_root: Path | None = None) -> None:
    """Refuse a bundle that is none, and files that cannot be segmented with it, before PyTorch is imported.

    Folders are only looked for: what is in them, perhaps a hundred thousand headers, is read once, later.

    Raises:
        BundleError: the folder holds no bundle.
        InputError: as for `find_cases`.
    """
    metadata = Metadata.read(bundle)
    wanted = [path for path in inputs if not path.is_dir()][:MOST_LOOKED_AT]
    find_cases(wanted, rule=metadata.series_rule, images=metadata.image_spec, data_root=data_root)


def refuse_given(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Refuse options that would count for nothing.

    Raises:
        UsageError: one of them was given.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')} {reason}; leave it out.")
