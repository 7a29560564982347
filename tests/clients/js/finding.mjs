// matrix-js-sdk, unchanged, where it finds things and where it sends them later. Arguments: what to do, the server's
// address, then user and password of two accounts. Where the server is to be restarted, a line is written, and one is
// waited for.

import { createInterface } from "node:readline";
import { ClientEvent, Method } from "matrix-js-sdk";
import { demand, end, membership, syncing, until } from "./ways.mjs";

const [flow, baseUrl, ...accounts] = process.argv.slice(2);
const CALL_MEMBER = "org.matrix.msc3401.call.member";

const bodies = (of, room) =>
    (of.getRoom(room)?.getLiveTimeline().getEvents() ?? []).map((event) => event.getContent().body).filter(Boolean);

async function roomOfTwo(alice, bob, name) {
    const { room_id: room } = await alice.createRoom({
        name,
        preset: "private_chat",
        room_version: "11",
        invite: [bob.getUserId()],
        power_level_content_override: { events: { [CALL_MEMBER]: 0 } },
    });
    await until("the invite", () => membership(bob, room) === "invite");
    await bob.joinRoom(room);
    for (const each of [alice, bob]) {
        await until("both in the room", () => each.getRoom(room)?.getJoinedMemberCount() === 2);
    }
    return room;
}

async function finds(alice, bob) {
    await alice.setDisplayName("Älice Heronsworth");
    const room = await roomOfTwo(alice, bob, "About herons");
    let last;
    for (let n = 0; n < 12; n += 1) last = await alice.sendTextMessage(room, `the heron number ${n}`);
    await bob.sendTextMessage(room, "nothing of the kind");
    await until("what was said", () => bodies(bob, room).includes("nothing of the kind"));

    const found = await bob.searchRoomEvents({ term: "heron", filter: { rooms: [room], limit: 5, types: ["m.room.message"] } });
    demand(found.results.length === 5, `${found.results.length} results on the first page`);
    const first = found.results[0].context;
    demand(first.getEvent().getContent().body === "the heron number 11", `first ${first.getEvent().getContent().body}`);
    const around = first.getTimeline().map((event) => event.getContent().body);
    demand(
        JSON.stringify(around) === JSON.stringify(["the heron number 10", "the heron number 11", "nothing of the kind"]),
        `around the first: ${around}`,
    );
    demand(found.highlights.includes("heron"), `highlights ${found.highlights}`);
    while (found.next_batch) await bob.backPaginateRoomEventsSearch(found);
    const texts = found.results.map((result) => result.context.getEvent().getContent().body);
    demand(new Set(texts).size === 12 && texts.length === 12, `all pages: ${texts}`);

    await alice.redactEvent(room, last.event_id);
    await until("the redaction in the search", async () => {
        const again = await bob.searchRoomEvents({ term: "heron", filter: { rooms: [room] } });
        return again.results.every((result) => result.context.getEvent().getId() !== last.event_id);
    });

    const user = await until("the user in the directory", async () => {
        const { results } = await bob.searchUserDirectory({ term: "herons", limit: 5 });
        return results.find((each) => each.user_id === alice.getUserId());
    });
    demand(user.display_name === "Älice Heronsworth", `the directory shows ${JSON.stringify(user)}`);
    const shared = await alice.http.authedRequest(
        Method.Get,
        "/mutual_rooms",
        { user_id: bob.getUserId() },
        undefined,
        { prefix: "/_matrix/client/v1" },
    );
    demand(shared.joined.includes(room) && shared.count >= 1, `mutual rooms ${JSON.stringify(shared)}`);
    // By the name under which the library looks for it, where the server has it.
    if (await alice.doesServerSupportUnstableFeature("uk.half-shot.msc2666.query_mutual_rooms")) {
        const rooms = await alice._unstable_getSharedRooms(bob.getUserId());
        demand(rooms.includes(room), `shared rooms ${rooms}`);
    }
    await offers(alice, bob);
}

// What a client offers in its settings where the server says that it can be done, and what it shows there.
async function offers(alice, bob) {
    demand(await alice.doesServerSupportExtendedProfiles(), "profiles have no other fields");
    await alice.setExtendedProfileProperty("m.tz", "Europe/Vienna");
    const profile = await bob.getExtendedProfile(alice.getUserId());
    demand(profile["m.tz"] === "Europe/Vienna" && profile.displayname, `a profile ${JSON.stringify(profile)}`);
    demand((await alice.getThreePids()).threepids.length === 0, "an address that nobody gave");
    demand(Object.keys(await alice.getThirdpartyProtocols()).length === 0, "a bridge that nobody set up");
    demand(await alice.doesServerSupportUnstableFeature("org.matrix.msc4380.stable"), "invites cannot be blocked");
    await alice.setAccountData("m.invite_permission_config", { default_action: "block" });
    const { room_id: another } = await bob.createRoom({ preset: "private_chat" });
    const refusal = await bob.invite(another, alice.getUserId()).then(
        () => null,
        (error) => error,
    );
    demand(refusal?.errcode === "M_INVITE_BLOCKED", `an invite to who wants none: ${refusal}`);
}

async function sendsLater(alice, bob) {
    const room = await roomOfTwo(alice, bob, "A call");
    const scheduled = async () => {
        const list = await alice._unstable_getDelayedEvents();
        return (list.scheduled ?? list.delayed_events).map((event) => event.delay_id);
    };
    const member = (of) => of.getRoom(room).currentState.getStateEvents(CALL_MEMBER, key)?.getContent();
    const key = `_${alice.getUserId()}_${alice.getDeviceId()}_m.call`;
    const later = (body, delay) =>
        alice._unstable_sendDelayedEvent(room, { delay }, null, "m.room.message", { msgtype: "m.text", body }, `txn ${body}`);

    await later("by itself", 1500);
    await until("what was sent later", () => bodies(bob, room).includes("by itself"));
    const { delay_id: cancelled } = await later("never", 600_000);
    const { delay_id: early } = await later("before its time", 600_000);
    demand((await scheduled()).length === 2, `scheduled: ${await scheduled()}`);
    const one = await alice._unstable_getDelayedEvent(early);
    demand(one.content.body === "before its time" && one.room_id === room, `one delayed event: ${JSON.stringify(one)}`);
    await alice._unstable_cancelScheduledDelayedEvent(cancelled);
    await alice._unstable_sendScheduledDelayedEvent(early);
    await until("what was sent early", () => bodies(bob, room).includes("before its time"));
    const refusal = await alice._unstable_restartScheduledDelayedEvent(cancelled).then(
        () => null,
        (error) => error,
    );
    demand(refusal?.errcode === "M_NOT_FOUND", `a cancelled one is restarted: ${refusal}`);

    // As a call does it: the leave first, restarted as long as one is there.
    const { delay_id: leave } = await alice._unstable_sendDelayedStateEvent(room, { delay: 4000 }, CALL_MEMBER, {}, key);
    await alice.sendStateEvent(room, CALL_MEMBER, { application: "m.call" }, key);
    await until("the member of the call", () => member(bob)?.application === "m.call");
    const begun = Date.now();
    while (Date.now() - begun < 6000) {
        await alice._unstable_restartScheduledDelayedEvent(leave);
        await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    await alice._unstable_updateDelayedEvent(leave, "restart");
    demand(member(bob)?.application === "m.call", "the member left although it was there");
    // The server goes and comes; meanwhile the member is gone.
    await new Promise((resolve) => {
        createInterface({ input: process.stdin }).once("line", resolve);
        process.stdout.write("restart\n");
    });
    await until("the leave after the restart", () => member(bob) && !member(bob).application);
    demand(!bodies(bob, room).includes("never"), "what was cancelled was sent");
}

// The library's own call, as Element Call has it: it sends the leave later, sends the membership, and restarts the leave
// as long as it lives. It is killed in the middle.
async function joinsACall(alice, bob) {
    const room = await roomOfTwo(alice, bob, "A call that breaks off");
    const session = alice.matrixRTC.getRoomSession(alice.getRoom(room));
    const focus = { type: "livekit", livekit_service_url: "https://livekit.example.org", livekit_alias: room };
    const times = { delayedLeaveEventDelayMs: 4000, delayedLeaveEventRestartMs: 1000 };
    session.joinRoomSession([focus], undefined, times);
    const members = () =>
        bob.getRoom(room).currentState.getStateEvents(CALL_MEMBER).filter((event) => event.getContent().application);
    await until("the member of the call", () => members().length === 1);
    await new Promise((resolve) => setTimeout(resolve, 6000));
    demand(members().length === 1, "the member left although it was there");
    const list = await alice._unstable_getDelayedEvents();
    demand((list.scheduled ?? list.delayed_events).length === 1, `scheduled: ${JSON.stringify(list)}`);
    process.stdout.write(`kill ${room}\n`);
    await new Promise(() => {});
}

async function seesWhoFellOut(alice, bob) {
    const room = accounts[4];
    const events = () => bob.getRoom(room)?.currentState.getStateEvents(CALL_MEMBER) ?? [];
    await until("the leave of who was killed", () => events().length === 1 && !events()[0].getContent().application);
    demand(events()[0].getSender() === alice.getUserId(), `by ${events()[0].getSender()}`);
}

async function main() {
    const [alice, bob] = [await syncing(baseUrl, accounts[0], accounts[1]), await syncing(baseUrl, accounts[2], accounts[3])];
    try {
        await { finds, sendsLater, joinsACall, seesWhoFellOut }[flow](alice, bob);
    } finally {
        alice.stopClient();
        bob.stopClient();
    }
}

end(main());
