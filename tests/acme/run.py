"""Doorstep and Pebble: certificates are got by both proofs, kept, renewed, and survive a kill at each step.

Started by run.sh, which provides Pebble. A line a scenario; the last line is `N passed, N failed`.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PATIENCE_SECONDS = 40
# The life of a short certificate. It is renewed after two thirds of it.
SHORT_LIFE_SECONDS = 24


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--doorstep", type=pathlib.Path, required=True, help="the doorstep binary")
    parser.add_argument("--pebble", type=pathlib.Path, required=True, help="folder of pebble and pebble-challtestsrv")
    parser.add_argument("--certificates", type=pathlib.Path, required=True, help="the certificates of Pebble itself")
    parser.add_argument("--keep", action="store_true", help="keep the servers' folders")
    return parser.parse_args()


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def wait_for(what, holds, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"it never came to pass that {what}")
        time.sleep(0.005)


class Process:
    """A program whose output goes to a file."""

    def __init__(self, command, log, environment=None):
        self.log = log
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(environment or {})},
            )

    def text(self):
        return self.log.read_text(errors="replace")

    def end(self, how=signal.SIGTERM):
        if self.child.poll() is None:
            self.child.send_signal(how)
        self.child.wait(20)


class Pebble:
    """An authority, with a name server for which every name is this machine."""

    def __init__(self, given, folder, life, customers=None):
        folder.mkdir()
        self.port, management, self.http, self.tls = (free_port() for _ in range(4))
        names = free_port()
        settings = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": str(given.certificates / "localhost/cert.pem"),
            "privateKey": str(given.certificates / "localhost/key.pem"),
            "httpPort": self.http,
            "tlsPort": self.tls,
            "retryAfter": {"authz": 1, "order": 1},
            "keyAlgorithm": "ecdsa",
            "profiles": {"default": {"description": "the only one", "validityPeriod": life}},
        }
        if customers:
            settings |= {"externalAccountBindingRequired": True, "externalAccountMACKeys": customers}
        (folder / "config.json").write_text(json.dumps({"pebble": settings}))
        self.ca = given.certificates / "pebble.minica.pem"
        self.names = Process(
            [given.pebble / "pebble-challtestsrv", "-http01", "", "-https01", "", "-doh", "", "-tlsalpn01", ""]
            + ["-defaultIPv6", "", "-dnsserver", f"127.0.0.1:{names}", "-management", f"127.0.0.1:{free_port()}"],
            folder / "names.log",
        )
        # Of the nonces that it gave it refuses one of seven, and it may give away again what was proven before.
        self.process = Process(
            [given.pebble / "pebble", "-config", folder / "config.json", "-dnsserver", f"127.0.0.1:{names}"],
            folder / "pebble.log",
            {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "15", "PEBBLE_AUTHZREUSE": "0"},
        )
        trust = ssl.create_default_context(cafile=self.ca)

        def root():
            try:
                with urllib.request.urlopen(f"https://localhost:{management}/roots/0", context=trust) as answer:
                    return answer.read()
            except OSError:
                return None

        self.root = folder / "root.pem"
        self.root.write_bytes(wait_for("Pebble answers", root))

    @property
    def directory(self):
        return f"https://localhost:{self.port}/dir"

    def count(self, what):
        return self.process.text().count(what)

    def end(self):
        self.process.end()
        self.names.end()


class Doorstep:
    """A server whose certificate Pebble gives."""

    def __init__(self, given, folder, pebble, tls, plain=None, trust=(), more=()):
        folder.mkdir()
        self.folder, self.pebble, self.tls = folder, pebble, tls
        self.command = [given.doorstep, "serve", "--name", f"localhost:{tls}", "--data", folder / "data"]
        self.command += ["--listen-tls", f"127.0.0.1:{tls}", "--acme", "--acme-directory", pebble.directory]
        self.command += ["--acme-ca", pebble.ca, "--registration", "open", "--allow-private-addresses"]
        self.command += ["--acme-contact", "admin@example.org", "--no-rate-limits"]
        if plain:
            self.command += ["--listen", f"127.0.0.1:{plain}"]
        for file in (pebble.root, *trust):
            self.command += ["--trust-ca", file]
        self.command += more
        self.process = None
        self.context = ssl.create_default_context(cafile=pebble.root)
        for file in trust:
            self.context.load_verify_locations(file)
        self.start()

    def start(self):
        self.process = Process(self.command, self.folder / "doorstep.log")

    def end(self, how=signal.SIGTERM):
        self.process.end(how)

    def certificate(self):
        """The serial number of the certificate that is served, if it is one that Pebble's root stands for."""
        try:
            with socket.create_connection(("127.0.0.1", self.tls), 5) as tcp:
                with self.context.wrap_socket(tcp, server_hostname="localhost") as tls:
                    return tls.getpeercert()["serialNumber"]
        except OSError:
            return None

    def wait_for_certificate(self, other_than=None):
        def is_served():
            serial = self.certificate()
            return serial if serial != other_than else None

        return wait_for("a certificate of Pebble's is served", is_served)

    def ask(self, method, path, token=None, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"https://localhost:{self.tls}{path}", data, method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.context) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{method} {path}: {e.code} {e.read()[:500]}") from e

    def register(self, name):
        body = {"username": name, "password": "a password", "auth": {"type": "m.login.dummy"}}
        return self.ask("POST", "/_matrix/client/v3/register", body=body)["access_token"]


def both_proofs_and_federation(given, folder):
    """By a proof in TLS and by a page; then two servers talk over these certificates, and a restart keeps them."""
    pebble = Pebble(given, folder / "pebble", 86_400)
    here = Doorstep(given, folder / "here", pebble, pebble.tls)
    try:
        first = here.wait_for_certificate()
        assert pebble.count("Issued certificate") == 1
        # Where names lead at the TLS port is the other server: so its proof in TLS fails, and the page is tried next.
        there = Doorstep(given, folder / "there", pebble, free_port(), plain=pebble.http)
        wait_for("the proof in TLS fails", lambda: "was not proven by tls-alpn-01" in there.process.text())
        there.process.child.send_signal(signal.SIGHUP)
        there.wait_for_certificate()
        assert pebble.count("Attempting to validate w/ HTTP") >= 1

        alice, bob = here.register("alice"), there.register("bob")
        room = here.ask("POST", "/_matrix/client/v3/createRoom", alice, {"preset": "public_chat"})["room_id"]
        path = f"/_matrix/client/v3/join/{room}?server_name=localhost:{here.tls}&via=localhost:{here.tls}"
        there.ask("POST", path, bob, {})
        there.ask("PUT", f"/_matrix/client/v3/rooms/{room}/send/m.room.message/1", bob, {"msgtype": "m.text", "body": "hi"})

        def has_come():
            sync = here.ask("GET", "/_matrix/client/v3/sync", alice)
            events = sync.get("rooms", {}).get("join", {}).get(room, {}).get("timeline", {}).get("events", [])
            return any(event["content"].get("body") == "hi" for event in events)

        wait_for("what bob says comes to alice", has_come)
        there.end()
        here.end()
        orders = pebble.count("Added order")
        here.start()
        assert here.wait_for_certificate() == first
        here.end()
        assert pebble.count("Added order") == orders, "a restart orders nothing"
    finally:
        here.end()
        pebble.end()


def assert_answers(tls):
    tls.sendall(b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        more = tls.recv(10_000)
        assert more, f"the connection ends: {answer}"
        answer += more
    assert answer.startswith(b"HTTP/1.1 200 "), answer


def renewal(given, folder):
    """Short certificates are renewed in time, under a connection that stays."""
    pebble = Pebble(given, folder / "pebble", SHORT_LIFE_SECONDS)
    server = Doorstep(given, folder / "server", pebble, pebble.tls)
    try:
        first = server.wait_for_certificate()
        with socket.create_connection(("127.0.0.1", server.tls), 60) as tcp:
            with server.context.wrap_socket(tcp, server_hostname="localhost") as tls:
                assert_answers(tls)
                second = server.wait_for_certificate(first)
                # A connection outlives its certificate.
                assert_answers(tls)
        assert second != first
        assert "ARI: order" in pebble.process.text(), "the order says what it replaces"
    finally:
        server.end()
        pebble.end()


def customers_only(given, folder):
    """An authority that has only customers knows this one by its key, and says to anybody else what is lacking."""
    key = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    pebble = Pebble(given, folder / "pebble", 86_400, {"kid-1": key})
    started = []

    def start(name, more):
        server = Doorstep(given, folder / name, pebble, pebble.tls, more=more)
        started.append(server)
        return server

    def keyed(key, kid="kid-1"):
        file = folder / f"{kid}.key"
        file.write_text(key + "\n")
        return ["--acme-eab", f"{kid}:{file}"]

    try:
        stranger = start("stranger", [])
        wait_for("a stranger is told what is lacking", lambda: "It is given by --acme-eab" in stranger.process.text())
        stranger.end()
        for name, more in [("other-key", keyed("A" * 43)), ("other-kid", keyed(key, "kid-2"))]:
            wrong = start(name, more)
            wait_for(f"{name} gets none", lambda: "no certificate for localhost" in wrong.process.text())
            assert wrong.certificate() is None
            wrong.end()
        customer = start("customer", keyed(key))
        first = customer.wait_for_certificate()
        customer.end()
        # The account is known now.
        customer.start()
        assert customer.wait_for_certificate() == first
    finally:
        for server in started:
            server.end()
        pebble.end()


def kills(given, folder):
    """Whoever is killed at any step goes on where it was, with the same order."""
    pebble = Pebble(given, folder / "pebble", 86_400)
    steps = ["/dir", "/nonce-plz", "/sign-me-up", "/order-plz", "/authZ/", "/chalZ/", "/my-order/", "/finalize-order/"]
    try:
        for number, step in enumerate([*steps, "/certZ/"]):
            orders, line = pebble.count("Added order"), f" {step} -> calling handler()"
            seen = pebble.count(line)
            server = Doorstep(given, folder / f"server-{number}", pebble, pebble.tls)
            try:
                wait_for(f"{step} is asked for", lambda: pebble.count(line) > seen)
                server.end(signal.SIGKILL)
                server.start()
                server.wait_for_certificate()
                made = pebble.count("Added order") - orders
                # The kill comes a moment after the step. Who dies before it knows where its order is has to make another,
                # and who dies while the authority looks for the proof has not proven anything; from then on nobody has to.
                most = 1 if step in ("/my-order/", "/finalize-order/", "/certZ/") else 2
                assert 1 <= made <= most, f"{made} orders, killed at {step}"
                for file in (server.folder / "data/acme").iterdir():
                    assert file.stat().st_mode & 0o077 == 0, f"{file} can be read by others"
                server.end(signal.SIGKILL)
                server.start()
                server.wait_for_certificate()
                assert pebble.count("Added order") - orders == made
            finally:
                server.end(signal.SIGKILL)
    finally:
        pebble.end()


def main():
    given = arguments()
    given.doorstep = given.doorstep.resolve()
    top = pathlib.Path(tempfile.mkdtemp(prefix="doorstep-acme-"))
    failed = 0
    scenarios = [both_proofs_and_federation, renewal, customers_only, kills]
    for scenario in scenarios:
        folder = top / scenario.__name__
        folder.mkdir()
        started = time.monotonic()
        try:
            scenario(given, folder)
            print(f"ok      {scenario.__doc__}  ({time.monotonic() - started:.1f} s)", flush=True)
        except (AssertionError, OSError, subprocess.TimeoutExpired) as e:
            failed += 1
            print(f"FAILED  {scenario.__doc__}  {e}", flush=True)
            for log in sorted(folder.glob("*/*.log")):
                lines = re.sub(r"[^\n]*core\.VAResponse[^\n]*\n", "", log.read_text(errors="replace")).splitlines()
                print(f"--- {log}", *lines[-25:], sep="\n", flush=True)
    if failed or given.keep:
        print(f"the folders are kept in {top}")
    else:
        shutil.rmtree(top)
    print(f"{len(scenarios) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
