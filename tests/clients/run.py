"""Runs real clients, encrypted, between real servers: one Doorstep, two of them, Doorstep and Synapse in both directions.

Started by run.sh, which provides the packages. A line a flow; the last line is `N passed, N failed`.
"""

import argparse
import functools
import logging
import pathlib
import signal
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "interop"))

import attachments  # noqa: F401 - its flows are among those of conversations.py
import bots
import client
import commander
import conversations
import devices
import finding
import hydrogen
import media
import page
import pictures
import plain
import relations
import rooms
import unread
from exchanges import Exchanges
from report import Report, folder_in_memory, together
from servers import Authority, Doorstep, Synapse

# What stands for the servers of host and guest on the command line and in a line of the report.
PAIRS = {
    "d": "one Doorstep",
    "dd": "Doorstep with Doorstep",
    "ds": "Doorstep with Synapse",
    "sd": "Synapse with Doorstep",
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--doorstep", type=pathlib.Path, help="the doorstep binary")
    parser.add_argument(
        "--stand-in", action="store_true", help="Synapses in place of Doorsteps: proves the harness itself"
    )
    parser.add_argument("--node", nargs="+", default=["node"], help="the command that is node")
    parser.add_argument("--js", type=pathlib.Path, required=True, help="the folder with matrix-js-sdk installed")
    parser.add_argument("--commander", help="the command that is matrix-commander, if it is to be tried as well")
    parser.add_argument("--browser", default="chromium", help="a browser, in which a whole web client is to be tried as well")
    parser.add_argument("--web", type=pathlib.Path, help="the folder with the web client's page, if it is to be tried as well")
    parser.add_argument("--screenshots", type=pathlib.Path, help="keep what the web client has shown here")
    parser.add_argument("--jobs", type=int, default=6, help="flows at a time (default 6)")
    parser.add_argument("--only", default="", help="only flows whose title contains this")
    parser.add_argument("--kinds", default="", help="only these clients: js, nio, js-nio, bot; separated by commas")
    parser.add_argument(
        "--pairs",
        default=",".join(PAIRS),
        help="servers of host and guest: d alone, or two of d and s (default d,dd,ds,sd)",
    )
    parser.add_argument("--patience", type=int, help=f"seconds for an expectation ({client.PATIENCE_SECONDS})")
    parser.add_argument("--exchanges", type=pathlib.Path, help="keep the record of what clients and servers said here")
    parser.add_argument("--keep", action="store_true", help="keep the servers' folders")
    given = parser.parse_args()
    if not given.stand_in and not given.doorstep:
        parser.error("name the binary with --doorstep, or use --stand-in")
    return given


class Ring:
    """The servers of one run, each with its way for clients."""

    def __init__(self, given, scratch):
        self._scratch = scratch
        self._authority = Authority(scratch / "authority")
        self._ours = Synapse if given.stand_in else Doorstep
        self._records = given.exchanges or scratch / "exchanges"
        self._records.mkdir(parents=True, exist_ok=True)
        self.all = []

    def _make(self, kind, label, name=None):
        server = kind(label, self._scratch / label, self._authority, name=name)
        server.exchanges = Exchanges(server, self._records / f"{label}.jsonl")
        self.all.append(server)
        seconds = server.start()
        print(f"     {label} is {server.name}, ready after {seconds:.1f} s", flush=True)
        return server

    def doorstep(self, label, name=None):
        return self._make(self._ours, label, name)

    def synapse(self, label):
        return self._make(Synapse, label)


def can_be_killed(given, pair):
    """Only ours are killed. A Synapse that was killed tells other servers what it had not told only with the next event,
    so that as a stand-in it dies alone."""
    return pair == "d" or (pair[0] == "d" and not given.stand_in)


def ends_of(pair):
    """The letters of the servers of host and guest."""
    return ("d", "d") if pair == "d" else ("d", "e") if pair == "dd" else tuple(pair)


def wanted(given, ring):
    """(name, action) for everything that was asked for."""
    pairs = given.pairs.split(",")
    kinds_wanted = set(filter(None, given.kinds.split(",")))
    servers = {"d": ring.doorstep("doorstep")}
    if any("s" in pair for pair in pairs):
        servers["s"] = ring.synapse("synapse")
    if "dd" in pairs:
        servers["e"] = ring.doorstep("doorstep2")
    work = []
    all_conversations = conversations.CONVERSATIONS + relations.CONVERSATIONS
    if given.web:
        all_conversations = all_conversations + hydrogen.CONVERSATIONS
    for title, kinds_of, kills, function in all_conversations:
        for kinds in kinds_of:
            told = kinds[0] if kinds[0] == kinds[1] else "-".join(kinds)
            if kinds_wanted and told not in kinds_wanted:
                continue
            for pair in pairs:
                name = f"{PAIRS[pair]:22} {told:6} {title}"
                if given.only not in name or (kills and not can_be_killed(given, pair)):
                    continue
                ends = ends_of(pair)
                number = len(work)
                action = functools.partial(play, ring, servers, ends, kinds, kills, function, number)
                work.append((name, action))
    if given.commander:
        # It takes no server whose name has a port.
        servers["c"] = ring.doorstep("alone", "doorstep.test")
        for title, function in commander.FLOWS:
            play_it = functools.partial(play, ring, servers, ("c", "c"), ("js", "js"), False, function)
            if given.only in title:
                work.append((f"{PAIRS['d']:22} {title}", functools.partial(play_it, len(work))))
    for title, kills, function in finding.FLOWS:
        name = f"{PAIRS['d']:22} {title}"
        if given.only in name and "d" in pairs and (not kinds_wanted or "js" in kinds_wanted):
            work.append((name, functools.partial(find, ring, servers["d"], kills, function, len(work))))
    for kind, title, function in plain.PLAIN:
        name = f"{PAIRS['d']:22} {kind:6} {title}"
        if given.only in name and "d" in pairs and not given.stand_in and (not kinds_wanted or kind in kinds_wanted):
            work.append((name, functools.partial(function, servers["d"], "plain")))
    for kind, title, function in media.MEDIA:
        name = f"{PAIRS['d']:22} {kind:6} {title}"
        if given.only in name and "d" in pairs and (not kinds_wanted or kind in kinds_wanted):
            work.append((name, functools.partial(function, servers["d"], "media")))
    for kind, title, function in page.PAGE if given.web and not given.stand_in else ():
        name = f"{PAIRS['d']:22} {kind:6} {title}"
        if given.only in name and "d" in pairs and (not kinds_wanted or kind in kinds_wanted):
            work.append((name, function))
    for kind, title, function in bots.BOTS:
        for pair in pairs:
            name = f"{PAIRS[pair]:22} {kind:6} {title}"
            if given.only not in name or (kinds_wanted and kind not in kinds_wanted):
                continue
            ends = [servers[end] for end in ends_of(pair)]
            work.append((name, functools.partial(function, ends, f"bots-{pair}")))
    for kind, title, function in unread.UNREAD:
        name = f"{PAIRS['d']:22} {kind:6} {title}"
        if given.only in name and "d" in pairs and (not kinds_wanted or kind in kinds_wanted):
            work.append((name, functools.partial(function, servers["d"], "unread", not given.stand_in)))
    for kind, function, title in rooms.ALONE:
        name = f"{PAIRS['d']:22} {kind:6} {title}"
        if given.only in name and "d" in pairs and not given.stand_in and (not kinds_wanted or kind in kinds_wanted):
            work.append((name, functools.partial(function, servers["d"], "alone")))
    name = f"{PAIRS['d']:22} js     a preview of a link"
    if given.only in name and "d" in pairs and not given.stand_in and (not kinds_wanted or "js" in kinds_wanted):
        work.append((name, functools.partial(pictures.preview_of, servers["d"], "preview")))
    name = f"{PAIRS['ds']:22} js     thumbnails that look like the other's"
    if given.only in name and "ds" in pairs and (not kinds_wanted or "js" in kinds_wanted):
        work.append((name, functools.partial(pictures.thumbnails_of, servers["d"], servers["s"], "thumbnails")))
    return work


def find(ring, server, kills, function, number):
    victim = ring.doorstep(f"victim{number}") if kills else None
    try:
        function(victim or server, f"{number}")
    finally:
        if victim:
            victim.stop()


def play(ring, servers, ends, kinds, kills, function, number):
    host, guest = (servers[end] for end in ends)
    victim = None
    if kills:
        victim = ring.doorstep(f"victim{number}")
        host, guest = victim, victim if ends[0] == ends[1] else guest
    stage = conversations.Stage(host, guest, kinds, f"{number}", ring._scratch / f"flow{number}")
    stage.begin()
    try:
        function(stage)
    finally:
        stage.end()
        if victim:
            victim.stop()


def main():
    given = arguments()
    client.PATIENCE_SECONDS = given.patience or client.PATIENCE_SECONDS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="doorstep-clients-", dir=folder_in_memory()))
    Doorstep.binary = given.doorstep and given.doorstep.resolve()
    commander.COMMAND = given.commander
    hydrogen.WEB, hydrogen.CHROMIUM, hydrogen.SCREENSHOTS = given.web, given.browser, given.screenshots
    devices.Node.command, devices.Node.folder = given.node, given.js
    logging.basicConfig(filename=scratch / "nio.log", format="%(asctime)s %(name)s %(message)s")
    ring = Ring(given, scratch)
    report = Report()
    begun = time.monotonic()
    try:
        together(given.jobs, report, wanted(given, ring))
    finally:
        told = ", ".join(f"{server.label} {server.exchanges.count}" for server in ring.all)
        for server in ring.all:
            server.stop()
        report.put_away(scratch, given.keep)
    return report.end(begun, f"exchanges: {told}")


if __name__ == "__main__":
    sys.exit(main())
