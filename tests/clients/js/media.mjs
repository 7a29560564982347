// Files with matrix-js-sdk: two users who sync for real. One uploads pictures, in the open and encrypted as Element does,
// sends them, and is seen by a picture of their own; the other downloads what they are sent, with their token and never
// without. Announced uploads, parts and what the client has already are asked for by the addresses that the library makes.
// Arguments: the server's address, then user and password of both.

import { EventType, MsgType } from "matrix-js-sdk";
import { demand, end, membership, syncing, until } from "./ways.mjs";

const [baseUrl, ...accounts] = process.argv.slice(2);

const address = (of, mxc) => of.mxcUrlToHttp(mxc, undefined, undefined, undefined, false, true, true);

function get(of, mxc, headers = {}) {
    return fetch(address(of, mxc), { headers: { Authorization: `Bearer ${of.getAccessToken()}`, ...headers } });
}

const bytesOf = async (answer) => new Uint8Array(await answer.arrayBuffer());
const same = (one, other) => one.length === other.length && one.every((byte, at) => byte === other[at]);
const base64 = (bytes) => Buffer.from(bytes).toString("base64").replace(/=+$/, "");

// "Sending encrypted attachments": AES-CTR with the counter's low half zero, and the hash of what is uploaded.
async function encrypted(bytes) {
    const iv = new Uint8Array(16);
    crypto.getRandomValues(iv.subarray(0, 8));
    const key = await crypto.subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
    const data = new Uint8Array(await crypto.subtle.encrypt({ name: "AES-CTR", counter: iv, length: 64 }, key, bytes));
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    return { data, info: { v: "v2", key: await crypto.subtle.exportKey("jwk", key), iv: base64(iv), hashes: { sha256: base64(hash) } } };
}

async function decrypted(data, info) {
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    demand(base64(hash) === info.hashes.sha256, "the encrypted file is another");
    const key = await crypto.subtle.importKey("jwk", info.key, "AES-CTR", false, ["decrypt"]);
    const counter = new Uint8Array(Buffer.from(info.iv, "base64"));
    return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-CTR", counter, length: 64 }, key, data));
}

const picture = new Uint8Array(Buffer.from(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64"));

async function main() {
    const alice = await syncing(baseUrl, accounts[0], accounts[1]);
    const bob = await syncing(baseUrl, accounts[2], accounts[3]);
    const { room_id: room } = await alice.createRoom({ preset: "private_chat", invite: [bob.getUserId()] });
    await until("the invite", () => membership(bob, room) === "invite");
    await bob.joinRoom(room);

    const config = await alice.getMediaConfig(true);
    demand(config["m.upload.size"] > 1_000_000, `the largest upload is ${JSON.stringify(config)}`);

    // A picture in the open, with progress, and one that is encrypted.
    let progress = null;
    const sent = await alice.uploadContent(new Blob([picture], { type: "image/png" }), {
        name: "ein Bild.png", type: "image/png", progressHandler: (state) => (progress = state),
    });
    const secret = crypto.getRandomValues(new Uint8Array(60_000));
    const { data, info } = await encrypted(secret);
    const hidden = await alice.uploadContent(new Blob([data]), { includeFilename: false, type: "application/octet-stream" });
    await alice.sendMessage(room, { msgtype: MsgType.Image, body: "ein Bild.png", url: sent.content_uri, info: { mimetype: "image/png" } });
    await alice.sendMessage(room, { msgtype: MsgType.File, body: "secret", file: { ...info, url: hidden.content_uri } });

    const content = (type) => bob.getRoom(room)?.timeline.map((event) => event.getContent()).find((c) => c.msgtype === type);
    const shown = await until("the picture", () => content(MsgType.Image));
    const seen = await get(bob, shown.url);
    demand(seen.status === 200 && same(await bytesOf(seen), picture), `bob's picture is another: ${seen.status}`);
    demand(seen.headers.get("content-type") === "image/png", `its type is ${seen.headers.get("content-type")}`);
    const disposition = seen.headers.get("content-disposition");
    demand(disposition === "inline; filename*=utf-8''ein%20Bild.png", `its name is ${disposition}`);
    const kept = await get(bob, shown.url, { "If-None-Match": seen.headers.get("etag") });
    demand(kept.status === 304, `what bob has is sent again: ${kept.status}`);
    const bare = await fetch(address(bob, shown.url));
    demand(bare.status === 401, `without a token: ${bare.status}`);
    const old = await fetch(bob.mxcUrlToHttp(shown.url));
    demand(old.status === 404, `by the old path: ${old.status}`);

    const file = (await until("the encrypted file", () => content(MsgType.File))).file;
    const whole = await bytesOf(await get(bob, file.url));
    demand(same(await decrypted(whole, file), secret), "bob's file is another");
    const part = await get(bob, file.url, { Range: "bytes=1000-1999" });
    demand(part.status === 206 && same(await bytesOf(part), whole.slice(1000, 2000)), `a part: ${part.status}`);
    demand(part.headers.get("content-range") === `bytes 1000-1999/${whole.length}`, `a part: ${part.headers.get("content-range")}`);

    // Pictures of a user and of a room.
    await alice.setAvatarUrl(sent.content_uri);
    await alice.sendStateEvent(room, EventType.RoomAvatar, { url: sent.content_uri });
    const profile = await bob.getProfileInfo(alice.getUserId());
    demand(profile.avatar_url === sent.content_uri, `alice's picture is ${profile.avatar_url}`);
    await until("alice's picture in the room", () => bob.getRoom(room)?.getMember(alice.getUserId())?.getMxcAvatarUrl() === sent.content_uri);
    await until("the room's picture", () => bob.getRoom(room)?.getMxcAvatarUrl() === sent.content_uri);
    demand(same(await bytesOf(await get(bob, profile.avatar_url)), picture), "alice's picture is another");

    // Announced first, waited for by who is told of it, and uploaded then.
    const authorized = { method: "POST", headers: { Authorization: `Bearer ${alice.getAccessToken()}` } };
    const made = await (await fetch(`${baseUrl}/_matrix/media/v1/create`, authorized)).json();
    const waiting = get(bob, made.content_uri);
    const put = await fetch(`${baseUrl}/_matrix/media/v3/upload/${made.content_uri.slice("mxc://".length)}`, {
        method: "PUT", body: picture, headers: { ...authorized.headers, "Content-Type": "image/png" },
    });
    demand(put.status === 200, `the announced upload: ${put.status}`);
    demand(same(await bytesOf(await waiting), picture), "what was waited for is another");
    demand(progress === null || progress.loaded <= progress.total, "the progress goes beyond the whole");
    for (const one of [alice, bob]) one.stopClient();
}

end(main());
