"""Two handshakes of one user in one room that meet: every pair, in both orders and at once, up to 20 ms apart.

Whatever the two answers were, both servers agree afterwards, by what a member of the room and the user are shown; and the
user can act on what is shown. A pair is a flow, a meeting is a room and a guest of its own.

DOORSTEP_MEETINGS=20 lets each meet so often (1 if nothing is said), DOORSTEP_MEETINGS_SEED=2 at other moments.
"""

import os
import random
import threading
import time

import client
import flows

# What the guest is to the room before the two meet, and what brings them there.
STARTS = {"out": [], "knocked": ["knock"], "invited": ["invite"], "joined": ["invite", "join"]}
SHOWN = {"out": None, "knocked": "knock", "invited": "invite", "joined": "join"}

# Each verb: the endpoint, and from where it is worth something by itself. Several are one request.
VERBS = {
    "knock": ("knock", ["out"]),
    "withdraw": ("leave", ["knocked"]),
    "invite": ("invite", ["out", "knocked"]),
    "reject": ("leave", ["invited"]),
    "rescind": ("kick", ["invited"]),
    "join": ("join", ["invited"]),
    "leave": ("leave", ["joined"]),
    "kick": ("kick", ["knocked", "joined"]),
    "ban": ("ban", ["out", "knocked", "invited", "joined"]),
}
BY_THE_HOST = {"invite", "kick", "ban"}

# Seen of Synapse 1.163: who is banned while invited elsewhere is not told, unlike who is kicked; nor does it believe
# another server's ban of its invited user. And it takes a join that was overtaken by a ban, which the room then has not;
# also by the leave of that very user: once the join is granted elsewhere, the leave is no end of the room to it any more.
TELLS_OF_BANS = "tells the invited user's server of a ban"
TAKES_IN_BANS = "takes in the ban of its invited user"
KEEPS_LEAVES = "keeps its user's leave beside a join that another server grants"
flows.LACKS["synapse"] |= {TELLS_OF_BANS, TAKES_IN_BANS, KEEPS_LEAVES}

AGREE_SECONDS = 30
LOOKS = 3
BETWEEN_LOOKS_MS = 60
ROUNDS = int(os.environ.get("DOORSTEP_MEETINGS", "1"))
SEED = os.environ.get("DOORSTEP_MEETINGS_SEED", "1")


def can(server, ability):
    return ability not in flows.LACKS[server.kind]


class Meeting:
    def __init__(self, stage, host, version, start, verbs, gap_ms):
        self.stage = stage
        self.host = host
        self.guest = stage.guest()
        self.version = version
        self.start = start
        self.verbs = verbs
        self.gap_ms = gap_ms
        self.room = host.create_room(version, "knock")

    def __str__(self):
        first, second = self.verbs
        when = "once answered" if self.gap_ms is None else f"after {self.gap_ms} ms"
        return f"{self.start}: {first}, then {second} {when}, version {self.version} ({self.room})"

    def ask(self, verb):
        endpoint = VERBS[verb][0]
        via = {"server_name": self.stage.via, "via": self.stage.via}
        if endpoint in BY_THE_HOST:
            return self.host.attempt("POST", f"/v3/rooms/{self.room}/{endpoint}", {"user_id": self.guest.id})
        if endpoint == "leave":
            return self.guest.attempt("POST", f"/v3/rooms/{self.room}/leave", {})
        return self.guest.attempt("POST", f"/v3/{endpoint}/{self.room}", {}, via)

    def must(self, verb):
        status, answer = self.ask(verb)
        flows.demand(status == 200, f"then {verb} is answered {status} {answer}")

    def look(self):
        """What the room says of the guest, and what the guest is shown."""
        said = self.host.membership_of(self.guest, self.room)
        self.guest.since, self.guest.rooms = None, {}
        self.guest.sync()
        shown = self.guest.section(self.room)
        return said, None if shown == "leave" else shown

    def settle(self, *expected):
        """Waits until both say the same, and it is one of the expected, if anything is expected."""
        deadline, agreed = time.monotonic() + AGREE_SECONDS, 0
        while agreed < LOOKS:
            said, shown = self.look()
            present = None if said in ("leave", "ban") else said
            agree = present == shown or (not expected and self.untold(said, shown))
            agreed = agreed + 1 if agree and (not expected or shown in expected) else 0
            if time.monotonic() > deadline:
                raise client.Unmet(f"the room says {said}, the guest is shown {shown}, expected was {expected or 'either'}")
            self.guest.sync(BETWEEN_LOOKS_MS)
        return said, shown

    def untold(self, said, shown):
        """Whether the guest's server cannot know better."""
        by_the_host = {VERBS[verb][0] for verb in self.verbs}
        if said == "leave" and shown == "knock":
            return "kick" in by_the_host and not can(self.stage.host_server, flows.TELLS_OF_REFUSALS)
        if said == "ban" and shown in ("knock", "invite", "join"):
            told = can(self.stage.host_server, TELLS_OF_BANS)
            heard = shown == "join" or can(self.stage.guest_server, TAKES_IN_BANS)
            return "ban" in by_the_host and not (told and heard)
        if said == "leave" and shown == "join":
            return set(self.verbs) == {"leave", "join"} and not can(self.stage.guest_server, KEEPS_LEAVES)
        return False

    def run(self):
        for verb in STARTS[self.start]:
            self.must(verb)
        self.settle(SHOWN[self.start])
        answers = [None, None]

        def first():
            answers[0] = self.ask(self.verbs[0])

        if self.gap_ms is None:
            first()
            answers[1] = self.ask(self.verbs[1])
        else:
            thread = threading.Thread(target=first)
            thread.start()
            time.sleep(self.gap_ms / 1000)
            answers[1] = self.ask(self.verbs[1])
            thread.join()
        told = " and ".join(str(status) for status, _ in answers)
        try:
            for verb, (status, answer) in zip(self.verbs, answers, strict=True):
                # Both servers know the room: whatever is in the way, it is not that there is no such room. (Synapse says
                # so of rooms that it has not been in, and of two leaves at once that it failed.)
                asked = self.host if VERBS[verb][0] in BY_THE_HOST else self.guest
                odd = status >= 500 or status == 404
                flows.demand(not odd or asked.server.kind == "synapse", f"{verb}: {answer}")
            said, shown = self.settle(*self.outcome([status for status, _ in answers]))
            self.act(said, shown)
        except (client.Unmet, client.Refused) as error:
            raise client.Unmet(f"{self}, answered {told}: {error}") from error

    def outcome(self, statuses):
        """Where the second followed the first's answer, and both were granted, there is but one."""
        if self.gap_ms is not None or statuses != [200, 200]:
            return ()
        first, second = self.verbs
        if second == "invite" and first != "join":
            return ("invite",)
        if (first, second) == ("invite", "join"):
            return ("join",)
        return (None,) if VERBS[second][0] == "leave" else ()

    def act(self, said, shown):
        """The guest does what one can do with what is shown."""
        if self.untold(said, shown):
            if shown == "invite":
                status, answer = self.ask("join")
                flows.demand(status == 403, f"a join of somebody banned is answered {status} {answer}")
            if shown != "invite" or self.guest.server.kind == "synapse":
                self.must("leave")
            # Doorstep finds out by itself that the invite is gone.
            self.settle(None)
        elif shown == "invite":
            verb = random.choice(["join", "reject"])
            self.must(verb)
            self.settle("join" if verb == "join" else None)
        elif shown == "knock":
            self.must("invite")
            self.settle("invite")
        elif shown == "join":
            self.must("leave")
            self.settle(None)
        else:
            if said == "ban":
                status, answer = self.ask("knock")
                flows.demand(status == 403, f"a banned user's knock is answered {status} {answer}")
                self.host.unban(self.room, self.guest)
            self.must("knock")
            self.settle("knock")


def makes_sense(stage, start, verbs):
    """Whether the servers can do what the meeting is about."""
    endpoints = [VERBS[verb][0] for verb in verbs]
    may_knock = start == "knocked" or "knock" in endpoints
    if may_knock and "leave" in endpoints and not can(stage.guest_server, flows.WITHDRAWS_KNOCKS):
        return False
    removed = {"kick", "ban"} & set(endpoints)
    return not (removed and may_knock and not can(stage.guest_server, flows.TAKES_IN_REFUSALS))


def meet(one, other):
    def run(stage):
        dice = random.Random(f"{SEED} {one} {other} {stage.host_server.label} {stage.guest_server.label}")
        host, wrong, met = stage.host(), [], 0
        for number in range(ROUNDS):
            for verbs in [(one, other), (other, one)]:
                starts = [s for s in STARTS if s in VERBS[one][1] or s in VERBS[other][1]]
                for start in filter(lambda start: makes_sense(stage, start, verbs), starts):
                    gap_ms = [None, 0, dice.randint(1, 20)][(number + dice.randrange(3)) % 3]
                    version = dice.choice(flows.KNOCK)
                    met += 1
                    try:
                        Meeting(stage, host, version, start, verbs, gap_ms).run()
                    except (client.Unmet, client.Refused) as error:
                        wrong.append(str(error))
        flows.demand(not wrong, f"{len(wrong)} of {met} went wrong:\n" + "\n".join(wrong))

    return run


def at_once(verb, start, expected):
    """The guest does this the moment that the invite is shown, while the host may not have its answer yet."""

    def run(stage):
        host, wrong = stage.host(), []
        tries = 10 * ROUNDS
        for number in range(tries):
            meeting = Meeting(stage, host, flows.KNOCK[number % len(flows.KNOCK)], start, ("invite", verb), 0)
            for step in STARTS[start]:
                meeting.must(step)
            meeting.guest.sync()
            inviting = threading.Thread(target=meeting.ask, args=("invite",))
            inviting.start()
            try:
                meeting.guest.expect_section(meeting.room, "invite")
                meeting.must(verb)
                inviting.join()
                meeting.settle(expected)
            except client.Unmet as error:
                wrong.append(f"{meeting}: {error}")
            inviting.join()
        flows.demand(not wrong, f"{len(wrong)} of {tries} went wrong:\n" + "\n".join(wrong))

    return run


for start in ("out", "knocked"):
    flows.flow(f"meeting: an invite is joined the moment it is shown, {start} before", ["any"])(at_once("join", start, "join"))
    flows.flow(f"meeting: an invite is rejected the moment it is shown, {start} before", ["any"])(at_once("reject", start, None))

for number, one in enumerate(VERBS):
    for other in list(VERBS)[number:]:
        flows.flow(f"meeting: {one} and {other}", ["any"])(meet(one, other))
