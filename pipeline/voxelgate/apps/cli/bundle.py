"""Look after a bundle: list, verify, seal, codes, describe, export, calibrate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxelgate.apps.cli.options import BundleArgument, Overwrite, OwnBundleArgument, refuse_unfit
from voxelgate.apps.cli.terminal import console
from voxelgate.bundle.checksums import seal, verify
from voxelgate.bundle.codes import propose_codes, write_codes
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.shipped import find_bundle, find_own_bundle, kept_bundles, shipped_bundles
from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.files import refuse_existing
from voxelgate.inference.runtimes.kinds import Format, paths_of_format
from voxelgate.segmentation.cases import find_cases

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from voxelgate.bundle.predict import Bundle

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look after a bundle.")


@app.command("list")
def list_bundles() -> None:
    """Name the bundles that came with the program, and those that are kept; every command takes them by these names."""
    for name, root in shipped_bundles().items():
        console.print(f"{name} {_one_line(root)}", soft_wrap=True)
    for name, root in kept_bundles().items():
        console.print(f"{name} {_one_line(root)} ({root})", soft_wrap=True)


def _one_line(root: Path) -> str:
    """Return version and description of a bundle, or what is wrong with its metadata."""
    try:
        metadata = Metadata.read(root)
    except BundleError as error:
        return f"cannot be used: {error}"
    return f"{metadata.version}: {metadata.document.get('description', 'no description')}"


@app.command("verify")
def verify_bundle(bundle: BundleArgument) -> None:
    """Check that a bundle is whole: files, metadata, network, configs, properties, export, two iterations."""
    verify(bundle)
    from voxelgate.bundle.opened import open_bundle
    from voxelgate.training.bundle_checks import pass_checks

    for gate in pass_checks(bundle):
        console.print(f"{gate.name}: {gate.seen}", soft_wrap=True)
    opened = open_bundle(bundle)
    console.print(f"{opened.name} {opened.version}: whole, sha256 {opened.fingerprint}")


@app.command("seal")
def seal_bundle(bundle: OwnBundleArgument) -> None:
    """Record the checksums of a bundle that was changed on purpose."""
    console.print(f"{bundle}: sealed, sha256 {seal(bundle)}")


@app.command("codes")
def code_bundle(
    bundle: OwnBundleArgument,
    known_as: Annotated[
        list[str] | None,
        typer.Option(
            "--as", metavar="STRUCTURE=NAME", help="What the table of codes calls a structure; may be repeated."
        ),
    ] = None,
) -> None:
    """Find a code for every structure by its name, in any order of words, and write them into the metadata."""
    proposed = propose_codes(bundle, dict(map(_pair, known_as or ())))
    for one in proposed:
        console.print(str(one), markup=False, soft_wrap=True)
    fingerprint = write_codes(bundle, proposed)
    console.print(f"{bundle}: {f'sealed, sha256 {fingerprint}' if fingerprint else 'codes written'}", markup=False)
    if missing := [one.name for one in proposed if one.coding is None]:
        raise BundleError(
            f"{', '.join(missing)}: no code is known for {'these names' if len(missing) > 1 else 'this name'}, and SEG "
            f"and SR demand one; give a name of the table, as in --as '{missing[0]}=NAME', or write label_codes in "
            "metadata.json."
        )


def _pair(text: str) -> tuple[str, str]:
    """Return the two sides of STRUCTURE=NAME.

    Raises:
        UsageError: there are not two.
    """
    structure, _, name = (part.strip() for part in text.partition("="))
    if not structure or not name:
        raise UsageError(f"--as {text}: expected STRUCTURE=NAME, such as 'anterior=anterior hippocampus'.")
    return structure, name


@app.command("describe")
def describe_bundle(bundle: BundleArgument) -> None:
    """Print where the model comes from, its licence, and the network's sizes, operations and memory for one window."""
    verify(bundle)
    metadata = Metadata.read(bundle)
    for sentence in metadata.provenance:
        console.print(sentence, soft_wrap=True)
    from voxelgate.bundle.opened import open_bundle
    from voxelgate.networks import describe

    opened = open_bundle(bundle)
    window = metadata.spatial_shape_vox if opened.is_imported else opened.window_vox or metadata.spatial_shape_vox
    networks = opened.networks
    if len(networks) > 1:
        console.print(f"{len(networks)} networks, of which this is the first:")
    try:
        console.print(str(describe(networks[0], (1, len(opened.image_spec.channels), *window))))
    except ValueError as error:
        console.print(f"no sizes: {error}", soft_wrap=True)


@app.command("export")
def export_bundle(
    bundle: Annotated[str, typer.Argument(metavar="bundle", help="Name or folder of a bundle.", show_default=False)],
    form: Annotated[Format, typer.Option("--to", help="Format of the file.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="models/model.* in the bundle")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", help="An image to compare on; repeat for its files.", show_default="a phantom"),
    ] = None,
    network: Annotated[
        int, typer.Option(min=0, help="Which network of a bundle of several: folds, parts or stages, from 0.")
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write the network as a file for other systems, provided that it says the same as the network."""
    root = find_own_bundle(bundle) if out is None else find_bundle(bundle)
    if out is not None:
        refuse_existing(paths_of_format(out, form), overwrite=overwrite)
    verify(root)
    refuse_unfit(root, images or [])
    from voxelgate.bundle.export import export
    from voxelgate.bundle.opened import open_bundle

    opened = open_bundle(root, "cpu")
    image = _read_one(images, opened) if images else None
    exported = export(opened, form, out, image, number=network, overwrite=overwrite)
    console.print(f"{exported.path}: {exported}", soft_wrap=True)


@app.command("calibrate")
def calibrate_bundle(
    bundle: BundleArgument,
    images: Annotated[
        list[Path],
        typer.Argument(help="An image with the structures in its middle; its files.", show_default=False),
    ],
) -> None:
    """Measure every way to run the network here; `segment` then takes the fastest that gives equal labels."""
    verify(bundle)
    refuse_unfit(bundle, images)
    from voxelgate.bundle.opened import open_bundle
    from voxelgate.inference.runtimes.choice import calibrate_windows

    opened = open_bundle(bundle)
    prepared = opened.prepare(_read_one(images, opened))[None].to(opened.device)
    measured = calibrate_windows(opened.network, opened.inferer, opened.fingerprint, prepared)
    console.print(str(measured))


def _read_one(paths: list[Path], bundle: "Bundle") -> "MetaTensor":
    """Return the one image (C, I, J, K) of some files, as the bundle takes it."""
    from voxelgate.segmentation.read import read_case
    from voxelgate.transforms.io import as_image

    cases = find_cases(paths, rule=bundle.series_rule, images=bundle.image_spec)
    if len(cases) != 1:
        raise UsageError(f"{len(cases)} images are given, but one is looked at; name its files.")
    scan = read_case(cases[0], bundle.labels, images=bundle.image_spec)
    return as_image(scan.voxels, scan.grid, scan.facts)
