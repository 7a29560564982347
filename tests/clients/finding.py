"""What a client finds by the server's help, and what it has sent later: matrix-js-sdk, unchanged and without encryption, in
a process of node (js/finding.mjs)."""

import subprocess
import threading

import client
from devices import Node
from flows import demand

END_SECONDS = 180


def _accounts(server, names):
    words = []
    for name in names:
        account = client.register(server, name)
        words += [account.id, account.password]
    return words


def _run(server, flow, words, told=None):
    """Runs a flow; `told` gets each line that it writes, with its process."""
    command = [*Node.command, "finding.mjs", flow, server.exchanges.url, *words]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=Node.folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    late = threading.Timer(END_SECONDS, process.kill)
    late.start()
    try:
        for line in process.stdout:
            if told and told(process, line.strip()):
                return
        error = process.stderr.read()
        demand(process.wait() == 0, f"matrix-js-sdk, {flow}: {error.strip() or 'no end'}")
    finally:
        late.cancel()
        process.kill()
        process.wait()


def js_finds(server, unique):
    """Searches with context and in pages, finds a user by name, and the rooms that two share; and what the settings offer."""
    _run(server, "finds", _accounts(server, [f"finds{number}-{unique}" for number in (1, 2)]))


def js_sends_later(server, unique):
    """Delayed events: sent, restarted, cancelled, sent at once, and sent after the server was killed meanwhile."""

    def told(process, line):
        if line == "restart":
            server.kill()
            server.start()
            process.stdin.write("done\n")
            process.stdin.flush()

    _run(server, "sendsLater", _accounts(server, [f"later{number}-{unique}" for number in (1, 2)]), told)


def js_falls_out_of_a_call(server, unique):
    """A member of a call whose client is killed leaves it by what it had sent later."""
    words = _accounts(server, [f"calls{number}-{unique}" for number in (1, 2)])
    rooms = []

    def told(process, line):
        if line.startswith("kill "):
            rooms.append(line.split()[1])
            process.kill()
            return True

    _run(server, "joinsACall", words, told)
    demand(rooms, "the call was never joined")
    _run(server, "seesWhoFellOut", [*words, *rooms])


# (title, whether it kills its server, function)
FLOWS = [
    ("js     search, user directory, mutual rooms, offers of the settings", False, js_finds),
    ("js     delayed events, over a kill of the server", True, js_sends_later),
    ("js     a call, whose member is killed", False, js_falls_out_of_a_call),
]
