// What matrix-js-sdk shows as unread: two users, one of them with two devices, who sync for real. Messages, a mention, a
// keyword, a muted room, what is read on the other device, threads, a redaction, an encrypted message.
// Arguments: the server's address, whether it takes who speaks to have read (yes, no), then user and password of both.

import { NotificationCountType, PushRuleKind, ReceiptType } from "matrix-js-sdk";
import { end, membership, syncing, until } from "./ways.mjs";

const [baseUrl, speakingReads, ...accounts] = process.argv.slice(2);
const { Total, Highlight } = NotificationCountType;

const THREADS = { threadSupport: true };
const has = (of, room, id) => of.getRoom(room)?.findEventById(id);

// Waits until a client has this many unread in the main timeline, and in threads if any are named.
async function counts(what, of, room, total, highlights, threads = {}) {
    const now = () => {
        const seen = of.getRoom(room);
        const told = [seen?.getRoomUnreadNotificationCount(Total), seen?.getRoomUnreadNotificationCount(Highlight)];
        for (const root of Object.keys(threads)) told.push(seen?.getThreadUnreadNotificationCount(root, Total));
        return JSON.stringify(told);
    };
    const wanted = JSON.stringify([total, highlights, ...Object.values(threads)]);
    await until(() => `${what}: ${wanted} but ${now()}`, () => now() === wanted);
}

async function main() {
    const alice = await syncing(baseUrl, accounts[0], accounts[1], THREADS);
    const bob = await syncing(baseUrl, accounts[2], accounts[3], THREADS);
    const phone = await syncing(baseUrl, accounts[2], accounts[3], THREADS);
    const say = async (room, body, more = {}) =>
        (await alice.sendMessage(room, { msgtype: "m.text", body, ...more })).event_id;
    const make = async (name) => {
        const { room_id: room } = await alice.createRoom({ name, preset: "public_chat" });
        await bob.joinRoom(room);
        for (const device of [bob, phone]) await until(`${name}`, () => membership(device, room) === "join");
        return room;
    };
    const read = async (device, room, id, thread) => {
        await until("what is to be read", () => has(device, room, id));
        const path = `/rooms/${encodeURIComponent(room)}/receipt/${ReceiptType.Read}/${encodeURIComponent(id)}`;
        await device.http.authedRequest("POST", path, undefined, thread ? { thread_id: thread } : {});
    };
    try {
        const room = await make("Counted");
        await say(room, "one");
        await say(room, "two");
        await counts("two messages", bob, room, 2, 0);
        await say(room, "you", { "m.mentions": { user_ids: [bob.getUserId()] } });
        await counts("a mention", bob, room, 3, 1);
        await counts("the same on the other device", phone, room, 3, 1);

        await bob.addPushRule("global", PushRuleKind.ContentSpecific, "cake", {
            pattern: "cake",
            actions: ["notify", { set_tweak: "highlight" }],
        });
        await until("the rule on the other device", () => phone.pushRules?.global.content?.some((rule) => rule.rule_id === "cake"));
        const cake = await say(room, "there is CAKE");
        await counts("a keyword", bob, room, 4, 2);
        await read(phone, room, cake);
        await counts("what was read on the other device", bob, room, 0, 0);

        const muted = await make("Muted");
        await bob.addPushRule("global", PushRuleKind.Override, muted, {
            conditions: [{ kind: "event_match", key: "room_id", pattern: muted }],
            actions: [],
        });
        const quiet = await say(muted, "quiet");
        await until("the quiet message", () => has(bob, muted, quiet));
        await counts("a muted room", bob, muted, 0, 0);

        const root = await say(room, "the root");
        const inThread = (body) => say(room, body, { "m.relates_to": { rel_type: "m.thread", event_id: root } });
        await inThread("in the thread");
        const second = await inThread("in the thread again");
        await counts("a thread", bob, room, 1, 0, { [root]: 2 });
        await read(phone, room, root, "main");
        await counts("the main timeline was read", bob, room, 0, 0, { [root]: 2 });
        await read(phone, room, second, root);
        await counts("the thread was read", bob, room, 0, 0, { [root]: 0 });

        const gone = await say(room, "to be redacted");
        await say(room, "to stay");
        await counts("two more", bob, room, 2, 0);
        await alice.redactEvent(room, gone);
        await counts("one was redacted", bob, room, 1, 0);

        const secret = { algorithm: "m.megolm.v1.aes-sha2", ciphertext: "AwgA", session_id: "s", sender_key: "k", device_id: "d" };
        await alice.sendEvent(room, "m.room.encrypted", secret);
        await counts("an encrypted message counts by its type", bob, room, 2, 0);
        const mine = await bob.sendTextMessage(room, "I have read it all");
        await counts("what others say is unread", alice, room, 1, 0);
        // "Either by using the API or by sending an event": Synapse does not take the second for one.
        if (speakingReads === "no") await read(phone, room, mine.event_id);
        await counts("who speaks has read", phone, room, 0, 0);
    } finally {
        for (const device of [alice, bob, phone]) device.stopClient();
    }
}

end(main());
