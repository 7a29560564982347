// matrix-js-sdk, which Element Web and others are made of, unchanged against a server: two logged-in clients that sync
// for real, a room with a knock that is let in, a message, a redaction, a leave, a device that lets another log in.
// Arguments: the server's address, then user and password of both.

import { createClient } from "matrix-js-sdk";
import { demand, end, membership, syncing, until } from "./ways.mjs";

const [baseUrl, ...accounts] = process.argv.slice(2);

async function client(user, password, options) {
    const { flows } = await createClient({ baseUrl }).loginFlows();
    demand(flows.some((flow) => flow.type === "m.login.password"), "no m.login.password among the flows");
    return syncing(baseUrl, user, password, options);
}

// A device that is logged in gets a token, which is good for the login of one other.
async function letAnotherLogIn(owner, user, password) {
    demand((await owner.getCapabilities())["m.get_login_token"]?.enabled, "no login tokens by the capabilities");
    const asked = await owner.requestLoginToken().catch((error) => error);
    demand(asked.httpStatus === 401 && asked.data.session, `a login token without a proof: ${JSON.stringify(asked)}`);
    const auth = { type: "m.login.password", identifier: { type: "m.id.user", user }, password };
    const { login_token: token } = await owner.requestLoginToken({ ...auth, session: asked.data.session });
    const guest = createClient({ baseUrl });
    const login = await guest.loginRequest({ type: "m.login.token", token });
    const another = createClient({ baseUrl, userId: login.user_id, accessToken: login.access_token, deviceId: login.device_id });
    demand((await another.whoami()).user_id === owner.getUserId(), "the login token was somebody else's");
    demand(login.device_id !== owner.getDeviceId(), "the login token gave the same device");
    const again = await guest.loginRequest({ type: "m.login.token", token }).catch((error) => error);
    demand(again.errcode === "M_FORBIDDEN", `a login token that was good twice: ${JSON.stringify(again)}`);
    await another.logout(true);
}

const has = (of, room, id) => of.getRoom(room)?.getLiveTimeline().getEvents().some((event) => event.getId() === id);

async function main() {
    const owner = await client(accounts[0], accounts[1]);
    const knocker = await client(accounts[2], accounts[3]);
    try {
        await knocker.setDisplayName("Somebody");
        const { room_id: room } = await owner.createRoom({
            name: "The SDK's room",
            room_version: "11",
            initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: "knock" } }],
        });
        await until("the own room", () => membership(owner, room) === "join");
        await knocker.knockRoom(room, { reason: "please" });
        await until("the own knock", () => membership(knocker, room) === "knock");
        await until("the knock", () => {
            const member = owner.getRoom(room).getMember(knocker.getUserId());
            return member?.membership === "knock" && member.name === "Somebody";
        });
        await owner.invite(room, knocker.getUserId());
        await until("the invite", () => membership(knocker, room) === "invite");
        await knocker.joinRoom(room);
        await until("the join", () => membership(knocker, room) === "join");
        demand(knocker.getRoom(room).name === "The SDK's room", `the room's name is ${knocker.getRoom(room).name}`);

        const { event_id: said } = await owner.sendTextMessage(room, "hello from the SDK");
        await until("the message", () => has(knocker, room, said));
        await owner.sendTyping(room, true, 5000).catch(() => {}); // not what this is about
        await owner.redactEvent(room, said, undefined, { reason: "unsaid" });
        await until("the redaction", () =>
            knocker.getRoom(room).findEventById(said)?.isRedacted(),
        );
        // Another device, for which the room's state is far behind its timeline.
        for (let n = 0; n < 12; n += 1) await owner.sendTextMessage(room, `message ${n}`);
        const second = await client(accounts[0], accounts[1], { initialSyncLimit: 3 });
        try {
            const seen = second.getRoom(room);
            demand(seen.name === "The SDK's room", `on another device the room's name is ${seen.name}`);
            demand(seen.getVersion() === "11", `on another device the room's version is ${seen.getVersion()}`);
            demand(seen.getMember(knocker.getUserId())?.membership === "join", "another device misses a member");
        } finally {
            second.stopClient();
        }
        await letAnotherLogIn(owner, accounts[0], accounts[1]);
        await knocker.scrollback(knocker.getRoom(room), 30);
        const types = knocker.getRoom(room).getLiveTimeline().getEvents().map((event) => event.getType());
        demand(types.includes("m.room.member"), `scrolling back shows ${types}`);
        await knocker.leave(room);
        await until("the leave", () => membership(knocker, room) === "leave");
        await knocker.logout(true);
        await owner.logout(true);
    } finally {
        owner.stopClient();
        knocker.stopClient();
    }
}

end(main());
