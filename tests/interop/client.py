"""A user of a homeserver, as a client would be one: requests, and a mirror of the account fed by /sync.

Nothing here sleeps. Whatever is expected is asked for again after each answer of a waiting /sync, until a deadline.
"""

import hashlib
import hmac
import http.client
import itertools
import json
import threading
import time
import urllib.parse

from servers import SHARED_SECRET

PATIENCE_SECONDS = 60  # per expectation: two busy cores carry several servers and many flows at once
POLL_MS = 400  # how long a /sync of a waiting expectation waits, at most

_connections = threading.local()
_numbers = itertools.count(1)


class Refused(Exception):
    """An answer that is not 200. The text is the evidence: request, status, body."""

    def __init__(self, method, path, sent, status, body):
        self.status = status
        self.body = body if isinstance(body, dict) else {}
        self.errcode = self.body.get("errcode")
        shown = body if isinstance(body, str) else json.dumps(body)
        super().__init__(f"{method} {path} {_short(json.dumps(sent))} -> {status} {_short(shown)}")


class Unmet(Exception):
    """An expectation that did not come true in time."""


def _short(text, limit=600):
    return text if len(text) <= limit else text[:limit] + " …"


def request(server, method, path, body=None, token=None, query=None, timeout=120):
    """One request to the client API. Returns (status, parsed body); keeps a connection for each thread and server."""
    if query:
        path += "?" + urllib.parse.urlencode(query, doseq=True)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    pool = _connections.__dict__.setdefault("pool", {})
    for attempt in (1, 2):
        connection = pool.get(server.client_port)
        fresh = connection is None
        if fresh:
            connection = pool[server.client_port] = http.client.HTTPConnection("127.0.0.1", server.client_port)
        connection.timeout = timeout
        if connection.sock:
            connection.sock.settimeout(timeout)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            content = answer.read()
            break
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            pool.pop(server.client_port, None)
            # A kept connection that the server has closed in the meantime says nothing; a fresh one that breaks does.
            gone = isinstance(error, (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError))
            if fresh or attempt == 2 or not gone:
                raise
    try:
        return answer.status, json.loads(content)
    except ValueError:
        return answer.status, content.decode(errors="replace")


def _segment(text):
    return urllib.parse.quote(text, safe="")


def register(server, localpart, admin=False):
    """A new account by the shared secret, as administrators of Synapse script it."""
    path = "/_synapse/admin/v1/register"
    status, answer = request(server, "GET", path)
    if status != 200:
        raise Refused("GET", path, None, status, answer)
    password = "correct horse battery staple"
    mac = hmac.new(SHARED_SECRET.encode(), digestmod=hashlib.sha1)
    kind = "admin" if admin else "notadmin"
    mac.update("\0".join([answer["nonce"], localpart, password, kind]).encode())
    body = {
        "nonce": answer["nonce"],
        "username": localpart,
        "password": password,
        "admin": admin,
        "mac": mac.hexdigest(),
    }
    status, answer = request(server, "POST", path, body)
    if status != 200:
        raise Refused("POST", path, body, status, answer)
    return User(server, answer["user_id"], answer["access_token"], password)


class Room:
    """What one user's /sync has said of one room."""

    def __init__(self):
        self.section = None  # join, invite, knock or leave: the section it was last seen in
        self.stripped = []  # of invite_state or knock_state
        self.timeline = []  # every event of every timeline, in the order of arrival
        self.state = {}  # (type, state_key) -> event, from state sections and timelines

    def stripped_event(self, event_type, state_key=""):
        for event in self.stripped:
            if event.get("type") == event_type and event.get("state_key") == state_key:
                return event
        return None

    def event(self, event_id):
        return next((event for event in self.timeline if event.get("event_id") == event_id), None)


class User:
    def __init__(self, server, user_id, token, password=None):
        self.server = server
        self.id = user_id
        self.token = token
        self.password = password
        self.rooms = {}
        self.since = None

    def __repr__(self):
        return f"{self.id} ({self.server.kind})"

    # -- requests --

    def attempt(self, method, path, body=None, query=None):
        """Status and body, whatever they are."""
        return request(self.server, method, "/_matrix/client" + path, body, self.token, query)

    def call(self, method, path, body=None, query=None):
        """The body of a 200; anything else is `Refused`."""
        status, answer = self.attempt(method, path, body, query)
        if status != 200:
            raise Refused(f"{self.id} {method}", path, body, status, answer)
        return answer

    def refused(self, status, errcode, method, path, body=None, query=None):
        """Demands a refusal with this status and errcode."""
        got, answer = self.attempt(method, path, body, query)
        if got != status or not isinstance(answer, dict) or answer.get("errcode") != errcode:
            raise Unmet(
                f"{self.id} expected {status} {errcode} of {method} {path} {_short(json.dumps(body))},"
                f" and got {got} {_short(json.dumps(answer))}"
            )
        return answer

    def create_room(self, version, join_rule="invite", **options):
        """A room of this version. `join_rule` is a plain rule, or the content of the join rules event."""
        rule = join_rule if isinstance(join_rule, dict) else {"join_rule": join_rule}
        state = [{"type": "m.room.join_rules", "state_key": "", "content": rule}]
        body = {
            "room_version": version,
            "preset": "private_chat",
            "name": f"Room {next(_numbers)}",
            "initial_state": state + options.pop("initial_state", []),
            **options,
        }
        return self.call("POST", "/v3/createRoom", body)["room_id"]

    def join(self, room, via=None):
        query = {"server_name": via, "via": via} if via else None
        return self.call("POST", f"/v3/join/{_segment(room)}", {}, query)["room_id"]

    def set_account_data(self, kind, content):
        self.call("PUT", f"/v3/user/{_segment(self.id)}/account_data/{_segment(kind)}", content)

    def knock(self, room, via=None, reason=None):
        query = {"server_name": via, "via": via} if via else None
        return self.call("POST", f"/v3/knock/{_segment(room)}", {"reason": reason} if reason else {}, query)["room_id"]

    def leave(self, room, reason=None):
        self.call("POST", f"/v3/rooms/{_segment(room)}/leave", {"reason": reason} if reason else {})

    def forget(self, room):
        self.call("POST", f"/v3/rooms/{_segment(room)}/forget", {})

    def _move(self, what, room, user, reason):
        body = {"user_id": user.id} | ({"reason": reason} if reason else {})
        self.call("POST", f"/v3/rooms/{_segment(room)}/{what}", body)

    def invite(self, room, user, reason=None):
        self._move("invite", room, user, reason)

    def kick(self, room, user, reason=None):
        self._move("kick", room, user, reason)

    def ban(self, room, user, reason=None):
        self._move("ban", room, user, reason)

    def unban(self, room, user):
        self._move("unban", room, user, None)

    def send(self, room, text):
        path = f"/v3/rooms/{_segment(room)}/send/m.room.message/t{next(_numbers)}"
        return self.call("PUT", path, {"msgtype": "m.text", "body": text})["event_id"]

    def set_state(self, room, event_type, content, state_key=""):
        path = f"/v3/rooms/{_segment(room)}/state/{_segment(event_type)}/{_segment(state_key)}"
        return self.call("PUT", path, content)["event_id"]

    def redact(self, room, event_id, reason):
        path = f"/v3/rooms/{_segment(room)}/redact/{_segment(event_id)}/t{next(_numbers)}"
        return self.call("PUT", path, {"reason": reason})["event_id"]

    # -- reads --

    def state_content(self, room, event_type, state_key=""):
        """The content of a state event, or None when the server has none or does not show it."""
        status, answer = self.attempt(
            "GET", f"/v3/rooms/{_segment(room)}/state/{_segment(event_type)}/{_segment(state_key)}"
        )
        return answer if status == 200 else None

    def membership_of(self, user, room):
        return (self.state_content(room, "m.room.member", user.id) or {}).get("membership")

    def members(self, room, membership):
        answer = self.call("GET", f"/v3/rooms/{_segment(room)}/members", query={"membership": membership})
        return {event["state_key"] for event in answer["chunk"]}

    def full_state(self, room):
        """(type, state_key) -> event id of the whole current state."""
        answer = self.call("GET", f"/v3/rooms/{_segment(room)}/state")
        return {(event["type"], event["state_key"]): event["event_id"] for event in answer}

    def messages(self, room, limit=50):
        """The newest events by /messages, newest first, without following further pages."""
        return self.call("GET", f"/v3/rooms/{_segment(room)}/messages", query={"dir": "b", "limit": limit})["chunk"]

    def all_messages(self, room, page=30, most_pages=60):
        """Every event that /messages gives from the newest back to where the server ends."""
        events, start = [], None
        for _ in range(most_pages):
            query = {"dir": "b", "limit": page} | ({"from": start} if start else {})
            answer = self.call("GET", f"/v3/rooms/{_segment(room)}/messages", query=query)
            events += answer["chunk"]
            start = answer.get("end")
            if start is None:
                return events
        raise Unmet(f"{self.id} never came to the end of /messages in {room}: {most_pages} pages, {len(events)} events")

    def event(self, room, event_id):
        return self.call("GET", f"/v3/rooms/{_segment(room)}/event/{_segment(event_id)}")

    # -- the mirror --

    def room(self, room):
        return self.rooms.setdefault(room, Room())

    def section(self, room):
        return self.room(room).section

    def sync(self, timeout_ms=0):
        # Presence is for the flows that are about it; of all others' it would be nothing but load.
        query = {"timeout": timeout_ms, "set_presence": "offline"} | ({"since": self.since} if self.since else {})
        answer = self.call("GET", "/v3/sync", query=query)
        for section, rooms in (answer.get("rooms") or {}).items():
            for room_id, said in rooms.items():
                self._take_in(self.room(room_id), section, said)
        self.since = answer["next_batch"]

    def _take_in(self, room, section, said):
        room.section = section
        if section in ("invite", "knock"):
            room.stripped = said.get(f"{section}_state", {}).get("events", [])
            return
        timeline = said.get("timeline", {}).get("events", [])
        room.timeline += timeline
        for event in said.get("state", {}).get("events", []) + timeline:
            if "state_key" in event:
                room.state[event["type"], event["state_key"]] = event

    def until(self, what, check):
        """Syncs until `check()` is true, and returns what it returned. `what` may be a function: asked when it failed."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.sync(POLL_MS if self.since else 0)
                got = check()
            except Refused as error:
                # Synapse fails for a moment of what is being taken out of its database. We are not to.
                if error.status != 500 or self.server.kind != "synapse":
                    raise
                got = None
                time.sleep(POLL_MS / 1000)
            if got:
                return got
            if time.monotonic() > deadline:
                raise Unmet(f"{self!r} did not see within {PATIENCE_SECONDS} s: {what() if callable(what) else what}")

    # -- expectations, each read back through this user's own server --

    def expect_section(self, room, section):
        self.until(
            lambda: f"{room} in the section {section} of /sync (it is in {self.section(room)})",
            lambda: self.section(room) == section,
        )
        return self.room(room)

    def expect_membership(self, user, room, membership):
        """`user` has this membership by the room's state and by the members list, as this member of the room sees it."""

        def check():
            content = self.state_content(room, "m.room.member", user.id)
            return content if content and content.get("membership") == membership else None

        content = self.until(f"{user.id} as {membership} in {room}", check)
        if self.server.kind == "dendrite":  # whose /members follows within moments
            self.until(f"{user.id} as {membership} by /members", lambda: user.id in self.members(room, membership))
        elif user.id not in self.members(room, membership):
            raise Unmet(f"{self!r}: the state says that {user.id} is {membership} in {room}, /members does not")
        return content

    def expect_event(self, room, event_id, body=None):
        """The event arrives by /sync, once, and /messages and /event have it too."""
        event = self.until(f"event {event_id} of {room} in /sync", lambda: self.room(room).event(event_id))
        if body is not None and event["content"].get("body") != body:
            raise Unmet(f"{self!r}: {event_id} has the content {event['content']}, not the body {body!r}")
        seen = sum(1 for other in self.room(room).timeline if other.get("event_id") == event_id)
        if seen != 1:
            raise Unmet(f"{self!r}: /sync told of {event_id} {seen} times")
        # Servers page by depth: what was said on a shorter branch may lie further back than the first page.
        pages = (read(room) for read in (self.messages, self.all_messages))
        if not any(other["event_id"] == event_id for page in pages for other in page):
            raise Unmet(f"{self!r}: {event_id} came by /sync, /messages lacks it")
        if self.event(room, event_id)["sender"] != event["sender"]:
            raise Unmet(f"{self!r}: /event differs from /sync on {event_id}")
        return event
