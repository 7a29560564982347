"""Partitions: servers that share rooms cannot reach each other for a while, and both sides change the same things.

Three servers, of which at least two are Doorsteps, have rooms in every way of being host and guest. All rooms live
through the same cut: what each does before, during and after it is one generator, which yields where the cut begins and
where it ends. After the cut nobody does anything: the servers must find together by themselves, event for event.

The random rounds have rooms with users on all three servers who do what comes to mind while the servers are apart.
"""

import concurrent.futures
import functools
import random
import time

import client
import flows
from flows import demand

VERSIONS = ["1", "2", "6", "10", "11", "12"]
KNOCKING = {"10", "11", "12"}
QUIET_SECONDS = 6  # how long servers get to agree on what needs a further event to agree upon

PARTITIONS = []


def partition(title):
    def enlist(function):
        PARTITIONS.append((title, function))
        return function

    return enlist


class Split:
    """The servers, and the cut between all of them."""

    def __init__(self, servers):
        self.servers = servers

    def cut(self):
        for server in self.servers:
            server.gate.cut_off(self._others(server))

    def heal(self):
        for server in self.servers:
            server.gate.let_in(self._others(server))

    def _others(self, server):
        return [other.name for other in self.servers if other is not server]


class Stage(flows.Stage):
    """Where one room lives: the server that has it, another one, a room version, and users as they are needed."""

    def user(self, server, role):
        return self._user(server, role)

    def room(self, host, rule, guests, power):
        """A room with these guests in it, known to be there on both sides."""
        levels = {"users": self.levels(host, power), "events": {"m.room.power_levels": 90}}
        room = host.create_room(self.version, rule, power_level_content_override=levels)
        for guest in guests:
            host.invite(room, guest)
            guest.expect_section(room, "invite")
            guest.join(room, self.host_server.name)
        first = guests[0]
        for guest in guests:
            host.expect_membership(guest, room, "join")
            first.expect_membership(guest, room, "join")
        agree([host, first], room)
        return room

    def levels(self, host, power):
        """Power levels by user. From version 12 on the creator is above all of them and must not be named."""
        named = {} if self.version == "12" else {host.id: 100}
        return named | {user.id: level for user, level in power.items()}


def agree(readers, room, seconds=None):
    """All servers come to the same current state, event for event."""
    deadline = time.monotonic() + (seconds or client.PATIENCE_SECONDS)
    while True:
        states = [reader.full_state(room) for reader in readers]
        if all(state == states[0] for state in states):
            return states[0]
        if time.monotonic() > deadline:
            raise client.Unmet(f"the state of {room} stays different: {difference(readers, states)}")
        time.sleep(0.3)


def difference(readers, states):
    keys = {key for state in states for key in state}
    differing = sorted(key for key in keys if len({state.get(key) for state in states}) > 1)
    told = [f"{key}: " + ", ".join(f"{r.server.label} {s.get(key)}" for r, s in zip(readers, states)) for key in differing]
    return "; ".join(told)


def all_read(readers, room, said):
    """Every one of these events can be read on each side, and nothing comes twice."""
    deadline = time.monotonic() + client.PATIENCE_SECONDS
    for reader in readers:
        while True:
            seen = [event["event_id"] for event in reader.all_messages(room)]
            missing = [event_id for event_id in said if event_id not in seen]
            if not missing:
                break
            demand(time.monotonic() < deadline, f"{reader!r} lacks {len(missing)} of {len(said)} messages: {missing}")
            time.sleep(0.3)
        demand(len(seen) == len(set(seen)), f"{reader!r} shows an event twice")


# -- the rooms --


@partition("topics, chains of names, messages, redactions on both sides of a cut")
def plain_state(t):
    host, guest = t.user(t.host_server, "host"), t.user(t.guest_server, "guest")
    room = t.room(host, "public", [guest], {guest: 50})
    common = host.send(room, "will be redacted twice")
    for reader in (host, guest):
        reader.expect_event(room, common)
    yield
    said, unsaid = [], [common]
    for user in (host, guest):
        user.set_state(room, "m.room.topic", {"topic": f"by {user.id}"})
        for number in range(3):
            user.set_state(room, "m.room.name", {"name": f"{user.id} {number}"})
            said.append(user.send(room, f"{user.id} {number}"))
            user.set_state(room, "org.example.note", {"note": number}, f"{number}")
        unsaid.append(user.send(room, "said and redacted apart"))
        user.redact(room, unsaid[-1], "apart")
        user.redact(room, common, "twice")
    yield
    agree([host, guest], room)
    all_read([host, guest], room, said + unsaid)
    for reader in (host, guest):
        for event_id in unsaid:
            demand(reader.event(room, event_id)["content"] == {}, f"{reader!r}: {event_id} was redacted in vain")


@partition("power levels against power levels on both sides of a cut")
def power(t):
    host, friend = t.user(t.host_server, "host"), t.user(t.host_server, "friend")
    guest, second = t.user(t.guest_server, "guest"), t.user(t.guest_server, "second")
    room = t.room(host, "public", [guest, second, friend], {guest: 90, second: 50, friend: 50})
    yield
    # The more powerful one demotes the other, who meanwhile promotes, and whose favourite uses it.
    host.set_state(room, "m.room.power_levels", changed(host, room, {guest: 0, friend: 60}))
    friend.set_state(room, "m.room.topic", {"topic": "by the host's friend"})
    guest.set_state(room, "m.room.power_levels", changed(guest, room, {second: 80, friend: 0}, state_default=70))
    second.set_state(room, "m.room.topic", {"topic": "by the guest's friend"})
    second.set_state(room, "m.room.name", {"name": "by the guest's friend"})
    guest.kick(room, friend, "no friend of mine")
    said = [host.send(room, "from the host"), guest.send(room, "from the guest")]
    yield
    agree([host, guest], room)
    all_read([host, guest], room, said)
    for reader in (host, guest):
        levels = reader.state_content(room, "m.room.power_levels")
        demand(levels["users"][guest.id] == 0, f"{reader!r}: the demotion by the more powerful did not win: {levels}")
        topic = reader.state_content(room, "m.room.topic")
        demand(t.version == "1" or topic == {"topic": "by the host's friend"}, f"{reader!r}: a usurper's topic stands: {topic}")


def changed(reader, room, users, **others):
    """The power levels of a room with other levels for some."""
    levels = reader.state_content(room, "m.room.power_levels")
    levels["users"] = levels.get("users", {}) | {user.id: level for user, level in users.items()}
    return levels | others


@partition("two equals change power levels, and moderate each other's friends, on both sides of a cut")
def equals(t):
    host, friend = t.user(t.host_server, "host"), t.user(t.host_server, "friend")
    guest, second = t.user(t.guest_server, "guest"), t.user(t.guest_server, "second")
    room = t.room(host, "public", [guest, second, friend], {guest: 100})
    yield
    for user, raised, banned in ((host, friend, second), (guest, second, friend)):
        user.set_state(room, "m.room.power_levels", changed(user, room, {raised: 50}))
        raised.set_state(room, "m.room.topic", {"topic": f"by {raised.id}"})
        user.ban(room, banned, "no friend of mine")
        user.set_state(room, "m.room.history_visibility", {"history_visibility": "joined"})
    yield
    agree([host, guest], room)


@partition("bans, kicks and join rules against joins, messages and knocks on both sides of a cut")
def membership(t):
    host, guest = t.user(t.host_server, "host"), t.user(t.guest_server, "guest")
    rejoining, speaking, coming = (t.user(t.guest_server, role) for role in ("rejoining", "speaking", "coming"))
    knocks = t.version in KNOCKING
    room = t.room(host, "knock" if knocks else "public", [guest, rejoining, speaking], {guest: 50, speaking: 50})
    rejoining.leave(room)
    host.expect_membership(rejoining, room, "leave")
    if knocks:
        # Seen in the room's state: Synapse does not show it in /sync to one who was in the room before.
        host.invite(room, rejoining)
        guest.expect_membership(rejoining, room, "invite")
    agree([host, guest], room)
    yield
    host.ban(room, rejoining, "for good")
    host.kick(room, speaking, "for now")
    host.set_state(room, "m.room.join_rules", {"join_rule": "invite"})
    rejoining.join(room)
    rejoining.send(room, "I am back")
    speaking.send(room, "I am still here")
    speaking.set_state(room, "m.room.topic", {"topic": "by one who is out"})
    if knocks:
        coming.knock(room)
    else:
        coming.join(room)
    said = [guest.send(room, "from the guest"), host.send(room, "from the host")]
    yield
    if t.version == "1":
        # The first algorithm takes what only one side has for undisputed, and who refused it keeps refusing it: only a
        # message on top of both makes the sides see the same.
        try:
            agree([host, guest], room, QUIET_SECONDS)
        except client.Unmet:
            said.append(guest.send(room, "a message on top of all"))
    agree([host, guest], room)
    all_read([host, guest], room, said)
    for reader in (host, guest):
        for user, expected in ((rejoining, "ban"), (speaking, "leave")):
            found = reader.membership_of(user, room)
            demand(found == expected, f"{reader!r}: {user.id} is {found} after the cut, not {expected}")
        if t.version != "1":
            topic = reader.state_content(room, "m.room.topic")
            demand(topic is None, f"{reader!r}: the topic of one who is out stands: {topic}")
            found = reader.membership_of(coming, room)
            demand(found is None, f"{reader!r}: {coming.id} is {found} although the door was shut")


# -- random rounds --


class Party:
    """A room with users on every server: one on each who only speaks, and some who do anything."""

    def __init__(self, servers, version, unique, seed):
        self.version = version
        self.name = f"random acts on three sides, v{version:<3} seed {seed}"
        self.chance = random.Random(f"{seed} {version}")
        self.watchers = [client.register(server, f"watcher-{unique}") for server in servers]
        self.actors = [client.register(server, f"actor{n}-{unique}") for server in servers for n in range(2)]
        host, others = self.watchers[0], self.watchers[1:]
        levels = {user.id: level for user, level in zip(self.actors, (100, 50, 90, 50, 80, 0))}
        if version != "12":
            levels[host.id] = 100
        self.room = host.create_room(version, "public", power_level_content_override={"users": levels})
        for user in others + self.actors:
            user.join(self.room, servers[0].name)
        for user in others:
            self.watchers[0].expect_membership(user, self.room, "join")
        self.said = []
        self.events = []

    def act(self, steps):
        for step in range(steps):
            for watcher in self.watchers:
                self.said.append(watcher.send(self.room, f"{step} as {watcher.id} sees it"))
            for actor in self.chance.sample(self.actors, 4):
                self._one_act(actor)

    def _one_act(self, actor):
        chance, room = self.chance, client._segment(self.room)
        someone = chance.choice(self.actors)
        act = chance.choices(
            ["say", "state", "power", "kick", "ban", "unban", "invite", "join", "leave", "knock", "rules", "redact"],
            [6, 6, 4, 2, 2, 2, 2, 5, 1, 1, 2, 2],
        )[0]
        number = chance.randrange(1000)
        if act == "say":
            path, body = f"send/m.room.message/r{time.monotonic_ns()}", {"msgtype": "m.text", "body": f"{number}"}
        elif act == "state":
            kind = chance.choice(["m.room.topic", "m.room.name", "org.example.note"])
            path = f"state/{kind}/"
            body = {"topic": f"{number}", "name": f"{number}"}
        elif act == "power":
            levels = actor.state_content(self.room, "m.room.power_levels")
            if not levels:
                return
            levels["users"][someone.id] = chance.choice([0, 50, 50, 80, 90, 100])
            path, body = "state/m.room.power_levels/", levels
        elif act == "rules":
            rules = ["public", "public", "invite"] + (["knock"] if self.version in KNOCKING else [])
            path, body = "state/m.room.join_rules/", {"join_rule": chance.choice(rules)}
        elif act == "redact":
            if not self.events:
                return
            path, body = f"redact/{client._segment(chance.choice(self.events))}/r{time.monotonic_ns()}", {}
        elif act in ("kick", "ban", "unban", "invite"):
            path, body = act, {"user_id": someone.id}
        else:
            path, body = act, {}
        method = "PUT" if path.startswith(("send", "state", "redact")) else "POST"
        where = f"/v3/{act}/{room}" if act in ("join", "knock") else f"/v3/rooms/{room}/{path}"
        status, answer = actor.attempt(method, where, body)
        # A server that has no member left in the room asks the others, which it cannot reach.
        demand(status < 500 or act in ("join", "knock", "invite", "leave"), f"{actor!r} {act} {body} -> {status} {answer}")
        if status == 200 and act in ("say", "state"):
            self.events.append(answer["event_id"])

    def reunite(self):
        """The servers agree, by themselves or after a message on top: then 1 is counted. That can be needed: what one
        server refused for what it knew then, another took in before it knew, and builds upon."""
        nudges = 0
        try:
            agree(self.watchers, self.room, QUIET_SECONDS)
        except client.Unmet:
            nudges = 1
            for watcher in self.watchers:
                self.said.append(watcher.send(self.room, "a message on top of all"))
            agree(self.watchers, self.room)
        all_read(self.watchers, self.room, self.said)
        return nudges


# -- the run --


class Course:
    """One room's way through the cut: a generator, how long its parts took, and what went wrong."""

    def __init__(self, name, generator):
        self.name = name
        self.seconds = 0.0
        self.failure = None
        self._generator = generator

    def proceed(self):
        """On to the next cut, or to the end. What goes wrong is kept, and ends it."""
        if self.failure:
            return
        begun = time.monotonic()
        try:
            next(self._generator, None)
        except Exception as error:  # noqa: BLE001 - kept for the report
            self.failure = error
        self.seconds += time.monotonic() - begun

    def verdict(self):
        if self.failure:
            raise self.failure


def run(given, split, jobs, report):
    """All rooms through one cut."""
    courses = []
    first, second = split.servers[:2]
    pairs = [(first, second), (second, first)] + ([split.servers[1:]] if len(split.servers) > 2 else [])
    for title, function in PARTITIONS:
        for version in VERSIONS:
            for host, guest in pairs:
                name = f"{guest.label:9} at {host.label:9} v{version:<3} {title}"
                if given.only in name and (not given.versions or version in given.versions.split(",")):
                    stage = Stage(host, guest, version, f"cut-{len(courses)}")
                    courses.append(Course(name, function(stage)))
    if not courses:
        return
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(Course.proceed, courses))
        split.cut()
        try:
            list(pool.map(Course.proceed, courses))
        finally:
            split.heal()
        list(pool.map(Course.proceed, courses))
    for course in courses:
        report.run(course.name, course.verdict, course.seconds)


def run_random(given, split, jobs, report):
    """Some rooms through several cuts."""
    versions = given.versions.split(",") if given.versions else VERSIONS
    name = f"random acts on three sides of {given.rounds} cuts, seed {given.seed}"
    if given.only not in name or not given.rounds:
        return

    def play():
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            make = functools.partial(Party, split.servers, seed=given.seed)
            uniques = [f"{given.seed}-{version}" for version in versions]
            parties = list(pool.map(lambda pair: make(*pair), zip(versions, uniques)))
            for number in range(given.rounds):
                split.cut()
                try:
                    list(pool.map(lambda party: party.act(given.steps), parties))
                finally:
                    split.heal()
                nudged = sum(pool.map(Party.reunite, parties))
                print(f"     cut {number + 1}: {nudged} of {len(parties)} rooms needed a message on top", flush=True)

    report.run(name, play)
