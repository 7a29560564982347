// Devices of matrix-js-sdk with its rust crypto (Element Web's engine), led by the harness: a line of JSON in is a verb
// for one of them, `{id, device, verb, args}`; a line out is its answer, `{id, value}` or `{id, error}`.
//
// A device's stores (what it synced, its keys) outlive its client within this process, as a browser's outlive a tab.

import "fake-indexeddb/auto";
import { createInterface } from "node:readline";
import { createClient, ClientEvent, Direction, EventStatus, HttpApiEvent, IndexedDBStore } from "matrix-js-sdk";
import { CryptoEvent, VerificationPhase, VerificationRequestEvent, decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/index.js";
import { logger } from "matrix-js-sdk/lib/logger.js";
import { relationVerbs } from "./relations.mjs";
import { sentFirst } from "./sent_first.mjs";

const loud = Boolean(process.env.DOORSTEP_CLIENTS_LOUD);
// The library writes to the console; standard output is for answers.
for (const level of ["log", "info", "debug", "warn", "error", "trace"]) {
    console[level] = loud ? (...words) => process.stderr.write(`${level}: ${words.map(String).join(" ")}\n`) : () => {};
}
if (!loud) logger.disableAll?.();

const PATIENCE_MS = Number(process.env.DOORSTEP_CLIENTS_PATIENCE_MS ?? 60_000);
const LOOK_AGAIN_MS = 25; // at a client of this process: no server is asked
const ASK_AGAIN_MS = 400; // the server
const JUMP_AFTER_MS = 1000;

// What `look` gives, once that is something. It sees only what the client knows by itself.
async function until(what, look, againMs = LOOK_AGAIN_MS) {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
        const got = await look();
        if (got) return got;
        if (Date.now() > deadline) {
            throw new Error(`not seen within ${PATIENCE_MS / 1000} s: ${typeof what === "function" ? what() : what}`);
        }
        await new Promise((resolve) => setTimeout(resolve, againMs));
    }
}

// What a message is to whoever reads it: its text, or why there is none.
function shown(event) {
    const failed = event.isDecryptionFailure();
    return {
        id: event.getId(),
        sender: event.getSender(),
        type: event.getType(),
        body: failed ? null : (event.getContent().body ?? null),
        encrypted: event.isEncrypted(),
        failure: failed ? String(event.decryptionFailureReason) : null,
    };
}

const unpadded = (bytes) => Buffer.from(bytes).toString("base64").replaceAll("=", "");

const settled = (event) => !event.isEncrypted() || (!event.isBeingDecrypted() && !event.shouldAttemptDecryption());

class Device {
    constructor(name) {
        this.name = name;
        this.recoveryKey = null;
        this.passwordAsked = 0;
        this.verification = null;
        this.loggedOut = false;
    }

    get crypto() {
        return this.client.getCrypto();
    }

    async register({ baseUrl, user, password }) {
        const request = (auth) => createClient({ baseUrl }).registerRequest({ username: user, password, auth, inhibit_login: true });
        try {
            await request(undefined);
        } catch (error) {
            if (error.httpStatus !== 401) throw error;
            await request({ type: "m.login.dummy", session: error.data.session });
        }
    }

    async login({ baseUrl, user, password }) {
        Object.assign(this, { baseUrl, user, password });
        const login = await createClient({ baseUrl }).login("m.login.password", {
            identifier: { type: "m.id.user", user },
            password,
            initial_device_display_name: `matrix-js-sdk, ${this.name}`,
        });
        Object.assign(this, { userId: login.user_id, deviceId: login.device_id, token: login.access_token });
        await this.open();
        return { userId: this.userId, deviceId: this.deviceId };
    }

    // Opens the app: a client on the stores that this device has.
    async open() {
        const kept = `${this.userId}-${this.deviceId}`;
        const store = new IndexedDBStore({ indexedDB: globalThis.indexedDB, dbName: kept });
        this.client = createClient({
            baseUrl: this.baseUrl,
            userId: this.userId,
            deviceId: this.deviceId,
            accessToken: this.token,
            store,
            timelineSupport: true,
            fetchFn: sentFirst(),
            verificationMethods: ["m.sas.v1"],
            cryptoCallbacks: {
                getSecretStorageKey: async ({ keys }) =>
                    this.recoveryKey ? [Object.keys(keys)[0], decodeRecoveryKey(this.recoveryKey)] : null,
            },
        });
        await store.startup();
        this.client.on(CryptoEvent.VerificationRequestReceived, (request) => (this.verification = request));
        this.client.on(HttpApiEvent.SessionLoggedOut, () => (this.loggedOut = true));
        await this.client.initRustCrypto({ cryptoDatabasePrefix: kept });
        let fresh = false;
        this.client.on(ClientEvent.Sync, (state, before, data) => (fresh ||= state === "SYNCING" && !data?.fromCache));
        const threadSupport = Boolean(this.threads);
        await this.client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true, pollTimeout: 30_000, threadSupport });
        await until(`${this.name}: the first sync`, () => fresh);
        const own = async () => (await this.client.downloadKeysForUsers([this.userId])).device_keys[this.userId];
        await until(
            `${this.name}: the own keys at the server`,
            () => own().then((keys) => keys[this.deviceId], () => null),
            ASK_AGAIN_MS,
        );
    }

    // Closes the app: the client is gone, its stores stay.
    async close() {
        await this.client.store.save(true);
        this.client.stopClient();
    }

    async logout() {
        await this.client.logout(true);
    }

    // -- rooms --

    async createRoom({ name, joinRule, invite = [], version }) {
        const state = [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }];
        if (joinRule) state.push({ type: "m.room.join_rules", state_key: "", content: { join_rule: joinRule } });
        const { room_id: room } = await this.client.createRoom({
            name,
            invite,
            preset: "private_chat",
            ...(version ? { room_version: version } : {}),
            initial_state: state,
        });
        await this.untilMembership({ room, membership: "join" });
        return room;
    }

    // The room as the client shows it, once it shows this membership of its user.
    async untilMembership({ room, membership }) {
        const seen = await until(
            () => `${this.name}: ${membership} in ${room} (it is ${this.client.getRoom(room)?.getMyMembership()})`,
            () => this.client.getRoom(room)?.getMyMembership() === membership && this.client.getRoom(room),
        );
        return { name: seen.name, encrypted: seen.hasEncryptionStateEvent(), by: seen.getMember(this.userId)?.events.member?.getSender() };
    }

    async untilMember({ room, user, membership }) {
        const look = () => this.client.getRoom(room)?.getMember(user)?.membership;
        await until(
            () => `${this.name}: ${user} as ${membership} in ${room} (it is ${look()})`,
            () => look() === membership,
        );
    }

    async untilEncrypted({ room }) {
        await until(`${this.name}: that ${room} is encrypted`, () => this.crypto.isEncryptionEnabledInRoom(room));
    }

    async invite({ room, user }) {
        await this.client.invite(room, user);
    }

    async join({ room, via }) {
        await this.client.joinRoom(room, via ? { viaServers: [via] } : {});
        await this.untilMembership({ room, membership: "join" });
        await this.untilEncrypted({ room });
    }

    async knock({ room, via, reason }) {
        await this.client.knockRoom(room, { reason, viaServers: via ? [via] : [] });
        await this.untilMembership({ room, membership: "knock" });
    }

    async leave({ room }) {
        await this.client.leave(room);
    }

    // Sends; and sends again, as whoever presses "retry" does, while the server is away.
    async send({ room, body }) {
        let sending = this.client.sendTextMessage(room, body);
        return until(`${this.name}: that ${body} is sent`, async () => {
            try {
                return (await sending).event_id;
            } catch (error) {
                const here = this.client.getRoom(room);
                const unsent = here.getLiveTimeline().getEvents().filter((event) => event.status === EventStatus.NOT_SENT);
                const failed = unsent.find((event) => event.getContent().body === body);
                if (error.httpStatus || !failed) throw error;
                sending = this.client.resendEvent(failed, here);
                return null;
            }
        });
    }

    // A message under a session of its own: every reader's devices get one more key.
    async sendRekeyed({ room, body }) {
        await this.crypto.forceDiscardSession(room);
        return this.send({ room, body });
    }

    // A picture, encrypted as apps encrypt it ("Sending encrypted attachments"): the library leaves that to them.
    async sendPicture({ room, name, base64, width, height }) {
        const counter = globalThis.crypto.getRandomValues(new Uint8Array(16)).fill(0, 8);
        const way = { name: "AES-CTR", counter, length: 64 };
        const { subtle } = globalThis.crypto;
        const key = await subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
        const plain = Buffer.from(base64, "base64");
        const sealed = await subtle.encrypt(way, key, plain);
        const sha256 = unpadded(await subtle.digest("SHA-256", sealed));
        const type = "application/octet-stream";
        const { content_uri: url } = await this.client.uploadContent(new Blob([sealed]), { type, includeFilename: false });
        const file = { v: "v2", url, key: await subtle.exportKey("jwk", key), iv: unpadded(counter), hashes: { sha256 } };
        const info = { mimetype: "image/png", size: plain.length, w: width, h: height };
        return (await this.client.sendMessage(room, { msgtype: "m.image", body: name, file, info })).event_id;
    }

    async sendOpenPicture({ room, name, base64, width, height }) {
        const plain = Buffer.from(base64, "base64");
        const type = "image/png";
        const { content_uri: url } = await this.client.uploadContent(new Blob([plain], { type }), { type, name });
        const info = { mimetype: type, size: plain.length, w: width, h: height };
        return (await this.client.sendMessage(room, { msgtype: "m.image", body: name, url, info })).event_id;
    }

    // The picture of this name by somebody, once there is one.
    async untilPicture({ room, sender, name }) {
        return until(`${this.name}: the picture ${name} by ${sender}`, () => {
            const events = this.client.getRoom(room).getLiveTimeline().getEvents();
            const of = (event) => event.getSender() === sender && event.getContent().msgtype === "m.image";
            return events.findLast((event) => of(event) && event.getContent().body === name)?.getId();
        });
    }

    // The picture of a message, as an app shows it: what the message says, and the file as it was before it was encrypted.
    async seePicture({ room, id }) {
        await this.read({ room, id });
        const { body, file, url: open } = this.client.getRoom(room).findEventById(id).getContent();
        const url = this.client.mxcUrlToHttp(file?.url ?? open, undefined, undefined, undefined, false, true, true);
        const answer = await fetch(url, { headers: { Authorization: `Bearer ${this.client.getAccessToken()}` } });
        if (!answer.ok) throw new Error(`${url}: ${answer.status} ${await answer.text()}`);
        const sealed = await answer.arrayBuffer();
        if (!file) return { name: body, base64: Buffer.from(sealed).toString("base64") };
        const { subtle } = globalThis.crypto;
        const sha256 = unpadded(await subtle.digest("SHA-256", sealed));
        if (sha256 !== file.hashes.sha256) throw new Error(`${url} is another file than the message says`);
        const key = await subtle.importKey("jwk", file.key, { name: "AES-CTR" }, false, ["decrypt"]);
        const way = { name: "AES-CTR", counter: Buffer.from(file.iv, "base64"), length: 64 };
        return { name: body, base64: Buffer.from(await subtle.decrypt(way, key, sealed)).toString("base64") };
    }

    // The newest message by somebody, once there is one.
    async untilSaid({ room, sender }) {
        return until(`${this.name}: a message by ${sender}`, () => {
            const events = this.client.getRoom(room).getLiveTimeline().getEvents();
            return events.findLast((event) => event.getSender() === sender && event.isEncrypted())?.getId();
        });
    }

    // The message once it is there and readable; what it stays at if it never is.
    async read({ room, id }) {
        let event;
        let looked = Date.now();
        try {
            await until(`${this.name}: ${id}`, async () => {
                const here = this.client.getRoom(room);
                event = here?.findEventById(id);
                if (!event && here && Date.now() - looked > JUMP_AFTER_MS) {
                    // It may lie in a gap of what was synced (of which js does not know if it sent something later itself,
                    // while it did not sync): whoever follows a link to it gets there.
                    await this.client.getEventTimeline(here.getUnfilteredTimelineSet(), id).catch(() => {});
                    looked = Date.now();
                }
                return event && settled(event) && !event.isDecryptionFailure();
            });
        } catch (error) {
            if (!event) throw error;
        }
        return shown(event);
    }

    // The live timeline and what lies before it, newest part first: syncing with gaps leaves parts, which join.
    timelines(room) {
        const parts = [];
        let part = this.client.getRoom(room).getLiveTimeline();
        for (; part; part = part.getNeighbouringTimeline(Direction.Backward)) parts.push(part);
        return parts;
    }

    // A page of older events. False: there is none.
    async scrollBack(room) {
        const oldest = this.timelines(room).at(-1);
        if (!oldest.getPaginationToken(Direction.Backward)) return false;
        return this.client.paginateEventTimeline(oldest, { backwards: true, limit: 50 });
    }

    // The newest `count` messages, scrolled back to as far as needed.
    async history({ room, count }) {
        const seen = () => {
            const events = this.timelines(room).toReversed().flatMap((part) => part.getEvents());
            return events.filter((event) => ["m.room.message", "m.room.encrypted"].includes(event.getType()));
        };
        while (seen().length < count && (await this.scrollBack(room)));
        for (const event of seen()) await this.client.decryptEventIfNeeded(event);
        const told = () => seen().slice(-count);
        await until("what was read", () => told().every((event) => settled(event))).catch(() => {});
        // A key may still be on its way.
        await until("every key", () => told().every((event) => !event.isDecryptionFailure())).catch(() => {});
        return told().map(shown);
    }

    // -- keys --

    // What this client makes of somebody's devices, asked of the server anew if `fresh`.
    async devicesOf({ user }) {
        const devices = (await this.crypto.getUserDeviceInfo([user], true)).get(user) ?? new Map();
        const told = {};
        for (const id of devices.keys()) {
            const status = await this.crypto.getDeviceVerificationStatus(user, id);
            told[id] = { verified: status?.isVerified() ?? false, signedByOwner: status?.signedByOwner ?? false };
        }
        return told;
    }

    async untilDevices({ user, ids }) {
        let told;
        await until(
            () => `${this.name}: ${user} with the devices ${ids} (it has ${Object.keys(told)})`,
            async () => {
                told = await this.devicesOf({ user });
                return Object.keys(told).sort().join() === [...ids].sort().join();
            },
        );
        return told;
    }

    async untilDevicesCount({ user, count }) {
        let told;
        await until(
            () => `${this.name}: ${user} with ${count} devices (it has ${Object.keys(told)})`,
            async () => {
                told = await this.devicesOf({ user });
                return Object.keys(told).length === count;
            },
        );
    }

    async untilSigned({ user, ids }) {
        let told;
        await until(
            () => `${this.name}: ${ids} of ${user} signed by their owner (${JSON.stringify(told)})`,
            async () => {
                told = await this.devicesOf({ user });
                return ids.every((id) => told[id]?.signedByOwner);
            },
        );
        return told;
    }

    async userStatus({ user }) {
        const status = await this.crypto.getUserVerificationStatus(user);
        return {
            known: status.known,
            verified: status.isCrossSigningVerified(),
            wasVerified: status.wasCrossSigningVerified(),
            needsApproval: status.needsUserApproval,
        };
    }

    async untilUserStatus({ user, wanted }) {
        let status;
        await until(
            () => `${this.name}: ${user} as ${JSON.stringify(wanted)} (it is ${JSON.stringify(status)})`,
            async () => {
                status = await this.userStatus({ user });
                return Object.entries(wanted).every(([key, value]) => status[key] === value);
            },
        );
        return status;
    }

    // The password where the server asks for it; how often it did is told by the answer.
    confirming() {
        return async (request) => {
            try {
                return await request(null);
            } catch (error) {
                if (error.httpStatus !== 401 || !error.data?.flows) throw error;
                this.passwordAsked += 1;
                return await request({
                    type: "m.login.password",
                    identifier: { type: "m.id.user", user: this.userId },
                    password: this.password,
                    session: error.data.session,
                });
            }
        };
    }

    async setUpCrossSigning({ anew = false } = {}) {
        this.passwordAsked = 0;
        await this.crypto.bootstrapCrossSigning({
            setupNewCrossSigning: anew,
            authUploadDeviceSigningKeys: this.confirming(),
        });
        return { passwordAsked: this.passwordAsked, ready: await this.crypto.isCrossSigningReady() };
    }

    // Secret storage under a new recovery key, with a new key backup.
    async setUpRecovery({ passphrase } = {}) {
        const key = await this.crypto.createRecoveryKeyFromPassphrase(passphrase);
        this.recoveryKey = key.encodedPrivateKey;
        await this.crypto.bootstrapSecretStorage({
            createSecretStorageKey: async () => key,
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
        });
        const status = await this.crypto.getSecretStorageStatus();
        return { recoveryKey: this.recoveryKey, ready: status.ready, version: await this.backupVersion() };
    }

    async backupVersion() {
        return this.crypto.getActiveSessionBackupVersion();
    }

    async resetBackup() {
        await this.crypto.resetKeyBackup();
        return this.backupVersion();
    }

    // The server's own count of the kept sessions, once it is at least this.
    async untilBackedUp({ count }) {
        let info;
        await until(
            () => `${this.name}: ${count} sessions in the backup (it has ${JSON.stringify(info)})`,
            async () => {
                // Not getKeyBackupInfo(), which remembers the count of the beginning.
                info = await this.client.http.authedRequest("GET", "/room_keys/version");
                return info.count >= count;
            },
            ASK_AGAIN_MS,
        );
        return { version: info.version, count: info.count, etag: info.etag };
    }

    // A new device of an account that has a recovery key: the keys by which it signs itself, then the old messages.
    async recover({ recoveryKey }) {
        this.recoveryKey = recoveryKey;
        this.passwordAsked = 0;
        // Nothing can be restored that does not match the public keys of the account.
        await until(`${this.name}: the account's public keys`, () =>
            this.crypto.userHasCrossSigningKeys(this.userId, true),
        );
        await this.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: this.confirming() });
        await this.crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        await this.crypto.checkKeyBackupAndEnable();
        const { imported, total } = await this.crypto.restoreKeyBackup();
        return { imported, total, ready: await this.crypto.isCrossSigningReady(), passwordAsked: this.passwordAsked };
    }

    // A device that lies at the server and is written to while no other is there; what it got comes with the next one.
    async dehydrate() {
        await this.crypto.startDehydration({ createNewKey: true });
    }

    async rehydrate() {
        let done = null;
        this.client.once(CryptoEvent.RehydrationCompleted, () => (done = { failed: null }));
        this.client.once(CryptoEvent.RehydrationError, (failed) => (done = { failed: String(failed) }));
        let told = 0;
        this.client.on(CryptoEvent.RehydrationProgress, (keys, messages) => (told = { keys, messages }));
        await this.crypto.startDehydration({ createNewKey: false });
        await until(`${this.name}: the dehydrated device`, () => done);
        return { ...done, ...told };
    }

    // Whether the secrets of the account are here (after a verification by another own device they are sent).
    async untilSecrets() {
        let status;
        await until(
            () => `${this.name}: the account's secrets (${JSON.stringify(status)})`,
            async () => {
                status = (await this.crypto.getCrossSigningStatus()).privateKeysCachedLocally;
                const backup = await this.crypto.getSessionBackupPrivateKey();
                return status.masterKey && status.selfSigningKey && status.userSigningKey && backup;
            },
        );
    }

    async exportedSessions({ room }) {
        const keys = await this.crypto.exportRoomKeys();
        return keys.filter((key) => key.room_id === room).map((key) => key.session_id);
    }

    async deleteDevice({ id }) {
        this.passwordAsked = 0;
        await this.confirming()((auth) => this.client.deleteMultipleDevices([id], auth));
        return { passwordAsked: this.passwordAsked };
    }

    async untilLoggedOut() {
        await until(`${this.name}: being logged out`, () => this.loggedOut);
    }

    // -- verification by emoji --

    async askVerification({ user, room }) {
        this.verification = user
            ? await this.crypto.requestVerificationDM(user, room)
            : await this.crypto.requestOwnUserVerification();
    }

    async acceptVerification() {
        await until(`${this.name}: a request to verify`, () => this.verification);
        await this.verification.accept();
    }

    async startEmoji() {
        await until(
            () => `${this.name}: that the other is ready (phase ${this.verification.phase})`,
            () => this.verification.phase === VerificationPhase.Ready,
        );
        await this.verification.startVerification("m.sas.v1");
    }

    async emoji() {
        const verifier = await until(
            () => `${this.name}: the start (phase ${this.verification.phase})`,
            () => this.verification.verifier,
        );
        this.verified = verifier.verify();
        this.verified.catch(() => {});
        const sas = await until(`${this.name}: the emoji`, () => verifier.getShowSasCallbacks());
        // Once both show the emoji, all that can still come from the other is its word on them.
        this.otherConfirmed = false;
        verifier.on(VerificationRequestEvent.Change, () => (this.otherConfirmed = true));
        return sas.sas.emoji.map(([, name]) => name);
    }

    async confirmEmoji({ second }) {
        if (second) await until(`${this.name}: the other's word on the emoji`, () => this.otherConfirmed);
        await this.verification.verifier.getShowSasCallbacks().confirm();
    }

    async untilVerified() {
        await this.verified;
        await until(
            () => `${this.name}: the end of the verification (phase ${this.verification.phase})`,
            () => this.verification.phase === VerificationPhase.Done,
        );
        this.verification = null;
    }
}

Object.assign(Device.prototype, relationVerbs(until));

const devices = new Map();

async function answer(line) {
    const { id, device, verb, args } = JSON.parse(line);
    try {
        if (!devices.has(device)) devices.set(device, new Device(device));
        const value = await devices.get(device)[verb](args);
        process.stdout.write(`${JSON.stringify({ id, value: value ?? null })}\n`);
    } catch (error) {
        process.stdout.write(`${JSON.stringify({ id, error: `${error.stack ?? error}` })}\n`);
    }
}

process.on("unhandledRejection", (error) => loud && process.stderr.write(`unhandled: ${error?.stack ?? error}\n`));
const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => void answer(line));
lines.on("close", () => process.exit(0));
