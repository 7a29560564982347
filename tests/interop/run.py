"""Runs the flows between real servers: Doorstep and Synapse in both directions, Doorstep and Doorstep.

Started by run.sh, which provides the packages. A line a flow; the last line is `N passed, N failed`.
"""

import argparse
import collections
import functools
import pathlib
import signal
import sys
import tempfile
import time

import admin  # noqa: F401 - its flows are among those of flows.py
import client
import dendrite
import end_to_end  # noqa: F401 - its flows are among those of flows.py
import ephemeral  # noqa: F401 - its flows are among those of flows.py
import files  # noqa: F401 - likewise
import flows
import kills
import meetings  # noqa: F401 - likewise
import operators  # noqa: F401 - likewise
import partitions
import upgrades  # noqa: F401 - likewise
from gate import Gate
from report import Report, folder_in_memory, together
from servers import Authority, Doorstep, Synapse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--doorstep", type=pathlib.Path, help="the doorstep binary")
    parser.add_argument(
        "--stand-in", action="store_true", help="Synapses in place of Doorsteps: proves the harness itself"
    )
    parser.add_argument("--dendrite", type=pathlib.Path, help="the dendrite binary, for pairs with n")
    parser.add_argument("--jobs", type=int, default=6, help="flows at a time (default 6)")
    parser.add_argument("--only", default="", help="only flows whose title contains this")
    parser.add_argument("--versions", default="", help="only these room versions, separated by commas")
    parser.add_argument(
        "--pairs", default="sd,ds,dd", help="host and guest: s for Synapse, n for Dendrite, d for Doorstep (default sd,ds,dd)"
    )
    parser.add_argument(
        "--patience", type=int, help=f"seconds for an expectation to come true ({client.PATIENCE_SECONDS})"
    )
    parser.add_argument("--no-kills", action="store_true", help="without the flows in which Doorstep is killed")
    parser.add_argument("--no-partitions", action="store_true", help="without the flows in which servers are cut apart")
    parser.add_argument("--rounds", type=int, default=2, help="cuts that the random rooms live through (default 2)")
    parser.add_argument("--steps", type=int, default=6, help="what each does in a random room in a cut (default 6)")
    parser.add_argument("--seed", default="1", help="of the random rooms")
    parser.add_argument("--keep", action="store_true", help="keep the servers' folders")
    given = parser.parse_args()
    if not given.stand_in and not given.doorstep:
        parser.error("name the binary with --doorstep, or use --stand-in")
    return given


def wanted_flows(given, pairs):
    """(name, stage, function) for everything that was asked for; and how many were left out for what a server lacks, by it."""
    versions = set(filter(None, given.versions.split(",")))
    chosen, left_out = [], collections.Counter()
    for title, flow_versions, host_must, guest_must, function in flows.FLOWS:
        if given.only not in title:
            continue
        for version in flow_versions:
            if versions and version not in versions:
                continue
            for host, guest in pairs:
                musts = ((host, host_must), (guest, guest_must))
                lacks = [(peer.kind, lack) for peer, must in musts for lack in must & flows.LACKS[peer.kind]]
                if never := dendrite.why_never(title, version, host, guest):
                    lacks.append(("dendrite", never))
                if lacks:
                    left_out[lacks[-1]] += 1
                    continue
                name = f"{guest.label:9} at {host.label:9} v{version:<3} {title}"
                stage = flows.Stage(host, guest, version, f"{len(chosen)}")
                chosen.append((name, stage, function))
    return chosen, left_out


def wanted_kills(given, peers, make_victim):
    """(name, function) for each flow with a kill: every one with each peer, the room versions taken in turn."""
    chosen = []
    for number, (title, of_any, function) in enumerate(kills.KILLS):
        if given.stand_in and not of_any:
            continue
        for peer in peers:
            version = given.versions.split(",")[0] or ("7", "10", "12", "11")[number % 4]
            name = f"kill -9, peer {peer.label:9} v{version:<3} {title}"
            if given.only in name:
                action = functools.partial(killed, function, peer, make_victim, version, len(chosen))
                chosen.append((name, action))
    return chosen


def killed(function, peer, make_victim, version, unique):
    stage = kills.KillStage(peer, make_victim(unique), version, unique)
    try:
        function(stage)
    finally:
        stage.end()


def cut_apart(given, report, servers, more):
    """The flows of partitions: a Synapse if there is one, and Doorsteps of their own."""
    for server in more:
        servers[server.label] = server
        server.gate = Gate(server.public_port, server.federation_port, server.authority, inspecting=True)
        server.start()
    if "s" in servers:
        servers["s"].gate.inspect()
        more = [servers["s"], *more]
    split = partitions.Split(more)
    partitions.run(given, split, given.jobs, report)
    partitions.run_random(given, split, given.jobs, report)


def main():
    given = arguments()
    client.PATIENCE_SECONDS = given.patience or client.PATIENCE_SECONDS
    # A run that is told to end stops its servers on the way out, as one that is interrupted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="doorstep-interop-", dir=folder_in_memory()))
    authority = Authority(scratch / "authority")
    Doorstep.binary = given.doorstep and given.doorstep.resolve()
    stand_in = Synapse if given.stand_in else Doorstep
    wanted = given.pairs.split(",")
    letters = set("".join(wanted))
    servers = {"d": stand_in("doorstep", scratch / "doorstep", authority)}
    if "s" in letters:
        servers["s"] = Synapse("synapse", scratch / "synapse", authority, gated=True)
    if "n" in letters:
        dendrite.Dendrite.program = given.dendrite.resolve()
        servers["n"] = dendrite.Dendrite("dendrite", scratch / "dendrite", authority, gated=True)
    if "dd" in wanted:
        servers["e"] = stand_in("doorstep2", scratch / "doorstep2", authority, gated=True)
    report = Report()
    begun = time.monotonic()
    try:
        for server in servers.values():
            if server.public_port != server.federation_port:
                server.gate = Gate(server.public_port, server.federation_port, authority)
            print(f"     {server.label} is {server.name}, ready after {server.start():.1f} s", flush=True)
        pairs = [(servers[host], servers["e" if pair == "dd" else guest]) for pair in wanted for host, guest in [pair]]
        chosen, left_out = wanted_flows(given, pairs)
        work = [(name, functools.partial(function, stage)) for name, stage, function in chosen]
        together(given.jobs, report, work)
        if not given.no_kills:
            peers = [server for letter, server in servers.items() if letter in "se"]
            for peer in peers:
                peer.gate.inspect()

            def make_victim(unique):
                return stand_in("victim", scratch / f"victim{unique}", authority, gated=True)

            together(given.jobs, report, wanted_kills(given, peers, make_victim))
        if not given.no_partitions:
            labels = ["doorstep3", "doorstep4"] + ([] if "s" in servers else ["doorstep5"])
            made = [stand_in(label, scratch / label, authority, gated=True) for label in labels]
            cut_apart(given, report, servers, made)
        for (kind, lack), count in sorted(left_out.items()):
            print(f"     {count} combinations not run, since {kind.capitalize()} never {lack}")
    finally:
        alive = [server for server in servers.values() if server.process and server.process.poll() is None]
        usage = ", ".join(f"{server.label} {server.cpu_seconds():.0f} s" for server in alive)
        for server in servers.values():
            server.stop()
        report.put_away(scratch, given.keep)
    return report.end(begun, f"processor time: {usage}")


if __name__ == "__main__":
    sys.exit(main())
