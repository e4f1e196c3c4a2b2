"""Images and label maps, in a folder or a PACS: MONAI Label's stores, with everything checked on its way in."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series, dicom_web_upload_dcm
from monailabel.interfaces.datastore import DefaultLabelTag

from pipeline.bundle import Bundle
from pipeline.cases import Case, find_cases
from pipeline.dicom.reader import read_series
from pipeline.dicom.seg import write_seg
from pipeline.dicom.series import Series
from pipeline.dicom.writing.derived import Algorithm, SegmentedSeries
from pipeline.dicom.writing.sources import source_of
from pipeline.errors import InputError, OutputError
from pipeline.geometry import Grid
from pipeline.label_app.names import check_id, check_tag
from pipeline.label_app.submitted import read_submitted
from pipeline.labels import LabelTable
from pipeline.volumes import is_volume, read_grid, read_volume, write_label_map

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
"""Images that MONAI Label's clients can show."""

PATTERNS = [f"*{suffix}" for suffix in SUFFIXES]


class ImageStore(LocalDatastore):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Images in a folder, and below `labels/<tag>/` their label maps, each on the grid of its image.

    MONAI Label's own copies whatever it is given to wherever id and tag point.

    Args:
        studies: the folder.
        table: what the values of label maps mean.
    """

    def __init__(self, studies: Path, table: LabelTable) -> None:
        self.table = table
        LocalDatastore.__init__(
            self, str(studies), extensions=PATTERNS, auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
        )

    def case(self, image_id: str) -> Case:
        """Return an image as the pipeline takes it.

        Raises:
            InputError: there is none of that id.
        """
        path = self.get_image_uri(check_id(image_id))
        if not path:
            raise InputError("there is no image of this id; ask /datastore/?output=all which there are.")
        return Case(image_id, Path(path))

    def image_grid(self, image_id: str) -> Grid:
        """Return where the voxels of an image lie.

        Raises:
            InputError: there is none of that id, or it cannot be read.
        """
        self.case(image_id)
        return read_grid(Path(self.get_image_uri(image_id)))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take an image.

        Raises:
            InputError: the id is none, or belongs to another image; the file is no volume.
        """
        path = Path(image_filename)
        check_id(image_id)
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"an image of this format is not taken; send {', '.join(SUFFIXES)}.")
        voxels, grid = read_volume(path)
        if known := self.get_image_uri(image_id):
            present, place = read_volume(Path(known))
            if not place.agrees(grid) or not np.array_equal(present, voxels):
                raise InputError("another image has this id already; choose another id.")
            return image_id
        return str(LocalDatastore.add_image(self, image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Take a label map: checked, with the values of the bundle, as NIfTI without free text in its header.

        Args:
            image_id: of the image it belongs to.
            label_filename: the file, which stays as it is.
            label_tag: "final" for what an annotator submits, "original" for a proposal.
            label_info: of the client; `label_info` in it names the segments.

        Raises:
            InputError: no such image, a tag that is none, or a label map that `read_submitted` refuses.
        """
        case, tag = self.case(image_id), check_tag(str(getattr(label_tag, "value", label_tag)))
        labels = read_submitted(
            Path(label_filename), self.image_grid(image_id), self.table, label_info.get("label_info") or ()
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "label.nii.gz"
            like = Path(self.get_image_uri(image_id))
            write_label_map(path, labels, self.image_grid(image_id), like=like if is_volume(like) else None)
            facts = self.on_final(case, labels) if tag == DefaultLabelTag.FINAL.value else {}
            return str(LocalDatastore.save_label(self, image_id, str(path), tag, {**label_info, **facts}))

    def on_final(self, case: Case, labels: npt.NDArray[Any]) -> Mapping[str, str]:  # noqa: ARG002  # for a PACS
        """Return facts to keep with a final label map."""
        return {}


class PacsStore(ImageStore, DICOMWebDatastore):  # type: ignore[misc]  # monailabel ships no types for mypy
    """Series of a DICOMweb server, copied when they are opened; what annotators submit goes back as DICOM SEG.

    Label maps are kept here too, and only they are trained on: a SEG in the PACS may be anybody's, or a model's own.

    Args:
        url: of the server.
        copies: folder for what is copied and kept.
        bundle: whose proposals are corrected; it also says which modality is asked for.
    """

    def __init__(self, url: str, copies: Path, bundle: Bundle) -> None:
        self.table, self.bundle = bundle.labels, bundle
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        client = DICOMwebClientX(
            url=url, session=create_session_from_user_pass(user, password) if user and password else None
        )
        wanted = {"Modality": bundle.series_rule.modality[0]}
        DICOMWebDatastore.__init__(self, client=client, search_filter=wanted, cache_path=str(copies))

    def series(self, image_id: str) -> Series:
        """Return a series, copied from the PACS if it is not here yet.

        Raises:
            InputError: the PACS has no such series, or it cannot be used.
        """
        folder = Path(self._datastore.image_path()) / check_id(image_id)
        if not folder.is_dir():
            self._copy(image_id, folder)
        (case,) = find_cases([folder], rule=self.bundle.series_rule)
        if not isinstance(case.image, Series):
            raise InputError(" ".join(case.findings))
        return case.image

    def case(self, image_id: str) -> Case:
        """Return a series as the pipeline takes it."""
        return Case(image_id, self.series(image_id))

    def get_image_uri(self, image_id: str) -> str:
        """Return a NIfTI file of a series, for 3D Slicer; made by the pipeline's reader, which checks what it reads."""
        path = Path(self._datastore.image_path()) / f"{check_id(image_id)}.nii.gz"
        if not path.is_file():
            volume = read_series(self.series(image_id))
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / path.name
                nib.save(nib.Nifti1Image(volume.voxels, volume.grid.affine), made)
                LocalDatastore.add_image(self, image_id, str(made), {})
        return str(path)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:  # noqa: ARG002  # MONAI Label's interface
        """Return a label map that was submitted or proposed here, or an empty text."""
        return str(LocalDatastore.get_label_uri(self, label_id, label_tag))

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series that were annotated here."""
        return list(LocalDatastore.get_labeled_images(self, label_tag, labels))

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series that were not annotated here."""
        return sorted(set(self.list_images()) - set(self.get_labeled_images(label_tag, labels)))

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:  # noqa: FBT001, FBT002  # MONAI Label's interface
        """Return the annotated series, as files."""
        return list(LocalDatastore.datalist(self, full_path))

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Keep facts with a series, which is copied for that."""
        self.get_image_uri(image_id)
        LocalDatastore.update_image_info(self, image_id, info)

    def on_final(self, case: Case, labels: npt.NDArray[Any]) -> Mapping[str, str]:
        """Send a final label map to the PACS as DICOM SEG, and return the series that it became.

        Raises:
            OutputError: a structure has no code, nothing is labelled, or the PACS does not take it.
        """
        if not isinstance(case.image, Series):
            raise InputError("a label map of a PACS belongs to a series; send the image to the PACS first.")
        made_by = Algorithm(self.bundle.name, self.bundle.version, self.bundle.fingerprint, is_corrected=True)
        grid = self.image_grid(case.case_id)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "label.dcm"
            write_seg(path, SegmentedSeries(labels, grid, self.table, source_of(case.image), made_by))
            series_uid = dicom_web_upload_dcm(str(path), self._client)
        if not series_uid:
            raise OutputError("the PACS did not take the SEG; look at its log.")
        return {"SeriesInstanceUID": series_uid}

    def _copy(self, image_id: str, folder: Path) -> None:
        if image_id not in self.list_images():
            raise InputError("the PACS has no series of this id that fits the model; ask /datastore/?output=all.")
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            dicom_web_download_series(None, image_id, str(partial), self._client)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
