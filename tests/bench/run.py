"""The benchmark: starts a release Doorstep and a Synapse, puts the same load on each in turn, prints one table.

Figures depend on the machine and on what else it does: the load before and after is printed with them, and no test asserts
any of them. Started by run.sh.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "interop"))

import client
from servers import Authority, Doorstep, Synapse, free_port

ROOM_VERSION = "11"
# What happens between a scripted server and the one under test.
DEEDS = ("knocks", "joins", "receive", "large-join")
# What can be asked by itself; `crowd` takes Synapse minutes, and is asked with `--crowd` only.
QUESTIONS = ("ready", "handshakes", "receive", "sends", "large", "syncs", "waiting", "sliding", "keys", "media")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--doorstep", type=pathlib.Path, help="a doorstep binary (default: a release build)")
    parser.add_argument("--load", type=pathlib.Path, help="the load generator (default: a release build)")
    parser.add_argument("--seconds", type=int, default=10, help="of load, for each question (default 10)")
    parser.add_argument("--waiting", type=int, default=1000, help="clients that wait (default 1000)")
    parser.add_argument(
        "--large", type=int, nargs="*", default=[10_000, 50_000], help="members of rooms to join (default 10000 50000)"
    )
    parser.add_argument("--devices", type=int, default=1000, help="devices whose keys are used (default 1000)")
    parser.add_argument(
        "--sliding", type=int, nargs="*", default=[100, 1000], help="rooms of users with sliding sync (default 100 1000)"
    )
    parser.add_argument("--only", default="doorstep,synapse", help="one of the two servers")
    parser.add_argument(
        "--questions", default=",".join(QUESTIONS), help=f"only some of the questions (default {','.join(QUESTIONS)})"
    )
    parser.add_argument(
        "--crowd", action="store_true", help="also wake everybody in one room (joining takes Synapse minutes)"
    )
    return parser.parse_args()


def build(given):
    if not given.doorstep:
        subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
        given.doorstep = target() / "release" / "doorstep"
    if not given.load:
        command = ["cargo", "bench", "--no-run", "--locked", "--bench", "load", "--message-format", "json"]
        lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        made = [message["executable"] for message in map(json.loads, lines) if message.get("executable")]
        given.load = pathlib.Path(made[-1])


def target():
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


# Users who come at once and have nothing yet.
FIRST_SYNCS_AT_ONCE = 200
# Connections that upload and download, each a user's.
UPLOADERS = 4


class Bench:
    """All questions to one server."""

    def __init__(self, server, given, authority, scratch):
        self.server = server
        self.given = given
        self.authority = authority
        self.scratch = scratch
        self.figures = {}

    def load(self, *words):
        command = [str(self.given.load), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}\n{self.server.tail()}")
        answer = json.loads(done.stdout.splitlines()[-1])
        question = next((word for word in words if word in DEEDS), words[0])
        print(f"     {self.server.label}: {question} {answer}", flush=True)
        return answer

    def run(self):
        self.server.start()
        self.server.stop()  # now there is a database
        asked = self.given.questions.split(",")
        if "ready" in asked:
            self.ready()
        if "handshakes" in asked or "receive" in asked:
            self.server.start()
            self.figures["resident, idle"] = mib(self.server.rss_kib())
            owner = client.register(self.server, "owner")
            if "handshakes" in asked:
                self.all_handshakes(owner)
            if "receive" in asked:
                self.receive(owner)
            self.figures["resident after all that"] = mib(self.server.rss_kib())
            self.server.stop()
        if "sends" in asked:
            self.sends()
        if "large" in asked:
            for members in self.given.large:
                self.large_join(members)
        if "syncs" in asked:
            self.first_syncs()
        if "waiting" in asked:
            self.server.start()
            self.waiting()
            self.server.stop()
        if "sliding" in asked:
            self.server.start()
            for rooms in self.given.sliding:
                self.sliding(rooms)
            self.server.stop()
        if "keys" in asked:
            self.keys()
        if "media" in asked:
            self.media()

    def ready(self):
        words = [
            "ready",
            "--client",
            f"127.0.0.1:{self.server.client_port}",
            "--times",
            "5",
            "--",
            *self.server.command(),
        ]
        ready = self.load(*words)
        self.figures["exec to ready, existing database"] = f"{ready['median_ms']:.1f} ms (best {ready['best_ms']:.1f})"

    def all_handshakes(self, owner):
        self.handshakes("knocks", owner, 8)
        self.handshakes("knocks", owner, 1)
        self.handshakes("joins", owner, 8)
        for members in (50, 250):
            self.handshakes("joins", owner, 1, members)

    def first_syncs(self):
        """Initial syncs: of a hundred small rooms, then (our database only, since they are written into it) of 300 rooms
        of 300 members."""
        self.server.start()
        alone, many = client.register(self.server, "alone"), client.register(self.server, "popular")
        for number in range(100):
            room = alone.create_room(ROOM_VERSION, "public")
            for message in range(10):
                alone.send(room, f"message {message} of room {number}")
        self.first_sync("100 rooms", [alone], 100)
        if self.server.kind != "doorstep":
            self.server.stop()
            return
        readers = [client.register(self.server, f"reader{number}") for number in range(FIRST_SYNCS_AT_ONCE)]
        self.server.stop()
        data, at_once = self.server.folder / "data", ["--clients", len(readers), "--times", 1]
        self.load(
            "fill", "--data", data, "--name", self.server.name, "--user", many.id, "--readers", len(readers)
        )  # fmt: skip
        for what, users, more in (
            ("300 rooms of 300 members, lazy loading", [many], ["--lazy"]),
            ("300 rooms of 300 members, all of them", [many], []),
            (f"the same, lazy loading, for {len(readers)} users at once", readers, ["--lazy", *at_once]),
            (f"the same, all of them, for {len(readers)} users at once", readers, at_once),
        ):
            # Each from a start of its own, for the memory.
            self.server.start()
            self.first_sync(what, users, 300, *more)
            self.server.stop()

    def first_sync(self, what, users, rooms, *words):
        tokens = self.scratch / f"{self.server.label}-first"
        tokens.write_text("\n".join(user.token for user in users))
        answer = self.load(
            "first-sync", "--client", f"127.0.0.1:{self.server.client_port}", "--pid", self.server.process.pid,
            "--tokens", tokens, "--rooms", rooms, *words,
        )  # fmt: skip
        what = f"initial /sync of {what}"
        self.figures[f"{what}: p50 / worst"] = f"{answer['p50_ms']:.1f} / {answer['worst_ms']:.1f} ms"
        self.figures[f"… processor each, bytes ({what})"] = f"{processor(answer)}, {answer['bytes']} bytes"
        if "peak_kib" in answer and rooms > 100:
            self.figures[f"… resident at most ({what})"] = mib(answer["peak_kib"])

    def peer(self, server, port, user, *words):
        """Something happens between a scripted server and this one. What it counted it has found in the rooms, or it
        fails."""
        return self.load(
            "peer", "--target", server.name, "--pid", server.process.pid,
            "--client", f"127.0.0.1:{server.client_port}", "--token", user.token,
            "--room-version", ROOM_VERSION, "--port", port, "--ca", self.authority.ca,
            "--certificate", self.authority.certificate, "--key", self.authority.key, *words,
        )  # fmt: skip

    def handshakes(self, question, owner, rooms, members=50):
        words = [question, "--rooms", rooms, "--seconds", self.given.seconds]
        if question == "joins":
            words += ["--members", members]
        answer = self.peer(self.server, free_port(), owner, *words)
        size = f" of {members}" if question == "joins" else ""
        what = f"8 connections, {rooms} room{'s' if rooms > 1 else ''}{size}"
        what = f"{question[:-1]} handshakes/s, {what}"
        self.figures[what] = f"{answer['a_second']:.0f}"
        self.figures[f"… processor each ({what})"] = processor(answer)
        self.figures[f"… p50 / p99 ({what})"] = f"{answer['p50_ms']:.1f} / {answer['p99_ms']:.1f} ms"

    def receive(self, owner):
        # Synapse answers before it has looked at the messages, and gets no more of them than it can follow.
        transactions = 250 if self.server.kind == "doorstep" else 5
        words = ["receive", "--rooms", 4, "--seconds", self.given.seconds, "--transactions", transactions]
        if self.server.kind == "doorstep":
            words += ["--data", self.server.folder / "data"]
        answer = self.peer(self.server, free_port(), owner, *words)
        what = "messages/s received, 50 a transaction, 4 rooms"
        self.figures[what] = f"{answer['a_second']:.0f}" + (f" ({answer['lost']} lost)" if answer["lost"] else "")
        self.figures[f"… processor each ({what})"] = processor(answer)
        self.figures[f"… bytes on disk each ({what})"] = str(answer.get("disk_bytes_each", "–"))

    def sends(self):
        """Eight users who send all the time. The database is measured while the server is down: nothing is in a log then."""
        self.server.start()
        users = [client.register(self.server, f"speaker{number}") for number in range(8)]
        rooms = [user.create_room(ROOM_VERSION, "public") for user in users]
        for user in users[1:]:
            user.join(rooms[0])
        self.server.stop()
        before = self.database_bytes()
        self.server.start()
        tokens = self.scratch / f"{self.server.label}-speakers"
        tokens.write_text("\n".join(user.token for user in users))
        count = 0
        for what, where in (("1 room", rooms[:1]), ("8 rooms", rooms)):
            answer = self.load(
                "sends", "--client", f"127.0.0.1:{self.server.client_port}", "--pid", self.server.process.pid,
                "--tokens", tokens, "--seconds", self.given.seconds,
                *[word for room in where for word in ("--room", room)],
            )  # fmt: skip
            if answer["lost"]:
                raise RuntimeError(f"{self.server.label} lost {answer['lost']} messages that it had acknowledged")
            count += answer["acknowledged"]
            what = f"8 connections, {what}"
            self.figures[f"messages sent/s, {what}"] = f"{answer['a_second']:.0f}"
            self.figures[f"… processor a message, {what}"] = processor(answer)
            self.figures[f"… p50 / p99 of a message, {what}"] = f"{answer['p50_ms']:.1f} / {answer['p99_ms']:.1f} ms"
        self.server.stop()
        self.figures["on disk, a message"] = f"{(self.database_bytes() - before) / count:.0f} bytes"
        if self.server.kind == "doorstep":
            answer = self.load("rows")
            what = f"rows that a message adds in a room with {answer['servers']} servers"
            self.figures[what] = str(answer["rows"])

    def large_join(self, members):
        """A room with members of 500 servers that are gone; the scripted resident is a notary for their keys as well."""
        if self.server.kind != "doorstep":
            self.figures[f"join of {members} members"] = "not asked: its joins are partial at first, and it takes minutes"
            return
        port = free_port()
        server = Doorstep(f"large-{members}", self.scratch / f"large-{members}", self.authority)
        server.notaries = [f"localhost:{port}"]
        server.start()
        try:
            users = [client.register(server, name) for name in ("guest", "neighbour")]
            answer = self.peer(
                server, port, users[0],
                "large-join", "--other-token", users[1].token, "--data", server.folder / "data", "--members", members,
            )  # fmt: skip
        finally:
            server.stop()
        what = f"{members} members"
        verify = answer["verify_ms"]
        self.figures[f"join of {what} (verifying its {answer['signatures']} signatures alone)"] = (
            f"{answer['join_ms']:.0f} ms ({verify:.0f} ms: {answer['join_ms'] / verify:.2f} times)"
        )
        self.figures[f"… processor ({what})"] = f"{answer['join_cpu_ms']:.0f} ms (verifying: {answer['verify_cpu_ms']:.0f})"
        self.figures[f"… resident at most ({what})"] = mib(answer["peak_kib"])
        self.figures[f"… on disk ({what})"] = f"{answer['disk_bytes'] / 1e6:.1f} MB"
        self.figures[f"… a message elsewhere meanwhile, p50 / worst ({what})"] = (
            f"{answer['other_send_p50_ms']:.1f} / {answer['other_send_worst_ms']:.1f} ms"
        )
        for name, figure in (
            ("initial /sync, lazy loading", "lazy_sync"), ("/members", "members"), ("/joined_members", "joined_members"),
            ("/state", "state"), ("a message sent, p50", "send_p50"), ("a join received, p50", "join_received_p50"),
            ("state_ids for another server", "state_ids_asked"), ("state for another server", "state_asked"),
            ("send_join for another server", "send_join"),
            ("send_join without members for another server", "send_join_without_members"),
        ):  # fmt: skip
            self.figures[f"… {name} ({what})"] = f"{answer[figure + '_ms']:.1f} ms"
        self.figures[f"… bytes on disk of a join received ({what})"] = str(answer["join_received_bytes"])

    def keys(self):
        """A thousand users with a device each: their keys, and messages to all of their devices."""
        self.server.start()

        def device(number):
            user = client.register(self.server, f"keyholder{number}")
            return f"{user.id} {user.call('GET', '/v3/account/whoami')['device_id']} {user.token}"

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            lines = list(pool.map(device, range(self.given.devices)))
        devices = self.scratch / f"{self.server.label}-devices"
        devices.write_text("\n".join(lines))
        answer = self.load(
            "keys", "--client", f"127.0.0.1:{self.server.client_port}", "--pid", self.server.process.pid,
            "--devices", devices, "--seconds", self.given.seconds,
        )  # fmt: skip
        self.server.stop()
        for what, part in (
            ("an upload of 50 one-time keys", "upload"),
            ("a query of the devices of 100 users", "query"),
            ("a claim of one key, 8 connections", "claim_one"),
            ("a claim of a key of each of 100 devices, 8 connections", "claim_many"),
            (f"messages to {answer['to_device']['devices']} devices in one request", "to_device"),
        ):
            figures = answer[part]
            if part.startswith("claim"):
                self.figures[f"keys/s, {what}"] = f"{figures['a_second']:.0f}"
            self.figures[f"{what}: p50 / p99"] = f"{figures['p50_ms']:.2f} / {figures['p99_ms']:.2f} ms"
            each = "a key" if part.startswith("claim") else "each"
            self.figures[f"… processor {each} ({what})"] = processor(figures)

    def database_bytes(self):
        return sum(file.stat().st_size for file in self.server.folder.glob("**/*.db*"))

    def waiting(self):
        """In rooms of their own, so that it is the waiting that is measured, and not what was in the rooms before."""
        count = self.given.waiting
        owner = client.register(self.server, "caller")
        room = owner.create_room(ROOM_VERSION, "public")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            users = list(pool.map(lambda number: client.register(self.server, f"waiter{number}"), range(count)))
            users[0].join(room)
            for others in (0, count - 1):
                tokens = self.scratch / f"{self.server.label}-tokens"
                tokens.write_text("\n".join(user.token for user in [owner, *users[: others + 1]]))
                answer = self.load(
                    "wake", "--client", f"127.0.0.1:{self.server.client_port}", "--pid", self.server.process.pid,
                    "--room", room, "--tokens", tokens,
                )  # fmt: skip
                what = f"{others + 1} waiting"
                self.figures[f"a waiting /sync is woken, {what}: p50 / p99"] = (
                    f"{answer['p50_ms']:.2f} / {answer['p99_ms']:.2f} ms"
                )
                self.figures[f"resident, {what}"] = mib(answer["resident_kib"])
            if self.given.crowd:
                list(pool.map(lambda user: user.join(room), users[1:]))
                for members in (100, count):
                    tokens.write_text("\n".join(user.token for user in [owner, *users[:members]]))
                    self.crowd(room, tokens, members)

    def crowd(self, room, tokens, members):
        answer = self.load(
            "crowd", "--client", f"127.0.0.1:{self.server.client_port}", "--pid", self.server.process.pid,
            "--room", room, "--tokens", tokens,
        )  # fmt: skip
        what = f"one message wakes {members} in its room"
        figures = f"{answer['p50_ms']:.1f} / {answer['p99_ms']:.1f} / {answer['last_ms']:.1f} ms"
        self.figures[f"{what}: p50 / p99 / last"] = figures
        self.figures[f"… processor for each of them ({what})"] = processor(answer)


    def sliding(self, rooms):
        """One user with so many rooms, whose client looks at all of them."""
        tokens = self.scratch / f"{self.server.label}-slider"
        tokens.write_text(client.register(self.server, f"slider{rooms}").token)
        answer = self.load(
            "slide", "--client", f"127.0.0.1:{self.server.client_port}", "--tokens", tokens, "--rooms", rooms
        )  # fmt: skip
        what = f"sliding sync, {rooms} rooms"
        self.figures[f"{what}: the first 20, p50"] = f"{answer['initial_20_p50_ms']:.1f} ms"
        self.figures[f"{what}: all at once"] = f"{answer['initial_all_ms']:.0f} ms"
        self.figures[f"{what}: one message, p50 / p99"] = (
            f"{answer['incremental_p50_ms']:.2f} / {answer['incremental_p99_ms']:.2f} ms"
        )


    def media(self):
        """Files of a megabyte up and down on several connections, and one of a hundred megabytes."""
        self.server.start()
        tokens = self.scratch / f"{self.server.label}-uploaders"
        users = [client.register(self.server, f"uploader{number}") for number in range(UPLOADERS)]
        tokens.write_text("\n".join(user.token for user in users))
        answer = self.load(
            "media", "--client", f"127.0.0.1:{self.server.client_port}", "--pid", self.server.process.pid,
            "--tokens", tokens, "--seconds", self.given.seconds,
        )  # fmt: skip
        for verb in ("uploads", "downloads"):
            figures = answer[verb]
            what = f"{verb} of 1 MB/s, {UPLOADERS} connections"
            self.figures[what] = f"{figures['a_second']:.0f} (p99 {figures['p99_ms']:.0f} ms)"
            self.figures[f"… processor each ({what})"] = processor(figures)
        for way, what in (("up", "100 MB uploaded"), ("down", "100 MB downloaded")):
            figures = answer["large"][way]
            self.figures[f"{what}: time, memory beyond idle"] = f"{figures['seconds']:.2f} s, {mib(figures['more_kib'])}"
        self.server.stop()


def processor(answer):
    return f"{answer['server_cpu_ms_each']:.2f} ms (the load: {answer['load_cpu_ms_each']:.2f})"


def mib(kib):
    return f"{kib / 1024:.1f} MiB"


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} × {model or platform.machine()}, Linux {platform.release()}"


def load_average():
    return " ".join(f"{part:.2f}" for part in os.getloadavg())


def main():
    given = arguments()
    build(given)
    Doorstep.binary = given.doorstep.resolve()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="doorstep-bench-"))
    authority = Authority(scratch / "authority")
    kinds = {"doorstep": Doorstep, "synapse": Synapse}
    benches = []
    before = load_average()
    try:
        for label in given.only.split(","):
            bench = Bench(kinds[label](label, scratch / label, authority), given, authority, scratch)
            benches.append(bench)
            try:
                bench.run()
            finally:
                bench.server.stop()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if "doorstep" in given.only:
        benches[0].figures["release binary"] = f"{given.doorstep.stat().st_size / 1e6:.1f} MB"
    print(f"\n{machine()}; load average before {before}, after {load_average()} (our own load included)\n")
    print("| | " + " | ".join(bench.server.label for bench in benches) + " |")
    print("|---|" + "---|" * len(benches))
    for figure in benches[0].figures:
        print(f"| {figure} | " + " | ".join(bench.figures.get(figure, "–") for bench in benches) + " |")


if __name__ == "__main__":
    main()
