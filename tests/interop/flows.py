"""What is proved: each flow is a function of a stage, run for every listed room version between every pair of servers.

On the stage there is a `host` server, which has the room, and a `guest` server, which is not in it at first. A flow
makes its own users and its own room, so flows run side by side on the same servers. Everything that is claimed is read
back through the client APIs of both servers.
"""

import threading

import client
import outsiders

ALL = [str(n) for n in range(1, 13)]
KNOCK = [str(n) for n in range(7, 13)]
RESTRICTED = [str(n) for n in range(8, 13)]
KNOCK_RESTRICTED = [str(n) for n in range(10, 13)]
# A version of each kind: event ids chosen by the server; resolution 2; strict JSON; present default of others; ours.
A_FEW = ["1", "3", "6", "10", "11", "12"]
LATE = ["11", "12"]

# What a server must be able to do for a flow to make sense.
WITHDRAWS_KNOCKS = "withdraws its users' knocks over federation"
TELLS_OF_REFUSALS = "tells the knocking user's server of a refusal"
TAKES_IN_REFUSALS = "takes in the refusal of its user's knock"
LINKS = "links an invite to the knock that it answers"
OPENS_DOORS = "joins its users whose knock was accepted, if they want that"
KNOWS_ITS_USERS = "refuses an invite to a user that it does not have"

# Seen of Synapse 1.163; most of it is also said in comments of its room_member.py and federation_event.py.
LACKS = {
    "synapse": {WITHDRAWS_KNOCKS, TELLS_OF_REFUSALS, TAKES_IN_REFUSALS, LINKS, OPENS_DOORS, KNOWS_ITS_USERS},
    "doorstep": set(),
}

FLOWS = []


def flow(title, versions, host_must=(), guest_must=()):
    def enlist(function):
        FLOWS.append((title, versions, set(host_must), set(guest_must), function))
        return function

    return enlist


class Stage:
    """Where one flow plays: two servers, a room version, and users as they are needed."""

    def __init__(self, host, guest, version, unique):
        self.host_server = host
        self.guest_server = guest
        self.version = version
        self._unique = unique
        self._users = 0

    def _user(self, server, role):
        self._users += 1
        return client.register(server, f"{role}{self._users}-{self._unique}")

    def host(self):
        return self._user(self.host_server, "host")

    def guest(self):
        return self._user(self.guest_server, "guest")

    @property
    def via(self):
        return self.host_server.name

    def guest_server_can(self, ability):
        return ability not in LACKS[self.guest_server.kind]


def demand(condition, what):
    if not condition:
        raise client.Unmet(what)


# -- steps that several flows share --


def both_can_talk(one, other, room):
    """A message in each direction, each read on both servers."""
    for speaker in (one, other):
        event_id = speaker.send(room, f"{speaker.id} speaks")
        for reader in (one, other):
            reader.expect_event(room, event_id, f"{speaker.id} speaks")


def knock_and_see(host, guest, room, via):
    """`guest` knocks; both servers show the knock."""
    guest.knock(room, via, reason="let me in, please")
    mirror = guest.expect_section(room, "knock")
    own = mirror.stripped_event("m.room.member", guest.id)
    demand(
        own and own["content"].get("membership") == "knock",
        f"knock_state lacks the user's own knock: {mirror.stripped}",
    )
    for wanted in ("m.room.create", "m.room.join_rules", "m.room.name"):
        demand(mirror.stripped_event(wanted), f"knock_state lacks {wanted}: {mirror.stripped}")
    content = host.expect_membership(guest, room, "knock")
    demand(content.get("reason") == "let me in, please", f"the reason of the knock was lost: {content}")
    host.until("the knock in the timeline", lambda: knocks_seen(host, guest, room) == 1)


def knocks_seen(reader, knocker, room):
    return sum(
        1
        for event in reader.room(room).timeline
        if event["type"] == "m.room.member"
        and event.get("state_key") == knocker.id
        and event["content"].get("membership") == "knock"
    )


def invite_and_see(host, guest, room, after_knock=False):
    host.invite(room, guest)
    mirror = guest.expect_section(room, "invite")
    own = mirror.stripped_event("m.room.member", guest.id)
    demand(
        own and own["content"].get("membership") == "invite", f"invite_state lacks the invite itself: {mirror.stripped}"
    )
    demand(own["sender"] == host.id, f"the invite is shown as by {own['sender']}")
    for wanted in ("m.room.create", "m.room.join_rules", "m.room.name"):
        demand(mirror.stripped_event(wanted), f"invite_state lacks {wanted}: {mirror.stripped}")
    if after_knock:
        before = own.get("unsigned", {}).get("prev_content", {}).get("membership")
        demand(before == "knock", f"the invite is not linked to the knock: {own}")
    host.expect_membership(guest, room, "invite")


def invite_settles(member, invited, room):
    """`invited` sees the invite to a room that its server, by `member`, is in already.

    Synapse shows an invite that came by /invite before the room's own copy of it came by /send, and until then a join
    fails there; so a flow with Synapse waits for both.
    """
    invited.expect_section(room, "invite")
    if member.server.kind == "synapse":
        member.expect_membership(invited, room, "invite")


def join_and_see(host, guest, room, via=None):
    guest.join(room, via)
    guest.expect_section(room, "join")
    guest.expect_membership(guest, room, "join")
    guest.expect_membership(host, room, "join")
    host.expect_membership(guest, room, "join")


def gone(guest, room):
    """The room is in the leave section, and nowhere else for a sync from the beginning."""
    guest.expect_section(room, "leave")
    guest.since, guest.rooms = None, {}
    guest.sync()
    demand(guest.section(room) in (None, "leave"), f"a fresh /sync still has {room} under {guest.section(room)}")


def leave_and_see(host, guest, room):
    guest.leave(room, "that was all")
    gone(guest, room)
    host.expect_membership(guest, room, "leave")


def same_state(one, other, room):
    """Both servers come to the same current state, event for event."""
    one.until(f"the same state of {room} on both servers", lambda: one.full_state(room) == other.full_state(room))


# -- knocks --


@flow("a knock is withdrawn", KNOCK, guest_must=[WITHDRAWS_KNOCKS])
def knock_withdrawn(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "knock")
    knock_and_see(host, guest, room, t.via)
    leave_and_see(host, guest, room)
    # And the door stays a door.
    guest.knock(room, t.via)
    guest.expect_section(room, "knock")
    host.expect_membership(guest, room, "knock")


@flow("a knock is refused by a kick", KNOCK, [TELLS_OF_REFUSALS], [TAKES_IN_REFUSALS])
def knock_refused(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "knock")
    knock_and_see(host, guest, room, t.via)
    host.kick(room, guest, "not today")
    host.expect_membership(guest, room, "leave")
    gone(guest, room)
    knock_and_again(host, guest, room, t.via)


def knock_and_again(host, guest, room, via):
    guest.knock(room, via)
    guest.expect_section(room, "knock")
    host.expect_membership(guest, room, "knock")


@flow("a knock is refused by a ban", KNOCK, [TELLS_OF_REFUSALS], [TAKES_IN_REFUSALS])
def knock_banned(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "knock")
    knock_and_see(host, guest, room, t.via)
    host.ban(room, guest, "never")
    host.expect_membership(guest, room, "ban")
    gone(guest, room)
    guest.refused(403, "M_FORBIDDEN", "POST", f"/v3/knock/{room}", {}, {"server_name": t.via, "via": t.via})


@flow("a knock that was refused without a word can be repeated", KNOCK)
def knock_repeated_after_silence(t):
    """Whether or not the guest's server learns of the refusal, its user may knock anew."""
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "knock")
    knock_and_see(host, guest, room, t.via)
    host.kick(room, guest)
    host.expect_membership(guest, room, "leave")
    knock_and_again(host, guest, room, t.via)


@flow("a knock is accepted by a linked invite, a join, messages, a leave", KNOCK)
def knock_accepted(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "knock")
    knock_and_see(host, guest, room, t.via)
    invite_and_see(host, guest, room, after_knock=t.guest_server_can(LINKS))
    join_and_see(host, guest, room)
    both_can_talk(host, guest, room)
    leave_and_see(host, guest, room)


@flow("a knock that is accepted opens the door to who wants that", KNOCK, guest_must=[OPENS_DOORS])
def knock_opens_the_door(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "knock")
    guest.set_account_data("org.doorstep.door.accept_knocks", {"enabled": True})
    knock_and_see(host, guest, room, t.via)
    host.invite(room, guest)
    host.expect_membership(guest, room, "join")
    guest.expect_section(room, "join")
    both_can_talk(host, guest, room)
    leave_and_see(host, guest, room)
    # What follows is no answer to that knock.
    invite_and_see(host, guest, room)
    leave_and_see(host, guest, room)


@flow("a knock's invite is rejected", KNOCK)
def knock_accepted_then_rejected(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "knock")
    knock_and_see(host, guest, room, t.via)
    invite_and_see(host, guest, room)
    leave_and_see(host, guest, room)


@flow("a knock at a room that does not take knocks is refused", KNOCK)
def knock_not_allowed(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "invite")
    guest.refused(403, "M_FORBIDDEN", "POST", f"/v3/knock/{room}", {}, {"server_name": t.via, "via": t.via})
    guest.sync()
    demand(guest.section(room) is None, f"the refused knock is shown in /sync under {guest.section(room)}")
    demand(host.membership_of(guest, room) is None, "the refused knock is in the room's state")


@flow("a knock at a room version without knocking is refused", ["6"])
def knock_too_old(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "knock")
    status, answer = guest.attempt("POST", f"/v3/knock/{room}", {}, {"server_name": t.via, "via": t.via})
    demand(status in (400, 403), f"a knock at a version 6 room got {status} {answer}")
    demand(host.membership_of(guest, room) is None, "the refused knock is in the room's state")


# -- invites, joins, leaves --


@flow("an invite is accepted, messages flow, a leave", ALL)
def invite_accepted(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version)
    invite_and_see(host, guest, room)
    join_and_see(host, guest, room)
    both_can_talk(host, guest, room)
    leave_and_see(host, guest, room)


@flow("an invite is rejected", ALL)
def invite_rejected(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version)
    invite_and_see(host, guest, room)
    leave_and_see(host, guest, room)


@flow("an invite is rescinded", ALL)
def invite_rescinded(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version)
    invite_and_see(host, guest, room)
    host.kick(room, guest, "a mistake")
    host.expect_membership(guest, room, "leave")
    gone(guest, room)
    status, answer = guest.attempt("POST", f"/v3/join/{room}", {}, {"server_name": t.via, "via": t.via})
    demand(status == 403, f"a rescinded invite still opened the door: {status} {answer}")


@flow("a public room is joined by id, messages flow, a leave", ALL)
def public_join(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    both_can_talk(host, guest, room)
    leave_and_see(host, guest, room)


@flow("a public room is joined by alias, the name goes with the user", A_FEW)
def alias_join(t):
    host, guest = t.host(), t.guest()
    guest.call("PUT", f"/v3/profile/{guest.id}/displayname", {"displayname": "A Guest"})
    localpart = f"alias-{guest.id[1:].split(':')[0]}"
    room = host.create_room(t.version, "public", room_alias_name=localpart)
    joined = guest.join(f"#{localpart}:{t.host_server.name}")
    demand(joined == room, f"the alias led to {joined}, not {room}")
    content = host.expect_membership(guest, room, "join")
    demand(content.get("displayname") == "A Guest", f"the name was lost: {content}")
    answer = host.call("GET", f"/v3/profile/{guest.id}")
    demand(answer.get("displayname") == "A Guest", f"the profile over federation is {answer}")
    both_can_talk(host, guest, room)


@flow("leave, re-invite, rejoin", ALL)
def reinvited(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version)
    invite_and_see(host, guest, room)
    join_and_see(host, guest, room)
    leave_and_see(host, guest, room)
    missed = host.send(room, "said while the guest was away")
    invite_and_see(host, guest, room)
    join_and_see(host, guest, room)
    both_can_talk(host, guest, room)
    demand(host.event(room, missed)["event_id"] == missed, "the host lost its own message")


@flow("a second guest of the same server is let in by the first", A_FEW)
def second_guest(t):
    host, guest, second = t.host(), t.guest(), t.guest()
    room = host.create_room(t.version, power_level_content_override={"invite": 0})
    invite_and_see(host, guest, room)
    join_and_see(host, guest, room)
    guest.invite(room, second)
    second.expect_section(room, "invite")
    host.expect_membership(second, room, "invite")
    second.join(room)
    host.expect_membership(second, room, "join")
    both_can_talk(host, second, room)
    both_can_talk(guest, host, room)


@flow("a guest invites a user of the host's server", A_FEW)
def guest_invites_back(t):
    host, guest, friend = t.host(), t.guest(), t.host()
    room = host.create_room(t.version, "public", power_level_content_override={"invite": 0})
    join_and_see(host, guest, room, t.via)
    guest.invite(room, friend)
    friend.expect_section(room, "invite")
    guest.expect_membership(friend, room, "invite")
    friend.join(room)
    guest.expect_membership(friend, room, "join")
    both_can_talk(friend, guest, room)


@flow("a guest's knock is answered by another guest's server in the room", LATE)
def knock_via_member_server(t):
    """The guest's server is in the room already: the knock is a local event there, and reaches the host."""
    host, first, second = t.host(), t.guest(), t.guest()
    room = host.create_room(t.version, "knock")
    host.invite(room, first)
    first.expect_section(room, "invite")
    join_and_see(host, first, room)
    second.knock(room, t.via)
    second.expect_section(room, "knock")
    host.expect_membership(second, room, "knock")
    first.expect_membership(second, room, "knock")
    host.invite(room, second)
    invite_settles(first, second, room)
    second.join(room)
    host.expect_membership(second, room, "join")
    both_can_talk(host, second, room)


@flow("a local knock is withdrawn, refused and accepted while the guest's server is in the room", LATE)
def resident_knocks(t):
    host, first, second = t.host(), t.guest(), t.guest()
    room = host.create_room(t.version, "knock")
    host.invite(room, first)
    first.expect_section(room, "invite")
    join_and_see(host, first, room)
    second.knock(room, t.via)
    second.expect_section(room, "knock")
    host.expect_membership(second, room, "knock")
    second.leave(room)
    host.expect_membership(second, room, "leave")
    gone(second, room)
    second.knock(room, t.via)
    host.expect_membership(second, room, "knock")
    second.expect_section(room, "knock")
    host.kick(room, second, "no")
    first.expect_membership(second, room, "leave")
    gone(second, room)


# -- moderation --


@flow("a joined guest is kicked, and joins again", A_FEW)
def kicked(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    host.kick(room, guest, "out")
    host.expect_membership(guest, room, "leave")
    gone(guest, room)
    status, answer = guest.attempt(
        "PUT", f"/v3/rooms/{room}/send/m.room.message/x", {"msgtype": "m.text", "body": "still here"}
    )
    demand(status == 403, f"a kicked guest may speak: {status} {answer}")
    join_and_see(host, guest, room, t.via)
    both_can_talk(host, guest, room)


@flow("a joined guest is banned, stays out, is unbanned and joins again", A_FEW)
def banned(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    host.ban(room, guest, "out for good")
    host.expect_membership(guest, room, "ban")
    gone(guest, room)
    guest.refused(403, "M_FORBIDDEN", "POST", f"/v3/join/{room}", {}, {"server_name": t.via, "via": t.via})
    host.unban(room, guest)
    host.expect_membership(guest, room, "leave")
    join_and_see(host, guest, room, t.via)
    both_can_talk(host, guest, room)


@flow("an invited guest is banned", LATE)
def invited_then_banned(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version)
    invite_and_see(host, guest, room)
    host.ban(room, guest, "changed my mind")
    host.expect_membership(guest, room, "ban")
    if "synapse" not in (t.host_server.kind, t.guest_server.kind):  # Synapse tells of leaves only, and takes in no more
        gone(guest, room)


@flow("a guest with power kicks a user of the host's server", LATE)
def guest_kicks(t):
    host, guest, other = t.host(), t.guest(), t.host()
    room = host.create_room(t.version, "public")
    other.join(room)
    other.expect_section(room, "join")
    join_and_see(host, guest, room, t.via)
    give_power(t, host, guest, room, 90)
    guest.kick(room, other, "by remote hand")
    host.expect_membership(other, room, "leave")
    guest.expect_membership(other, room, "leave")
    other.expect_section(room, "leave")


@flow("a message is redacted by its author, another by the room's owner", ALL)
def redaction(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    for author, redactor in ((guest, guest), (guest, host), (host, host)):
        event_id = author.send(room, "to be unsaid")
        for reader in (host, guest):
            reader.expect_event(room, event_id, "to be unsaid")
        redactor.redact(room, event_id, "unsaid")
        for reader in (host, guest):
            reader.until(f"{event_id} redacted", lambda: reader.event(room, event_id)["content"] == {})


# -- state --


def give_power(t, host, guest, room, level):
    levels = host.state_content(room, "m.room.power_levels")
    levels.setdefault("users", {})[guest.id] = level
    host.set_state(room, "m.room.power_levels", levels)

    def has_it():
        content = guest.state_content(room, "m.room.power_levels") or {}
        return content.get("users", {}).get(guest.id) == level

    guest.until(f"power level {level} in {room}", has_it)


@flow("power is given and used, and without it nothing changes", ALL)
def power(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    guest.refused(403, "M_FORBIDDEN", "PUT", f"/v3/rooms/{room}/state/m.room.topic/", {"topic": "by a guest"})
    give_power(t, host, guest, room, 60)
    guest.set_state(room, "m.room.topic", {"topic": "by a guest with power"})
    guest.set_state(room, "org.example.note", {"note": "with a key"}, "some/key é")
    host.until(
        "the guest's topic",
        lambda: (host.state_content(room, "m.room.topic") or {}).get("topic") == "by a guest with power",
    )
    host.until(
        "the guest's own state",
        lambda: (host.state_content(room, "org.example.note", "some/key é") or {}).get("note") == "with a key",
    )
    host.set_state(room, "m.room.name", {"name": "Renamed"})
    guest.until("the new name", lambda: (guest.state_content(room, "m.room.name") or {}).get("name") == "Renamed")
    same_state(host, guest, room)


@flow("changes made at the same time on both servers end in one state", ALL)
def fork(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    give_power(t, host, guest, room, 100 if t.version != "12" else 99)
    for turn in range(3):
        together(
            lambda: [host.set_state(room, "m.room.topic", {"topic": f"host {turn}"}), host.send(room, f"host {turn}")],
            lambda: [
                guest.set_state(room, "m.room.topic", {"topic": f"guest {turn}"}),
                guest.send(room, f"guest {turn}"),
            ],
        )
    # A message that has seen both branches joins them.
    both_can_talk(host, guest, room)
    both_can_talk(guest, host, room)
    same_state(host, guest, room)


def together(*actions):
    """Runs the actions at the same time; the first failure is raised."""
    failures = []

    def guarded(action):
        try:
            action()
        except Exception as error:  # noqa: BLE001 - handed to the flow below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@flow("branches that one server has joined unheard come to the other with what is said next", ["6", "11", "12"])
def branches_joined_unheard(t):
    host, guest = t.host(), t.guest()
    # What joins the branches is Doorstep's own, as far as there is one.
    here, there = (host, guest) if host.server.kind == "doorstep" else (guest, host)
    outsider = outsiders.Outsider(t.host_server.authority)
    try:
        levels = {"events": {"m.room.topic": 0}}
        room = host.create_room(t.version, "public", power_level_content_override=levels)
        join_and_see(host, guest, room, t.via)
        outsider.join(here.server, room, t.version)
        for user in (host, guest):
            user.until("the outsider is in", lambda user=user: outsider.user in user.members(room, "join"))
        messages = [("m.room.message", {"msgtype": "m.text", "body": f"branch {n}"}) for n in range(12)]
        branches = outsider.branch(here.server, [*messages, ("m.room.topic", {"topic": "said aside"})])
        if here.server.kind == "doorstep":
            here.until("the branches are joined", lambda: len(outsider.heads(here.server)) == 1)
        said = here.send(room, "after all of it")
        if here.server.kind == "doorstep":
            before = outsider.event(here.server, said)["prev_events"]
            joins = outsider.event(here.server, before[0])
            demand(joins["type"] == "org.matrix.dummy_event", f"the message follows {joins}")
        there.expect_event(room, said, "after all of it")
        topic = there.until("the topic of the branch", lambda: there.state_content(room, "m.room.topic"))
        demand(topic["topic"] == "said aside", f"the topic is {topic}")
        both_can_talk(host, guest, room)
        same_state(host, guest, room)
        read = {event["event_id"] for event in there.all_messages(room)}
        demand(read.issuperset(branches), f"{there} cannot read {set(branches) - read}")
    finally:
        outsider.stop()


@flow("several guests join at the same time while the host speaks", A_FEW)
def concurrent_joins(t):
    host = t.host()
    guests = [t.guest() for _ in range(4)]
    room = host.create_room(t.version, "public")
    joins = [lambda guest=guest: guest.join(room, t.via) for guest in guests]
    together(*joins, lambda: [host.send(room, f"while they come {n}") for n in range(5)])
    for guest in guests:
        host.expect_membership(guest, room, "join")
        guest.expect_section(room, "join")
    both_can_talk(host, guests[0], room)
    both_can_talk(host, guests[-1], room)
    same_state(host, guests[0], room)


@flow("a long history is read back to its beginning by a late guest", LATE)
def history(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public", initial_state=[visibility("world_readable")])
    said = [host.send(room, f"line {n}") for n in range(150)]
    join_and_see(host, guest, room, t.via)
    both_can_talk(host, guest, room)
    read = []

    def is_whole():
        read[:] = [event["event_id"] for event in guest.all_messages(room)]
        return set(read).issuperset(said)

    # Synapse answers with what it has, if that is enough for a page, and fetches what lies between afterwards.
    is_read = guest.until("all that was said", is_whole) if guest.server.kind == "synapse" else is_whole()
    demand(is_read, f"{len(set(said) - set(read))} of {len(said)} messages from before the join cannot be read")
    demand(
        [event_id for event_id in reversed(read) if event_id in set(said)] == said, "the history came in another order"
    )
    demand(len(read) == len(set(read)), "an event came twice")


@flow("the event nearest to a time is found, on the other server if need be", ["10", "12"])
def nearest_event(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    said = [host.send(room, f"line {n}") for n in range(40)]
    join_and_see(host, guest, room, t.via)
    time_of_it = host.event(room, said[10])["origin_server_ts"]
    for reader in (host, guest):
        for direction in "fb":
            query = {"ts": time_of_it, "dir": direction}
            near = reader.call("GET", f"/v1/rooms/{room}/timestamp_to_event", query=query)
            demand(near["origin_server_ts"] == time_of_it, f"{reader!r} finds {near} for {query}")
            demand(reader.event(room, near["event_id"])["sender"] == host.id, f"{reader!r} has another {near}")
    if t.guest_server.kind == "doorstep":  # and from there the client reads on: Synapse fetches nothing for /context
        around = guest.call("GET", f"/v3/rooms/{room}/context/{said[10]}", query={"limit": 6})
        lines = [e["content"].get("body") for e in around["events_before"][::-1] + [around["event"]]]
        demand(lines == ["line 7", "line 8", "line 9", "line 10"], f"around it {guest!r} has {lines}")


def visibility(which):
    return {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": which}}


@flow("a busy exchange arrives whole and in each speaker's order", LATE)
def exchange(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    said = {host.id: [], guest.id: []}
    together(
        lambda: said[host.id].extend(host.send(room, f"host {n}") for n in range(40)),
        lambda: said[guest.id].extend(guest.send(room, f"guest {n}") for n in range(40)),
    )
    for reader in (host, guest):
        for speaker, events in said.items():
            reader.until(
                f"all that {speaker} said", lambda: set(events) <= {e["event_id"] for e in reader.messages(room, 100)}
            )
            in_order = [e["event_id"] for e in reversed(reader.messages(room, 100)) if e["event_id"] in set(events)]
            demand(in_order == events, f"{reader!r} has the messages of {speaker} in another order")
    same_state(host, guest, room)


# -- restricted rooms --


def allow(rule, room):
    return {"join_rule": rule, "allow": [{"type": "m.room_membership", "room_id": room}]}


@flow("a restricted room opens to a member of the allowed room, to nobody else", RESTRICTED)
def restricted(t):
    host, guest, stranger = t.host(), t.guest(), t.guest()
    hall = host.create_room(t.version, "public")
    room = host.create_room(t.version, allow("restricted", hall))
    status, answer = stranger.attempt("POST", f"/v3/join/{room}", {}, {"server_name": t.via, "via": t.via})
    demand(status == 403, f"a stranger got {status} {answer}")
    join_and_see(host, guest, hall, t.via)
    join_and_see(host, guest, room, t.via)
    authoriser = host.state_content(room, "m.room.member", guest.id).get("join_authorised_via_users_server")
    demand(authoriser == host.id, f"the join is authorised by {authoriser}")
    both_can_talk(host, guest, room)
    same_state(host, guest, room)


@flow("a knock_restricted room: a member joins, a stranger knocks and is let in", KNOCK_RESTRICTED)
def knock_restricted(t):
    host, guest, stranger = t.host(), t.guest(), t.guest()
    hall = host.create_room(t.version, "public")
    room = host.create_room(t.version, allow("knock_restricted", hall))
    knock_and_see(host, stranger, room, t.via)
    join_and_see(host, guest, hall, t.via)
    join_and_see(host, guest, room, t.via)
    host.invite(room, stranger)
    invite_settles(guest, stranger, room)
    stranger.join(room, t.via)
    host.expect_membership(stranger, room, "join")
    both_can_talk(host, guest, room)
    both_can_talk(stranger, host, room)


# -- who sees what --


def texts(reader, room):
    return {event["content"].get("body") for event in reader.all_messages(room) if event["type"] == "m.room.message"}


@flow("a knock by alias carries the user's name", LATE)
def knock_by_alias(t):
    host, guest = t.host(), t.guest()
    guest.call("PUT", f"/v3/profile/{guest.id}/displayname", {"displayname": "Someone at the door"})
    localpart = f"door-{guest.id[1:].split(':')[0]}"
    room = host.create_room(t.version, "knock", room_alias_name=localpart)
    knocked = guest.knock(f"#{localpart}:{t.host_server.name}")
    demand(knocked == room, f"the alias led to {knocked}, not {room}")
    guest.expect_section(room, "knock")
    content = host.expect_membership(guest, room, "knock")
    demand(content.get("displayname") == "Someone at the door", f"the knock came as {content}")


@flow("what was said before an invite stays hidden where history is for the joined", A_FEW)
def hidden_history(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public", initial_state=[visibility("joined")])
    secret = host.send(room, "not for the guest")
    join_and_see(host, guest, room, t.via)
    both_can_talk(host, guest, room)
    demand("not for the guest" not in texts(guest, room), "a message from before the join is shown")
    status, answer = guest.attempt("GET", f"/v3/rooms/{room}/event/{secret}")
    demand(status in (403, 404), f"/event shows a message from before the join: {status} {answer}")


@flow("what is said after a leave stays hidden from who left", A_FEW)
def hidden_future(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    both_can_talk(host, guest, room)
    leave_and_see(host, guest, room)
    later = host.send(room, "after the guest left")
    host.expect_event(room, later)
    status, answer = guest.attempt("GET", f"/v3/rooms/{room}/messages", query={"dir": "b", "limit": 50})
    shown = [event["event_id"] for event in answer.get("chunk", [])]
    demand(later not in shown, f"who left reads on: {status} {answer}")
    status, answer = guest.attempt("GET", f"/v3/rooms/{room}/event/{later}")
    demand(status in (403, 404), f"/event shows who left what came later: {status} {answer}")


@flow("a room with much state is joined whole", LATE)
def much_state(t):
    host, guest = t.host(), t.guest()
    entries = [{"type": "org.example.entry", "state_key": f"{n}", "content": {"n": n}} for n in range(150)]
    room = host.create_room(t.version, "public", initial_state=entries)
    join_and_see(host, guest, room, t.via)
    same_state(host, guest, room)
    demand(guest.state_content(room, "org.example.entry", "149") == {"n": 149}, "an entry differs")
    both_can_talk(host, guest, room)


@flow("a server that the room's access list denies is kept out", A_FEW)
def denied_by_acl(t):
    host, guest = t.host(), t.guest()
    denied = t.guest_server.name.split(":")[0]
    acl = {"type": "m.room.server_acl", "state_key": "", "content": {"allow": ["*"], "deny": [denied]}}
    if t.host_server.kind == "doorstep" and t.host_server.name.split(":")[0] == denied:
        # All servers here have one host name, and a Doorstep lets nobody shut out itself.
        wish = {"room_version": t.version, "preset": "public_chat", "initial_state": [acl]}
        host.refused(400, "M_BAD_JSON", "POST", "/v3/createRoom", wish)
        return
    room = host.create_room(t.version, "public", initial_state=[acl])
    status, answer = guest.attempt("POST", f"/v3/join/{room}", {}, {"server_name": t.via, "via": t.via})
    demand(status == 403, f"a denied server's user got {status} {answer}")
    demand(host.membership_of(guest, room) is None, "a denied server's user is in the room's state")


@flow("an invite to nobody is refused and leaves no trace", A_FEW, guest_must=[KNOWS_ITS_USERS])
def invite_to_nobody(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version)
    nobody = client.User(t.guest_server, f"@nobody-{guest.id[1:]}", "")
    status, answer = host.attempt("POST", f"/v3/rooms/{room}/invite", {"user_id": nobody.id})
    demand(400 <= status < 600, f"an invite to nobody got {status} {answer}")
    demand(host.membership_of(nobody, room) is None, "the refused invite is in the room's state")


@flow("an e-mail address is invited, and turns out to be the guest's", A_FEW)
def third_party_invited(t):
    host, guest, identity = t.host(), t.guest(), outsiders.Identity()
    room = host.create_room(t.version)
    # As if an identity server had kept it: each server asks one in its own way, and trusts no certificate of ours.
    host.set_state(room, "m.room.third_party_invite", identity.third_party_invite(), "token")
    identity.bind(guest.id, t.guest_server, room, host.id, "guess")
    status, answer = identity.bind(guest.id, t.guest_server, room, host.id, "token")
    demand(status == 200, f"onbind got {status} {answer}")
    # Servers may answer before they have an invite made of it, and the guest sees it before it is in the room.
    guest.expect_section(room, "invite")
    invite = host.expect_membership(guest, room, "invite")["third_party_invite"]
    token, shown = invite["signed"]["token"], invite["display_name"]
    demand(token == "token", f"the invite was made of the token {token}")
    demand(shown == "c...@e...", f"the invite shows {shown}")
    join_and_see(host, guest, room, t.via)
    both_can_talk(host, guest, room)


@flow("a room with a policy server says only what that signs", LATE)
def policed(t):
    host, guest = t.host(), t.guest()
    policy = outsiders.PolicyServer(t.host_server.authority)
    try:
        room = host.create_room(t.version, "public")
        policy.join(t.host_server, room, t.version)
        join_and_see(host, guest, room, t.via)
        host.set_state(room, "m.room.policy", policy.setting())
        guest.until("the guest's server knows of the policy server", lambda: guest.state_content(room, "m.room.policy"))
        both_can_talk(host, guest, room)
        for user in (host, guest):
            status, answer = user.attempt("PUT", f"/v3/rooms/{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "spam"})
            told = status in (400, 403) and answer.get("errcode") == "M_FORBIDDEN" and "spam" in answer.get("error")
            demand(told, f"{user} was told {status} {answer}")
        both_can_talk(host, guest, room)
        for user in (host, guest):
            demand("spam" not in texts(user, room), f"{user} sees what was refused")
        demand(not [e for e in policy.asked if e["type"] == "m.room.policy"], "it was asked about its own setting")
        later = t.guest()
        later.join(room, t.via)
        host.expect_membership(later, room, "join")
        both_can_talk(host, later, room)
    finally:
        policy.stop()
