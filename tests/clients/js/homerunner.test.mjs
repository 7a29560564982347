// `doorstep fixture --homerunner` with the client that projects ask Complement's homerunner by.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before, test } from "node:test";

import homerunner from "homerunner-client";
import { createClient } from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.disableAll?.();
for (const level of ["log", "info", "debug", "warn"]) console[level] = () => {};

let fixture, client;

before(async () => {
    const args = ["fixture", "--homerunner", "--port", "0"];
    fixture = spawn(process.env.DOORSTEP, args, { stdio: ["pipe", "pipe", "ignore"] });
    const [line] = await once(fixture.stdout, "data");
    client = new homerunner.Homerunner.Client(JSON.parse(line).homerunner);
});

after(async () => {
    fixture.stdin.end();
    await once(fixture, "exit");
});

function clientOf(server, userId) {
    const { BaseURL: baseUrl, AccessTokens, DeviceIDs } = server;
    return createClient({ baseUrl, userId, accessToken: AccessTokens[userId], deviceId: DeviceIDs[userId] });
}

test("a known blueprint is made, used and destroyed", async () => {
    await client.health();
    const { homeservers, expires } = await client.create({
        base_image_uri: "complement-any",
        blueprint_name: "federation_one_to_one_room",
    });
    assert.ok(new Date(expires) > new Date());
    const [alice, bob] = [clientOf(homeservers.hs1, "@alice:hs1"), clientOf(homeservers.hs2, "@bob:hs2")];
    const [{ joined_rooms: hers }, { joined_rooms: his }] = await Promise.all([alice, bob].map((c) => c.getJoinedRooms()));
    assert.equal(hers.length, 1);
    assert.deepEqual(hers, his);
    const members = await alice.getJoinedRoomMembers(hers[0]);
    assert.equal(members.joined["@bob:hs2"].display_name, "Bob");
    await client.destroy("federation_one_to_one_room");
    await assert.rejects(client.destroy("federation_one_to_one_room"), /500/);
});

test("a blueprint of one's own, as matrix-hookshot and others bring it along", async () => {
    const blueprint = {
        Name: `mine-${process.pid}`,
        Homeservers: ["hs1", "hs2"].map((Name) => ({
            Name,
            Users: [{ Localpart: "bot", DisplayName: "Bot" }, { Localpart: "user" }],
        })),
    };
    const { homeservers } = await client.create({ base_image_uri: "complement-any", blueprint });
    const bot = clientOf(homeservers.hs1, "@bot:hs1");
    const { room_id: room } = await bot.createRoom({ invite: ["@user:hs2"] });
    const user = clientOf(homeservers.hs2, "@user:hs2");
    assert.equal((await user.joinRoom(room, { viaServers: ["hs1"] })).roomId, room);
    await client.destroy(blueprint.Name);
});
