// The package with a real client, matrix-js-sdk.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import https from "node:https";
import net from "node:net";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { ClientEvent, createClient, Preset, RoomEvent } from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

import { startDoorstep } from "../index.mjs";

logger.disableAll?.();
for (const level of ["log", "info", "debug", "warn"]) console[level] = () => {};

function clientOf(server, { userId, accessToken, deviceId }) {
    return createClient({ baseUrl: server.url, userId, accessToken, deviceId });
}

async function started(client) {
    const ready = new Promise((resolve) =>
        client.on(ClientEvent.Sync, (state) => (state === "PREPARED" || state === "SYNCING") && resolve()),
    );
    await client.startClient({ initialSyncLimit: 10 });
    await ready;
}

function message(client, roomId, body) {
    return new Promise((resolve) =>
        client.on(RoomEvent.Timeline, (event, room) => {
            if (room?.roomId === roomId && event.getContent().body === body) resolve(event);
        }),
    );
}

test("a message arrives over federation, also after a cut and a restart", async () => {
    const doorstep = await startDoorstep({ users: ["alice", "bob"], servers: 2 });
    const [here, there] = doorstep.servers;
    const [alice, bob] = [clientOf(here, here.users.alice), clientOf(there, there.users.bob)];
    try {
        const { room_id: room } = await alice.createRoom({ preset: Preset.PublicChat });
        await bob.joinRoom(room, { viaServers: [here.name] });
        await started(bob);
        await doorstep.cut(1, there.name);
        const ping = message(bob, room, "ping");
        await alice.sendTextMessage(room, "ping");
        await doorstep.mend(1, 2);
        await ping;
        await doorstep.restart();
        const after = message(bob, room, "after it");
        await alice.sendTextMessage(room, "after it");
        await after;
        const version = await new Promise((resolve, reject) =>
            https
                .get(`${there.federationUrl}/_matrix/federation/v1/version`, { ca: doorstep.ca }, (answer) => resolve(answer.statusCode))
                .on("error", reject),
        );
        assert.equal(version, 200);
    } finally {
        bob.stopClient();
        await doorstep.stop();
        await doorstep.stop();
    }
});

test("a client meets the faults that it is to meet", async () => {
    const doorstep = await startDoorstep();
    try {
        const alice = clientOf(doorstep, await doorstep.addUser("alice"));
        await doorstep.fail("POST", "/createRoom", 507, "ORG_EXAMPLE_FULL");
        await assert.rejects(alice.createRoom({}), { httpStatus: 507, errcode: "ORG_EXAMPLE_FULL" });
        await doorstep.limit("POST", "/createRoom", 1500);
        await assert.rejects(alice.createRoom({}), { httpStatus: 429, errcode: "M_LIMIT_EXCEEDED" });
        await alice.createRoom({});
        const asked = (await doorstep.requests()).filter(({ path }) => path.endsWith("/createRoom"));
        assert.deepEqual(asked.map(({ status }) => status), [507, 429, 200]);
        const phone = await doorstep.login("alice", { deviceId: "PHONE" });
        assert.equal((await clientOf(doorstep, phone).whoami()).device_id, "PHONE");
    } finally {
        await doorstep.stop();
    }
});

test("what cannot be done is an error, and the fixture goes on", async () => {
    const doorstep = await startDoorstep({ users: ["alice"] });
    await assert.rejects(doorstep.addUser("alice"), /taken/);
    await assert.rejects(doorstep.addUser("two words"), /white space/);
    await assert.rejects(doorstep.cut(1, 2), /no server/);
    await Promise.all([doorstep.addUser("bob"), doorstep.addUser("carol"), doorstep.advance(1)]);
    assert.deepEqual(Object.keys(doorstep.users).sort(), ["alice", "bob", "carol"]);
    await doorstep.stop();
    await assert.rejects(doorstep.advance(1), /not running/);
    await assert.rejects(startDoorstep({ servers: 0 }), /1 to 100/);
    await assert.rejects(startDoorstep({ binary: "/nowhere/doorstep" }), /ENOENT/);
});

test("words of commands are ordinary names and passwords, and names say how many servers there are", async () => {
    const doorstep = await startDoorstep({ names: ["a.example", "b.example"] });
    try {
        // An administrator in any case.
        await doorstep.addUser("first");
        assert.deepEqual(doorstep.servers.map(({ name }) => name), ["a.example", "b.example"]);
        for (const [name, password] of [["admin"], ["on", "2"], ["alice", "admin"], ["bob", "on"], ["carol", "ordinary"]]) {
            const user = await doorstep.addUser(name, { password });
            assert.deepEqual([user.userId, user.password], [`@${name}:a.example`, password ?? name]);
            assert.equal((await doorstep.login(name, { deviceId: "on" })).deviceId, "on");
            const accounts = `${doorstep.url}/_synapse/admin/v2/users`;
            const { status } = await fetch(accounts, { headers: { Authorization: `Bearer ${user.accessToken}` } });
            assert.equal(status, 403);
        }
    } finally {
        await doorstep.stop();
    }
});

test("a test that fails before it stops its servers holds nothing up", async () => {
    const index = fileURLToPath(new URL("../index.mjs", import.meta.url));
    const script = `import { startDoorstep } from ${JSON.stringify(index)}; const d = await startDoorstep({ users: ["alice"] });
        await d.addUser("bob"); console.log(d.url); throw new Error("the test fails");`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "ignore"] });
    const [status] = await once(child, "exit");
    assert.equal(status, 1);
    const quiet = script.replace(/throw .*/, "");
    const forgetful = spawn(process.execPath, ["--input-type=module", "-e", quiet], { stdio: ["ignore", "pipe", "inherit"] });
    assert.equal((await once(forgetful, "exit"))[0], 0);
});

test("a test that is killed takes its servers along", async () => {
    const index = fileURLToPath(new URL("../index.mjs", import.meta.url));
    const script = `import { startDoorstep } from ${JSON.stringify(index)}; console.log((await startDoorstep()).url); setInterval(() => {}, 1e6);`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    const [line] = await once(child.stdout, "data");
    const port = Number(new URL(line.toString().trim()).port);
    const connects = () =>
        new Promise((resolve) => {
            const socket = net.connect(port, "127.0.0.1", () => resolve(true) ?? socket.destroy());
            socket.on("error", () => resolve(false));
        });
    assert.ok(await connects());
    child.kill("SIGKILL");
    const until = Date.now() + 30_000;
    while (await connects()) assert.ok(Date.now() < until, "it still answers");
});

test("a binary that there is not is named, and where it is looked for", async () => {
    const told = /^\/nonexistent cannot be started \(ENOENT\): .*DOORSTEP/;
    await assert.rejects(startDoorstep({ binary: "/nonexistent" }), ({ message }) => told.test(message));
});
