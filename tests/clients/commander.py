"""matrix-commander, a client of the command line, where the harness is told of one: each verb is a process of its own,
on the stores that the last one left."""

import json
import subprocess

import client
from conversations import readable
from flows import demand

COMMAND = None  # set once by the command line


def _run(folder, *words, seconds=120):
    command = [COMMAND, "--credentials", folder / "credentials.json", "--store", folder / "store", *words]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise client.Unmet(f"matrix-commander {words} came to no end: {error.stdout} {error.stderr}") from error
    demand(done.returncode == 0, f"matrix-commander {words}: {done.returncode} {done.stdout} {done.stderr}")
    return done.stdout


def commander_talks(stage):
    """It logs in, joins an encrypted room of js, is read there, and reads what is said there."""
    host = stage.host()
    account = client.register(stage.guest_server, f"commander-{stage.unique}")
    folder = stage.folder / "commander"
    folder.mkdir()
    url = stage.guest_server.exchanges.url
    room = host.create_room(name="With a command line", version="11")  # it takes no id of version 12
    _run(folder, "--login", "password", "--homeserver", url, "--user-login", account.id, "--password", account.password,
         "--device", "commander", "--room-default", room, "--no-ssl")  # fmt: skip
    host.invite(room=room, user=account.id)
    account.expect_section(room, "invite")
    _run(folder, "--no-ssl", "--room-join", room)
    host.until_member(room=room, user=account.id, membership="join")
    _run(folder, "--no-ssl", "--sync", "full", "--message", "from the command line")
    event_id = host.until_said(room=room, sender=account.id)
    readable(host, room, event_id, "from the command line")
    for number in range(2):
        host.send(room=room, body=f"to the command line {number}")
        heard = _run(folder, "--no-ssl", "--listen", "once", "--output", "json")
        bodies = [
            json.loads(line)["source"]["content"].get("body") for line in heard.splitlines() if line.startswith("{")
        ]
        demand(f"to the command line {number}" in bodies, f"matrix-commander heard {heard}")
