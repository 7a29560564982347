"""Runs entry.sh outside of a container, with an authority as Complement makes one, and speaks to the server that it
starts, as a client and as another server. Needs openssl."""

import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import pytest

ENTRY = pathlib.Path(__file__).resolve().parent / "entry.sh"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url, body=None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture
def authority(tmp_path):
    """As Complement makes it: an RSA key, and a folder that a container cannot write."""
    folder = tmp_path / "ca"
    folder.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=Complement"]
        + ["-keyout", folder / "ca.key", "-out", folder / "ca.crt"],
        check=True,
        capture_output=True,
    )
    folder.chmod(0o500)
    yield folder
    folder.chmod(0o700)


@contextlib.contextmanager
def entered(tmp_path, authority, name, clients, servers):
    binary = pathlib.Path(os.environ["DOORSTEP"]).resolve()
    environment = os.environ | {
        "PATH": f"{binary.parent}:{os.environ['PATH']}",
        "SERVER_NAME": name,
        "COMPLEMENT_CA": str(authority),
        "COMPLEMENT_APPSERVICES": str(tmp_path / "appservice"),
        "DOORSTEP_DATA": str(tmp_path / "data"),
        "DOORSTEP_CERTIFICATE": str(tmp_path / "certificate"),
        "DOORSTEP_LISTEN": f"127.0.0.1:{clients}",
        "DOORSTEP_LISTEN_TLS": f"127.0.0.1:{servers}",
    }
    with open(tmp_path / "log", "ab") as log, subprocess.Popen([ENTRY], env=environment, stdout=log, stderr=log) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                with contextlib.suppress(urllib.error.URLError):
                    ask(f"http://127.0.0.1:{clients}/_matrix/client/versions")
                    break
            yield f"http://127.0.0.1:{clients}"
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.mark.parametrize("name", ["hs1", "127.0.0.1"])
def test_the_image_is_what_complement_asks_for(tmp_path, authority, name):
    clients, servers = free_port(), free_port()
    with entered(tmp_path, authority, name, clients, servers) as url:
        nonce = ask(f"{url}/_synapse/admin/v1/register")["nonce"]
        mac = hmac.new(b"complement", f"{nonce}\0alice\0pass\0notadmin".encode(), hashlib.sha1).hexdigest()
        alice = {"nonce": nonce, "username": "alice", "password": "pass", "mac": mac, "admin": False}
        alice = ask(f"{url}/_synapse/admin/v1/register", alice)
        assert alice["user_id"] == f"@alice:{name}"
        bob = {"username": "bob", "password": "pass", "auth": {"type": "m.login.dummy"}}
        assert ask(f"{url}/_matrix/client/v3/register", bob)["user_id"] == f"@bob:{name}"

        # As another server: by the name, with a certificate of the authority and nobody else's.
        trusting = ssl.create_default_context(cafile=authority / "ca.crt")
        for path, told in (("/_matrix/federation/v1/version", b"Doorstep"), ("/_matrix/key/v2/server", name.encode())):
            with socket.create_connection(("127.0.0.1", servers)) as tcp:
                with trusting.wrap_socket(tcp, server_hostname=name) as tls:
                    tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
                    answer = b"".join(iter(lambda: tls.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200") and told in answer, answer

    # The script runs again when the container is started again, with the same data.
    with entered(tmp_path, authority, name, clients, servers) as url:
        login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": "pass"}
        assert ask(f"{url}/_matrix/client/v3/login", login)["user_id"] == alice["user_id"]


def test_application_services_are_there_whose_registrations_complement_has_put_there(tmp_path, authority):
    registration = {
        "id": "my_as_id",
        "url": "http://localhost:9000",
        "as_token": "as",
        "hs_token": "hs",
        "sender_localpart": "the-bridge-user",
        "rate_limited": False,
        "namespaces": {"users": [{"exclusive": False, "regex": ".*"}], "rooms": [], "aliases": []},
    }
    (tmp_path / "appservice").mkdir()
    (tmp_path / "appservice" / "my_as_id.yaml").write_text(json.dumps(registration))
    with entered(tmp_path, authority, "hs1", free_port(), free_port()) as url:
        told = ask(f"{url}/_matrix/client/v3/account/whoami?access_token=as")
        assert told["user_id"] == "@the-bridge-user:hs1"
