"""What clients may say in a request: known words only, since MONAI Label passes all others on to its processes.

Its `POST /scoring/dice` with `{"bundle_path": F}` put F, an image that was sent before, on the path from which a new
Python process loads code.
"""

import json
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from voxelgate.apps.label.label_formats import LabelFormat
from voxelgate.core.errors import InputError

OWN_FACTS = frozenset(
    ("ts", "name", "path", "user", "earlier", "strategy", "uncertainty", "disagreement", "dice", "dice_of", "refused")
)
"""What the server itself keeps with images and label maps."""

MOST_DEPTH = 8
"""Levels of a client's facts; deeper ones end programs that read them."""


class InferRequest(BaseModel):
    """What counts of a client's `params`; 3D Slicer and OHIF send more, which a bundle has no use for."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    result_extension: LabelFormat = LabelFormat.NIFTI
    model_filename: str = "model.pt"


class TrainRequest(BaseModel):
    """How a client wants a model to be trained; whatever else is refused, since it would have no effect."""

    model_config = ConfigDict(extra="forbid")
    device: str = Field("", pattern=r"^[\w .:()/-]*$")
    max_epochs: int = Field(20, ge=1, le=10_000)
    val_split: float = Field(0.2, gt=0, lt=1)
    client_id: str = ""

    def request(self) -> dict[str, Any]:
        """Return what the training is told."""
        return {name: value for name, value in self.model_dump(exclude={"client_id"}).items() if value != ""}


class BatchRequest(BaseModel):
    """What a client may say of a batch; devices are named for compatibility, the bundle chooses its own."""

    model_config = ConfigDict(extra="forbid")
    label_tag: str = DefaultLabelTag.ORIGINAL.value
    max_batch_size: int = Field(0, ge=0)
    device: str = ""
    multi_gpu: bool = False
    gpus: str = "all"
    logging: str = ""
    save_label: bool = True
    max_workers: int = 1
    client_id: str = ""


class ScoreRequest(BaseModel):
    """Which label maps are compared."""

    model_config = ConfigDict(extra="forbid")
    y: str = DefaultLabelTag.FINAL.value
    y_pred: str = DefaultLabelTag.ORIGINAL.value
    client_id: str = ""


class NextRequest(BaseModel):
    """Who asks for the next image; 3D Slicer sends the settings of the strategy too, of which ours have none."""

    model_config = ConfigDict(extra="ignore")
    client_id: str | None = Field(None, max_length=200)


def infer_request(params: str) -> InferRequest:
    """Return what a client wants of a proposal.

    Raises:
        InputError: it is no JSON object, or a value is none that can be used.
    """
    try:
        return InferRequest.model_validate_json(params or "{}")
    except ValidationError as error:
        fields = ", ".join(str(place) for fault in error.errors() for place in fault["loc"]) or "no JSON object"
        raise InputError(f"params cannot be used ({fields}); send a JSON object with known values.") from error


def facts_in(text: str) -> dict[str, Any]:
    """Return the facts that a client sends, which will be answered to all clients.

    Raises:
        InputError: no JSON object, too deep, numbers that JSON does not have, or text that is no Unicode.
    """
    try:
        found = json.loads(text or "{}")
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
        is_deep = _depth(found) > MOST_DEPTH
    except (ValueError, RecursionError) as error:
        raise InputError("params are no JSON; send a JSON object.") from error
    if not isinstance(found, dict) or is_deep:
        raise InputError(f"params are no JSON object of at most {MOST_DEPTH} levels; send one.")
    return found


def further_facts(text: str) -> dict[str, Any]:
    """Return facts that a client adds to an image or a label map.

    Raises:
        InputError: as for `facts_in`, or one that the server keeps itself.
    """
    found = facts_in(text)
    if own := sorted(OWN_FACTS & found.keys()):
        raise InputError(f"{', '.join(own)}: the server keeps this itself; choose another name.")
    return found


def _depth(found: Any) -> int:
    if not isinstance(found, dict | list):
        return 0
    return 1 + max(map(_depth, found.values() if isinstance(found, dict) else found), default=0)
