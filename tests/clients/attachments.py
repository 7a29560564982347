"""Pictures in encrypted rooms: a file that no server can read, sent on one server and seen on the other."""

import base64
import hashlib

from conversations import conversation, room_of_two
from flows import demand

PICTURE_BYTES = 300_000


@conversation("a picture that one sends the other sees, and so do both later", (("js", "js"), ("nio", "js")))
def pictures(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    # What it shows is all the same to everybody in between.
    seed = hashlib.sha256(stage.unique.encode()).digest()
    picture = (seed * (PICTURE_BYTES // len(seed) + 1))[:PICTURE_BYTES]
    senders = [host, guest]
    for number, sender in enumerate(senders):
        name = f"Grüße {number}.png"
        event_id = sender.send_picture(room=room, name=name, base64=base64.b64encode(picture).decode())
        # nio looks for files by paths of before there were tokens for it.
        for viewer in (each for each in senders if each.kind == "js"):
            for _ in range(2):
                seen = viewer.see_picture(room=room, id=event_id)
                demand(seen["name"] == name, f"{viewer.name} sees {event_id} as {seen['name']}, not as {name}")
                same = base64.b64decode(seen["base64"]) == picture
                demand(same, f"{viewer.name} sees another picture than {sender.name} has sent")
