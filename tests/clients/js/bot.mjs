// matrix-bot-sdk, unchanged, as a person and a bot: files and thumbnails, profiles, replies, reactions and what relates to
// an event, a space, direct rooms, powers, a room that is replaced and followed.
// Arguments: a picture wider than 320 pixels, then of both the server's address, user, password, and whether the other's
// rooms can be joined as soon as one is told of them (`yes`): Synapse tells of an invite, and of the room that follows
// another, before others can join there.
//
// It goes without its own cryptography, a binary that its package would fetch when it is installed.

import { readFile } from "node:fs/promises";
import Module, { createRequire } from "node:module";

const load = Module._load;
Module._load = function (name, ...more) {
    return name === "@matrix-org/matrix-sdk-crypto-nodejs" ? {} : load.call(this, name, ...more);
};
const sdk = createRequire(import.meta.url)("matrix-bot-sdk");
sdk.LogService.muteModule("*");
sdk.LogService.setLogger({ trace() {}, debug() {}, info() {}, warn() {}, error() {} });

const PATIENCE_MS = 60_000;
const [picturePath, ...accounts] = process.argv.slice(2);

function demand(condition, what) {
    if (!condition) throw new Error(what);
}

async function until(what, look) {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
        const got = await look();
        if (got) return got;
        if (Date.now() > deadline) throw new Error(`not seen in time: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 25));
    }
}

// A client that syncs; what it heard is kept.
async function client(baseUrl, user, password, atOnce) {
    const first = await new sdk.MatrixAuth(baseUrl).passwordLogin(user, password, "matrix-bot-sdk");
    const made = new sdk.MatrixClient(baseUrl, first.accessToken, new sdk.MemoryStorageProvider());
    if (atOnce === "yes") for (const mixin of [sdk.AutojoinRoomsMixin, sdk.AutojoinUpgradedRoomsMixin]) mixin.setupOnClient(made);
    else {
        const join = (room, sender) => until(room, () => made.joinRoom(room, [sender.split(":").slice(1).join(":")]).catch(() => null));
        made.on("room.invite", (room, { sender }) => join(room, sender));
        made.on("room.archived", (_, { content, sender }) => join(content.replacement_room, sender));
    }
    made.heard = [];
    made.joined = [];
    for (const name of ["room.event", "room.message"]) made.on(name, (room, event) => made.heard.push({ name, room, event }));
    made.on("room.join", (room) => made.joined.push(room));
    await made.start();
    return made;
}

const hears = (who, id) => until(`${id}`, () => who.heard.find(({ event }) => event.event_id === id)?.event);

async function files(person, bot, room) {
    const picture = await readFile(picturePath);
    const mxc = await person.uploadContent(picture, "image/png", "ein Bild.png");
    const sent = await person.sendMessage(room, { msgtype: "m.image", body: "ein Bild.png", url: mxc, info: { mimetype: "image/png" } });
    const { content } = await hears(bot, sent);
    const { data, contentType } = await bot.downloadContent(content.url);
    demand(contentType === "image/png" && picture.equals(data), `the bot's picture is another: ${contentType}, ${data.length} bytes`);
    // The addresses that it makes itself are those of before there were tokens for files.
    const small = bot.mxcToHttpThumbnail(mxc, 320, 240, "scale");
    const old = await fetch(small);
    demand(old.status === 404, `by the old path: ${old.status}`);
    const path = new URL(small.replace("/_matrix/media/v3/", "/_matrix/client/v1/media/"));
    const answer = await bot.doRequest("GET", path.pathname, Object.fromEntries(path.searchParams), null, 60_000, true, null, true);
    demand(/^image\/(png|jpeg|webp)$/.test(answer.headers["content-type"]), `the thumbnail is ${answer.headers["content-type"]}`);
    demand(answer.body.length > 100 && answer.body.length < picture.length, `the thumbnail has ${answer.body.length} bytes`);
    const wide = answer.body.readUInt32BE(16);
    demand(answer.body.toString("latin1", 1, 4) !== "PNG" || wide === 320, `the thumbnail is ${wide} wide`);
    const unknown = await bot.downloadContent(mxc.replace(/.$/, (last) => (last === "A" ? "B" : "A"))).catch((error) => error);
    demand(unknown.statusCode === 404 && JSON.parse(unknown.body).errcode === "M_NOT_FOUND", `of what is not there: ${unknown.body}`);
    return mxc;
}

async function profiles(person, bot, room, mxc) {
    const user = await bot.getUserId();
    await bot.setDisplayName("Ein Bot");
    await bot.setAvatarUrl(mxc);
    await until("the bot's profile", async () => {
        const profile = await person.getUserProfile(user);
        return profile.displayname === "Ein Bot" && profile.avatar_url === mxc;
    });
    await until("the bot's name in the room", async () => {
        const members = await person.getJoinedRoomMembersWithProfiles(room);
        return members[user]?.display_name === "Ein Bot" && members[user].avatar_url === mxc;
    });
}

async function relations(person, bot, room) {
    const said = await person.sendText(room, "!ping");
    const heard = await hears(bot, said);
    const answer = await bot.replyText(room, heard, "pong");
    demand((await hears(person, answer)).content["m.relates_to"]["m.in_reply_to"].event_id === said, "the answer answers nothing");
    const reactions = [await bot.unstableApis.addReactionToEvent(room, said, "🎉"), await person.unstableApis.addReactionToEvent(room, said, "🎉")];
    for (const id of reactions) for (const one of [person, bot]) await hears(one, id);
    const twice = await bot.unstableApis.addReactionToEvent(room, said, "🎉").catch((error) => error);
    demand(twice.errcode === "M_DUPLICATE_ANNOTATION", `a second reaction of one kind gets ${JSON.stringify(twice.body ?? twice)}`);
    const related = async (...kinds) => (await bot.getRelationsForEvent(room, said, ...kinds)).chunk.map((event) => event.event_id);
    demand((await related("m.annotation", "m.reaction")).join() === reactions.toReversed().join(), "other reactions are related");
    await bot.redactEvent(room, reactions[0], "not so");
    demand((await related("m.annotation")).join() === reactions[1], "a reaction that was taken back is still related");
    const edit = { msgtype: "m.text", body: "!pong" };
    const edited = await person.sendMessage(room, { ...edit, body: "* !pong", "m.new_content": edit, "m.relates_to": { rel_type: "m.replace", event_id: said } });
    await hears(bot, edited);
    const now = await bot.getRawEvent(room, said);
    demand(now.unsigned["m.relations"]?.["m.replace"]?.content["m.new_content"].body === "!pong", `the edit is not bundled: ${JSON.stringify(now)}`);
}

async function powersAndPlaces(person, bot, room) {
    const [user, owner] = [await bot.getUserId(), await person.getUserId()];
    demand(!(await bot.userHasPowerLevelForAction(user, room, "kick")), "the bot may throw people out");
    await person.setUserPowerLevel(user, room, 50);
    await until("the bot's power", () => bot.userHasPowerLevelForAction(user, room, "kick"));
    // Its createSpace() names the creator among the users' powers, which no room of version 12 may.
    const made = { name: "Ein Raum für Räume", creation_content: { type: "m.space" }, preset: "private_chat" };
    const space = await person.getSpace(await person.createRoom(made));
    await space.addChildRoom(room, { suggested: true, via: [user.split(":").slice(1).join(":")] });
    demand(room in (await space.getChildEntities()), "the space does not have the room");
    const direct = await bot.dms.getOrCreateDm(owner);
    await until("the direct room", () => person.joined.includes(direct));
    demand(bot.dms.isDm(direct) && (await bot.dms.getOrCreateDm(owner)) === direct, "there is a second direct room");
}

// A room is replaced twice; the bot goes to each that follows.
async function upgrades(person, bot) {
    const user = await bot.getUserId();
    const rooms = [await person.createRoom({ preset: "public_chat", name: "Die alte", room_version: "10", invite: [user] })];
    for (const version of ["11", "12"]) {
        await until(`the bot in ${rooms.at(-1)}`, async () => (await person.getJoinedRoomMembers(rooms.at(-1))).includes(user));
        // Synapse misses what is said in a room before it has stored the answer to its own join.
        await until(`${rooms.at(-1)} in the bot's rooms`, () => bot.joined.includes(rooms.at(-1)));
        const path = `/_matrix/client/v3/rooms/${encodeURIComponent(rooms.at(-1))}/upgrade`;
        rooms.push((await person.doRequest("POST", path, null, { new_version: version })).replacement_room);
    }
    await until("the bot in the last of them", () => bot.joined.includes(rooms[2]));
    await until("the end of the one before", async () => bot.getRoomStateEvent(rooms[1], "m.room.tombstone", "").catch(() => null));
    const { previous, newer, current } = await bot.getRoomUpgradeHistory(rooms[1]);
    const told = JSON.stringify({ previous, newer, current });
    demand(previous[0]?.roomId === rooms[0] && previous[0].version === "10" && previous[0].refEventId, `the room's history is ${told}`);
    demand(newer[0]?.roomId === rooms[2] && newer[0].version === "12", `the room's history is ${told}`);
    demand((await bot.getRoomStateEvent(rooms[2], "m.room.name", "")).name === "Die alte", "the last of them has no name");
}

async function main() {
    const person = await client(...accounts.slice(0, 4));
    const bot = await client(...accounts.slice(4));
    const room = await person.createRoom({ preset: "private_chat", name: "Mit einem Bot", invite: [await bot.getUserId()] });
    await until("the bot in the room", () => bot.joined.includes(room));
    const mxc = await files(person, bot, room);
    await profiles(person, bot, room, mxc);
    await relations(person, bot, room);
    await powersAndPlaces(person, bot, room);
    await upgrades(person, bot);
    for (const one of [person, bot]) one.stop();
}

main().then(
    () => process.exit(0),
    (error) => {
        process.stderr.write(`${error?.stack ?? JSON.stringify(error?.body ?? error)}\n`);
        process.exit(1);
    },
);
