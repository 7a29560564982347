"""Hydrogen, a whole web client, in a browser, with matrix-js-sdk: pictures, reactions, edits, what is unread, and all
of it after the page was loaded anew. Only where the harness is told of a browser. (Hydrogen shows the text that an edit
has for clients that know of none.)
"""

import base64
import pathlib
import tempfile

import client
from browser import Browser
from conversations import JS_ONLY
from flows import demand
from pictures import paint

WEB = None  # set once by the command line: the folder with the page and its driver
CHROMIUM = None
SCREENSHOTS = None  # where they are kept, beside the flow's own folder

OPEN, SECRET = "Open room", "Secret room"
SIZES = {"from js.png": (900, 630), "secret from js.png": (300, 210), "from Hydrogen.png": (640, 448),
         "secret from Hydrogen.png": (320, 224)}  # fmt: skip


class _Page:
    """Hydrogen with one account logged in; keeps a screenshot of each step."""

    def __init__(self, stage, account):
        self._browser = Browser(WEB, CHROMIUM, stage.folder)
        self._folder = pathlib.Path(SCREENSHOTS or stage.folder)
        self._unique = stage.unique
        self._taken = 0
        self.do("log_in", stage.guest_server.exchanges.url, account.id, account.password)

    def do(self, act, *words):
        self._browser.do(act, *words)

    def look(self, step):
        self._taken += 1
        self.do("picture", self._folder / f"hydrogen-{self._unique}-{self._taken}-{step}.png")

    def end(self):
        self._browser.end()


def a_web_client_shows_all(stage):
    other = stage.host()
    account = client.register(stage.guest_server, f"web-{stage.unique}")
    page = _Page(stage, account)
    try:
        _converse(stage, other, account, page)
    finally:
        page.end()


def _converse(stage, other, account, page):
    rooms = {OPEN: other.create_plain_room(name=OPEN), SECRET: other.create_room(name=SECRET)}
    for name, room in rooms.items():
        other.invite(room=room, user=account.id)
        page.do("join", name)
        other.until_member(room=room, user=account.id, membership="join")
    page.do("is_encrypted")
    _pictures(other, account, page, rooms)
    said = {}
    for name, room in rooms.items():
        page.do("choose", name)
        said[name] = other.send(room=room, body=f"said in the {name}")
        page.do("sees", f"said in the {name}")
        page.do("react", f"said in the {name}", "🎉")
        other.until_reactions(room=room, id=said[name], wanted={"🎉": [account.id]})
        other.react(room=room, id=said[name], key="🎉")
        page.do("sees_reaction", f"said in the {name}", "🎉", 2)
        other.edit(room=room, id=said[name], body=f"mended in the {name}")
        page.do("sees", f"* mended in the {name}")
        page.look(f"reaction-and-edit-{name.split()[0]}")
    _unread(other, page, rooms)
    for again in ("reload", "close_and_open"):
        page.do(again)
        for name in rooms:
            page.do("badge", name, 0)
            page.do("choose", name)
            for picture in SIZES:
                if ("secret" in picture) == (name == SECRET):
                    page.do("sees_picture", picture, *SIZES[picture])
            page.do("sees", f"* mended in the {name}")
            page.do("sees_reaction", f"said in the {name}", "🎉", 2)
            page.do("all_is_readable")
            page.look(f"after-{again}-{name.split()[0]}")
    page.do("files_were_given")


def _pictures(other, account, page, rooms):
    """One from each in both rooms. In the open one the browser asks the server for what it shows in small."""
    for name, room in rooms.items():
        secret = "secret " if name == SECRET else ""
        page.do("choose", name)
        theirs = f"{secret}from js.png"
        width, height = SIZES[theirs]
        content = base64.b64encode(paint(SIZES[theirs])).decode()
        send = other.send_picture if secret else other.send_open_picture
        send(room=room, name=theirs, base64=content, width=width, height=height)
        page.do("sees_picture", theirs, width, height)
        ours = f"{secret}from Hydrogen.png"
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / ours
            file.write_bytes(paint(SIZES[ours]))
            page.do("send_picture", file)
            page.do("sees_picture", ours, *SIZES[ours])
            seen = other.see_picture(room=room, id=other.until_picture(room=room, sender=account.id, name=ours))
            same = base64.b64decode(seen["base64"]) == file.read_bytes()
            demand(same, f"{other.name} sees another picture than was sent")
        page.look(f"pictures-{name.split()[0]}")


def _unread(other, page, rooms):
    """The browser is in one room while three things are said in the other."""
    for here, there in ((SECRET, OPEN), (OPEN, SECRET)):
        page.do("choose", there)
        page.do("badge", there, 0)  # it takes a room as read a while after it was opened
        page.do("choose", here)
        for number in range(3):
            other.send(room=rooms[there], body=f"unread {number} in the {there}")
            page.do("badge", there, number + 1)
        page.look(f"unread-{there.split()[0]}")
        page.do("reload")
        page.do("badge", there, 3)
        page.do("choose", there)
        page.do("sees", f"unread 2 in the {there}")
        page.do("badge", there, 0)
        page.look(f"read-{there.split()[0]}")


TITLE = "Hydrogen: pictures, reactions, edits, what is unread; also when loaded anew"
CONVERSATIONS = [(TITLE, JS_ONLY, False, a_web_client_shows_all)]
