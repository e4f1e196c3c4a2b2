"""Which reader takes a source, and what every model gets whatever its kind: codes, a licence, a name."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from voxelgate.bundle.imports.imported import NOT_STATED, Imported, ImportOptions
from voxelgate.bundle.imports.label_codes import with_codes
from voxelgate.bundle.imports.nnunet import read_nnunet
from voxelgate.bundle.imports.source import ImportSource, Kind
from voxelgate.bundle.imports.target import name_of_kept
from voxelgate.bundle.imports.torchscript import read_torchscript
from voxelgate.bundle.imports.totalsegmentator import is_totalsegmentator, read_totalsegmentator
from voxelgate.bundle.imports.zoo import read_zoo
from voxelgate.core.errors import InputError, UsageError
from voxelgate.images.file_facts import StoredOrder

ORDERING = "voxelgate.OrderDicomd"
"""Step of models that see DICOM series in the order of a converter."""

READERS: Mapping[Kind, Callable[[ImportSource, ImportOptions], Imported]] = {
    Kind.NNUNET_CONFIGURATION: read_nnunet,
    Kind.NNUNET_DATA_SET: read_nnunet,
    Kind.MONAI_BUNDLE: read_zoo,
    Kind.TORCHSCRIPT: read_torchscript,
}


def read_model(source: ImportSource, options: ImportOptions) -> Imported:
    """Read a foreign model, by the reader of its kind, with the codes, licence and name that were asked for.

    Raises:
        InputError: a file of it is damaged, or says something that cannot be matched here.
        UsageError: an option names what it does not have, or asks for an order that it never sees.
    """
    imported = _read_by_kind(source, options)
    sees_stored_order = any(step["_target_"] == ORDERING for step in imported.preparation)
    if options.dicom_order is not StoredOrder.LAS and not sees_stored_order:
        raise UsageError(
            f"--dicom-order {options.dicom_order}: this model brings images into an order of its own; leave it out."
        )
    licence, findings = imported.licence or options.licence, imported.findings
    if options.licence not in ("", licence):
        findings = (*findings, f"its own files state the licence {imported.licence}, so --licence is passed over")
    return replace(
        imported,
        name=name_of_kept(options.name or imported.name),
        licence=licence or NOT_STATED,
        labels=with_codes(imported.labels, options.codes),
        findings=findings,
    )


def _read_by_kind(source: ImportSource, options: ImportOptions) -> Imported:
    if options.task or is_totalsegmentator(source):
        return read_totalsegmentator(source, options)
    if source.kind is Kind.NNUNET_RESULTS:
        folders = sorted({name.split("/")[0] for name in source.matching(r"Dataset[^/]+/[^/]+/plans\.json")})
        raise InputError(
            f"{source.name}: holds {', '.join(folders)}, of which each is a model; name one (unpack a zip first)."
        )
    return READERS[source.kind](source, options)
