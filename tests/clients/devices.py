"""Devices of real clients, unchanged: matrix-js-sdk with its rust crypto in a process of node, and matrix-nio here.

Both kinds do the same verbs; what a client has for itself alone (cross-signing, secret storage and backup: js) is a verb
of that kind only. A verb that begins with `until_` returns once the client shows it, and is `Unmet` if it never does.
Closing a device is closing its app: its stores stay, and opening it goes on from them.
"""

import asyncio
import concurrent.futures
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import threading
import traceback
from base64 import b64decode

import client
import nio
from exchanges import in_background

PASSWORD = "correct horse battery staple"
LOOK_AGAIN_SECONDS = 0.02  # at what a client in this process knows
SCROLL_AFTER_SECONDS = 3
SYNC_MS = 1000  # nio asks for keys, and sends what verifying has it send, between two answers to /sync


class Node:
    """A process of node with devices of matrix-js-sdk (js/devices.mjs)."""

    command = None  # set once by the command line
    folder = None

    def __init__(self, log):
        self._log = open(log, "ab")
        self._process = subprocess.Popen(
            [*self.command, "devices.mjs"],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "DOORSTEP_CLIENTS_PATIENCE_MS": str(client.PATIENCE_SECONDS * 1000)},
            text=True,
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers = {}
        self._arrived = threading.Condition(self._lock)
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._arrived:
                self._answers[answer["id"]] = answer
                self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()

    def call(self, device, verb, args):
        number = next(self._numbers)
        line = json.dumps({"id": number, "device": device, "verb": verb, "args": args})
        with self._arrived:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            there = self._arrived.wait_for(
                lambda: number in self._answers or self._ended, timeout=3 * client.PATIENCE_SECONDS
            )
            answer = self._answers.pop(number, None) if there else None
        if answer is None:
            raise client.Unmet(f"{device}: {verb} {args} came to no end")
        if "error" in answer:
            raise client.Unmet(f"{device}: {verb} {args}: {answer['error']}")
        return answer["value"]

    def end(self):
        self._process.kill()
        self._process.wait()
        self._log.close()


def _camel(word):
    return re.sub(r"_(\w)", lambda found: found[1].upper(), word)


class JsDevice:
    """One device of matrix-js-sdk. Its verbs are the methods of js/devices.mjs, spelled as Python does."""

    kind = "js"

    def __init__(self, name, node, url):
        self.name = name
        self.url = url
        self._node = node

    def __getattr__(self, verb):
        if verb.startswith("_"):
            raise AttributeError(verb)

        def do(**args):
            return self._node.call(self.name, _camel(verb), {_camel(name): value for name, value in args.items()})

        return do

    def log_in(self, localpart, password=PASSWORD):
        answer = self._node.call(self.name, "login", {"baseUrl": self.url, "user": localpart, "password": password})
        self.localpart, self.user, self.id = localpart, answer["userId"], answer["deviceId"]
        return self

    def register(self, localpart, password=PASSWORD):
        self._node.call(self.name, "register", {"baseUrl": self.url, "user": localpart, "password": password})
        return self.log_in(localpart, password)


def _fine(answer):
    if isinstance(answer, nio.responses.ErrorResponse):
        raise client.Unmet(f"nio got {type(answer).__name__}: {answer}")
    return answer


def _traced(error):
    return "".join(traceback.format_exception(error)) if error else "without an error"


class NioDevice:
    """One device of matrix-nio, whose client syncs on an event loop of all of them."""

    kind = "nio"
    _loop = None
    _first = threading.Lock()

    def __init__(self, name, folder, url):
        self.name = name
        self.url = url
        self._folder = pathlib.Path(folder) / name
        self._folder.mkdir(parents=True)
        self._events = {}
        with NioDevice._first:  # flows begin at the same moment, and a second loop would be a second thread
            if NioDevice._loop is None:
                NioDevice._loop = in_background()

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(3 * client.PATIENCE_SECONDS)

    def _on_loop(self, action):
        """Everything that touches nio's stores happens there: they are bound to one file at a time, for all clients."""

        async def acting():
            return action()

        return self._do(acting())

    # -- the account --

    def _client(self, user):
        config = nio.AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True, backoff_factor=0.1,
                                       max_timeout_retry_wait_time=1)  # fmt: skip
        return nio.AsyncClient(self.url, user, store_path=str(self._folder), config=config)

    async def _made(self, user):
        return self._client(user)

    def register(self, localpart, password=PASSWORD):
        nio_client = self._do(self._made(localpart))
        try:
            _fine(self._do(nio_client.register(localpart, password, f"nio, {self.name}")))
            _fine(self._do(nio_client.logout()))
        finally:
            self._do(nio_client.close())
        return self.log_in(localpart, password)

    def log_in(self, localpart, password=PASSWORD):
        self.localpart, self._password = localpart, password
        self._nio = self._do(self._made(localpart))
        answer = _fine(self._do(self._nio.login(password, device_name=f"nio, {self.name}")))
        self.user, self.id, self._token = answer.user_id, answer.device_id, answer.access_token
        self._begin()
        return self

    def open(self):
        self._nio = self._do(self._made(self.user))
        self._on_loop(lambda: self._nio.restore_login(self.user, self.id, self._token))
        self._begin()

    def _begin(self):
        self._errors = []
        self._nio.add_event_callback(self._keep, nio.Event)
        self._nio.add_response_callback(self._note, nio.responses.ErrorResponse)
        self._nio.add_to_device_callback(self._on_verification, nio.KeyVerificationEvent)
        self._verification = None
        self._sync = asyncio.run_coroutine_threadsafe(self._go_on_syncing(), self._loop)
        self._until("the first sync, and the own keys at the server", self._is_ready)

    async def _go_on_syncing(self):
        """nio ends its own loop where a message that is sent has asked for the keys that the loop was about to ask for."""
        while True:
            try:
                return await self._nio.sync_forever(timeout=SYNC_MS, full_state=True)
            except nio.exceptions.LocalProtocolError as error:
                if "No key query required" not in str(error):
                    raise

    def _is_ready(self):
        return self._nio.next_batch and self._nio.olm.account.shared and not self._nio.should_upload_keys

    def close(self):
        if self._nio is None:
            return
        self._sync.cancel()
        concurrent.futures.wait([self._sync], timeout=10)
        self._do(self._nio.close())
        self._nio = None

    def logout(self):
        _fine(self._do(self._nio.logout()))
        self.close()

    async def _keep(self, room, event):
        self._events[room.room_id, event.event_id] = event

    async def _note(self, response):
        self._errors.append(f"{type(response).__name__}: {response}")

    def _until(self, what, look, seconds=None):
        async def looking():
            deadline = self._loop.time() + (seconds or client.PATIENCE_SECONDS)
            while not (got := look()):
                if self._loop.time() > deadline or self._sync.done():
                    told = what() if callable(what) else what
                    ended = f"; its sync ended: {_traced(self._sync.exception())}" if self._sync.done() else ""
                    raise client.Unmet(f"{self.name} did not see: {told}; errors {self._errors[-3:]}{ended}")
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
            return got

        return self._do(looking())

    # -- rooms --

    def create_room(self, name, join_rule=None, invite=(), version=None):
        state = [{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]
        if join_rule:
            state.append({"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": join_rule}})
        made = self._nio.room_create(
            name=name, invite=invite, preset=nio.RoomPreset.private_chat, room_version=version, initial_state=state
        )
        room = _fine(self._do(made)).room_id
        self.until_membership(room=room, membership="join")
        return room

    def until_membership(self, room, membership):
        sections = {"join": lambda: self._nio.rooms, "invite": lambda: self._nio.invited_rooms}
        if membership == "knock":
            return {}  # nio reads no knocks
        self._until(f"{membership} in {room}", lambda: room in sections[membership]())
        seen = sections[membership]()[room]
        if membership == "invite":
            return {"name": seen.name, "encrypted": True, "by": seen.inviter}  # nio reads no m.room.encryption there
        return {"name": seen.name, "encrypted": seen.encrypted, "by": self.user}

    def until_member(self, room, user, membership):
        def look():
            known = self._nio.rooms[room]
            if membership == "join":
                return user in known.users and user not in known.invited_users
            if membership == "invite":
                return user in known.invited_users
            return user not in known.users

        if membership == "knock":
            answer = _fine(self._do(self._nio.room_get_state_event(room, "m.room.member", user)))
            if answer.content.get("membership") != "knock":
                raise client.Unmet(f"{self.name}: {user} in {room} is {answer.content}")
        else:
            self._until(f"{user} as {membership} in {room}", look)

    def until_encrypted(self, room):
        self._until(f"that {room} is encrypted", lambda: room in self._nio.rooms and self._nio.rooms[room].encrypted)

    def invite(self, room, user):
        _fine(self._do(self._nio.room_invite(room, user)))

    def join(self, room, via=None):
        # nio names no servers to join by: an invite is enough.
        _fine(self._do(self._nio.join(room)))
        self.until_membership(room=room, membership="join")
        self.until_encrypted(room=room)

    def knock(self, room, via=None, reason=None):
        _fine(self._do(self._nio.room_knock(room, reason=reason)))

    def leave(self, room):
        _fine(self._do(self._nio.room_leave(room)))

    def send(self, room, body):
        content = {"msgtype": "m.text", "body": body}
        for _ in range(10):
            sending = self._nio.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
            try:
                return _fine(self._do(sending)).event_id
            except KeyError:
                pass  # nio stumbles when it hears of a device just as it shares a session
        raise client.Unmet(f"{self.name} could not share a session for {room}")

    def send_picture(self, room, name, base64):
        plain = b64decode(base64)
        uploading = self._nio.upload(lambda *_: io.BytesIO(plain), "image/png", name, encrypt=True, filesize=len(plain))
        uploaded, file = self._do(uploading)
        file["url"] = _fine(uploaded).content_uri
        info = {"mimetype": "image/png", "size": len(plain)}
        content = {"msgtype": "m.image", "body": name, "file": file, "info": info}
        sending = self._nio.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
        return _fine(self._do(sending)).event_id

    def send_rekeyed(self, room, body):
        self._nio.invalidate_outbound_session(room)
        return self.send(room=room, body=body)

    def _shown(self, event):
        failure = None
        if isinstance(event, nio.MegolmEvent):
            try:
                event = self._nio.decrypt_event(event)
            except nio.exceptions.EncryptionError as error:
                failure = str(error)
        return {
            "id": event.event_id,
            "sender": event.sender,
            "type": event.source.get("type"),
            "body": getattr(event, "body", None),
            "encrypted": failure is not None or event.decrypted,
            "failure": failure,
        }

    def read(self, room, id):
        def look():
            event = self._events.get((room, id))
            told = event and self._shown(event)
            return told if told and told["failure"] is None else None

        try:
            self._until(f"{id} of {room}", lambda: (room, id) in self._events, SCROLL_AFTER_SECONDS)
        except client.Unmet:
            # It may lie before a gap in what was synced, where whoever looks for it scrolls to.
            self._scroll_back(room, 50)
        try:
            return self._until(f"{id} of {room}", look)
        except client.Unmet:
            if (room, id) not in self._events:
                raise
            return self._on_loop(lambda: self._shown(self._events[room, id]))

    def _scroll_back(self, room, count):
        """The newest `count` messages, newest first."""
        seen, start = [], self._nio.next_batch
        while len(seen) < count and start:
            page = _fine(self._do(self._nio.room_messages(room, start, limit=50)))
            seen += [event for event in page.chunk if isinstance(event, (nio.RoomMessageText, nio.MegolmEvent))]
            start = page.end if page.chunk else None
        for event in seen:
            self._events.setdefault((room, event.event_id), event)
        return seen[:count]

    def history(self, room, count):
        newest = list(reversed(self._scroll_back(room, count)))
        try:
            self._until("every key", lambda: all(self._shown(event)["failure"] is None for event in newest))
        except client.Unmet:
            pass
        return self._on_loop(lambda: [self._shown(event) for event in newest])

    # -- keys --

    def devices_of(self, user):
        known = self._nio.device_store.active_user_devices(user)
        return {device.id: {"verified": device.verified, "signedByOwner": False} for device in known}

    def until_devices(self, user, ids):
        self._until(
            lambda: f"{user} with the devices {ids} (it has {list(self.devices_of(user))})",
            lambda: set(self.devices_of(user)) == set(ids),
        )
        return self.devices_of(user)

    def delete_device(self, id):
        asked = self._do(self._nio.delete_devices([id]))
        if not isinstance(asked, nio.DeleteDevicesAuthResponse):
            raise client.Unmet(f"{self.name}: the password was not asked for, but {asked}")
        identifier = {"type": "m.id.user", "user": self.user}
        auth = {"type": "m.login.password", "identifier": identifier, "password": self._password,
                "session": asked.session}  # fmt: skip
        _fine(self._do(self._nio.delete_devices([id], auth)))
        return {"passwordAsked": 1}

    def until_logged_out(self):
        self._until(
            "being logged out",
            lambda: any("M_UNKNOWN_TOKEN" in error for error in self._errors),
        )
        self.close()  # nio would ask on and on

    # -- verification by emoji, device to device --

    async def _on_verification(self, event):
        if isinstance(event, nio.KeyVerificationStart):
            self._verification = event.transaction_id

    def start_emoji_with(self, user, id):
        device = self._nio.device_store[user][id]
        _fine(self._do(self._nio.start_key_verification(device)))
        self._verification = self._nio.get_active_sas(user, id).transaction_id

    def accept_emoji(self):
        self._until("the start of the verification", lambda: self._verification)
        _fine(self._do(self._nio.accept_key_verification(self._verification)))

    def emoji(self):
        sas = self._nio.key_verifications[self._verification]
        self._until("the other's key", lambda: sas.established_sas)
        return [name for _, name in sas.get_emoji()]

    def confirm_emoji(self, second):  # noqa: ARG002 - its words are sent in their order, whoever is the first
        _fine(self._do(self._nio.confirm_short_auth_string(self._verification)))

    def until_verified(self):
        sas = self._nio.key_verifications[self._verification]
        self._until("the end of the verification", lambda: sas.verified)
