"""Files with real clients: matrix-js-sdk in a process of node, and matrix-nio here, in the open and encrypted."""

import asyncio
import io
import os
import subprocess

import client
import nio
from devices import Node
from flows import demand
from nio.crypto.attachments import decrypt_attachment


def js_sdk_sends_files(server, unique):
    """Two users in a process of node: pictures, an encrypted file, parts, pictures of users and rooms."""
    words = [server.exchanges.url]
    for name in ("alice", "bob"):
        account = client.register(server, f"media-{name}-{unique}")
        words += [account.id, account.password]
    command = [*Node.command, "media.mjs", *words]
    try:
        done = subprocess.run(command, cwd=Node.folder, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired as error:
        raise client.Unmet("matrix-js-sdk came to no end within 240 s") from error
    demand(done.returncode == 0, f"matrix-js-sdk: {done.stderr.strip() or done.stdout.strip()}")


def nio_sends_files(server, unique):
    """Two nio clients: files of several sizes, encrypted and not, and a picture of a user."""
    accounts = [client.register(server, f"media-nio{number}-{unique}") for number in (1, 2)]
    asyncio.run(_exchange_files(server, accounts))


def _fine(answer):
    demand(not isinstance(answer, nio.responses.ErrorResponse), f"nio got {answer}")
    return answer


async def _exchange_files(server, accounts):
    sender, reader = (nio.AsyncClient(server.exchanges.url, account.id) for account in accounts)
    try:
        for nio_client, account in zip((sender, reader), accounts):
            _fine(await nio_client.login(account.password, device_name="nio"))
        most = _fine(await sender.content_repository_config()).upload_size
        demand(most >= 1 << 20, f"nio may upload {most} bytes")
        for size in (0, 1, 100_000, 3 << 20):
            content = os.urandom(size)
            for encrypt in (False, True):
                await _send_one(sender, reader, content, encrypt)
        picture, _ = await sender.upload(io.BytesIO(b"a picture"), content_type="image/png", filename="me.png", filesize=9)
        _fine(await sender.set_avatar(_fine(picture).content_uri))
        shown = _fine(await reader.get_avatar(sender.user_id)).avatar_url
        got = _fine(await reader.download(mxc=shown))
        demand((got.body, got.content_type, got.filename) == (b"a picture", "image/png", "me.png"), f"nio sees {got}")
        unknown = await reader.download(mxc=f"mxc://{server.name}/unknown")
        demand(getattr(unknown, "status_code", None) == "M_NOT_FOUND", f"nio is told {unknown} of what is not there")
    finally:
        for nio_client in (sender, reader):
            await nio_client.close()


async def _send_one(sender, reader, content, encrypt):
    # An encrypted file is sent in chunks, since its size is not known beforehand.
    size = None if encrypt else len(content)
    uploaded, info = await sender.upload(
        io.BytesIO(content), content_type="application/pdf", filename="Übersicht 1.pdf", encrypt=encrypt, filesize=size
    )
    got = _fine(await reader.download(mxc=_fine(uploaded).content_uri))
    body = got.body
    if encrypt:
        body = decrypt_attachment(body, info["key"]["k"], info["hashes"]["sha256"], info["iv"])
    demand(body == content, f"nio reads another file of {len(content)} bytes, encrypted: {encrypt}")
    demand(got.filename in ("Übersicht 1.pdf", None), f"nio reads the name as {got.filename}")


# (client, title, function), each with one server.
MEDIA = [
    ("js", "files: pictures, encrypted ones, parts, announced ones", js_sdk_sends_files),
    ("nio", "files: pictures and encrypted ones of several sizes", nio_sends_files),
]
