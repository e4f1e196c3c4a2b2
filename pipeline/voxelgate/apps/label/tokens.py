"""Check the tokens of a Keycloak realm; MONAI Label 0.8.5's own check refuses every one.

`monailabel/endpoints/user/auth.py`, line 100, calls `jwt.decode` without `algorithms`, which PyJWT has demanded since
version 2.0. `current_user` takes the place of its `get_current_user` (`FastAPI.dependency_overrides`).
"""

from typing import Annotated, Any

import jwt
import requests
from fastapi import Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints.user.auth import DEFAULT_USER, User, get_public_key, oauth2_scheme

ALGORITHMS = ["RS256"]
"""What Keycloak signs with. A symmetric one would let everybody who knows the public key sign, and "none" everybody."""


async def anonymous() -> User:
    """Return the user of a server without token check, who may do everything."""
    return DEFAULT_USER


def current_user(token: Annotated[str, Depends(oauth2_scheme)]) -> User:
    """Return whose token it is: signed by the realm, issued by it, and not expired.

    Raises:
        HTTPException: 401 if not, 503 where the realm does not give its key.
    """
    realm = settings.MONAI_LABEL_AUTH_REALM_URI
    try:
        key = get_public_key(realm)
    except (requests.RequestException, ValueError, KeyError) as error:
        raise HTTPException(
            503, "the realm that signs tokens cannot be reached; start it, or look at its address."
        ) from error
    try:
        claims = jwt.decode(
            token, key, algorithms=ALGORITHMS, issuer=realm, options={"verify_aud": False, "require": ["exp", "iss"]}
        )
    except jwt.InvalidTokenError as error:
        challenge = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "the token is not valid, or not any more; log in again.", challenge) from error
    name = str(claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME, ""))
    return User(username=name, roles=_roles(claims))


def _roles(claims: dict[str, Any]) -> list[str]:
    """Return the roles, which stand where a path such as realm_access#roles says."""
    place: Any = claims
    for step in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        place = place.get(step, {}) if isinstance(place, dict) else {}
    return [str(role) for role in place] if isinstance(place, list) else []
