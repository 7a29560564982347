"""The server's own page, in a browser: the first start, a knock that is accepted and one that is refused, invites, sessions
and what administrators do; in a wide window and a narrow one, light and dark. Only where the harness is told of a browser.
"""

import pathlib
import re
import subprocess
import tempfile
import urllib.parse

import client
import hydrogen
from browser import Browser
from flows import demand
from servers import SHARED_SECRET, Doorstep

LOOKS = [(1200, "light"), (390, "dark"), (390, "light"), (1200, "dark")]
TABS = ("Door", "Sessions", "Accounts", "Rooms", "Tokens", "Server")
LONG = "Anna-Magdalena of the very long name 🦀 " * 6


class _Started:
    """A server of its own, from its first start on; what it prints is read."""

    def __init__(self, folder):
        self._log = open(folder / "page-server.log", "w")
        words = [Doorstep.binary, "serve", "--data", folder / "page-data", "--listen", "0"]
        words += ["--no-rate-limits", "--registration-secret", SHARED_SECRET]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self._log, text=True)
        self.url = self.link = None
        for line in self._process.stdout:
            self.url = self.url or (re.search(r"http://127\.0\.0\.1:\d+", line) or [None])[0]
            self.client_port = int(self.url.rsplit(":", 1)[1]) if self.url else None
            found = re.search(r"http://\S+/\?first=\S+", line)
            if found:
                self.link = found[0]
                break

    def stop(self):
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


class _Page(Browser):
    def __init__(self, folder, pictures):
        super().__init__(hydrogen.WEB, hydrogen.CHROMIUM, folder, "page.mjs")
        self._pictures = pictures
        self._taken = 0

    def look_all(self, step):
        """A picture of each look, each of which has to be accessible."""
        self._taken += 1
        for width, scheme in LOOKS:
            self.do("look", width, scheme)
            self.do("is_accessible")
            self.do("picture", self._pictures / f"page-{self._taken:02}-{step}-{width}-{scheme}.png")

    def log_in(self, name, password):
        self.do("fill", "User name", name)
        self.do("fill", "Password", password)
        self.do("press", "Log in")


def _api(server, method, path, token, body=None):
    status, answer = client.request(server, method, path, body, token)
    demand(status == 200, f"{method} {path}: {status} {answer}")
    return answer


def a_page_for_everything(folder):
    server = _Started(folder)
    page = None
    try:
        page = _Page(folder, pathlib.Path(hydrogen.SCREENSHOTS or folder))
        _first_start(server, page)
        for name in TABS:
            page.do("follow", name)
            page.look_all(f"nothing-{name}")
        names = ["bob", "eve", "a.very.long.user.name.that.goes.on-and-on_until_the_line_is_full_and_longer"]
        tokens = {name: client.register(server, name).token for name in names}
        tokens["alice"] = _log_in(server, "alice", "sesame")
        rooms = _visitors(server, tokens)
        _at_the_door(server, page, tokens, rooms)
        _administration(server, page, rooms)
        _sessions(server, page)
        _elsewhere(server, page)
    finally:
        if page:
            page.end()
        server.stop()


def _first_start(server, page):
    page.do("open", server.link, 1200, "light")
    page.look_all("first")
    page.do("fill", "User name", "alice")
    page.do("fill", "New password", "sesame")
    page.do("fill", "Once more", "another")
    page.do("press", "Make the account")
    page.do("sees", "not the same")
    page.look_all("first-wrong")
    page.do("fill", "New password", "sesame")
    page.do("fill", "Once more", "sesame")
    page.do("press", "Make the account")
    page.do("sees", "Welcome")
    page.do("sees", "Open a client")
    page.look_all("welcome")


def _log_in(server, name, password):
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": password}
    return _api(server, "POST", "/_matrix/client/v3/login", None, body)["access_token"]


def _visitors(server, tokens):
    """Rooms of alice's upon which others knock, and some to which they invite her."""
    knocked = []
    for name in ("The Workshop", LONG):
        rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
        body = {"name": name, "initial_state": [rule]}
        knocked.append(_api(server, "POST", "/_matrix/client/v3/createRoom", tokens["alice"], body)["room_id"])
    for name, token in tokens.items():
        if name == "alice":
            continue
        user = urllib.parse.quote(f"@{name}:localhost:8448")
        shown = {"displayname": LONG[:200] if name == "eve" else name.title()}
        _api(server, "PUT", f"/_matrix/client/v3/profile/{user}/displayname", token, shown)
        for room in knocked:
            reason = "We met at the fair, and I bring cake.\n" * (6 if name == "eve" else 1)
            path = f"/_matrix/client/v3/knock/{urllib.parse.quote(room)}?via=localhost:8448"
            _api(server, "POST", path, token, {"reason": reason})
        body = {"name": f"{name.title()}’s room", "preset": "private_chat", "invite": ["@alice:localhost:8448"]}
        _api(server, "POST", "/_matrix/client/v3/createRoom", token, body)
    return knocked


def _membership(server, token, room, user):
    path = f"/_matrix/client/v3/rooms/{urllib.parse.quote(room)}/state/m.room.member/{urllib.parse.quote(user)}"
    return _api(server, "GET", path, token)


def _at_the_door(server, page, tokens, rooms):
    page.do("follow", "Door")
    page.look_all("door")
    workshop = rooms[0]
    page.do("press_in", "@bob:localhost:8448 knocks upon The Workshop", "Let in")
    page.do("sees", "They are invited")
    seen = _membership(server, tokens["alice"], workshop, "@bob:localhost:8448")["membership"]
    demand(seen == "invite", f"bob is {seen}")
    entry = "@eve:localhost:8448 knocks upon The Workshop"
    page.do("fill_in", entry, "Reason of a refusal", "Not today")
    page.do("press_in", entry, "Refuse")
    page.do("sees", "Refuse this knock?")
    page.look_all("refuse")
    page.do("press", "Refuse")
    page.do("sees", "They are told")
    seen = _membership(server, tokens["alice"], workshop, "@eve:localhost:8448")
    demand((seen["membership"], seen.get("reason")) == ("leave", "Not today"), f"eve is {seen}")
    page.do("press_in", "Bob’s room", "Join")
    page.do("sees", "You are in the room")
    page.do("press_in", "Eve’s room", "Reject")
    page.do("press", "Reject")
    page.do("sees", "The invite is rejected")
    page.do("sees_no", "Eve’s room")


def _administration(server, page, rooms):
    page.do("follow", "Accounts")
    page.look_all("accounts")
    page.do("fill", "User name", "carol")
    page.do("press", "Make the account")
    page.do("sees", "shown once")
    page.look_all("account-made")
    page.do("follow", "All accounts")
    page.do("follow", "@carol:localhost:8448")
    page.look_all("account")
    page.do("press", "Lock")
    page.do("sees", "The account is locked")
    page.do("follow", "@carol:localhost:8448")
    page.do("press", "Close it for good")
    page.look_all("account-close")
    page.do("press", "Close it for good")
    page.do("sees", "The account is closed")
    page.do("follow", "Rooms")
    page.look_all("rooms")
    page.do("press_in", rooms[0], "Block")
    page.look_all("room-block")
    page.do("press", "Block it")
    page.do("sees", "The room is blocked")
    page.do("press_in", rooms[0], "Unblock")
    page.do("sees", "not blocked any more")
    page.do("follow", "Tokens")
    page.do("press", "Make a token")
    page.do("sees", "shown once")
    page.look_all("token-made")
    page.do("follow", "All tokens")
    page.look_all("tokens")
    page.do("press_in", "used 0 of 1", "Revoke")
    page.look_all("token-revoke")
    page.do("press", "Revoke")
    page.do("sees", "The token is revoked")
    page.do("follow", "Server")
    page.do("sees", "has deactivated @carol")
    page.look_all("server")
    page.do("follow", "Where the bytes are")
    page.do("sees", "The largest rooms")
    page.look_all("server-storage")


def _sessions(server, page):
    page.do("follow", "Sessions")
    page.look_all("sessions")
    page.do("press", "Log all others out")
    page.look_all("sessions-sure")
    page.do("fill", "Your password", "sesame")
    page.do("press", "Log them out")
    page.do("sees", "All other sessions are logged out")
    page.do("fill", "Your password", "sesame")
    page.do("fill", "New password", "open up")
    page.do("fill", "Once more", "open up")
    page.do("press", "Change password")
    page.do("sees", "Your password is changed")


def _elsewhere(server, page):
    """By a name that is not this machine's, and without HTTPS: then a browser tells less of where a form comes from."""
    page.do("press", "Log out")
    page.do("sees", "You are logged out")
    page.look_all("login")
    page.do("open", server.url.replace("127.0.0.1", "doorstep.test"), 390, "light")
    page.log_in("alice", "wrong")
    page.do("sees", "Wrong user name or password")
    page.look_all("login-wrong")
    page.log_in("alice", "open up")
    page.do("sees", "At the door")
    page.do("follow", "Sessions")
    page.do("press", "Log out")
    page.do("sees", "You are logged out")


def flow():
    with tempfile.TemporaryDirectory(prefix="doorstep-page-") as folder:
        a_page_for_everything(pathlib.Path(folder))


PAGE = [("web", "the server's own page: first start, door, sessions, administration", flow)]
