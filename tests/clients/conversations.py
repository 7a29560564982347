"""What is proved of clients that encrypt: each flow is a function of a stage, on which there is a `host` server, which
has the room, and a `guest` server. They may be one. What is claimed is what the clients show.
"""

import concurrent.futures
import shutil
import threading

import client
import devices
from flows import demand

JS_ONLY = (("js", "js"),)
LIKE_WITH_LIKE = (("js", "js"), ("nio", "nio"))
ALL_KINDS = (("js", "js"), ("nio", "nio"), ("js", "nio"))

# (title, kinds of clients, whether it kills the host's server, function)
CONVERSATIONS = []


def conversation(title, kinds, kills=False):
    def enlist(function):
        CONVERSATIONS.append((title, kinds, kills, function))
        return function

    return enlist


class Stage:
    """Where one flow plays: two servers, the kinds of client of the host and of the guest, devices as they are needed."""

    def __init__(self, host_server, guest_server, kinds, unique, folder):
        self.host_server = host_server
        self.guest_server = guest_server
        self.kinds = kinds
        self.unique = unique
        self.folder = folder
        self._made = 0
        self._node = None
        self._of_nio = []

    def begin(self):
        self.folder.mkdir(parents=True)

    def end(self):
        for device in self._of_nio:
            device.close()
        if self._node:
            self._node.end()

    def next_name(self, role):
        """What the next device is called, and its user if it registers."""
        return f"{role}{self._made + 1}-{self.unique}"

    def _device(self, server, kind, role):
        name = self.next_name(role)
        self._made += 1
        if kind == "js":
            if self._node is None:
                self._node = devices.Node(self.folder / "node.log")
            return devices.JsDevice(name, self._node, server.exchanges.url)
        device = devices.NioDevice(name, self.folder, server.exchanges.url)
        self._of_nio.append(device)
        return device

    def host(self):
        device = self._device(self.host_server, self.kinds[0], "host")
        device.server = self.host_server
        return device.register(device.name)

    def guest(self):
        device = self._device(self.guest_server, self.kinds[1], "guest")
        device.server = self.guest_server
        return device.register(device.name)

    def another(self, device):
        """A new device of the same account, not logged in yet."""
        made = self._device(device.server, device.kind, "more")
        made.server = device.server
        return made

    @property
    def via(self):
        return self.host_server.name


# -- steps that several flows share --


def at_once(*actions):
    """Does all of them at the same time, and ends when all have."""
    with concurrent.futures.ThreadPoolExecutor(len(actions)) as pool:
        return [done.result() for done in [pool.submit(action) for action in actions]]


def readable(reader, room, event_id, body):
    told = reader.read(room=room, id=event_id)
    demand(told["encrypted"], f"{reader.name}: {event_id} was not encrypted: {told}")
    demand(told["failure"] is None, f"{reader.name} cannot decrypt {event_id}: {told['failure']}")
    demand(told["body"] == body, f"{reader.name} reads {event_id} as {told}, not as {body!r}")


def says(speaker, room, readers, body):
    event_id = speaker.send(room=room, body=body)
    for reader in readers:
        readable(reader, room, event_id, body)
    return event_id


def both_talk(host, guest, room):
    for speaker, reader in ((host, guest), (guest, host)):
        says(speaker, room, [reader, speaker] if speaker.kind == "nio" else [reader], f"{speaker.name} speaks")


def room_of_two(host, guest):
    """An encrypted room, to which the guest is invited as its client shows it."""
    room = host.create_room(name="Between us")
    host.invite(room=room, user=guest.user)
    shown = guest.until_membership(room=room, membership="invite")
    demand(shown["encrypted"], f"{guest.name}: the invite does not say that the room is encrypted: {shown}")
    demand(shown["by"] == host.user, f"{guest.name}: the invite is shown as by {shown['by']}")
    demand("Between us" in shown["name"], f"{guest.name}: the invite shows the name {shown['name']}")
    guest.join(room=room)
    host.until_member(room=room, user=guest.user, membership="join")
    return room


def emoji_agree(asker, other):
    """Both show the same seven, and both say that they match."""
    ours, theirs = at_once(asker.emoji, other.emoji)
    demand(len(ours) == 7 and ours == theirs, f"{asker.name} shows {ours}, {other.name} shows {theirs}")
    # The second when the first one's word is there: js sends its own word and the end of it one after the other only then.
    # If the first one's word came while its own is on the way, it would send both at once, in any order.
    asker.confirm_emoji(second=False)
    other.confirm_emoji(second=True)
    for device in (asker, other):
        device.until_verified()


def verify_each_other(asker, other, room):
    """By a request in their room, as Element does it."""
    asker.ask_verification(user=other.user, room=room)
    other.accept_verification()
    asker.start_emoji()
    emoji_agree(asker, other)


def verify_own(old, new):
    new.ask_verification()
    old.accept_verification()
    new.start_emoji()
    emoji_agree(new, old)


# -- the flows --


@conversation("an encrypted room, a message each way", ALL_KINDS)
def message_both_ways(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    # A session of its own for each message: each is a claim, or an Olm message over the session there is.
    for number in range(3):
        for speaker, reader in ((host, guest), (guest, host)):
            event_id = speaker.send_rekeyed(room=room, body=f"number {number}")
            readable(reader, room, event_id, f"number {number}")


@conversation("knock, invite and join, then an encrypted message", LIKE_WITH_LIKE)
def knocks_and_talks(stage):
    host, guest = stage.host(), stage.guest()
    room = host.create_room(name="Knock first", join_rule="knock", version="11")
    elsewhere = stage.host_server is not stage.guest_server
    if elsewhere and guest.kind == "nio":
        return  # nio names no server to knock by
    guest.knock(room=room, via=stage.via if elsewhere else None, reason="may I?")
    host.until_member(room=room, user=guest.user, membership="knock")
    host.invite(room=room, user=guest.user)
    shown = guest.until_membership(room=room, membership="invite")
    demand(shown["encrypted"], f"{guest.name}: the invite does not say that the room is encrypted: {shown}")
    guest.join(room=room)
    host.until_member(room=room, user=guest.user, membership="join")
    both_talk(host, guest, room)


@conversation("two users compare emoji", JS_ONLY)
def compare_emoji(stage):
    host, guest = stage.host(), stage.guest()
    for device in (host, guest):
        first = device.set_up_cross_signing()
        demand(first == {"passwordAsked": 0, "ready": True}, f"{device.name}: the first cross-signing keys: {first}")
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    demand(not host.user_status(user=guest.user)["verified"], "verified before anybody looked")
    verify_each_other(host, guest, room)
    for one, other in ((host, guest), (guest, host)):
        one.until_user_status(user=other.user, wanted={"verified": True})
        one.until_signed(user=other.user, ids=[other.id])
    both_talk(host, guest, room)
    # A new device of the guest, verified by its old one, is trusted by the host for the owner's signature.
    second = stage.another(guest).log_in(guest.localpart)
    host.until_devices(user=guest.user, ids=[guest.id, second.id])
    verify_own(guest, second)
    told = host.until_signed(user=guest.user, ids=[guest.id, second.id])
    demand(all(told[id]["verified"] for id in (guest.id, second.id)), f"{host.name} trusts {told}")
    says(host, room, [guest, second], "to both of yours")
    # The guest starts anew: the host is told, and no longer trusts.
    anew = guest.set_up_cross_signing(anew=True)
    demand(anew["passwordAsked"] == 1, f"{guest.name}: new keys in place of old ones: {anew}")
    host.until_user_status(user=guest.user, wanted={"verified": False})


@conversation("two devices compare emoji", (("nio", "nio"),))
def devices_compare_emoji(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    host.until_devices(user=guest.user, ids=[guest.id])
    guest.until_devices(user=host.user, ids=[host.id])
    host.start_emoji_with(user=guest.user, id=guest.id)
    guest.accept_emoji()
    emoji_agree(host, guest)
    for one, other in ((host, guest), (guest, host)):
        told = one.devices_of(user=other.user)
        demand(told[other.id]["verified"], f"{one.name} sees {told}")
    both_talk(host, guest, room)


@conversation("secret storage, key backup, restored on a second device", JS_ONLY)
def backup_and_restore(stage):
    host, guest = stage.host(), stage.guest()
    demand(host.set_up_cross_signing()["ready"], "cross-signing was not ready")
    kept = host.set_up_recovery(passphrase="open sesame, please")
    demand(kept["ready"] and kept["version"], f"{host.name}: secret storage: {kept}")
    room = room_of_two(host, guest)
    said = []
    for number in range(12):
        speaker = (host, guest)[number % 2]
        said.append((speaker.send_rekeyed(room=room, body=f"old {number}"), f"old {number}"))
    for event_id, body in said:
        readable(host, room, event_id, body)
    backed_up = host.until_backed_up(count=12)
    host.close()
    second = stage.another(host).log_in(host.localpart)
    restored = second.recover(recovery_key=kept["recoveryKey"])
    demand(restored["ready"] and restored["passwordAsked"] == 0, f"{second.name}: {restored}")
    demand(restored["imported"] == restored["total"] == backed_up["count"], f"{restored} of {backed_up}")
    read = {told["id"]: told for told in second.history(room=room, count=12)}
    for event_id, body in said:
        demand(read.get(event_id, {}).get("body") == body, f"{second.name} reads {event_id} as {read.get(event_id)}")
    guest.until_signed(user=host.user, ids=[second.id])
    says(guest, room, [second], "to the new one")
    says(second, room, [guest], "from the new one")
    # It goes on with the same backup; a new version of it makes the former one's word an error, and is found.
    more = second.until_backed_up(count=backed_up["count"] + 1)
    demand(more["version"] == backed_up["version"] and more["etag"] != backed_up["etag"], f"{backed_up}, then {more}")
    version = second.reset_backup()
    demand(version and version != more["version"], f"a new backup has the version {version}")
    again = second.until_backed_up(count=more["count"])
    demand(again["version"] == version, f"{again}, not version {version}")


@conversation("a dehydrated device takes in what comes while no other is there", JS_ONLY)
def dehydrated_device(stage):
    host, guest = stage.host(), stage.guest()
    demand(host.set_up_cross_signing()["ready"], "cross-signing was not ready")
    kept = host.set_up_recovery()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    host.dehydrate()
    guest.until_devices_count(user=host.user, count=2)
    host.logout()
    guest.until_devices_count(user=host.user, count=1)
    said = [(guest.send_rekeyed(room=room, body=f"to nobody {n}"), f"to nobody {n}") for n in range(3)]
    second = stage.another(host).log_in(host.localpart)
    second.recover(recovery_key=kept["recoveryKey"])
    told = second.rehydrate()
    demand(told["failed"] is None, f"{second.name}: {told}")
    for event_id, body in said:
        readable(second, room, event_id, body)


@conversation("the account's secrets come from a verified own device", JS_ONLY)
def secrets_between_devices(stage):
    host, guest = stage.host(), stage.guest()
    demand(host.set_up_cross_signing()["ready"], "cross-signing was not ready")
    host.set_up_recovery()
    room = room_of_two(host, guest)
    said = [(host.send_rekeyed(room=room, body=f"before {n}"), f"before {n}") for n in range(3)]
    host.until_backed_up(count=3)
    second = stage.another(host).log_in(host.localpart)
    verify_own(host, second)
    second.until_secrets()
    guest.until_signed(user=host.user, ids=[host.id, second.id])
    # What was said before comes out of the backup, for which the key came along.
    read = {told["id"]: told for told in second.history(room=room, count=3)}
    for event_id, body in said:
        demand(read.get(event_id, {}).get("body") == body, f"{second.name} reads {event_id} as {read.get(event_id)}")
    says(guest, room, [host, second], "to both")


@conversation("a device more, then a device less", LIKE_WITH_LIKE)
def device_added_and_removed(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    second = stage.another(guest).log_in(guest.localpart)
    host.until_devices(user=guest.user, ids=[guest.id, second.id])
    says(host, room, [guest, second], "to both of yours")
    says(second, room, [host, guest], "from the new one")
    guest.delete_device(id=second.id)
    second.until_logged_out()
    host.until_devices(user=guest.user, ids=[guest.id])
    keys_sent = host.server.exchanges.watch("/sendToDevice/m.room.encrypted/")
    event_id = host.send_rekeyed(room=room, body="to the one that is left")
    readable(guest, room, event_id, "to the one that is left")
    told = {id for body in keys_sent for id in body["messages"].get(guest.user, {})}
    demand(told == {guest.id}, f"{host.name} encrypted for {told}, of which {second.id} is gone")
    # It comes back as another one.
    third = stage.another(guest).log_in(guest.localpart)
    host.until_devices(user=guest.user, ids=[guest.id, third.id])
    says(host, room, [guest, third], "to two again")
    third.logout()
    host.until_devices(user=guest.user, ids=[guest.id])


OFFLINE_MESSAGES = 110  # more to-device messages than one answer of /sync carries


@conversation("offline for long", LIKE_WITH_LIKE)
def offline_for_long(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    guest.close()
    said = [(host.send_rekeyed(room=room, body=f"missed {n}"), f"missed {n}") for n in range(OFFLINE_MESSAGES)]
    guest.open()
    readable(guest, room, *said[-1])  # all have arrived when the last has
    read = {told["id"]: told for told in guest.history(room=room, count=OFFLINE_MESSAGES)}
    unread = [(body, read.get(event_id)) for event_id, body in said if read.get(event_id, {}).get("body") != body]
    demand(not unread, f"{guest.name} cannot read {len(unread)} of {len(said)}: {unread[:3]}")
    both_talk(host, guest, room)


@conversation("one-time keys run out", JS_ONLY)
def one_time_keys_run_out(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    guest.close()
    # Somebody takes all there are, from the guest's own server and from the other.
    thieves = [client.register(server, f"thief{n}-{guest.localpart}") for n, server in
               enumerate((stage.guest_server, stage.host_server))]  # fmt: skip
    given, fallback = {}, None
    while fallback is None:
        demand(len(given) < 200, f"{guest.id} has no end of one-time keys")
        thief = thieves[len(given) % 2]
        body = {"one_time_keys": {guest.user: {guest.id: "signed_curve25519"}}}
        answer = thief.call("POST", "/v3/keys/claim", body)
        keys = answer["one_time_keys"].get(guest.user, {}).get(guest.id, {})
        demand(len(keys) == 1, f"claim {len(given)} gave {answer}")
        ((key_id, key),) = keys.items()
        if key.get("fallback"):
            fallback = key_id
        else:
            demand(key["key"] not in given, f"{key_id} was given twice")
            given[key["key"]] = key_id
    demand(len(given) >= 40, f"only {len(given)} one-time keys were there")
    again = thieves[0].call("POST", "/v3/keys/claim", body)["one_time_keys"][guest.user][guest.id]
    demand(list(again) == [fallback], f"after the fallback key {fallback} came {again}")
    # A device that has no Olm session with the guest's: only the fallback key is left to begin one.
    second = stage.another(host).log_in(host.localpart)
    said = second.send(room=room, body="by the fallback key")
    third = stage.another(host).log_in(host.localpart)
    said_too = third.send(room=room, body="by the same one")
    guest.open()
    readable(guest, room, said, "by the fallback key")
    readable(guest, room, said_too, "by the same one")
    # It has given new ones, and another fallback key.
    fresh = thieves[0].until(
        "a new one-time key", lambda: claimed(thieves[0], guest, body, {fallback, *given.values()})
    )
    demand(not fresh.get("fallback"), f"{fresh} is still a fallback key")
    both_talk(second, guest, room)


def claimed(thief, guest, body, former):
    keys = thief.call("POST", "/v3/keys/claim", body)["one_time_keys"].get(guest.user, {}).get(guest.id, {})
    return next((key for key_id, key in keys.items() if key_id not in former), None)


@conversation("answers lost on the way", LIKE_WITH_LIKE)
def answers_lost(stage):
    host = stage.host()
    name_of_guest = stage.next_name("guest")
    left = []
    for part, times in (("/keys/upload", 1), ("/keys/claim", 1), ("/sendToDevice", 1), ("/keys/query", 2)):
        left.append((part, stage.guest_server.exchanges.lose_answers(part, times, name_of_guest)))
    guest = stage.guest()
    room = room_of_two(host, guest)
    both_talk(guest, host, room)
    both_talk(host, guest, room)
    for part, count in left:
        demand(count() == 0, f"no answer to {part} was lost")
    lost = stage.guest_server.exchanges.lose_answers("/sync", 3, name_of_guest)
    both_talk(guest, host, room)
    event_id = host.send_rekeyed(room=room, body="into the gap")
    readable(guest, room, event_id, "into the gap")
    demand(lost() == 0, "no answer to /sync was lost")


@conversation("who left reads no more, who comes back does", LIKE_WITH_LIKE)
def leave_and_come_back(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    guest.leave(room=room)
    host.until_member(room=room, user=guest.user, membership="leave")
    host.send(room=room, body="alone")
    # Meanwhile nothing is shared between them: a device that is made now is nobody's news.
    second = stage.another(guest).log_in(guest.localpart)
    host.invite(room=room, user=guest.user)
    for device in (guest, second):
        device.until_membership(room=room, membership="invite")
    guest.join(room=room)
    host.until_member(room=room, user=guest.user, membership="join")
    second.until_membership(room=room, membership="join")
    host.until_devices(user=guest.user, ids=[guest.id, second.id])
    says(host, room, [guest, second], "welcome back")
    says(second, room, [host, guest], "thank you")


IN_THE_MIDDLE = 12  # messages of each, while the server dies


def speak_while(stage, room, devices_of_two, action):
    """Both speak without a pause, each message with a key of its own, while `action` is done to a server. Returns what
    they said."""
    said, under_way = [], threading.Event()

    def speak(speaker):
        for number in range(IN_THE_MIDDLE):
            body = f"{speaker.name}, {len(said)}, {number}"
            said.append((speaker.send_rekeyed(room=room, body=body), body))
            if number == IN_THE_MIDDLE // 3:
                under_way.set()

    def meanwhile():
        demand(under_way.wait(client.PATIENCE_SECONDS), "nobody said anything")
        action()

    at_once(meanwhile, *[lambda speaker=speaker: speak(speaker) for speaker in devices_of_two])
    return said


@conversation("a restart, then kill -9 in the middle", LIKE_WITH_LIKE, kills=True)
def restart_and_kill(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    victim = stage.host_server
    for end in (victim.stop, victim.kill):

        def over():
            end()
            victim.start()

        for event_id, body in speak_while(stage, room, (host, guest), over):
            for reader in (host, guest):
                readable(reader, room, event_id, body)
    # Keys and messages wait for a guest who is away, and live through it.
    guest.close()
    said = [(host.send_rekeyed(room=room, body=f"kept {n}"), f"kept {n}") for n in range(5)]
    victim.kill()
    victim.start()
    guest.open()
    for event_id, body in said:
        readable(guest, room, event_id, body)
    both_talk(host, guest, room)


@conversation("their server is restored from a backup", LIKE_WITH_LIKE, kills=True)
def restored_from_a_backup(stage):
    """What the backup had not yet is lost, and nothing else: clients come back by themselves, and read all that follows."""
    if stage.host_server.kind != "doorstep":
        return
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    both_talk(host, guest, room)
    server = stage.host_server
    backup = server.folder / "backup.tar"
    server.command_line("backup", backup, "--data", server.folder / "data")
    # New sessions, for which one-time keys are taken, messages to devices, and positions: the server will know of none.
    for speaker, reader in ((host, guest), (guest, host)):
        readable(reader, room, speaker.send_rekeyed(room=room, body="to be lost"), "to be lost")
    lost = stage.another(host).log_in(host.localpart)
    says(host, room, [guest], "also to the device that will be lost")
    lost.close()
    server.stop()
    shutil.rmtree(server.folder / "data")
    server.command_line("restore", backup, "--data", server.folder / "data")
    server.start()
    both_talk(host, guest, room)
    for speaker, reader in ((host, guest), (guest, host)):
        event_id = speaker.send_rekeyed(room=room, body=f"{speaker.name} after it")
        readable(reader, room, event_id, f"{speaker.name} after it")
    # Nobody has talked with this one yet: it takes one-time keys that were uploaded since.
    newcomer = stage.another(host).log_in(host.localpart)
    guest.until_devices(user=host.user, ids=[host.id, newcomer.id])
    says(guest, room, [newcomer, host], "to the new one too")
    says(newcomer, room, [guest], "from the new one")
