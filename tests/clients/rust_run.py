"""Runs Element X's engine (tests/clients/rust) against one server, two Doorsteps, and Doorstep with Synapse.

Started by rust_run.sh, which provides the packages and the binaries. A line a flow; at the end what the engine warned
of, and `N passed, N failed`. Each flow is a process of its own; what it asks for (accounts, a server stopped, killed,
started) it gets from here.
"""

import argparse
import collections
import concurrent.futures
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "interop"))

import client  # noqa: E402
from browser import Browser  # noqa: E402
from exchanges import Exchanges  # noqa: E402
from servers import Authority, Doorstep, Synapse  # noqa: E402

# The flows that stop and kill servers run alone.
OUTAGES = ("server_restarts", "server_is_killed", "other_server_is_away")
# Those that need a browser.
WEB = ("browser", "browser_restores")
FLOW_SECONDS = 600  # a flow that hangs is a failed flow
LABELS = {"d": "Doorstep", "e": "second Doorstep", "s": "Synapse"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--doorstep", type=pathlib.Path, help="the doorstep binary")
    parser.add_argument("--client", type=pathlib.Path, required=True, help="the binary of tests/clients/rust")
    parser.add_argument(
        "--pairs",
        default="d,dd,ds,sd",
        help="the server of Alice and that of Bob: d for Doorstep, s for Synapse, one letter for both on one",
    )
    parser.add_argument("--only", default="", help="only flows whose name contains one of these, separated by commas")
    parser.add_argument("--jobs", type=int, default=3, help="flows at a time (default 3)")
    parser.add_argument("--web", type=pathlib.Path, help="the folder with the web client's page and its driver")
    parser.add_argument("--chromium", default="chromium", help="the browser (default chromium)")
    parser.add_argument("--exchanges", type=pathlib.Path, help="keep the record of what clients and servers said here")
    parser.add_argument("--keep", action="store_true", help="keep the folders of servers and flows")
    parser.add_argument("--folder", type=pathlib.Path, help="where they are kept, in place of a temporary folder; emptied first")
    return parser.parse_args()


class Cast:
    """The servers of one run, by letter; and the accounts made on them."""

    def __init__(self, given, scratch):
        Doorstep.binary = given.doorstep and given.doorstep.resolve()
        authority = Authority(scratch / "authority")
        pairs = given.pairs.split(",")
        self.pairs = [("d", "e") if pair == "dd" else (pair[0], pair[-1]) for pair in pairs]
        kinds = {"d": Doorstep, "e": Doorstep, "s": Synapse}
        letters = sorted({letter for pair in self.pairs for letter in pair})
        self.servers = {letter: kinds[letter](LABELS[letter], scratch / letter, authority) for letter in letters}
        self._records = given.exchanges
        self._lock = threading.Lock()
        self._accounts = 0

    def start(self):
        for server in self.servers.values():
            seconds = server.start()
            print(f"     {server.label} is {server.name}, ready after {seconds:.1f} s", flush=True)
            server.url = f"http://127.0.0.1:{server.client_port}"
            if self._records:
                self._records.mkdir(parents=True, exist_ok=True)
                server.url = Exchanges(server, self._records / f"{server.kind}-{server.client_port}.jsonl").url

    def account(self, server, name):
        with self._lock:
            self._accounts += 1
            number = self._accounts
        made = client.register(server, f"{name}{number}")
        return f"{made.id} {made.password}"


def play(given, cast, pair, flow, folder):
    """One flow. Returns None, or what it said when it failed."""
    servers = {"server": cast.servers[pair[0]], "other": cast.servers[pair[1]]}
    kinds = ",".join(server.kind for server in servers.values())
    command = [given.client.resolve(), flow, "--folder", folder, "--kinds", kinds]
    for word, server in servers.items():
        command += [f"--{word}", server.url]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    said, web = [], None
    reader = threading.Thread(target=lambda: said.append(process.stderr.read()), daemon=True)
    reader.start()
    guard = threading.Timer(FLOW_SECONDS, process.kill)
    guard.start()
    try:
        for line in process.stdout:
            if line.startswith("ask web "):
                web = web or Browser(given.web, given.chromium, folder)
                process.stdin.write(web.act(line.removeprefix("ask web ").strip()) + "\n")
            elif line.startswith("ask "):
                process.stdin.write(answer(cast, servers, line.split()[1:]) + "\n")
    except BrokenPipeError:
        pass
    finally:
        if web:
            web.end()
        process.wait()
        guard.cancel()
        reader.join(5)
    if process.returncode == 0:
        return None
    return "".join(said).strip() or f"it ended with {process.returncode}"


def answer(cast, servers, words):
    what, where = words[0], servers[words[1]]
    try:
        if what == "account":
            return "ok " + cast.account(where, words[2])
        {"stop": where.stop, "kill": where.kill, "start": where.start}[what]()
    except Exception as error:  # noqa: BLE001 - whatever it is, the flow is told, and fails with it
        return "no " + repr(error).replace("\n", " ")
    return "ok"


# Parts of a log line that differ from one time to the next.
_VARIABLE = [
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"^\S+\s+(WARN|ERROR)\s+"), r"\1 "),
    (re.compile(r"[@!$][\w./+=-]+(:localhost:\d+)?"), "…"),
    (re.compile(r"\b[A-Za-z0-9+/_-]{10,}={0,2}(?![\w:])(?<![a-z_]{10})"), "…"),
    (re.compile(r"localhost:\d+|127\.0\.0\.1:\d+"), "…"),
    (re.compile(r"\d+(\.\d+)?"), "N"),
]


def warnings(folder):
    """What the engine warned of in one flow, without what differs each time, counted."""
    counted = collections.Counter()
    log = folder / "engine.log"
    for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
        if not re.search(r"\s(WARN|ERROR)\s", line[:60]):
            continue
        # The spans come before the target that says it; what matters is the target and the words.
        head, _, words = line.rpartition("}: ")
        level = "ERROR" if " ERROR " in line[:60] else "WARN"
        text = f"{level} {words}" if head else line
        for pattern, instead in _VARIABLE:
            text = pattern.sub(instead, text)
        counted[text[:260]] += 1
    return counted


def main():
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = given.folder or pathlib.Path(tempfile.mkdtemp(prefix="doorstep-rust-client-"))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    names = subprocess.run([given.client, "list"], capture_output=True, text=True, check=True).stdout.split()
    only = [word for word in given.only.split(",") if word]
    names = [name for name in names if name not in WEB or given.web]
    names = [name for name in names if not only or any(word in name for word in only)]
    cast = Cast(given, scratch)
    failed, passed, warned = [], 0, collections.defaultdict(collections.Counter)
    lock = threading.Lock()
    begun = time.monotonic()

    def one(pair, flow):
        nonlocal passed
        title = f"{LABELS[pair[0]]} and {LABELS[pair[1]]}" if pair[0] != pair[1] else LABELS[pair[0]]
        folder = scratch / "flows" / ("".join(pair) + "-" + flow)
        before = time.monotonic()
        said = play(given, cast, pair, flow, folder)
        with lock:
            print(f"{'FAIL' if said else 'ok  '} {title}: {flow}  ({time.monotonic() - before:.1f} s)", flush=True)
            if said:
                failed.append(f"{title}: {flow}")
                print("     " + said.replace("\n", "\n     "), flush=True)
            else:
                passed += 1
            for text, times in warnings(folder).items():
                warned[text][title] += times

    try:
        cast.start()
        ordinary = [(pair, name) for name in names if name not in OUTAGES for pair in cast.pairs]
        with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(lambda work: one(*work), ordinary))
        for pair in cast.pairs:
            for name in names:
                if name in OUTAGES and (name != "other_server_is_away" or pair[0] != pair[1]):
                    one(pair, name)
    finally:
        for server in cast.servers.values():
            server.stop()
        if failed or given.keep or given.folder:
            print(f"     the folders are kept in {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    for text, where in sorted(warned.items(), key=lambda item: -sum(item[1].values())):
        print(f"     warned: {text}  [{', '.join(f'{title} {times}' for title, times in where.items())}]")
    for title in failed:
        print(f"FAIL {title}")
    print(f"     {time.monotonic() - begun:.0f} s in all")
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
