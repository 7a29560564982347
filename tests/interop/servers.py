"""The servers under test: a throw-away authority, a Synapse, a Doorstep. What they say to each other is elsewhere.

Every server lives in its own folder below one scratch folder, listens on loopback only, and is named
`localhost:PORT`: a name with a port is found without well-known or SRV, so no other machine is asked anything.
"""

import datetime
import http.client
import ipaddress
import os
import pathlib
import random
import secrets
import signal
import socket
import subprocess
import sys
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SHARED_SECRET = "a secret for throw-away servers"
START_SECONDS = 180  # a cold Synapse on a busy two-core machine takes most of a minute

_kept_ports = []


def free_port():
    """A port nobody listens on, kept for this run until it ends: bound here, without listening, so that no outgoing
    connection takes it, whatever range the machine gives those. Who listens on it with `SO_REUSEADDR`, as servers do,
    may, again and again."""
    while True:
        keeper = socket.socket()
        try:
            # Without the option, so that nobody else has it; then with it, so that the server may.
            keeper.bind(("127.0.0.1", random.randint(20000, 32000)))
        except OSError:
            keeper.close()
            continue
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _kept_ports.append(keeper)
        return keeper.getsockname()[1]


class Authority:
    """A certificate authority for one run, and one certificate for `localhost` and 127.0.0.1 by it."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        self.certificate = folder / "localhost.pem"
        self.key = folder / "localhost.key"
        self._make()

    def _make(self):
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        ca_key = ec.generate_private_key(ec.SECP256R1())
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Throw-away test authority")])
        leaf_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])

        def certificate(subject, key, is_ca):
            builder = (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(ca_name)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - day)
                .not_valid_after(now + day)
                .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            )
            if is_ca:
                usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
                builder = builder.add_extension(usage, critical=True)
            else:
                names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                purposes = [ExtendedKeyUsageOID.SERVER_AUTH]
                builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
                builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            return builder.sign(ca_key, hashes.SHA256())

        self.ca.write_bytes(certificate(ca_name, ca_key, True).public_bytes(serialization.Encoding.PEM))
        self.certificate.write_bytes(certificate(leaf_name, leaf_key, False).public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            leaf_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


class Server:
    """One running homeserver: its name, its client API's port, its process.

    `federation_port` is what it listens on; `public_port` is what its name says. They differ when a gate stands between.
    A server with another `name` is found by no other.
    """

    kind = "?"

    def __init__(self, label, folder, authority, gated=False, name=None):
        self.label = label
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority = authority
        self.client_port = free_port()
        self.federation_port = free_port()
        self.public_port = free_port() if gated else self.federation_port
        self.name = name or f"localhost:{self.public_port}"
        self.log = self.folder / "output.log"
        self.process = None

    def command(self):
        raise NotImplementedError

    def environment(self):
        return None

    def start(self):
        """Starts the process and waits until its client API answers. Returns the seconds that took."""
        begun = time.monotonic()
        with open(self.log, "ab") as log:
            # Its own process group: an interrupt at the terminal reaches the harness, which then stops the servers.
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
            )
        while not self._answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.label} ended at once with {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() - begun > START_SECONDS:
                self.stop()
                raise RuntimeError(f"{self.label} did not answer within {START_SECONDS} s:\n{self.tail()}")
            time.sleep(0.02)
        return time.monotonic() - begun

    def _answers(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.client_port, timeout=5)
        try:
            connection.request("GET", "/_matrix/client/versions")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self):
        self._end(signal.SIGTERM)

    def kill(self):
        """As a power cut to the process: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def _end(self, how):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self, lines=40):
        if not self.log.exists():
            return "(no output)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def rss_kib(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    def cpu_seconds(self):
        """User and system time of the whole process so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Everything that Synapse limits by rate, opened wide: the harness is faster than any person.
_RATE_LIMITS = "\n".join(
    [
        f"{name}: {{per_second: 100000, burst_count: 100000}}"
        for name in (
            "rc_message",
            "rc_registration",
            "rc_registration_token_validity",
            "rc_admin_redaction",
            "rc_3pid_validation",
            "rc_third_party_invite",
            "rc_media_create",
            "rc_presence_per_user",
            "rc_delayed_event_mgmt",
            "rc_room_creation",
            "rc_reports",
            "rc_user_directory",
        )
    ]
    + [
        f"{name}: {{{', '.join(f'{part}: {{per_second: 100000, burst_count: 100000}}' for part in parts)}}}"
        for name, parts in {
            "rc_login": ("address", "account", "failed_attempts"),
            "rc_joins": ("local", "remote"),
            "rc_joins_per_room": (),
            "rc_invites": ("per_room", "per_user", "per_issuer"),
            "rc_presence": ("per_user",),
        }.items()
        if parts
    ]
    + [
        "rc_joins_per_room: {per_second: 100000, burst_count: 100000}",
        "rc_federation: {window_size: 1000, sleep_limit: 100000, sleep_delay: 1, reject_limit: 100000, concurrent: 100}",
    ]
)


class Synapse(Server):
    kind = "synapse"

    def __init__(self, label, folder, authority, gated=False, name=None):
        super().__init__(label, folder, authority, gated, name)
        (self.folder / "log.yaml").write_text(
            "version: 1\n"
            "formatters: {plain: {format: '%(asctime)s %(levelname)s %(name)s %(request)s %(message)s'}}\n"
            "filters: {context: {(): synapse.logging.context.LoggingContextFilter, request: ''}}\n"
            "handlers: {console: {class: logging.StreamHandler, formatter: plain, filters: [context]}}\n"
            "root: {level: WARNING, handlers: [console]}\n"
        )
        (self.folder / "homeserver.yaml").write_text(
            f"""
server_name: "{self.name}"
pid_file: {self.folder}/pid
signing_key_path: {self.folder}/signing.key
log_config: {self.folder}/log.yaml
media_store_path: {self.folder}/media
max_upload_size: 200M
database: {{name: sqlite3, args: {{database: {self.folder}/homeserver.db}}}}
report_stats: false
macaroon_secret_key: "{secrets.token_hex(16)}"
form_secret: "{secrets.token_hex(16)}"
registration_shared_secret: "{SHARED_SECRET}"
enable_registration: true
enable_registration_without_verification: true
bcrypt_rounds: 4
listeners:
  - {{port: {self.client_port}, type: http, tls: false, bind_addresses: [127.0.0.1], resources: [{{names: [client]}}]}}
  - {{port: {self.federation_port}, type: http, tls: true, bind_addresses: [127.0.0.1], resources: [{{names: [federation]}}]}}
tls_certificate_path: {self.authority.certificate}
tls_private_key_path: {self.authority.key}
federation_custom_ca_list: [{self.authority.ca}]
federation_ip_range_blacklist: []
ip_range_blacklist: []
trusted_key_servers: []
suppress_key_server_warning: true
presence: {{enabled: true}}
experimental_features: {{msc3814_enabled: true}}
max_event_delay_duration: 24h
# A /sync from the beginning is answered anew each time, not from what was remembered of the last one.
caches: {{sync_response_cache_duration: 0s}}
federation:
  # A peer that is killed, or cut off, and comes back is asked again within seconds, not after ten minutes.
  max_short_retry_delay: 1s
  max_long_retry_delay: 1s
  max_long_retries: 3
  destination_min_retry_interval: 1s
  destination_retry_multiplier: 1
  destination_max_retry_interval: 1s
{_RATE_LIMITS}
"""
        )

    def command(self):
        return [sys.executable, "-m", "synapse.app.homeserver", "-c", str(self.folder / "homeserver.yaml")]

    def start(self):
        if not (self.folder / "signing.key").exists():
            made = subprocess.run(self.command() + ["--generate-keys"], cwd=self.folder, capture_output=True, text=True)
            if made.returncode != 0:
                raise RuntimeError(f"Synapse made no keys:\n{made.stdout}{made.stderr}")
        return super().start()


class Doorstep(Server):
    kind = "doorstep"
    binary = None  # set once by the command line
    notaries = ()

    def command_line(self, *words):
        """A command of the operator's."""
        done = subprocess.run([self.binary, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"doorstep {words[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def command(self):
        return [
            str(self.binary), "serve",
            "--name", self.name,
            "--data", str(self.folder / "data"),
            "--listen", f"127.0.0.1:{self.client_port}",
            "--listen-tls", f"127.0.0.1:{self.federation_port}",
            "--tls-cert", str(self.authority.certificate),
            "--tls-key", str(self.authority.key),
            "--trust-ca", str(self.authority.ca),
            "--registration", "open",
            "--registration-secret", SHARED_SECRET,
            "--no-rate-limits",
            "--allow-private-addresses",
            "--guests",
            "--turn-uri", "turn:turn.example.org?transport=udp",
            "--turn-secret", SHARED_SECRET,
            "--url-previews",
            *[word for notary in self.notaries for word in ("--notary", notary)],
        ]  # fmt: skip
