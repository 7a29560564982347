"""What a `kill -9` of Doorstep may not harm: flows in which one side dies in the middle of a handshake.

Each flow has a Doorstep of its own, the victim, and a peer (Synapse or another Doorstep) that lives on. Gates before
both hold a request at the moment of the kill, so the moment is exact and no luck is involved. After the restart both
sides must end in the right state, by themselves where the user has been told that it is done.
"""

import http.client
import threading
import time

import client
from flows import both_can_talk, demand, gone, invite_and_see, join_and_see, knock_and_see, knocks_seen, together
from gate import Gate

KILLS = []


def kill(title, of_any=False):
    """Enlists a flow. `of_any`: even a Synapse in the victim's place passes it, so it can prove the harness."""

    def enlist(function):
        KILLS.append((title, of_any, function))
        return function

    return enlist


class KillStage:
    """A victim of its own, a shared peer, a room version."""

    def __init__(self, peer, victim, version, unique):
        self.peer_server = peer
        self.version = version
        self._unique = unique
        self._users = 0
        self.victim = victim
        victim.gate = Gate(victim.public_port, victim.federation_port, victim.authority, inspecting=True)
        self.victim.start()

    def end(self):
        self.victim.stop()
        self.victim.gate.close()

    def _user(self, server, role):
        self._users += 1
        return client.register(server, f"{role}{self._users}-kill-{self._unique}")

    def of_victim(self):
        return self._user(self.victim, "ours")

    def of_peer(self):
        return self._user(self.peer_server, "theirs")

    def dies(self, at, part, room, when, action):
        """Runs `action` in the background, kills the victim when the request `part` stands at the gate of the server
        `at`, lets nothing more through, and starts the victim again. What came of `action` does not matter."""
        hold = at.gate.hold(part, room, when)

        def attempt():
            try:
                action()
            except (client.Refused, OSError, http.client.HTTPException):
                pass  # its server has died under it, or its peer has

        background = threading.Thread(target=attempt)
        background.start()
        try:
            hold.wait()
            self.victim.kill()
        finally:
            hold.drop()
        background.join()
        self.victim.start()

    def restart(self):
        self.victim.kill()
        self.victim.start()


def afresh(user):
    """Forgets what was synced: the next /sync is from the beginning."""
    user.since, user.rooms = None, {}


def eventually(what, action):
    """Repeats a request that fails only because a server has just come back."""
    deadline = time.monotonic() + client.PATIENCE_SECONDS
    while True:
        try:
            return action()
        except client.Refused as refusal:
            if time.monotonic() > deadline:
                raise client.Unmet(f"{what} still fails long after the restart: {refusal}") from refusal
            time.sleep(0.2)


def settled_knock(theirs, ours, room):
    """One knock, on both sides."""
    theirs.expect_membership(ours, room, "knock")
    afresh(ours)
    ours.expect_section(room, "knock")
    theirs.until("the knock in the timeline", lambda: knocks_seen(theirs, ours, room) > 0)
    demand(knocks_seen(theirs, ours, room) == 1, f"the host has {knocks_seen(theirs, ours, room)} knocks of one user")


def settled_leave(theirs, ours, room):
    theirs.expect_membership(ours, room, "leave")
    afresh(ours)
    ours.sync()
    demand(ours.section(room) in (None, "leave"), f"{room} is still under {ours.section(room)} after a restart")


def settled_join(theirs, ours, room):
    ours.expect_section(room, "join")
    theirs.expect_membership(ours, room, "join")
    ours.expect_membership(theirs, room, "join")
    both_can_talk(theirs, ours, room)


# -- our user knocks at the peer --


@kill("asking for a knock's template: nothing has happened, the user knocks again", of_any=True)
def while_make_knock(t):
    theirs, ours = t.of_peer(), t.of_victim()
    room = theirs.create_room(t.version, "knock")
    t.dies(t.peer_server, "make_knock", room, "before", lambda: ours.knock(room, t.peer_server.name))
    ours.knock(room, t.peer_server.name)
    settled_knock(theirs, ours, room)


@kill("handing a knock in, before the host has it: it is handed in after the restart")
def before_send_knock(t):
    theirs, ours = t.of_peer(), t.of_victim()
    room = theirs.create_room(t.version, "knock")
    t.dies(t.peer_server, "send_knock", room, "before", lambda: ours.knock(room, t.peer_server.name))
    settled_knock(theirs, ours, room)
    invite_and_see(theirs, ours, room, after_knock=True)
    join_and_see(theirs, ours, room)


@kill("handing a knock in, after the host has it: one knock, known to both")
def after_send_knock(t):
    theirs, ours = t.of_peer(), t.of_victim()
    room = theirs.create_room(t.version, "knock")
    t.dies(t.peer_server, "send_knock", room, "after", lambda: ours.knock(room, t.peer_server.name))
    settled_knock(theirs, ours, room)
    invite_and_see(theirs, ours, room, after_knock=True)
    join_and_see(theirs, ours, room)


@kill("while knocked: the knock stands, its invite is linked, the join works")
def while_knocked(t):
    theirs, ours = t.of_peer(), t.of_victim()
    room = theirs.create_room(t.version, "knock")
    knock_and_see(theirs, ours, room, t.peer_server.name)
    t.restart()
    settled_knock(theirs, ours, room)
    eventually("the invite", lambda: theirs.invite(room, ours))
    own = ours.expect_section(room, "invite").stripped_event("m.room.member", ours.id)
    before = own.get("unsigned", {}).get("prev_content", {}).get("membership")
    demand(before == "knock", f"the invite is not linked to the knock: {own}")
    ours.join(room)
    settled_join(theirs, ours, room)


def _withdrawal(part, when):
    def flow(t):
        theirs, ours = t.of_peer(), t.of_victim()
        room = theirs.create_room(t.version, "knock")
        knock_and_see(theirs, ours, room, t.peer_server.name)
        t.dies(t.peer_server, part, room, when, lambda: ours.leave(room))
        settled_leave(theirs, ours, room)

    return flow


kill("withdrawing a knock, asking for the template: the host learns of it")(_withdrawal("make_leave", "before"))
kill("withdrawing a knock, before the host has it: the host learns of it")(_withdrawal("send_leave", "before"))
kill("withdrawing a knock, after the host has it: both know")(_withdrawal("send_leave", "after"))


# -- the peer invites our user --


@kill("while invited: the invite stands and is accepted", of_any=True)
def while_invited(t):
    theirs, ours = t.of_peer(), t.of_victim()
    room = theirs.create_room(t.version)
    invite_and_see(theirs, ours, room)
    t.restart()
    afresh(ours)
    mirror = ours.expect_section(room, "invite")
    demand(mirror.stripped_event("m.room.name"), f"the restart lost the invite's state: {mirror.stripped}")
    ours.join(room)
    settled_join(theirs, ours, room)


@kill("taking an invite in, answer lost: the host invites again, the join works", of_any=True)
def answering_invite(t):
    theirs, ours = t.of_peer(), t.of_victim()
    room = theirs.create_room(t.version)
    t.dies(t.victim, "invite", room, "after", lambda: theirs.invite(room, ours))
    # The host's server may have repeated the invite by itself in the meantime.
    if theirs.membership_of(ours, room) != "invite":
        eventually("the second invite", lambda: theirs.invite(room, ours))
    ours.expect_section(room, "invite")
    ours.join(room)
    settled_join(theirs, ours, room)


def _rejection(part, when):
    def flow(t):
        theirs, ours = t.of_peer(), t.of_victim()
        room = theirs.create_room(t.version)
        invite_and_see(theirs, ours, room)
        t.dies(t.peer_server, part, room, when, lambda: ours.leave(room))
        settled_leave(theirs, ours, room)

    return flow


kill("rejecting an invite, asking for the template: the host learns of it")(_rejection("make_leave", "before"))
kill("rejecting an invite, before the host has it: the host learns of it")(_rejection("send_leave", "before"))
kill("rejecting an invite, after the host has it: both know")(_rejection("send_leave", "after"))


def _joining(part, when):
    def flow(t):
        theirs, ours = t.of_peer(), t.of_victim()
        room = theirs.create_room(t.version)
        invite_and_see(theirs, ours, room)
        t.dies(t.peer_server, part, room, when, lambda: ours.join(room))
        eventually("the join", lambda: ours.join(room))
        settled_join(theirs, ours, room)

    return flow


kill("joining, asking for the template: the user joins again", of_any=True)(_joining("make_join", "before"))
kill("joining, before the host has it: the user joins again", of_any=True)(_joining("send_join", "before"))
kill("joining, after the host has it: the user joins again, the room is whole", of_any=True)(
    _joining("send_join", "after")
)


@kill("after a withdrawal: the room stays closed, a new knock works")
def while_closed(t):
    theirs, ours = t.of_peer(), t.of_victim()
    room = theirs.create_room(t.version, "knock")
    knock_and_see(theirs, ours, room, t.peer_server.name)
    ours.leave(room)
    theirs.expect_membership(ours, room, "leave")
    t.restart()
    settled_leave(theirs, ours, room)
    eventually("the new knock", lambda: ours.knock(room, t.peer_server.name))
    theirs.expect_membership(ours, room, "knock")


# -- the peer's user comes to us --


@kill("taking a knock in, answer lost: the guest knocks again, is invited and joins", of_any=True)
def answering_knock(t):
    ours, theirs = t.of_victim(), t.of_peer()
    room = ours.create_room(t.version, "knock")
    t.dies(t.victim, "send_knock", room, "after", lambda: theirs.knock(room, t.victim.name))
    eventually("the second knock", lambda: theirs.knock(room, t.victim.name))
    ours.expect_membership(theirs, room, "knock")
    theirs.expect_section(room, "knock")
    eventually("the invite", lambda: ours.invite(room, theirs))
    theirs.expect_section(room, "invite")
    theirs.join(room)
    settled_join(theirs, ours, room)


@kill("taking a join in, answer lost: the guest joins again, the room is whole", of_any=True)
def answering_join(t):
    ours, theirs = t.of_victim(), t.of_peer()
    room = ours.create_room(t.version, "public")
    t.dies(t.victim, "send_join", room, "after", lambda: theirs.join(room, t.victim.name))
    eventually("the second join", lambda: theirs.join(room, t.victim.name))
    settled_join(theirs, ours, room)


@kill("inviting a user of the peer, answer lost: the host invites again, the guest joins", of_any=True)
def inviting(t):
    ours, theirs = t.of_victim(), t.of_peer()
    room = ours.create_room(t.version)
    t.dies(t.peer_server, "invite", room, "after", lambda: ours.invite(room, theirs))
    if ours.membership_of(theirs, room) != "invite":
        eventually("the second invite", lambda: ours.invite(room, theirs))
    theirs.expect_section(room, "invite")
    theirs.join(room)
    settled_join(theirs, ours, room)


# -- messages --


@kill("amid messages: whatever was acknowledged is on both servers, and nothing comes twice", of_any=True)
def amid_messages(t):
    ours, theirs = t.of_victim(), t.of_peer()
    room = ours.create_room(t.version, "public")
    theirs.join(room, t.victim.name)
    settled_join(theirs, ours, room)
    acknowledged = []
    for turn in range(3):
        enough = threading.Event()

        def speak(turn=turn, enough=enough):
            try:
                for number in range(1000):
                    acknowledged.append(ours.send(room, f"{turn}.{number}"))
                    if number == 20:
                        enough.set()
            except (client.Refused, OSError, http.client.HTTPException):
                pass
            finally:
                enough.set()

        def cut(enough=enough):
            enough.wait(60)
            t.victim.kill()

        together(speak, cut)
        acknowledged.append(theirs.send(room, f"said to the dead {turn}"))
        t.victim.start()
    for reader in (ours, theirs):
        wanted = set(acknowledged)
        reader.until(
            lambda: f"{len(wanted - _read(reader, room))} of {len(wanted)} acknowledged messages",
            lambda: wanted <= _read(reader, room),
        )
        events = [event["event_id"] for event in reader.all_messages(room)]
        demand(len(events) == len(set(events)), f"{reader!r} shows an event twice")
    both_can_talk(ours, theirs, room)


def _read(reader, room):
    return {event["event_id"] for event in reader.all_messages(room)}


@kill("while dead, the peer speaks: all of it is there after the restart", of_any=True)
def caught_up(t):
    ours, theirs = t.of_victim(), t.of_peer()
    room = theirs.create_room(t.version, "public")
    ours.join(room, t.peer_server.name)
    settled_join(theirs, ours, room)
    t.victim.kill()
    said = [theirs.send(room, f"in absence {number}") for number in range(80)]
    theirs.set_state(room, "m.room.topic", {"topic": "changed in absence"})
    t.victim.start()
    both_can_talk(ours, theirs, room)
    ours.until("what was said in absence", lambda: set(said) <= _read(ours, room))
    topic = ours.state_content(room, "m.room.topic")
    demand(topic == {"topic": "changed in absence"}, f"the topic after the restart is {topic}")
    ours.leave(room)
    gone(ours, room)
    theirs.expect_membership(ours, room, "leave")


@kill("amid a flood: what the peer's users say as fast as they can is all there, though we die twice", of_any=True)
def flooded(t):
    ours, speakers = t.of_victim(), [t.of_peer() for _ in range(5)]
    room = speakers[0].create_room(t.version, "public")
    for speaker in speakers[1:]:
        speaker.join(room)
    ours.join(room, t.peer_server.name)
    settled_join(speakers[0], ours, room)
    said = []

    def speak(speaker):
        for number in range(60):
            said.append(speaker.send(room, f"{speaker.id} {number}"))

    def cut():
        for many in (80, 180):
            while len(said) < many:
                time.sleep(0.05)
            t.restart()

    together(cut, *(lambda speaker=speaker: speak(speaker) for speaker in speakers))
    wanted = set(said)
    demand(len(wanted) == 300, f"{len(wanted)} messages were acknowledged")
    missing = {}

    def all_there():
        missing.update(now=len(wanted - {event["event_id"] for event in ours.all_messages(room, 100)}))
        return missing["now"] == 0

    ours.until(lambda: f"{missing['now']} of {len(wanted)} messages", all_there)
    both_can_talk(speakers[0], ours, room)


MUCH = 340  # of which more is left over than a destination is sent of one room after an outage
SOME = 30


@kill("cut off from the peer, both sides speaking: all of it can be read on both sides, in order")
def long_outage(t):
    ours, theirs = t.of_victim(), t.of_peer()
    room = ours.create_room("11" if t.version == "12" else t.version, "public")
    theirs.join(room, t.victim.name)
    settled_join(theirs, ours, room)
    t.peer_server.gate.cut_off([t.victim.name])
    t.victim.gate.cut_off([t.peer_server.name])
    said = {ours: [], theirs: []}
    for speaker, count in ((ours, MUCH), (theirs, SOME)):
        said[speaker] += [speaker.send(room, f"apart {number}") for number in range(count // 2)]
    ours.set_state(room, "m.room.topic", {"topic": "changed apart"})
    t.restart()
    for speaker, count in ((ours, MUCH), (theirs, SOME)):
        said[speaker] += [speaker.send(room, f"still apart {number}") for number in range(count // 2)]
    t.peer_server.gate.let_in([t.victim.name])
    t.victim.gate.let_in([t.peer_server.name])
    for reader in (ours, theirs):
        for speaker, events in said.items():
            reader.until(
                lambda: f"{len(set(events) - _read(reader, room))} of {len(events)} messages by {speaker.id}",
                lambda: set(events) <= _read(reader, room),
            )
            order = [e["event_id"] for e in reversed(reader.all_messages(room)) if e["event_id"] in set(events)]
            demand(order == events, f"{reader!r} has the messages of {speaker.id} in another order, or twice")
        topic = reader.state_content(room, "m.room.topic")
        demand(topic == {"topic": "changed apart"}, f"{reader!r}: the topic is {topic}")
    # It was not sent everything: it asked.
    demand(t.victim.gate.answers("get_missing_events") > 0, "nobody asked for missing events")
    both_can_talk(ours, theirs, room)
