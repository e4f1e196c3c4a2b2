"""nnU-Net v2 folders: the bundle that is made of a configuration, a cascade, or an ensemble of several."""

from collections.abc import Iterator, Sequence

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.ensembles import INFORMATION, average_of, stated_best
from voxelgate.bundle.imports.imported import Imported, ImportOptions
from voxelgate.bundle.imports.members import Member, read_member
from voxelgate.bundle.imports.nnunet_postprocessing import postprocessing_of
from voxelgate.bundle.imports.source import ImportSource, Kind
from voxelgate.bundle.imports.trained import TrainedConfiguration, configuration_of, kept_files, network_and_state
from voxelgate.core.errors import UsageError

DEFAULT_CONFIGURATION = "3d_fullres"


def read_nnunet(source: ImportSource, options: ImportOptions) -> Imported:
    """Read the folder of a data set or of one of its configurations.

    Args:
        source: of either kind.
        options: which configurations, folds and checkpoint, and whether results are postprocessed.

    Raises:
        InputError: files are missing or damaged.
        BundleError: plans, labels or weights cannot be matched; the sentence names the first of them.
        UsageError: an option asks for what is not there.
    """
    folders, on_choice = choose_folders(source, options)
    members = [read_member(source, folder, options) for folder in folders]
    trained = [one for member in members for one in member.trained]
    found = on_choice or _passed_over(source, [one.folder for one in trained])
    last = members[0].last
    cleaning, stated = postprocessing_of(source, folders, last.folds) if options.applies_postprocessing else ([], ())
    network, state = network_and_state(trained)
    preprocessing, inferer = _chain_of(members)
    names = "_".join(member.last.configuration.name for member in members)
    return Imported(
        name=f"{last.plans.data_set or source.name.removesuffix('.zip')}_{names}",
        version="1.0.0",
        description=described(members),
        network_def=network,
        preparation=[*last.turning(options.dicom_order), *preprocessing],
        inferer=inferer,
        state=state,
        labels=last.data_set.labels,
        channels=last.channels,
        modality=last.modality,
        spatial_shape=last.configuration.patch_size,
        source_files=tuple(dict.fromkeys([*(file for one in trained for file in one.files), *stated])),
        cleaning=cleaning,
        licence=options.licence or last.data_set.licence,
        origin=trained[0].facts if len(trained) == 1 else {"networks": [one.facts for one in trained]},
        extra_files=kept_files(source, trained),
        findings=tuple(dict.fromkeys([*found, *_worth_knowing(trained, last.data_set.licence, options)])),
    )


def _worth_knowing(trained: Sequence[TrainedConfiguration], licence: str, options: ImportOptions) -> Iterator[str]:
    """Yield what the one who imports should know of networks, and of the licence that their data set states."""
    for one in trained:
        yield from one.findings
    if licence and not options.licence:
        yield "the licence is that of dataset.json, perhaps of the data alone; --licence gives another."


def _chain_of(members: Sequence[Member]) -> tuple[list[Config], Config]:
    """Return what is done to an image after its axes are in order: the steps before the inferer, and the inferer."""
    if len(members) > 1:
        return [], average_of(members)
    before = members[0].preprocessing
    return [] if before is None else [before], members[0].inferer


def choose_folders(source: ImportSource, options: ImportOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folders of the configurations that are wanted, and who chose them if nobody here did.

    Several are averaged. Without a wish they are those that the data set says to predict best.

    Raises:
        UsageError: one is not there, or it is not clear which one is meant.
    """
    if source.kind is Kind.NNUNET_CONFIGURATION:
        _refuse_other_configurations(source, options)
        return ("",), ()
    folders = source.configurations()
    if options.configurations:
        chosen = tuple(_wanted_folder(source, folders, wanted) for wanted in options.configurations)
        return chosen, ()
    best = stated_best(source)
    if best:
        return best, (f"{source.name}: {INFORMATION} says that {' and '.join(best)} predict best; taken so.",)
    fitting = [one for one in folders if configuration_of(one) == DEFAULT_CONFIGURATION] or folders
    if len(fitting) > 1:
        raise UsageError(f"{source.name}: holds {', '.join(fitting)}; say which one is meant with --configuration.")
    return (fitting[0],), ()


def _refuse_other_configurations(source: ImportSource, options: ImportOptions) -> None:
    here = source.root.name
    if other := [one for one in options.configurations if one not in (here, configuration_of(here))]:
        raise UsageError(
            f"--configuration {other[0]}: {source.name} is one configuration; name the folder of its data set."
        )


def _passed_over(source: ImportSource, taken: Sequence[str]) -> tuple[str, ...]:
    """Return what else there was to choose than what was taken, first stages of cascades among it."""
    folders = source.configurations()
    if source.kind is Kind.NNUNET_CONFIGURATION or set(folders) <= set(taken):
        return ()
    verb = "was" if len(taken) == 1 else "were"
    return (f"{source.name} holds {', '.join(folders)}; {' and '.join(taken)} {verb} taken.",)


def _wanted_folder(source: ImportSource, folders: Sequence[str], wanted: str) -> str:
    fitting = [one for one in folders if wanted in (one, configuration_of(one))]
    if not fitting:
        raise UsageError(f"--configuration {wanted}: {source.name} holds {', '.join(folders)}; choose one of them.")
    if len(fitting) > 1:
        raise UsageError(f"--configuration {wanted}: may be {' or '.join(fitting)}; give the name of the folder.")
    return fitting[0]


def described(members: Sequence[Member]) -> str:
    """Return one sentence on a model."""
    last = members[0].last
    names = list(last.data_set.labels.foreground.values())
    what = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
    made = " and ".join(", after ".join(map(_made, reversed(one.trained))) for one in members)
    return f"{what} in {', '.join(last.channels)}, by nnU-Net ({made})."


def _made(trained: TrainedConfiguration) -> str:
    folds = f"{len(trained.folds)} fold{'s' if len(trained.folds) > 1 else ''}"
    return f"{trained.trainer}, {trained.configuration.name}, {folds}"
