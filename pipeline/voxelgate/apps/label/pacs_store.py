"""Series of a PACS as images to annotate: copied when they are opened, and what is submitted goes back as DICOM SEG."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy.typing as npt
import requests
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.datastore.utils.dicom import dicom_web_upload_dcm
from monailabel.utils.others.generic import md5_digest

from voxelgate.apps.label.ids import check_id, is_id
from voxelgate.apps.label.image_store import ImageStore, Objects, file_stamp
from voxelgate.bundle.predict import Bundle
from voxelgate.core.errors import InputError, OutputError, UsageError, VoxelgateError
from voxelgate.core.files import copy_file
from voxelgate.dicom.read.series import Series
from voxelgate.dicom.read.volume import read_series
from voxelgate.dicom.write.seg import write_seg
from voxelgate.dicom.write.segmented import Algorithm, SegmentedSeries, in_one_line, person_name
from voxelgate.dicom.write.sources import source_of
from voxelgate.segmentation.cases import Case, find_cases

SUFFIX = ".nii.gz"
"""Of the volumes that are made of series, for 3D Slicer."""

STUDY_UID, SERIES_UID = "0020000D", "0020000E"


class PacsStore(ImageStore):
    """Series of a DICOMweb server, by their UIDs.

    MONAI Label's own `DICOMWebDatastore` gives files the names that the PACS says, and converts without a look. Label
    maps are kept here too, and only they are trained on: a SEG in the PACS may be anybody's, or a model's own.

    Args:
        url: of the server.
        copies: folder for what is copied and kept.
        bundle_in_use: gives the bundle whose proposals are corrected; it also says which modality is asked for.

    Raises:
        UsageError: the address is none.
    """

    def __init__(self, url: str, copies: Path, bundle_in_use: Callable[[], Bundle]) -> None:
        self.bundle_in_use = bundle_in_use
        self.rule = bundle_in_use().series_rule
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        session = create_session_from_user_pass(user, password) if user and password else None
        try:
            self._client = DICOMwebClientX(url=url, session=session)
        except ValueError as error:
            raise UsageError(
                f"{url} is no address of a DICOMweb server; give one as http://pacs:8042/dicom-web."
            ) from error
        self._client.set_http_retry_params(max_attempts=2)
        folder = copies / md5_digest(self._client.base_url)
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, bundle_in_use().labels)

    def said_of_images(self) -> list[str]:
        """Return which images are served; the PACS may be started later."""
        return [f"the {self.rule.modality[0]} series of the PACS are served"]

    def list_images(self) -> list[str]:
        """Return the series that the PACS has now.

        Raises:
            VoxelgateError: it does not answer.
        """
        return [uid for uid in self._studies() if is_id(uid)]

    def series(self, image_id: str) -> Series:
        """Return a series, copied from the PACS if it is not here yet.

        Raises:
            InputError: the PACS has no such series, or it cannot be used.
            VoxelgateError: the PACS does not answer.
        """
        folder = Path(self._datastore.image_path()) / check_id(image_id)
        if not folder.is_dir():
            self._copy(image_id, folder)
        cases = find_cases([folder], rule=self.rule)
        found = [case.image for case in cases if isinstance(case.image, Series)]
        if len(found) != 1:
            raise InputError(" ".join(str(finding) for case in cases for finding in case.findings))
        return found[0]

    def case(self, image_id: str) -> Case:
        """Return a series as the pipeline takes it, under a name that is no UID."""
        series = self.series(image_id)
        return Case(series.series_id, series)

    def get_image_uri(self, image_id: str) -> str:
        """Return a NIfTI file of a series, for 3D Slicer; made by the pipeline's reader, which checks what it reads."""
        path = self._image_path(image_id, SUFFIX)
        if not path.is_file():
            volume = read_series(self.series(image_id))
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / path.name
                nib.save(nib.Nifti1Image(volume.voxels, volume.grid.affine), made)
                copy_file(made, path)
            with self._changing() as objects:
                self._changed(objects, image_id)
        return str(path)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series that were not annotated here."""
        return sorted(set(self.list_images()) - set(self.get_labeled_images(label_tag, labels)))

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:  # noqa: ARG002
        """Refuse an image.

        Raises:
            InputError: always; the PACS takes images.
        """
        raise InputError("the images are those of a PACS; send this one there, as DICOM.")

    def remove_image(self, image_id: str) -> None:
        """Remove the copy of a series and its label maps that are kept here; the PACS keeps its own."""
        super().remove_image(image_id)
        shutil.rmtree(Path(self._datastore.image_path()) / image_id, ignore_errors=True)

    def on_final(self, image_id: str, labels: npt.NDArray[Any], annotator: str) -> Mapping[str, str]:
        """Send a final label map to the PACS as DICOM SEG, and return the series that it became.

        The annotator is its content creator, where logins say who that is.

        Raises:
            OutputError: a structure has no code, nothing is labelled, or the PACS does not take it.
            VoxelgateError: the PACS does not answer.
        """
        bundle = self.bundle_in_use()
        creator = person_name(annotator) if settings.MONAI_LABEL_AUTH_ENABLE else ""
        made_by = Algorithm(
            bundle.name,
            bundle.version,
            bundle.fingerprint,
            is_corrected=True,
            annotator=creator,
            licence=in_one_line(bundle.licence),
        )
        source = source_of(self.series(image_id))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "label.dcm"
            write_seg(path, SegmentedSeries(labels, self.image_grid(image_id), self.table, source, made_by))
            with _answering():
                series_uid = dicom_web_upload_dcm(str(path), self._client)
        if not series_uid:
            raise OutputError("the PACS did not take the SEG; look at its log.")
        return {"SeriesInstanceUID": series_uid}

    def _changed(self, objects: Objects, image_id: str) -> ImageLabelModel:
        """Return what is known of a series; nothing yet, if it is in the PACS and was never opened."""
        if image_id not in objects and (self._image_path(image_id, SUFFIX).is_file() or image_id in self.list_images()):
            name = f"{image_id}{SUFFIX}"  # 3D Slicer tells by it how to read what it downloads
            objects[image_id] = ImageLabelModel(image=DataModel(ext=SUFFIX, info=file_stamp(name)))
        return super()._changed(objects, image_id)

    def _images(self, known: Objects) -> dict[str, str]:
        """Return all series of which something is known, copied or not."""
        return dict.fromkeys(known, SUFFIX) | super()._images(known)

    def _studies(self) -> dict[str, str]:
        """Ask the PACS for its series of the modality; return the study of each."""
        with _answering():
            rows = self._client.search_for_series(search_filters={"Modality": self.rule.modality[0]})
        return {_value(row, SERIES_UID): _value(row, STUDY_UID) for row in rows}

    def _copy(self, image_id: str, folder: Path) -> None:
        study_uid = self._studies().get(image_id)
        if study_uid is None:
            raise InputError("the PACS has no series of this id that fits the model; ask /datastore/?output=all.")
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial:
            made = Path(partial) / "series"
            made.mkdir()
            with _answering():
                for number, image in enumerate(self._client.iter_series(study_uid, image_id)):
                    image.save_as(made / f"{number}.dcm")  # a name of ours: what images say of themselves may be a path
            if not any(made.iterdir()):
                raise InputError("the PACS has no images of this series; send them again.")
            with self._turn:
                if not folder.is_dir():  # another request was as fast
                    made.rename(folder)


def _value(row: Mapping[str, Any], tag: str) -> str:
    """Return a value of an answer in the DICOM JSON model (PS3.18 F.2), or an empty text."""
    return str(row.get(tag, {}).get("Value", [""])[0])


@contextmanager
def _answering() -> Iterator[None]:
    """Turn what the client raises where the PACS does not answer as it should into one sentence."""
    try:
        yield
    except requests.RequestException as error:
        raise VoxelgateError(f"the PACS does not answer ({type(error).__name__}); look whether it runs.") from error
