"""The libraries that bots are written with, unchanged: matrix-bot-sdk in a process of node, and mautrix here."""

import asyncio
import io
import logging
import pathlib
import subprocess
import tempfile

import client
from devices import Node
from flows import demand
from mautrix.client import Client
from mautrix.client.state_store import MemoryStateStore
from mautrix.errors import MNotFound
from mautrix.types import (
    EventType,
    ImageInfo,
    MediaMessageEventContent,
    MessageType,
    PaginationDirection,
    PushActionType,
    PushCondition,
    PushConditionKind,
    PushRuleKind,
    PushRuleScope,
    RoomCreatePreset,
    TextMessageEventContent,
)
from PIL import Image
from pictures import paint

WIDTH, HEIGHT = 800, 560


def bot_sdk_does_all(servers, unique):
    words = []
    for name, server, other in zip(("person", "bot"), servers, reversed(servers)):
        account = client.register(server, f"{name}-{unique}")
        words += [server.exchanges.url, account.id, account.password, "no" if other.kind == "synapse" else "yes"]
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder) / "picture.png"
        picture.write_bytes(paint((WIDTH, HEIGHT)))
        command = [*Node.command, "bot.mjs", picture, *words]
        try:
            done = subprocess.run(command, cwd=Node.folder, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired as error:
            raise client.Unmet("matrix-bot-sdk came to no end within 240 s") from error
    demand(done.returncode == 0, f"matrix-bot-sdk: {done.stderr.strip() or done.stdout.strip()}")


class _Bot:
    """One client of mautrix that syncs; what it heard is kept."""

    def __init__(self, server, account):
        self.heard = {}
        self._account = account
        self.client = Client(
            mxid=account.id,
            base_url=server.exchanges.url,
            state_store=MemoryStateStore(),
            log=logging.getLogger("mautrix"),
        )

    async def begin(self):
        for kind in (EventType.ROOM_MESSAGE, EventType.REACTION, EventType.ROOM_REDACTION, EventType.ROOM_MEMBER):
            self.client.add_event_handler(kind, self._keep)
        await self.client.login(password=self._account.password, device_name="mautrix")
        self._sync = asyncio.ensure_future(self.client.start(None))

    async def _keep(self, event):
        self.heard[event.event_id] = event

    async def hears(self, event_id):
        return await _until(f"{self.client.mxid} hears {event_id}", lambda: self.heard.get(event_id))

    async def end(self):
        self.client.stop()
        await asyncio.wait([self._sync], timeout=10)
        await self.client.api.session.close()


async def _until(what, look):
    deadline = asyncio.get_running_loop().time() + client.PATIENCE_SECONDS
    while not (got := look()):
        if asyncio.get_running_loop().time() > deadline:
            raise client.Unmet(f"not seen: {what}")
        await asyncio.sleep(0.02)
    return got


def mautrix_does_all(servers, unique):
    """Two users: files, thumbnails, announced uploads, a profile, reactions and edits, tags, push rules and counts."""
    accounts = [client.register(server, f"mautrix{number}-{unique}") for number, server in enumerate(servers)]
    asyncio.run(_mautrix(servers, accounts))


async def _mautrix(servers, accounts):
    person, bot = (_Bot(server, account) for server, account in zip(servers, accounts))
    for one in (person, bot):
        await one.begin()
    try:
        room = await person.client.create_room(
            preset=RoomCreatePreset.PRIVATE, name="With mautrix", invitees=[bot.client.mxid]
        )
        await _until("the invite", lambda: any(event.room_id == room for event in bot.heard.values()))
        await bot.client.join_room(room)
        await _files(servers, person, bot, room)
        await _says(person, bot, room)
        await _rules(person, bot, room)
    finally:
        for one in (person, bot):
            await one.end()


async def _files(servers, person, bot, room):
    picture = paint((WIDTH, HEIGHT))
    most = (await person.client.get_media_repo_config()).upload_size
    demand(most >= 1 << 20, f"mautrix may upload {most} bytes")
    mxc = await person.client.upload_media(picture, mime_type="image/png", filename="ein Bild.png")
    info = ImageInfo(mimetype="image/png", size=len(picture), width=WIDTH, height=HEIGHT)
    sent = await person.client.send_image(room, mxc, info=info, file_name="ein Bild.png")
    content = (await bot.hears(sent)).content
    demand(isinstance(content, MediaMessageEventContent) and content.info.width == WIDTH, f"mautrix reads {content}")
    demand(await bot.client.download_media(content.url) == picture, "mautrix downloads another picture")
    for method, asked, size in (("scale", (320, 240), (320, 224)), ("crop", (96, 96), (96, 96))):
        small = await bot.client.download_thumbnail(content.url, *asked, resize_method=method)
        shown = Image.open(io.BytesIO(small)).size
        demand(shown == size, f"mautrix gets a thumbnail of {shown} for {method} to {asked}")
    # Announced, and uploaded while the other waits for it.
    later = await person.client.upload_media(picture, mime_type="image/png", async_upload=True)
    demand(await bot.client.download_media(later, timeout_ms=20_000) == picture, "mautrix waited for another picture")
    await person.client.set_displayname("Mau Trix")
    await person.client.set_avatar_url(mxc)
    seen = await bot.client.get_profile(person.client.mxid)
    demand((seen.displayname, seen.avatar_url) == ("Mau Trix", mxc), f"mautrix sees the profile {seen}")

    if servers[0] is servers[1] or servers[1].kind != "synapse":  # it asks for others' profiles after a minute
        await _finds(bot, person.client.mxid, "Mau Trix")


async def _finds(bot, user, name):
    deadline = asyncio.get_running_loop().time() + client.PATIENCE_SECONDS
    while user not in (found := [one.user_id for one in (await bot.client.search_users(name)).results]):
        demand(asyncio.get_running_loop().time() < deadline, f"mautrix finds {found} by {name}")
        await asyncio.sleep(0.2)


async def _says(person, bot, room):
    said = await person.client.send_text(room, "said with mautrix")
    heard = await bot.hears(said)
    reaction = await bot.client.react(room, said, "🎉")
    seen = (await person.hears(reaction)).content.relates_to
    demand((seen.event_id, seen.key) == (said, "🎉"), f"mautrix reads the reaction as {seen}")
    edit = TextMessageEventContent(msgtype=MessageType.TEXT, body="mended with mautrix")
    edit.set_edit(said)
    edited = (await bot.hears(await person.client.send_message(room, edit))).content
    demand(edited.get_edit() == said, f"mautrix reads the edit as {edited}")
    answer = TextMessageEventContent(msgtype=MessageType.TEXT, body="an answer")
    answer.set_reply(heard)
    answered = (await person.hears(await bot.client.send_message(room, answer))).content
    demand(answered.get_reply_to() == said, f"mautrix reads the answer as one to {answered.get_reply_to()}")
    await person.hears(await bot.client.redact(room, reaction, "not so"))
    page = await person.client.get_messages(room, PaginationDirection.BACKWARD, limit=50)
    kept = {event.event_id: event for event in page.events}
    demand(said in kept and reaction in kept, f"mautrix pages back to {list(kept)}")
    demand(kept[reaction].content.relates_to.event_id is None, f"what was taken back reads {kept[reaction]}")
    demand((await person.client.get_event(room, said)).event_id == said, "mautrix gets another event")


async def _rules(person, bot, room):
    """A rule that is the bot's own counts, and counts no more once it is gone."""
    await bot.client.set_room_tag(room, "m.favourite")
    tags = (await bot.client.get_room_tags(room)).tags
    demand("m.favourite" in tags, f"mautrix sees the tags {tags}")
    mute = [PushCondition(kind=PushConditionKind.EVENT_MATCH, key="room_id", pattern=room)]
    where = (PushRuleScope.GLOBAL, PushRuleKind.OVERRIDE)
    await bot.client.set_push_rule(*where, "mute", [], conditions=mute)
    loud = [PushCondition(kind=PushConditionKind.EVENT_MATCH, key="content.body", pattern="*cake*")]
    await bot.client.set_push_rule(*where, "cake", [PushActionType.NOTIFY], conditions=loud, before="mute")
    rule = await bot.client.get_push_rule(*where, "cake")
    own = rule.enabled and not rule.default and rule.conditions[0].pattern == "*cake*"
    demand(own, f"mautrix reads its rule as {rule}")
    last = await bot.client.send_text(room, "all was read until here")
    await bot.client.send_receipt(room, last)
    for texts, count in ((("quiet", "CAKE!", "more cake"), 2), (("quiet again",), 2)):
        for text in texts:
            said = await person.client.send_text(room, text)
        await bot.hears(said)
        demand(await _unread(bot, room) == count, f"mautrix counts {await _unread(bot, room)} after {texts}")
    for rule_id in ("mute", "cake"):
        await bot.client.remove_push_rule(*where, rule_id)
        try:
            demand(not await bot.client.get_push_rule(*where, rule_id), "a rule is left that was removed")
        except MNotFound:
            pass
    await bot.hears(await person.client.send_text(room, "loud again"))
    demand(await _unread(bot, room) == 3, f"mautrix counts {await _unread(bot, room)} without its rules")
    await bot.client.send_receipt(room, said)
    demand(await _unread(bot, room) == 1, f"mautrix counts {await _unread(bot, room)} after it has read")


async def _unread(bot, room):
    told = await bot.client.sync(timeout=0)
    return told["rooms"]["join"][room]["unread_notifications"]["notification_count"]


# (client, title, function), each with the servers of a person and of a bot.
BOTS = [
    ("bot", "matrix-bot-sdk: files, profiles, relations, powers, a space, upgrades", bot_sdk_does_all),
    ("bot", "mautrix: files, profiles, relations, push rules and counts", mautrix_does_all),
]
