"""Threads, edits and reactions as a client shows them that has its server count them: while they are made, after the
app was opened anew, and on a device that comes to the room later.
"""

from conversations import JS_ONLY, room_of_two
from flows import demand

# As in conversations.py, which does not know of these.
CONVERSATIONS = []

STABLE = 2  # FeatureSupport.Stable of matrix-js-sdk
BURIED_UNDER = 25  # messages, more than a first sync shows


def conversation(title, kinds):
    def enlist(function):
        CONVERSATIONS.append((title, kinds, False, function))
        return function

    return enlist


def with_threads(device):
    support = device.with_threads()
    demand(support == {"threads": STABLE, "list": STABLE}, f"{device.name} has its server count threads: {support}")


def plain_room(host, guest, via):
    room = host.create_plain_room(name="Threads")
    guest.join_plain(room=room, via=via)
    host.until_member(room=room, user=guest.user, membership="join")
    return room


@conversation("threads, edits and reactions, on a device that comes later", JS_ONLY)
def relations_that_are_found_later(stage):
    host, guest = stage.host(), stage.guest()
    for device in (host, guest):
        with_threads(device)
    room = plain_room(host, guest, stage.via)
    root, other = host.send(room=room, body="root"), host.send(room=room, body="other root")
    guest.until_text(room=room, id=root, body="root")
    said = [guest.reply_in_thread(room=room, root=root, body=f"reply {n}") for n in range(7)]
    host.until_thread(room=room, root=root, latest="reply 6")
    host.react(room=room, id=root, key="👍")
    again = host.react_again(room=room, id=root, key="👍")
    demand(again["errcode"] == "M_DUPLICATE_ANNOTATION", f"a second reaction of one kind gets {again}")
    guest.react(room=room, id=root, key="👍")
    both = sorted([host.user, guest.user])
    for reader in (host, guest):
        reader.until_reactions(room=room, id=root, wanted={"👍": both})
    guest.edit(room=room, id=said[6], body="reply 6, edited")
    host.edit(room=room, id=root, body="root, edited")
    guest.until_text(room=room, id=root, body="root, edited")
    host.until_thread(room=room, root=root, latest="reply 6, edited")
    host.reply_in_thread(room=room, root=other, body="alone")
    for n in range(BURIED_UNDER):
        host.send(room=room, body=f"on top {n}")
    late = [stage.another(device).log_in(device.localpart) for device in (host, guest)]
    for device, own in zip(late, ([other, root], [root])):
        device.until_membership(room=room, membership="join")
        with_threads(device)
        listed = device.thread_list(room=room)
        demand(listed == {"all": [other, root], "participated": own}, f"{device.name} lists the threads {listed}")
        shown = device.until_thread(room=room, root=root, count=7, latest="reply 6, edited")
        demand(shown["participated"], f"{device.name} took part: {shown}")
        device.until_text(room=room, id=root, body="root, edited")
        device.scroll_back_to(room=room, id=root)
        device.until_reactions(room=room, id=root, wanted={"👍": both})
        told = device.thread(room=room, root=root, count=7)
        wanted = [*(f"reply {n}" for n in range(6)), "reply 6, edited"]
        demand(told == wanted, f"{device.name} shows the thread as {told}")


@conversation("what relates to an event, page by page, and redacted", JS_ONLY)
def relations_by_pages(stage):
    host, guest = stage.host(), stage.guest()
    for device in (host, guest):
        with_threads(device)
    room = plain_room(host, guest, stage.via)
    root = host.send(room=room, body="root")
    guest.until_text(room=room, id=root, body="root")
    said = [guest.reply_in_thread(room=room, root=root, body=f"reply {n}") for n in range(5)]
    host.until_thread(room=room, root=root, latest="reply 4")
    likes = host.react(room=room, id=root, key="👍")
    edited = host.edit(room=room, id=root, body="root, edited")
    guest.until_text(room=room, id=root, body="root, edited")
    guest.until_reactions(room=room, id=root, wanted={"👍": [host.user]})
    for reader in (host, guest):
        pages = reader.relations(room=room, id=root, rel_type="m.thread", limit=2)
        demand(pages["found"] == said[::-1], f"{reader.name} pages back through {pages}, not {said}")
        pages = reader.relations(room=room, id=root, rel_type="m.thread", limit=2, forwards=True)
        demand(pages["found"] == said and pages["pages"] >= 3, f"{reader.name} pages on through {pages}, not {said}")
        pages = reader.relations(room=room, id=root, rel_type="m.annotation", event_type="m.reaction")
        demand(pages["found"] == [likes], f"{reader.name} is told of the reactions {pages}")
        pages = reader.relations(room=room, id=root, rel_type="m.replace", event_type="m.room.message")
        demand(pages["found"] == [edited], f"{reader.name} is told of the edits {pages}")
    on_reply = host.react(room=room, id=said[2], key="🎉")
    guest.until_reactions(room=room, id=said[2], wanted={"🎉": [host.user]})
    for reader in (host, guest):
        pages = reader.relations(room=room, id=root, limit=3, recurse=True)
        demand(set(pages["found"]) == {*said, likes, edited, on_reply}, f"{reader.name} is told, in depth, of {pages}")
    # What is redacted relates to nothing any more: the thread ends with the reply before, the text is the first one.
    guest.redact(room=room, id=said[4])
    host.redact(room=room, id=edited)
    host.redact(room=room, id=likes)
    guest.until_text(room=room, id=root, body="root")
    late = stage.another(guest).log_in(guest.localpart)
    late.until_membership(room=room, membership="join")
    with_threads(late)
    late.thread_list(room=room)
    late.until_thread(room=room, root=root, count=4, latest="reply 3")
    late.until_text(room=room, id=root, body="root")
    late.scroll_back_to(room=room, id=root)
    late.until_reactions(room=room, id=root, wanted={})
    pages = late.relations(room=room, id=root)
    demand(pages["found"] == said[3::-1], f"{late.name} is told of {pages}, not of {said[:4]}")


@conversation("threads and edits that are encrypted, after the app was opened anew", JS_ONLY)
def encrypted_relations(stage):
    host, guest = stage.host(), stage.guest()
    room = room_of_two(host, guest)
    for device in (host, guest):
        with_threads(device)
    root = host.send(room=room, body="root")
    guest.until_text(room=room, id=root, body="root")
    reply = guest.reply_in_thread(room=room, root=root, body="reply")
    host.until_thread(room=room, root=root, latest="reply")
    guest.edit(room=room, id=reply, body="reply, edited")
    host.edit(room=room, id=root, body="root, edited")
    for n in range(BURIED_UNDER):
        host.send(room=room, body=f"on top {n}")
    for device in (host, guest):
        device.close()
        device.open()
        device.thread_list(room=room)
        device.until_thread(room=room, root=root, count=1, latest="reply, edited")
        device.until_text(room=room, id=root, body="root, edited")
