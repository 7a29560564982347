"""matrix-commander, a client of the command line, where the harness is told of one: each verb is a process of its own,
on the stores that the last one left."""

import base64
import json
import subprocess

import client
from conversations import readable
from flows import demand
from pictures import paint

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


def _in_a_room(stage):
    """js with an encrypted room, and the folder and the account of a command line that has joined it."""
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
    return host, room, folder, account


def commander_talks(stage):
    """It logs in, joins an encrypted room of js, is read there, and reads what is said there."""
    host, room, folder, account = _in_a_room(stage)
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


def commander_sends_files(stage):
    """Encrypted pictures in both directions, a file that is not, and the picture and the name of its user."""
    host, room, folder, account = _in_a_room(stage)
    picture, downloads = folder / "a picture.png", folder / "downloads"
    picture.write_bytes(paint((300, 210)))
    downloads.mkdir()
    _run(folder, "--no-ssl", "--sync", "full", "--image", picture)
    event_id = host.until_picture(room=room, sender=account.id, name=picture.name)
    seen = host.see_picture(room=room, id=event_id)
    demand(base64.b64decode(seen["base64"]) == picture.read_bytes(), f"js sees another picture than {seen['name']}")

    content = paint((200, 140))
    host.send_picture(room=room, name="from js.png", base64=base64.b64encode(content).decode(), width=200, height=140)
    _run(folder, "--no-ssl", "--listen", "once", "--download-media", downloads, "--download-media-name", "source")
    got = {file.name: file.read_bytes() for file in downloads.iterdir()}
    demand(content in got.values(), f"matrix-commander has kept {list(got)}")

    uploaded = _run(folder, "--no-ssl", "--upload", picture, "--plain").split()
    mxc = next((word for word in uploaded if word.startswith("mxc://")), None)
    demand(mxc is not None, f"matrix-commander tells of its upload {uploaded}")
    kept = folder / "kept.png"
    _run(folder, "--no-ssl", "--download", mxc, "--file-name", kept, "--plain")
    demand(kept.read_bytes() == picture.read_bytes(), "matrix-commander downloads another file than it has uploaded")
    _run(folder, "--no-ssl", "--set-avatar", mxc)
    _run(folder, "--no-ssl", "--set-display-name", "Command Line")
    told = _run(folder, "--no-ssl", "--get-profile", account.id, "--output", "json")
    demand(mxc in told and "Command Line" in told, f"matrix-commander tells of its profile {told}")
    config = _run(folder, "--no-ssl", "--content-repository-config")
    demand(any(word.isdigit() and int(word) >= 1 << 20 for word in config.split()), f"it may upload {config}")


FLOWS = [
    ("matrix-commander talks with js", commander_talks),
    ("matrix-commander: files, pictures and profile", commander_sends_files),
]
