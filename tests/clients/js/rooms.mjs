// matrix-js-sdk, unchanged: rooms that are replaced and followed, what users tell administrators of, an account that is
// locked, guests. Arguments: what is to be done, then words in pairs and triples as `doings` has them.

import { createClient, ClientEvent, EventTimeline, SyncState } from "matrix-js-sdk";
import { demand, end, membership, start, syncing, until } from "./ways.mjs";

const SHORT_POLLS = { pollTimeout: 5000 };
const opened = [];

async function openClient(baseUrl, user, password) {
    const made = await syncing(baseUrl, user, password, SHORT_POLLS);
    opened.push(made);
    return made;
}

const has = (of, room, id) => of.getRoom(room)?.getLiveTimeline().getEvents().some((event) => event.getId() === id);
const current = (of, room, type) =>
    of.getRoom(room)?.getLiveTimeline().getState(EventTimeline.FORWARDS)?.getStateEvents(type, "");

// The host upgrades a room; the guest's client, which may be of another server, sees it and goes to the new one.
async function upgrade(hostUrl, hostUser, hostPassword, guestUrl, guestUser, guestPassword, joinRule, ...versions) {
    const host = await openClient(hostUrl, hostUser, hostPassword);
    const guest = await openClient(guestUrl, guestUser, guestPassword);
    for (const pair of versions) {
        const [from, to] = pair.split("-");
        const { room_id: room } = await host.createRoom({
            name: `From ${from}`,
            room_version: from,
            invite: [guest.getUserId()],
            initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: joinRule } }],
        });
        await until("the invite", () => membership(guest, room) === "invite");
        await guest.joinRoom(room);
        await until("the join", () => membership(guest, room) === "join");
        const seen = () => host.getRoom(room)?.getMember(guest.getUserId())?.membership;
        await until("the join, elsewhere", () => seen() === "join");
        await guest.setRoomTag(room, "m.favourite", { order: 0.25 });
        await until("the tag", () => guest.getRoom(room).tags["m.favourite"]);

        const { replacement_room: replacement } = await host.upgradeRoom(room, to);
        const tombstone = await until("the tombstone", () => current(guest, room, "m.room.tombstone"));
        demand(tombstone.getContent().replacement_room === replacement, "the tombstone names another room");
        const via = tombstone.getSender().slice(tombstone.getSender().indexOf(":") + 1);
        await guest.joinRoom(replacement, { viaServers: [via] });
        await until("the new room", () => membership(guest, replacement) === "join");
        await until("the new room's name", () => guest.getRoom(replacement).name === `From ${from}`);
        const predecessor = guest.getRoom(replacement).findPredecessor();
        demand(predecessor?.roomId === room, `the new room follows ${JSON.stringify(predecessor)}`);
        const version = guest.getRoom(replacement).getVersion();
        demand(version === to, `the new room is of version ${version}`);
        const history = guest.getRoomUpgradeHistory(replacement, true).map((known) => known.roomId);
        demand(String(history) === String([room, replacement]), `the client's history of the room is ${history}`);
        await until("the tag in the new room", () => guest.getRoom(replacement).tags["m.favourite"]);
        demand(guest.getRoom(replacement).tags["m.favourite"].order === 0.25, "the tag has another order");
        for (const [speaker, reader] of [
            [host, guest],
            [guest, host],
        ]) {
            const { event_id: said } = await speaker.sendTextMessage(replacement, `${speaker.getUserId()} is here`);
            await until("what was said in the new room", () => has(reader, replacement, said));
        }
    }
}

// A user reports, asks for a TURN server, is locked and unlocked, is suspended.
async function moderation(baseUrl, adminUser, adminPassword, user, password) {
    const admin = await openClient(baseUrl, adminUser, adminPassword);
    const somebody = await openClient(baseUrl, user, password);
    const capabilities = await admin.getCapabilities();
    demand(capabilities["m.account_moderation"]?.lock, "an administrator's client does not see what it may do");
    const { room_id: room } = await admin.createRoom({ preset: "public_chat", name: "Moderated" });
    await somebody.joinRoom(room);
    await until("the room", () => membership(somebody, room) === "join");
    const { event_id: said } = await admin.sendTextMessage(room, "something rude");
    await until("the message", () => has(somebody, room, said));
    await somebody.reportEvent(room, said, -100, "it is rude");
    await somebody.reportRoom(room, "all of it is");

    // There is no WebRTC in a process of node, for which alone the client asks by itself.
    somebody.canSupportVoip = true;
    await somebody.checkTurnServers();
    demand(somebody.getTurnServers().length === 1, `the client has the TURN servers ${somebody.getTurnServers()}`);
    const [turn] = somebody.getTurnServers();
    demand(turn.urls[0].startsWith("turn:"), `the client calls ${turn.urls}`);
    demand(turn.username.endsWith(somebody.getUserId()) && turn.credential, "the client has no credentials for calls");

    const set = (what, to) =>
        admin.http.authedRequest("PUT", `/admin/${what}/${encodeURIComponent(somebody.getUserId())}`, undefined, to, {
            prefix: "/_matrix/client/v1",
        });
    const states = [];
    somebody.on(ClientEvent.Sync, (state, _, data) => states.push([state, data?.error?.errcode]));
    await set("lock", { locked: true });
    const { event_id: missed } = await admin.sendTextMessage(room, "said while somebody is locked");
    await until("the client's word of the lock", () => states.some(([, code]) => code === "M_USER_LOCKED"));
    demand(!has(somebody, room, missed), "a locked client is told what is said");
    await set("lock", { locked: false });
    somebody.retryImmediately();
    await until("what was said meanwhile", () => has(somebody, room, missed));
    const state = somebody.getSyncState();
    demand([SyncState.Syncing, SyncState.Prepared].includes(state), `the client, unlocked, is ${state}`);

    await set("suspend", { suspended: true });
    const refused = await somebody.sendTextMessage(room, "I must not").then(
        () => null,
        (error) => error,
    );
    demand(refused?.errcode === "M_USER_SUSPENDED", `a suspended client may speak: ${refused}`);
    const { event_id: heard } = await admin.sendTextMessage(room, "somebody hears this");
    await until("what a suspended user hears", () => has(somebody, room, heard));
    await somebody.leave(room);
}

// Somebody without an account looks into a room, comes in, speaks, and makes an account of it.
async function guests(baseUrl, user, password) {
    const owner = await openClient(baseUrl, user, password);
    const room = async (access, visibility) => {
        const { room_id: made } = await owner.createRoom({
            name: access,
            preset: "public_chat",
            initial_state: [
                { type: "m.room.guest_access", state_key: "", content: { guest_access: access } },
                { type: "m.room.history_visibility", state_key: "", content: { history_visibility: visibility } },
            ],
        });
        return made;
    };
    const open = await room("can_join", "world_readable");
    const closed = await room("forbidden", "shared");
    const { event_id: before } = await owner.sendTextMessage(open, "before anybody came");

    const body = { initial_device_display_name: "a guest" };
    const registered = await createClient({ baseUrl }).registerGuest({ body });
    const guest = createClient({
        baseUrl,
        userId: registered.user_id,
        accessToken: registered.access_token,
        deviceId: registered.device_id,
        timelineSupport: true,
    });
    guest.setGuest(true);
    opened.push(guest);
    await start(guest, SHORT_POLLS);
    demand((await guest.whoami()).is_guest === true, "a guest is not told that it is one");
    const peeked = await guest.peekInRoom(open);
    demand(peeked.name === "can_join", `the room that is peeked into is called ${peeked.name}`);
    demand(peeked.getLiveTimeline().getEvents().some((event) => event.getId() === before), "peeking shows no messages");
    guest.stopPeeking();

    const refused = await guest.joinRoom(closed).then(
        () => null,
        (error) => error,
    );
    demand(refused?.errcode === "M_GUEST_ACCESS_FORBIDDEN", `a guest comes in where none may: ${refused}`);
    const none = await guest.createRoom({}).then(
        () => null,
        (error) => error,
    );
    demand(none?.errcode === "M_GUEST_ACCESS_FORBIDDEN", `a guest makes rooms: ${none}`);
    await guest.joinRoom(open);
    await until("the guest's room", () => membership(guest, open) === "join");
    await guest.setDisplayName("A guest");
    const { event_id: said } = await guest.sendTextMessage(open, "hello from a guest");
    await until("what a guest says", () => has(owner, open, said));
    await owner.sendStateEvent(open, "m.room.guest_access", { guest_access: "forbidden" }, "");
    await until("that the guest had to go", () => membership(guest, open) === "leave");
}

const doings = { upgrade, moderation, guests };
const [what, ...words] = process.argv.slice(2);

end(doings[what](...words).finally(() => opened.forEach((made) => made.stopClient())));
