"""Flows of media: what users of one server upload and those of the other ask for."""

import email.message
import hashlib
import http.client
import json
import random
import struct
import threading
import urllib.parse
import zlib

import client
from flows import demand, flow

ONE = ["12"]  # no room is needed
LARGE_BYTES = 30 << 20


def ask(user, method, path, data=None, headers=None, query=None, timeout=180):
    """Status, headers and bytes of an answer."""
    if query:
        path += "?" + urllib.parse.urlencode(query)
    connection = http.client.HTTPConnection("127.0.0.1", user.server.client_port, timeout=timeout)
    try:
        connection.request(method, path, data, {"Authorization": f"Bearer {user.token}", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def fine(user, method, path, **more):
    status, headers, content = ask(user, method, path, **more)
    demand(status == 200, f"{user!r}: {method} {path}: {status} {content[:300]}")
    return headers, content


def upload(user, content, content_type, name=None):
    """The mxc:// URI of a new file."""
    query = {"filename": name} if name else None
    headers = {"Content-Type": content_type}
    _, answer = fine(user, "POST", "/_matrix/media/v3/upload", data=content, headers=headers, query=query)
    return json.loads(answer)["content_uri"]


def path_of(what, uri):
    return f"/_matrix/client/v1/media/{what}/{uri.removeprefix('mxc://')}"


def download(user, uri, **query):
    return fine(user, "GET", path_of("download", uri), query=query)


def name_in(headers):
    """The file's name as a browser reads it."""
    message = email.message.Message()
    message["Content-Disposition"] = headers.get("Content-Disposition", "")
    return message.get_filename()


def png(width, height):
    """A picture with a gradient in it."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(
        b"\0" + b"".join(bytes((x * 255 // width, y * 255 // height, 128)) for x in range(width)) for y in range(height)
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def size_of(picture):
    """Width and height of a PNG or JPEG."""
    if picture.startswith(b"\x89PNG"):
        return struct.unpack(">II", picture[16:24])
    demand(picture.startswith(b"\xff\xd8"), f"neither PNG nor JPEG: {picture[:20]}")
    at = 2
    while at + 9 < len(picture):
        marker, length = struct.unpack(">HH", picture[at : at + 4])
        if 0xFFC0 <= marker <= 0xFFC2:
            height, width = struct.unpack(">HH", picture[at + 5 : at + 9])
            return width, height
        at += 2 + length
    raise client.Unmet("a JPEG without a size")


def both_ways(t):
    host, guest = t.host(), t.guest()
    return ((host, guest), (guest, host))


@flow("a file is had on the other server whole, with its type and its name", ONE)
def files(t):
    for owner, other in both_ways(t):
        for name, content_type, content in [
            ("grüße aus köln.png", "image/png", png(60, 40)),
            ("it's 100% (of) a;b.txt", "text/plain", b"text\r\n--boundary--\r\n"),
            ("日本語.pdf", "application/pdf", b"%PDF-1.4 not really"),
            ("plain.bin", "application/octet-stream", bytes(range(256)) * 100),
            (None, "text/html", b"<script>alert(1)</script>"),
        ]:
            uri = upload(owner, content, content_type, name)
            for reader in (other, owner):
                headers, got = download(reader, uri)
                demand(got == content, f"{reader!r}: {uri} ({name}) has other bytes than it should")
                told = headers.get("Content-Type", "").split(";")[0]
                demand(told == content_type, f"{reader!r}: {uri} is {told}, not {content_type}")
                demand(name_in(headers) == name, f"{reader!r}: {name!r} is told as {headers.get('Content-Disposition')}")
            shown = headers.get("Content-Disposition", "")
            demand(not content_type == "text/html" or shown.startswith("attachment"), f"HTML is shown: {shown}")


@flow("a file of 30 MB comes across", ONE)
def large_file(t):
    for owner, other in both_ways(t):
        content = random.Random(t.version).randbytes(LARGE_BYTES)
        uri = upload(owner, content, "application/octet-stream", "large.bin")
        _, got = download(other, uri)
        same = hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
        demand(same, f"{other!r}: {len(got)} bytes that are others, of {len(content)}")


@flow("thumbnails of the other server's pictures", ONE)
def thumbnails(t):
    for owner, other in both_ways(t):
        uri = upload(owner, png(900, 600), "image/png", "gradient.png")
        for width, height, method in [(320, 240, "scale"), (96, 96, "crop"), (640, 480, "scale")]:
            query = {"width": width, "height": height, "method": method}
            headers, got = fine(other, "GET", path_of("thumbnail", uri), query=query)
            demand(headers["Content-Type"] in ("image/png", "image/jpeg"), f"{uri}: {headers['Content-Type']}")
            seen = size_of(got)
            demand(seen[0] >= width or seen[1] >= height, f"{other!r}: {query} gave {seen}")
            demand(seen[0] < 900 and seen[1] < 600, f"{other!r}: {query} gave {seen}, which is no thumbnail")


@flow("an upload that was announced is waited for on the other server", ONE)
def announced(t):
    for owner, other in both_ways(t):
        uri = json.loads(fine(owner, "POST", "/_matrix/media/v1/create", data=b"{}")[1])["content_uri"]
        # Synapse takes a 504, as the specification has it for this, for a server that is not well, and asks it no more.
        if other.server.kind == "doorstep":
            status, _, early = ask(other, "GET", path_of("download", uri), query={"timeout_ms": 0})
            told = (status, json.loads(early).get("errcode"))
            demand(told == (504, "M_NOT_YET_UPLOADED"), f"{other!r}: {told} of what was not uploaded yet")
        answers = []

        def wait_for_it(other=other, uri=uri, answers=answers):
            answers.append(ask(other, "GET", path_of("download", uri), query={"timeout_ms": 60000}))

        asking = threading.Thread(target=wait_for_it)
        asking.start()
        path = f"/_matrix/media/v3/upload/{uri.removeprefix('mxc://')}"
        fine(owner, "PUT", path, data=b"late, and there", headers={"Content-Type": "text/plain"})
        asking.join()
        status, _, content = answers[0]
        demand(status == 200 and content == b"late, and there", f"{other!r}: {status} {content[:300]}")


@flow("what is not there is said not to be there", ONE)
def missing(t):
    for owner, other in both_ways(t):
        uri = f"mxc://{owner.server.name}/nothing_of_the_kind"
        status, _, content = ask(other, "GET", path_of("download", uri))
        demand(status == 404, f"{other!r}: {status} {content}")
        demand(json.loads(content)["errcode"] == "M_NOT_FOUND", f"{other!r}: {content}")
