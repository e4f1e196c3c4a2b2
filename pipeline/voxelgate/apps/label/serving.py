"""What the label server serves, and to whom; checked before anything large is imported."""

import importlib.util
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from voxelgate.core.errors import UsageError

LOOPBACK = "127.0.0.1"

MOST_MIB = 2048
"""Largest upload, packed or not; a CT of 1000 slices has 500 MiB."""


@dataclass(frozen=True)
class Serving:
    """What to serve, and to whom.

    Args:
        bundles: the models; at least one, all with the same labels.
        studies: folder of images, or the address of a DICOMweb server.
        work: folder for versions of the models, logs and copies; made if missing.
        host: address to listen at. Others than this machine's are for servers with a token check, or behind one.
        port: to listen at.
        origins: pages of other servers that may use this one, such as "http://viewer:3000".
        most_mib: largest upload, also once it is unpacked.
        login: whether annotators log in; None asks them where other machines reach the server.

    Raises:
        UsageError: no bundle, no such folder, an address with a password, or a port that is none.
    """

    bundles: tuple[Path, ...]
    studies: str
    work: Path
    host: str = LOOPBACK
    port: int = 8000
    origins: tuple[str, ...] = ()
    most_mib: int = MOST_MIB
    login: bool | None = None

    def __post_init__(self) -> None:
        if not self.bundles:
            raise UsageError("no bundle is given; name the folder of one.")
        if not self.is_pacs and not Path(self.studies).is_dir():
            raise UsageError(f"{self.studies} is no folder; name one with images, or a DICOMweb address (http://...).")
        if self.is_pacs and "@" in urlsplit(self.studies).netloc:
            raise UsageError(
                "the address of the PACS holds a name or password, which every program of this machine would see; give "
                "them as MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD in the environment."
            )
        if not 0 < self.port < 65536:
            raise UsageError(f"{self.port} is no port, expected 1 to 65535.")

    @property
    def is_pacs(self) -> bool:
        """Return whether the images come from a DICOMweb server."""
        return self.studies.startswith(("http://", "https://"))

    @property
    def is_loopback(self) -> bool:
        """Return whether only programs of this machine reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def asks_login(self) -> bool:
        """Return whether annotators log in, where no realm checks tokens."""
        return not self.is_loopback if self.login is None else self.login


def refuse_without_monai_label() -> None:
    """Say where MONAI Label is, if it is not here.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec("monailabel") is None:
        raise UsageError("MONAI Label is not installed here; `make label` builds an environment that has it.")
