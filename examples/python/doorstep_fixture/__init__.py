"""A real Matrix homeserver for tests: `doorstep fixture` as a context manager.

    with Doorstep(users=["alice", "bob"]) as doorstep:
        alice = doorstep.users["alice"]

The binary is found in the path, or where the environment variable DOORSTEP says.
"""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Union

__all__ = ["Doorstep", "DoorstepError", "Server", "User"]

# A server by its number from 1 or its name.
Which = Union[int, str]
# Of whom speaks who names none.
_FIRST = 1


class DoorstepError(Exception):
    """The fixture did not start, or could not do what it was told."""


@dataclass(frozen=True)
class User:
    """An account that is logged in on one device."""

    user_id: str
    access_token: str
    device_id: str
    # None for a further device of an account.
    password: Optional[str] = None


@dataclass(frozen=True)
class Server:
    """One of the homeservers."""

    name: str
    url: str
    federation_url: str
    users: Dict[str, User]


def _user(told):
    return User(**{key: told.get(key) for key in ("user_id", "access_token", "device_id", "password")})


def _server(told):
    users = {localpart: _user(user) for localpart, user in told["users"].items()}
    return Server(told["name"], told["url"], told["federation_url"], users)


class Doorstep:
    """Homeservers in memory, on free ports of loopback, which federate with each other. They are there from `start` (or
    `with`) on, until `stop`, or until this process ends, however it does."""

    # Homeservers, the first of which `name`, `url` and `users` speak of.
    servers: List[Server]
    # The certificate authority of `federation_url`, PEM.
    ca: str

    def __init__(
        self,
        users: Sequence[str] = (),
        servers: Optional[int] = None,
        names: Sequence[str] = (),
        port: Optional[int] = None,
        closed: bool = False,
        registration_secret: Optional[str] = None,
        binary: Optional[str] = None,
    ):
        self._arguments = ["fixture"]
        for flag, value in (
            ("--servers", None if servers is None else str(servers)),
            ("--users", ",".join(users)),
            ("--name", ",".join(names)),
            ("--port", None if port is None else str(port)),
            ("--registration-secret", registration_secret),
        ):
            if value:
                self._arguments += [flag, value]
        if closed:
            self._arguments.append("--closed")
        self._binary = binary or os.environ.get("DOORSTEP") or shutil.which("doorstep")
        self._process = None
        self._log = None
        self._said = ""
        # One command at a time, whichever thread it comes from.
        self._lock = threading.Lock()

    def start(self) -> "Doorstep":
        """Starts the servers. Errors: no binary, or what it says why it does not start."""
        if not self._binary:
            raise DoorstepError("there is no `doorstep` in the path, and DOORSTEP does not say where it is")
        if self._process is not None:
            raise DoorstepError("the fixture runs already")
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [self._binary, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )
        except OSError as error:
            self._log.close()
            self._log = None
            told = "the doorstep binary is looked for in the path, or where DOORSTEP says"
            raise DoorstepError(f"{self._binary} cannot be started: {error.strerror}; {told}") from error
        self._take_in(self._read())
        return self

    def stop(self) -> None:
        """Ends them; a second time does nothing."""
        process, self._process = self._process, None
        if process is not None:
            try:
                process.stdin.close()
            except OSError:
                pass  # It has ended already, with something unread.
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        if self._log is not None:
            self._said = self.log()
            self._log.close()
            self._log = None

    def __enter__(self) -> "Doorstep":
        return self.start()

    def __exit__(self, *_):
        self.stop()

    @property
    def name(self) -> str:
        """The name of the first server, what stands behind the colon of a user id."""
        return self.servers[0].name

    @property
    def url(self) -> str:
        """The base URL of the first server, for clients."""
        return self.servers[0].url

    @property
    def users(self) -> Dict[str, User]:
        """The accounts of the first server, by their localparts."""
        return self.servers[0].users

    def log(self) -> str:
        """What the servers said on their standard error, also after `stop`."""
        if self._log is None:
            return self._said
        # By its place, because the process writes where this one stands.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def add_user(
        self, name: str, password: Optional[str] = None, admin: bool = False, server: Optional[Which] = None
    ) -> User:
        """Makes an account; without a password that is the name."""
        words = ["user", "add", name, password or name, "admin" if admin else "ordinary"]
        user = _user(self._order(words, _FIRST if server is None else server)["user"])
        self._take_in(self._order(["info"]))
        return user

    def login(self, name: str, device_id: Optional[str] = None, server: Optional[Which] = None) -> User:
        """Logs an account in on another device."""
        words = ["login", name] + ([device_id] if device_id else [])
        return _user(self._order(words, _FIRST if server is None else server)["user"])

    def advance(self, seconds: float, server: Optional[Which] = None) -> None:
        """Moves the clock forward, of all servers unless one is named: what is due by then becomes due."""
        self._order(["advance", seconds], server)

    def restart(self, server: Optional[Which] = None) -> None:
        """Stops and starts again, with the same data; all servers unless one is named."""
        self._order(["restart"], server)

    def stop_server(self, server: Which) -> None:
        """Stops one server: its ports refuse connections."""
        self._order(["stop"], server)

    def start_server(self, server: Which) -> None:
        """Starts it again."""
        self._order(["start"], server)

    def cut(self, one: Which, other: Which) -> None:
        """Lets two servers find each other unreachable."""
        self._order(["cut", one, other])

    def mend(self, one: Which, other: Which) -> None:
        """Undoes that."""
        self._order(["mend", one, other])

    def fail(
        self, method: str, path: str, status: int, errcode: str = "M_UNKNOWN", server: Optional[Which] = None
    ) -> None:
        """Answers the next request like this with an error. A path is some segments in a row, `*` for any one."""
        self._order(["fail", method, path, status, errcode], _FIRST if server is None else server)

    def limit(self, method: str, path: str, retry_after_ms: int, server: Optional[Which] = None) -> None:
        """Answers the next request like this with 429 `M_LIMIT_EXCEEDED`."""
        self._order(["limit", method, path, retry_after_ms], _FIRST if server is None else server)

    def delay(self, method: str, path: str, ms: int, server: Optional[Which] = None) -> None:
        """Lets every request like this wait; 0 ends that."""
        self._order(["delay", method, path, ms], _FIRST if server is None else server)

    def clear(self, server: Optional[Which] = None) -> None:
        """Forgets what was ordered by `fail`, `limit` and `delay`."""
        self._order(["clear"], server)

    def requests(self, server: Optional[Which] = None) -> List[dict]:
        """What was asked, the last 1000: `method`, `path`, and `status` (None: not answered yet)."""
        return self._order(["requests"], server)["requests"]

    def _take_in(self, told):
        self.servers = [_server(server) for server in told["servers"]]
        self.ca = told["ca"]

    def _order(self, words, server=None):
        words = [str(word) for word in words] + ([] if server is None else ["on", str(server)])
        if any(not word or any(letter.isspace() for letter in word) for word in words):
            raise DoorstepError(f"no word of a command is empty or has white space in it: {words}")
        with self._lock:
            if self._process is None:
                raise DoorstepError("the fixture is not running")
            try:
                self._process.stdin.write((" ".join(words) + "\n").encode())
                self._process.stdin.flush()
            except OSError:
                pass  # What the process said last tells more.
            answer = self._read()
        if not answer["ok"]:
            raise DoorstepError(answer["error"])
        return answer

    def _read(self):
        line = self._process.stdout.readline()
        if line.endswith(b"\n"):
            return json.loads(line)
        status = self._process.wait()
        said = self.log().strip()
        self.stop()
        raise DoorstepError(f"the fixture ended with status {status}: {said}")
