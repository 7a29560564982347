"""Pictures as matrix-js-sdk asks for them: thumbnails beside those that Synapse makes of the same files, and previews of links."""

import base64
import http.server
import io
import json
import pathlib
import subprocess
import tempfile
import threading

import client
from devices import Node
from flows import demand
from PIL import Image, ImageChops, ImageDraw, ImageStat

PIXELS_APART_MAX = 12  # of 255, on average: the two make pictures smaller by other means, and compress them


def _paint(mode="RGB"):
    """Something with areas, edges and shades."""
    picture = Image.merge("RGB", [Image.linear_gradient("L").resize((1000, 700)).rotate(90 * n) for n in range(3)])
    draw = ImageDraw.Draw(picture)
    for n in range(12):
        draw.ellipse([n * 70, n * 40, n * 70 + 240, n * 40 + 200], fill=(n * 20, 255 - n * 20, n * 37 % 255), width=3)
    if mode == "RGBA":
        picture.putalpha(Image.radial_gradient("L").resize(picture.size))
    return picture


def paint(size):
    """It as a PNG file of this size."""
    content = io.BytesIO()
    _paint().resize(size).save(content, "png")
    return content.getvalue()


def _files(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9286] = "where it was taken"
    _paint().save(folder / "plain.jpg", quality=92)
    _paint().save(folder / "progressive.jpg", quality=92, progressive=True)
    _paint().save(folder / "turned.jpg", quality=92, exif=exif)
    _paint("RGBA").save(folder / "clear.png")


def _ask(server, unique, folder, page=None):
    account = client.register(server, f"pictures-{unique}")
    command = [*Node.command, "pictures.mjs", server.exchanges.url, account.id, account.password, folder]
    try:
        done = subprocess.run(
            [*command, *([page] if page else [])], cwd=Node.folder, capture_output=True, text=True, timeout=180
        )
    except subprocess.TimeoutExpired as error:
        raise client.Unmet("matrix-js-sdk came to no end within 180 s") from error
    demand(done.returncode == 0, f"matrix-js-sdk: {done.stderr.strip() or done.stdout.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _thumbnail(folder, told):
    demand(told["status"] == 200, f"{told}: {(folder / told['made']).read_bytes()[:200]}")
    content = (folder / told["made"]).read_bytes()
    demand(b"where it was taken" not in content, f"{told['made']} tells where its picture was taken")
    picture = Image.open(io.BytesIO(content))
    demand(Image.MIME[picture.format] == told["type"], f"{told} is a {picture.format}")
    return picture.convert("RGBA")


def _on_grey(picture):
    return Image.alpha_composite(Image.new("RGBA", picture.size, (128, 128, 128, 255)), picture).convert("RGB")


def thumbnails_of(server, synapse, unique):
    """The thumbnails of some files, of the sizes that the specification has, are as large as Synapse's and look the same."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [pathlib.Path(folder) / kind for kind in ("ours", "theirs")]
        for each in folders:
            each.mkdir()
            _files(each)
        ours = _ask(server, unique, folders[0])
        theirs = _ask(synapse, unique, folders[1])
        demand(len(ours) == len(theirs) == 20, f"{len(ours)} and {len(theirs)} thumbnails were asked for")
        for told, other in zip(ours, theirs):
            mine, reference = _thumbnail(folders[0], told), _thumbnail(folders[1], other)
            demand(mine.size == reference.size, f"{told['made']} is {mine.size}, and Synapse's is {reference.size}")
            apart = sum(ImageStat.Stat(ImageChops.difference(_on_grey(mine), _on_grey(reference))).mean) / 3
            demand(apart < PIXELS_APART_MAX, f"{told['made']} is {apart:.1f} from Synapse's")


class _Page(http.server.BaseHTTPRequestHandler):
    picture = b""

    def do_GET(self):
        if self.path == "/picture":
            kind, content = "image/png", self.picture
        else:
            kind = "text/html; charset=windows-1252"
            content = (
                '<!DOCTYPE html><title>no</title><meta property="og:title" content="Gr\xfc\xdfe &amp; mehr">'
                '<meta name="description" content="D"><meta property="og:image" content="/picture">'
            ).encode("latin-1")
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def preview_of(server, unique):
    """A page of a web server on this machine is shown with its picture."""
    _Page.picture = paint((60, 42))
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            (told,) = _ask(server, unique, folder, f"http://127.0.0.1:{web.server_port}/page#part")
    finally:
        web.shutdown()
        web.server_close()
    shown = told["preview"]
    demand(shown["og:title"] == "Grüße & mehr" and shown["og:description"] == "D", f"the preview is {shown}")
    size = [shown.get(f"og:image:{side}") for side in ("width", "height")]
    demand(size == [60, 42] and shown["matrix:image:size"] == len(_Page.picture), f"the preview is {shown}")
    demand(base64.b64decode(told["picture"]) == _Page.picture, "the preview has another picture")
    demand(told["told"] == {"enabled": True}, f"capabilities say {told['told']}")
