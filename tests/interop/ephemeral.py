"""Flows of what is no part of a room's history: typing, receipts, presence, messages to devices, device lists."""

import itertools
import time

import client
from flows import demand, flow, join_and_see

# The room's version makes no difference to any of them.
ONE = ["12"]

_numbers = itertools.count(1)


class Ears:
    """Listens to a user's /sync beside the user's own mirror."""

    def __init__(self, user):
        self.user = user
        self.since = None
        self.listen(0)

    def listen(self, timeout_ms):
        """One /sync that says nothing of the user's presence."""
        query = {"timeout": timeout_ms, "set_presence": "offline"} | ({"since": self.since} if self.since else {})
        answer = self.user.call("GET", "/v3/sync", query=query)
        self.since = answer["next_batch"]
        return answer

    def hear(self, what, find, seconds=None):
        """Syncs until `find` makes something of an answer, and returns it."""
        deadline = time.monotonic() + (seconds or client.PATIENCE_SECONDS)
        while time.monotonic() < deadline:
            found = find(self.listen(client.POLL_MS))
            if found:
                return found
        raise client.Unmet(f"{self.user!r} never heard {what}")


def in_room(answer, room, event_type):
    """The contents of the ephemeral events of a room."""
    said = answer.get("rooms", {}).get("join", {}).get(room, {})
    return [e["content"] for e in said.get("ephemeral", {}).get("events", []) if e["type"] == event_type]


def common_room(t):
    """A host and a guest who are in a room and have heard each other there."""
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    for one, other in ((host, guest), (guest, host)):
        other.expect_event(room, one.send(room, "hello"))
    return host, guest, room


def types(user, room, typing):
    body = {"typing": typing} | ({"timeout": 30000} if typing else {})
    user.call("PUT", f"/v3/rooms/{room}/typing/{user.id}", body)


@flow("typing is seen on the other side, both ways", ONE)
def typing(t):
    host, guest, room = common_room(t)
    for typist, reader in ((host, guest), (guest, host)):
        ears = Ears(reader)
        for state in (True, False):
            types(typist, room, state)
            expected = {"user_ids": [typist.id] if state else []}
            ears.hear(f"typing: {expected}", lambda answer, e=expected: e in in_room(answer, room, "m.typing"))


def receipt_of(answer, room, user, kind="m.read"):
    """(event, data) of the receipt that an answer has of a user."""
    for content in in_room(answer, room, "m.receipt"):
        for event_id, kinds in content.items():
            if user.id in kinds.get(kind, {}):
                return event_id, kinds[kind][user.id]
    return None


@flow("receipts are seen on the other side, private ones are not", ONE)
def receipts(t):
    host, guest, room = common_room(t)
    for writer, reader in ((host, guest), (guest, host)):
        ears = Ears(writer)
        first, second = writer.send(room, "read this"), writer.send(room, "and this")
        reader.expect_event(room, second)
        path = f"/v3/rooms/{room}/receipt"
        reader.call("POST", f"{path}/m.read.private/{second}", {})
        reader.call("POST", f"{path}/m.read/{first}", {"thread_id": "main"})
        event_id, data = ears.hear("the receipt", lambda answer, u=reader: receipt_of(answer, room, u))
        demand(event_id == first, f"the receipt is for {event_id}, not for {first}")
        demand(data.get("thread_id") == "main" and isinstance(data.get("ts"), int), f"the receipt says {data}")


@flow("presence and its status are seen on the other side, both ways", ONE)
def presence(t):
    host, guest, _ = common_room(t)
    for one, other in ((host, guest), (guest, host)):
        ears = Ears(other)
        status = f"status {next(_numbers)}"
        one.call("PUT", f"/v3/presence/{one.id}/status", {"presence": "unavailable", "status_msg": status})

        def told(answer, sender=one.id, text=status):
            contents = [e["content"] for e in answer.get("presence", {}).get("events", []) if e["sender"] == sender]
            return any(c["presence"] == "unavailable" and c.get("status_msg") == text for c in contents)

        ears.hear(f"{one.id} unavailable, {status}", told)
        read = other.call("GET", f"/v3/presence/{one.id}/status")
        demand(read["presence"] == "unavailable", f"{other!r} reads {read}")


@flow("messages to devices arrive in order, once, both ways", ONE)
def to_device(t):
    host, guest = t.host(), t.guest()
    for sender, receiver in ((host, guest), (guest, host)):
        ears = Ears(receiver)
        device = receiver.call("GET", "/v3/account/whoami")["device_id"]
        for number in range(5):
            # Synapse knows the star only where it stands alone.
            to = {device: {"n": number}, "NONE": {"n": -1}} if number % 2 else {"*": {"n": number}}
            body = {"messages": {receiver.id: to}}
            for _ in range(2):
                sender.call("PUT", f"/v3/sendToDevice/org.example.test/t{number}", body)
        got = []

        def collect(answer, got=got, sender=sender):
            events = answer.get("to_device", {}).get("events", [])
            got += [e["content"]["n"] for e in events if e["sender"] == sender.id and e["type"] == "org.example.test"]
            return len(got) >= 5

        ears.hear("five messages", collect)
        collect(ears.listen(0))
        demand(got == [0, 1, 2, 3, 4], f"{receiver!r} got {got}")


@flow("a new device is told to the other side, both ways", ONE)
def device_lists(t):
    host, guest, _ = common_room(t)
    for one, other in ((host, guest), (guest, host)):
        ears = Ears(other)
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": one.id},
            "password": one.password,
            "initial_device_display_name": "another",
        }
        # The first news of somebody makes Synapse fetch the list as a whole, and it tells its client nothing if no
        # device on it has keys. It knows the next news as such.
        for last in (False, False, True):
            one.call("POST", "/v3/login", body)
            try:
                ears.hear(
                    f"that the devices of {one.id} changed",
                    lambda answer, user=one.id: user in (answer.get("device_lists") or {}).get("changed", []),
                    None if last else 10,
                )
                break
            except client.Unmet:
                if last:
                    raise
