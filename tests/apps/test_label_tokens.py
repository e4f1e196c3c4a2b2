"""A server that checks tokens lets in whom the realm signed for, for what the roles allow, and nobody else."""

import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the environment that `make label` builds")

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.label_server import Server, blob, running, save
from tests.threshold_bundle import make_threshold_bundle

pytestmark = pytest.mark.label

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


VIEWER = "http://viewer.example:3000"


class Realm(BaseHTTPRequestHandler):
    """Gives the public key of a realm, as Keycloak does."""

    def do_GET(self) -> None:
        body = json.dumps({"public_key": base64.b64encode(PUBLIC).decode()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def realm() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Realm) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/realms/test"
        server.shutdown()


@pytest.fixture(scope="module")
def server(realm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("tokens")
    save(root / "studies" / "case_1.nii.gz", blob(np.random.default_rng(0))[0])
    checked = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm}
    bundle = make_threshold_bundle(root / "bright_ct")
    with running(bundle, str(root / "studies"), root / "work", checked, origins=[VIEWER]) as started:
        yield started


def claims(realm: str, *roles: str, **more: Any) -> dict[str, Any]:
    named = {"preferred_username": "ann", "realm_access": {"roles": [f"monailabel-{role}" for role in roles]}}
    return {"iss": realm, "exp": time.time() + 600, **named, **more}


def status(server: Server, token: str, method: str = "GET", path: str = "/info/") -> int:
    return server.call(method, path, headers={"Authorization": f"Bearer {token}"}).status_code


def test_a_token_of_the_realm_opens_what_its_roles_allow(server: Server, realm: str) -> None:
    user = jwt.encode(claims(realm, "user"), KEY, "RS256")
    admin = jwt.encode(claims(realm, "user", "admin"), KEY, "RS256")

    assert status(server, user) == 200
    assert status(server, user, "PUT", "/versions/bright_ct?version=1") == 403
    assert status(server, admin, "PUT", "/versions/bright_ct?version=1") == 200
    assert status(server, user, "POST", "/infer/bright_ct?image=case_1&output=json") == 200
    assert status(server, jwt.encode(claims(realm), KEY, "RS256")) == 403
    assert status(server, user, "POST", "/train/bright_ct") == 403
    assert status(server, admin, "POST", "/train/bright_ct") == 422  # its bundle says nothing of training


def test_no_other_token_opens_anything(server: Server, realm: str) -> None:
    good = claims(realm, "user", "admin")
    unsigned = jwt.encode(good, "", "none")
    header, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "HS256", "typ": "JWT"}, good)
    )
    pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed_by_public_key = f"{header}.{body}.{_hmac(pem, f'{header}.{body}')}"
    refused = {
        "unsigned": unsigned,
        "public key as a secret": signed_by_public_key,
        "another key": jwt.encode(good, OTHER_KEY, "RS256"),
        "expired": jwt.encode({**good, "exp": time.time() - 60}, KEY, "RS256"),
        "never expires": jwt.encode({name: value for name, value in good.items() if name != "exp"}, KEY, "RS256"),
        "another realm": jwt.encode({**good, "iss": "http://elsewhere"}, KEY, "RS256"),
        "nonsense": "a.b.c",
    }

    assert {name: status(server, token) for name, token in refused.items()} == dict.fromkeys(refused, 401)
    assert server.call("GET", "/info/").status_code == 401
    assert server.call("POST", "/infer/bright_ct?image=case_1").status_code == 401
    assert server.call("PUT", "/datastore/label?image=case_1&tag=final").status_code in {401, 422}


def _hmac(key: bytes, text: str) -> str:
    signature = hmac.digest(key, text.encode(), "sha256")
    return base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


def test_a_page_of_a_viewer_that_was_named_may_read_answers_and_no_other(server: Server, realm: str) -> None:
    token = {"Authorization": f"Bearer {jwt.encode(claims(realm, 'user'), KEY, 'RS256')}"}

    named = server.call("GET", "/info/", headers={**token, "Origin": VIEWER})
    other = server.call("GET", "/info/", headers={**token, "Origin": "http://evil.example"})

    assert (named.status_code, named.headers["access-control-allow-origin"]) == (200, VIEWER)
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers
