"""The server's own login, where no realm checks tokens: one password, and a name by which an annotator is known.

3D Slicer asks for name and password and sends a token from then on; browsers ask for them and send them each time.
"""

import base64
import binascii
import hmac
import secrets
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import jwt
from fastapi import APIRouter, Form, HTTPException, Request
from monailabel.endpoints.user.auth import DEFAULT_USER, User

from voxelgate.apps.label.ids import is_id
from voxelgate.apps.label.server import PASSWORD
from voxelgate.core.errors import UsageError
from voxelgate.core.files import whole_file

LEAST_CHARACTERS = 12
"""Of a password; NIST SP 800-63B asks for 8 where guesses are limited, and here they are not."""

VALID_S = 12 * 3600
"""How long a token opens the server: a working day."""

ALGORITHM = "HS256"


@dataclass(frozen=True)
class Login:
    """Who is let in.

    Args:
        password: the same for all.
        key: signs the tokens; another for each start, so that none outlives the server.

    Raises:
        UsageError: the password is too short.
    """

    password: str = field(repr=False)
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def __post_init__(self) -> None:
        if len(self.password) < LEAST_CHARACTERS:
            raise UsageError(
                f"the password of the server has {len(self.password)} characters, expected at least "
                f"{LEAST_CHARACTERS}; write a longer one into the file {PASSWORD} of the work folder, or remove it."
            )

    def token(self, name: str, password: str) -> str:
        """Return a token for a name.

        Raises:
            HTTPException: 401 if the password is another, or the name is none.
        """
        if not hmac.compare_digest(password.encode(), self.password.encode()) or not is_id(name):
            raise _unknown_user()
        return str(jwt.encode({"sub": name, "exp": time.time() + VALID_S}, self.key, ALGORITHM))

    def name_of(self, authorization: str) -> str:
        """Return who sends a request.

        Args:
            authorization: the header, `Bearer TOKEN` or `Basic ...` (RFC 7617).

        Raises:
            HTTPException: 401 if nobody whom the server knows.
        """
        scheme, _, credentials = authorization.partition(" ")
        token = credentials
        if scheme.lower() == "basic":
            name, password = _name_and_password(credentials)
            token = self.token(name, password)
        try:
            claims = jwt.decode(token, self.key, [ALGORITHM], options={"require": ["exp", "sub"]})
        except jwt.InvalidTokenError:
            raise _unknown_user() from None
        return str(claims["sub"])


def login_of(work: Path) -> Login:
    """Return the login of a work folder, whose password is made up at its first start.

    Raises:
        UsageError: the password is too short.
    """
    path = work / PASSWORD
    if not path.is_file():
        with whole_file(path) as partial:
            partial.chmod(0o600)
            partial.write_text(f"{secrets.token_urlsafe(16)}\n", encoding="utf-8")
    return Login(path.read_text(encoding="utf-8").strip())


def login_routes(login: Login) -> APIRouter:
    """Return the endpoints by which MONAI Label's clients log in."""
    router = APIRouter(prefix="/auth")

    def say_enabled() -> dict[str, Any]:
        return {"enabled": True, "client_id": "", "realm": ""}

    def give_token(username: Annotated[str, Form()], password: Annotated[str, Form()]) -> dict[str, str]:
        return {"access_token": login.token(username, password), "token_type": "bearer"}

    def say_who(request: Request) -> dict[str, Any]:
        return dict(user_in(login, request).model_dump())

    router.add_api_route("/", say_enabled, methods=["GET"])
    router.add_api_route("/token", give_token, methods=["POST"])
    router.add_api_route("/token/valid", say_who, methods=["GET"])
    return router


def user_in(login: Login, request: Request) -> User:
    """Return who sends a request; whoever knows the password may do everything.

    Raises:
        HTTPException: 401 if nobody whom the server knows.
    """
    return DEFAULT_USER.model_copy(update={"username": login.name_of(request.headers.get("authorization", ""))})


def _name_and_password(credentials: str) -> tuple[str, str]:
    try:
        name, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise _unknown_user() from None
    return name, password


def _unknown_user() -> HTTPException:
    challenge = {"WWW-Authenticate": 'Basic realm="voxelgate", charset="UTF-8"'}
    return HTTPException(HTTPStatus.UNAUTHORIZED, "name or password are not known here; log in.", challenge)
