"""Clients that people use, unchanged, against a server and without encryption: from login to a knock that is let in."""

import asyncio
import subprocess

import client
import nio
from devices import Node
from flows import demand


def nio_knocks_and_talks(server, unique):
    """Two nio clients on one server: log in, make a room, knock, invite, join, talk, page back, leave, log out."""
    accounts = [client.register(server, f"nio{number}-{unique}") for number in (1, 2)]
    asyncio.run(_talk(server, accounts))


def _fine(answer):
    demand(not isinstance(answer, nio.responses.ErrorResponse), f"nio got {answer}")
    return answer


async def _until(nio_client, what, check):
    for _ in range(100):
        _fine(await nio_client.sync(timeout=400))
        if check():
            return
    raise client.Unmet(f"nio's {nio_client.user_id} did not see {what}")


def _receipt_in(events, user_id, event_id):
    receipts = [receipt for event in events for receipt in getattr(event, "receipts", [])]
    return any(receipt.user_id == user_id and receipt.event_id == event_id for receipt in receipts)


async def _tidy_devices(nio_client, password):
    """Looks at the account's devices, of which one has asked for nothing yet, and deletes all but nio's own."""
    devices = _fine(await nio_client.devices()).devices
    others = [device.id for device in devices if device.id != nio_client.device_id]
    demand(len(others) == 1 and len(devices) == 2, f"nio sees the devices {devices}")
    demand(all(device.last_seen_ip == "127.0.0.1" for device in devices), f"nio does not see where {devices} were")
    asked = _fine(await nio_client.delete_devices(others))
    identifier = {"type": "m.id.user", "user": nio_client.user_id}
    auth = {"type": "m.login.password", "identifier": identifier, "password": password, "session": asked.session}
    _fine(await nio_client.delete_devices(others, auth))
    left = _fine(await nio_client.devices()).devices
    demand([device.id for device in left] == [nio_client.device_id], f"nio sees {left} left")


async def _talk(server, accounts):
    url = server.exchanges.url
    owner, knocker = (nio.AsyncClient(url, account.id) for account in accounts)
    heard = []
    knocker.add_event_callback(lambda room, event: heard.append((room.room_id, event.body)), nio.RoomMessageText)
    try:
        for nio_client, account in zip((owner, knocker), accounts):
            _fine(await nio_client.login(account.password, device_name="nio"))
            demand(nio_client.logged_in, "nio is not logged in")
            _fine(await nio_client.set_displayname(f"Nio {account.id[1:5]}"))
            _fine(await nio_client.sync())
        await _tidy_devices(owner, accounts[0].password)
        rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
        room = _fine(await owner.room_create(name="Nio's room", room_version="11", initial_state=[rule])).room_id
        await _until(owner, "its own room", lambda: room in owner.rooms)
        demand(owner.rooms[room].name == "Nio's room", f"nio reads the room's name as {owner.rooms[room].name}")

        _fine(await knocker.room_knock(room, reason="may I?"))
        members = _fine(await owner.room_get_state_event(room, "m.room.member", knocker.user_id))
        demand(members.content.get("membership") == "knock", f"nio reads the knock as {members.content}")
        _fine(await owner.room_invite(room, knocker.user_id))
        await _until(knocker, "the invite", lambda: room in knocker.invited_rooms)
        _fine(await knocker.join(room))
        await _until(knocker, "the joined room", lambda: room in knocker.rooms)

        content = {"msgtype": "m.text", "body": "hello from nio"}
        sent = _fine(await owner.room_send(room, "m.room.message", content))
        await _until(knocker, "the message", lambda: (room, "hello from nio") in heard)
        page = _fine(await knocker.room_messages(room, knocker.next_batch, limit=20))
        demand(sent.event_id in [event.event_id for event in page.chunk], "nio's /messages lacks the message")
        fleeting = []
        owner.add_ephemeral_callback(lambda _, event: fleeting.append(event), (nio.TypingNoticeEvent, nio.ReceiptEvent))
        _fine(await knocker.room_typing(room, True))
        await _until(owner, "typing", lambda: any(knocker.user_id in getattr(e, "users", []) for e in fleeting))
        _fine(await knocker.room_read_markers(room, sent.event_id, sent.event_id))
        await _until(owner, "the receipt", lambda: _receipt_in(fleeting, knocker.user_id, sent.event_id))
        whispers = []
        knocker.add_to_device_callback(whispers.append, nio.UnknownToDeviceEvent)
        whisper = nio.ToDeviceMessage("org.example.whisper", knocker.user_id, knocker.device_id, {"body": "psst"})
        _fine(await owner.to_device(whisper))
        await _until(knocker, "the message to its device", lambda: len(whispers) == 1)
        _fine(await owner.room_redact(room, sent.event_id, "unsaid"))
        joined = _fine(await owner.joined_members(room))
        demand(len(joined.members) == 2, f"nio counts {joined.members}")
        _fine(await knocker.room_leave(room))
        _fine(await knocker.room_forget(room))
        for nio_client in (owner, knocker):
            _fine(await nio_client.logout())
    finally:
        for nio_client in (owner, knocker):
            await nio_client.close()


def js_sdk_knocks_and_talks(server, unique):
    """The same with matrix-js-sdk, in a process of node."""
    _node(server, "plain.mjs", [f"js{number}-{unique}" for number in (1, 2)])


def js_sdk_is_pushed_to(server, unique):
    """matrix-js-sdk has what its users are notified of sent to a push gateway; a knock rings, and a door opens by itself."""
    _node(server, "push.mjs", [f"push{number}-{unique}" for number in (1, 2, 3)])


def _node(server, script, names):
    words = [server.exchanges.url]
    for name in names:
        account = client.register(server, name)
        words += [account.id, account.password]
    command = [*Node.command, script, *words]
    try:
        done = subprocess.run(command, cwd=Node.folder, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired as error:
        raise client.Unmet("matrix-js-sdk came to no end within 180 s") from error
    demand(done.returncode == 0, f"matrix-js-sdk: {done.stderr.strip() or done.stdout.strip()}")


TALKS = "unencrypted: from login to a knock that is let in"
PLAIN = [
    ("nio", TALKS, nio_knocks_and_talks),
    ("js", TALKS, js_sdk_knocks_and_talks),
    ("js", "push, badges, the bell, the open door", js_sdk_is_pushed_to),
]
