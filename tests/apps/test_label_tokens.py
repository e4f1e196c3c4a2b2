"""Who is let in: whom a realm signed for, as the roles allow, or who knows the password of the server; nobody else."""

import base64
import hmac
import importlib.util
import json
import stat
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the environment that `make label` builds")

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.label_server import Server, blob, running, save
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.apps.label.login import LEAST_CHARACTERS, Login, login_of
from voxelgate.core.errors import UsageError

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


# --- the server's own login -----------------------------------------------------------------------------------------

CLIENT = "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py"
"""What 3D Slicer talks with, as MONAI Label's wheel brings it; `monailabel.client` is another copy."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("login")
    for number in range(3):
        save(root / "studies" / f"case_{number}.nii.gz", blob(np.random.default_rng(number))[0])
    bundle = make_threshold_bundle(root / "bright_ct")
    with running(bundle, str(root / "studies"), root / "work", login=True) as started:
        yield started


@pytest.fixture(scope="module")
def client_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slicer_client", Path(sys.prefix) / CLIENT)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def password_of(server: Server) -> str:
    return (server.work / "password").read_text(encoding="utf-8").strip()


STRANGERS = {
    "nothing": "",
    "no token": "Bearer x",
    "an empty token": "Bearer ",
    "another password": "Basic YW5uOndyb25n",
    "no credentials": "Basic ?",
    "a token of another key": f"Bearer {jwt.encode({'sub': 'ann', 'exp': 4e9}, 'x' * 32)}",
    "a token without a signature": f"Bearer {jwt.encode({'sub': 'ann', 'exp': 4e9}, '', 'none')}",
}

GUARDED = (
    ("GET", "/"),
    ("GET", "/info/"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/logs/"),
    ("GET", "/ohif/"),
    ("GET", "/auth/../info/"),
    ("GET", "/auth/token/valid"),
    ("GET", "/datastore/?output=all"),
    ("GET", "/datastore/image?image=case_0"),
    ("POST", "/infer/bright_ct?image=case_0"),
    ("PUT", "/session/"),
    ("PUT", "/datastore/image?image=evil"),
    ("DELETE", "/datastore/image?id=case_0"),
    ("POST", "/train/bright_ct"),
    ("GET", "/nothing"),
)


@pytest.mark.parametrize("who", STRANGERS)
def test_without_the_password_nothing_is_answered(guarded: Server, who: str) -> None:
    headers = {"Authorization": STRANGERS[who]} if STRANGERS[who] else {}

    answers = {path: guarded.call(method, path, headers=headers) for method, path in GUARDED}

    assert {path: one.status_code for path, one in answers.items()} == {
        path: 400 if ".." in path else 401 for _, path in GUARDED
    }
    assert not any("case_0" in one.text for one in answers.values())


def test_the_client_of_slicer_logs_in_and_works(guarded: Server, client_module: ModuleType, tmp_path: Path) -> None:
    def client() -> Any:  # 3D Slicer makes a new one for each call
        made = client_module.MONAILabelClient(guarded.url, tmpdir=str(tmp_path), client_id="slicer")
        made.update_auth(token)
        return made

    token = None
    assert client().auth_enabled()
    with pytest.raises(client_module.MONAILabelClientException):
        client().auth_token("ann", "wrong")
    token = client().auth_token("ann", password_of(guarded))

    assert client().auth_valid_token()
    assert client().info()["labels"] == ["femur"]
    sample = client().next_sample("first", {})
    image_file, facts = client().infer("bright_ct", sample["id"], {})
    client().save_label(sample["id"], image_file, params={"label_info": [{"name": "femur", "idx": 1}]})
    new = str(save(tmp_path / "new.nii.gz", blob(np.random.default_rng(9))[0]))
    session = client().create_session(new)["session_id"]
    again, _ = client().infer("bright_ct", "new", {}, session_id=session)
    client().upload_image(new, "new")

    assert facts["label_names"] == {"femur": 1}
    assert Path(again).is_file()
    known = client().datastore()["objects"]
    assert set(known) == {"case_0", "case_1", "case_2", "new"}
    assert known[sample["id"]]["labels"]["final"]["info"]["user"] == "ann"
    assert known[sample["id"]]["image"]["info"]["strategy"]["first"]["client_id"] == "ann"
    assert Path(client().download_label(sample["id"], "final")).is_file()
    client().remove_session(session)


def test_a_browser_logs_in_by_name_and_password(guarded: Server) -> None:
    credentials = base64.b64encode(f"bob:{password_of(guarded)}".encode()).decode()

    asked = guarded.call("GET", "/")
    shown = guarded.call("GET", "/", headers={"Authorization": f"Basic {credentials}"})

    assert asked.headers["www-authenticate"].startswith("Basic realm=")
    assert shown.status_code == 200
    assert "3D Slicer" in shown.text


def test_the_password_is_made_up_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first, again = login_of(tmp_path), login_of(tmp_path)

    assert first.password == again.password
    assert len(first.password) >= 2 * LEAST_CHARACTERS - 2
    assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o600
    assert password_of(Server("", tmp_path)) not in repr(first)


@pytest.mark.parametrize("password", ["", "short", "x" * (LEAST_CHARACTERS - 1)])
def test_a_short_password_starts_no_server(password: str) -> None:
    with pytest.raises(UsageError, match=f"has {len(password)} characters, expected at least"):
        Login(password)
