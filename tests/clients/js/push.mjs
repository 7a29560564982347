// matrix-js-sdk, unchanged, whose users have what they are notified of sent to a push gateway, which is here too: an
// invite, messages, what was read, a knock, and the door that opens by itself.
// Arguments: the server's address, then user and password of three accounts.

import { createServer } from "node:http";

import { Method } from "matrix-js-sdk";
import { demand, end, membership, PATIENCE_MS, syncing, until } from "./ways.mjs";

const [baseUrl, ...accounts] = process.argv.slice(2);

// A push gateway that takes everything: what it was sent, by the key of the pusher.
class Gateway {
    sent = [];

    async start() {
        this.server = createServer((request, response) => {
            let body = "";
            request.on("data", (piece) => (body += piece));
            request.on("end", () => {
                this.sent.push(JSON.parse(body).notification);
                response.setHeader("Content-Type", "application/json");
                response.end(JSON.stringify({ rejected: [] }));
            });
        });
        await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
        this.url = `http://127.0.0.1:${this.server.address().port}/_matrix/push/v1/notify`;
    }

    to(pushkey) {
        return this.sent.filter((notification) => notification.devices[0].pushkey === pushkey);
    }

    async until(what, pushkey, condition) {
        for (let waited = 0; waited < PATIENCE_MS; waited += 100) {
            const found = this.to(pushkey).find(condition);
            if (found) return found;
            await new Promise((resolve) => setTimeout(resolve, 100));
        }
        throw new Error(`the gateway was not told of ${what}: ${JSON.stringify(this.to(pushkey))}`);
    }
}

const find = (of, room, id) => of.getRoom(room)?.findEventById(id);

function pusher(gateway, pushkey, data) {
    return {
        app_display_name: "Flow",
        app_id: "org.example.flow",
        data: { url: gateway.url, ...data },
        device_display_name: "Phone",
        kind: "http",
        lang: "en",
        pushkey,
    };
}

async function main() {
    const gateway = new Gateway();
    await gateway.start();
    const [owner, reader, third] = await Promise.all([0, 2, 4].map((at) => syncing(baseUrl, accounts[at], accounts[at + 1])));
    try {
        await owner.setPusher(pusher(gateway, "owner", {}));
        await reader.setPusher(pusher(gateway, "reader", { format: "event_id_only" }));
        const { pushers } = await reader.getPushers();
        demand(pushers.length === 1 && pushers[0].pushkey === "reader", `pushers: ${JSON.stringify(pushers)}`);

        const { room_id: room } = await owner.createRoom({ name: "Pushed", preset: "private_chat" });
        await owner.invite(room, reader.getUserId());
        await owner.invite(room, third.getUserId());
        const invite = await gateway.until("the invite", "reader", (sent) => sent.room_id === room);
        demand(invite.counts.unread === 1, `with the invite: ${JSON.stringify(invite)}`);
        await reader.joinRoom(room);
        await third.joinRoom(room);
        await until("the join", () => membership(reader, room) === "join");
        await gateway.until("no unread invite", "reader", (sent) => !sent.event_id && sent.counts.unread === 0);

        const { event_id: said } = await owner.sendTextMessage(room, "hello");
        const told = await gateway.until("the message", "reader", (sent) => sent.event_id === said);
        demand(told.counts.unread === 1 && told.content === undefined, `of the message: ${JSON.stringify(told)}`);
        const { event_id: named } = await owner.sendMessage(room, {
            "msgtype": "m.text",
            "body": "and you?",
            "m.mentions": { user_ids: [reader.getUserId()] },
        });
        const loud = await gateway.until("the mention", "reader", (sent) => sent.event_id === named);
        demand(loud.devices[0].tweaks?.highlight === true && loud.prio === "high", `of it: ${JSON.stringify(loud)}`);
        await until("the mention", () => find(reader, room, named));
        const before = gateway.to("reader").length;
        await reader.sendReadReceipt(find(reader, room, named));
        await gateway.until("what was read", "reader", (sent) => {
            return gateway.to("reader").indexOf(sent) >= before && sent.counts.unread === 0 && !sent.event_id;
        });
        const listed = await reader.http.authedRequest(Method.Get, "/notifications", { only: "highlight" });
        const ids = listed.notifications.map((one) => [one.event.event_id, one.read]);
        demand(JSON.stringify(ids) === JSON.stringify([[named, true]]), `the list: ${JSON.stringify(ids)}`);

        // A knock rings for the owner, and lets in who wants that without a further word.
        const { room_id: door } = await owner.createRoom({
            name: "Door",
            initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: "knock" } }],
        });
        await reader.setAccountData("org.doorstep.door.accept_knocks", { enabled: true });
        await reader.knockRoom(door, { reason: "please" });
        const knock = await gateway.until("the knock", "owner", (sent) => sent.room_id === door);
        demand(knock.content.membership === "knock" && knock.room_name === "Door", `of it: ${JSON.stringify(knock)}`);
        await owner.invite(door, reader.getUserId());
        await until("the open door", () => membership(reader, door) === "join");

        await reader.removePusher("reader", "org.example.flow");
        demand((await reader.getPushers()).pushers.length === 0, "the pusher is still there");
        await owner.logout(true);
    } finally {
        for (const one of [owner, reader, third]) one.stopClient();
        gateway.server.close();
    }
}

end(main());
