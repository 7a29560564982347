// A real Matrix homeserver for tests: `doorstep fixture`, its commands as methods. The binary is found in the path, or
// where the environment variable DOORSTEP says.

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

/**
 * An account that is logged in on one device.
 * @typedef {object} User
 * @property {string} userId
 * @property {string} accessToken
 * @property {string} deviceId
 * @property {string} [password] absent for a further device of an account
 */

/**
 * One of the homeservers.
 * @typedef {object} Server
 * @property {string} name what stands behind the colon of a user id
 * @property {string} url the base URL for clients
 * @property {string} federationUrl where other servers reach it
 * @property {Record<string, User>} users its accounts, by their localparts
 */

/**
 * A request that a server was asked.
 * @typedef {object} SeenRequest
 * @property {string} method
 * @property {string} path
 * @property {number | null} status null: not answered yet
 */

/**
 * @typedef {object} Options
 * @property {string[]} [users] accounts to make on each server, by localpart; the password is the localpart
 * @property {number} [servers] how many servers, which federate with each other; as many as names, if there are some
 * @property {string[]} [names] their names, if `localhost` and a port will not do
 * @property {number} [port] the port of the first for clients
 * @property {boolean} [closed] let nobody else register
 * @property {string} [registrationSecret] shared secret of `/_synapse/admin/v1/register`
 * @property {string} [binary] the doorstep binary
 */

/** A server by its number from 1 or its name.
 * @typedef {number | string} Which */

/** Of whom speaks who names none. */
const FIRST = 1;
/** How long the servers have to stop, in milliseconds. */
const STOP_TIMEOUT_MS = 10_000;
/** What is kept of what the servers say on standard error, in characters. */
const LOG_MAX = 1 << 20;

/** @returns {User} */
function userOf(told) {
    return {
        userId: told.user_id,
        accessToken: told.access_token,
        deviceId: told.device_id,
        ...(told.password ? { password: told.password } : {}),
    };
}

/** @returns {Server} */
function serverOf(told) {
    const users = Object.entries(told.users).map(([localpart, user]) => [localpart, userOf(user)]);
    return { name: told.name, url: told.url, federationUrl: told.federation_url, users: Object.fromEntries(users) };
}

/**
 * Homeservers in memory, on free ports of loopback. They live until `stop`, or until this process ends, however it does:
 * a test that fails before `stop` holds nothing up.
 */
export class Doorstep {
    /** @type {Server[]} */
    servers = [];
    /** The certificate authority of `federationUrl`, PEM. */
    ca = "";
    #process;
    #ended;
    #log = "";
    /** Who waits for a line, in order. */
    #waiting = [];

    /** Started by `startDoorstep`. */
    constructor(binary, args) {
        this.#process = spawn(binary, args, { stdio: ["pipe", "pipe", "pipe"] });
        this.#process.stderr.setEncoding("utf8").on("data", (text) => {
            this.#log = (this.#log + text).slice(-LOG_MAX);
        });
        // What became of a line that was written shows in the answer, or in the end.
        this.#process.stdin.on("error", () => {});
        createInterface({ input: this.#process.stdout }).on("line", (line) => {
            this.#waiting.shift()?.resolve(JSON.parse(line));
            this.#hold(this.#waiting.length > 0);
        });
        this.#ended = new Promise((resolve) => {
            const end = (told) => {
                const error = new Error(told);
                this.#process = undefined;
                this.#waiting.splice(0).forEach(({ reject }) => reject(error));
                resolve();
            };
            const where = "the doorstep binary is looked for in the path, or where DOORSTEP says";
            const ended = (why) => `the fixture ended (${why}): ${this.#log.trim()}`;
            this.#process.on("error", (error) => end(`${binary} cannot be started (${error.code}): ${where}`));
            this.#process.on("close", (status, signal) => end(ended(signal ?? `status ${status}`)));
        });
    }

    /** For `startDoorstep`: waits for the first line. */
    async ready() {
        this.#takeIn(await this.#line());
        return this;
    }

    /** The name of the first server. */
    get name() {
        return this.servers[0].name;
    }

    /** The base URL of the first server, for clients. */
    get url() {
        return this.servers[0].url;
    }

    /** The accounts of the first server. */
    get users() {
        return this.servers[0].users;
    }

    /** What the servers said on their standard error. */
    get log() {
        return this.#log;
    }

    /** Ends the servers; a second time does nothing. */
    async stop() {
        const child = this.#process;
        if (child) {
            this.#hold(true);
            child.stdin.end();
            const late = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
            await this.#ended;
            clearTimeout(late);
        }
        await this.#ended;
    }

    async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
        await this.stop();
    }

    /**
     * Makes an account; without a password that is the name.
     * @param {string} name
     * @param {{ password?: string, admin?: boolean, server?: Which }} [options]
     * @returns {Promise<User>}
     */
    async addUser(name, { password = name, admin = false, server } = {}) {
        const words = ["user", "add", name, password, admin ? "admin" : "ordinary"];
        const { user } = await this.#order(words, server ?? FIRST);
        this.#takeIn(await this.#order(["info"]));
        return userOf(user);
    }

    /**
     * Logs an account in on another device.
     * @param {string} name
     * @param {{ deviceId?: string, server?: Which }} [options]
     * @returns {Promise<User>}
     */
    async login(name, { deviceId, server } = {}) {
        const words = ["login", name, ...(deviceId ? [deviceId] : [])];
        return userOf((await this.#order(words, server ?? FIRST)).user);
    }

    /** Moves the clock forward, of all servers unless one is named.
     * @param {number} seconds @param {Which} [server] */
    async advance(seconds, server) {
        await this.#order(["advance", seconds], server);
    }

    /** Stops and starts again, with the same data; all servers unless one is named.
     * @param {Which} [server] */
    async restart(server) {
        await this.#order(["restart"], server);
    }

    /** Stops one server: its ports refuse connections.
     * @param {Which} server */
    async stopServer(server) {
        await this.#order(["stop"], server);
    }

    /** Starts it again.
     * @param {Which} server */
    async startServer(server) {
        await this.#order(["start"], server);
    }

    /** Lets two servers find each other unreachable.
     * @param {Which} one @param {Which} other */
    async cut(one, other) {
        await this.#order(["cut", one, other]);
    }

    /** Undoes that.
     * @param {Which} one @param {Which} other */
    async mend(one, other) {
        await this.#order(["mend", one, other]);
    }

    /** Answers the next request like this with an error. A path is some segments in a row, `*` for any one.
     * @param {string} method @param {string} path @param {number} status
     * @param {string} [errcode] @param {Which} [server] */
    async fail(method, path, status, errcode = "M_UNKNOWN", server) {
        await this.#order(["fail", method, path, status, errcode], server ?? FIRST);
    }

    /** Answers the next request like this with 429 `M_LIMIT_EXCEEDED`.
     * @param {string} method @param {string} path @param {number} retryAfterMs @param {Which} [server] */
    async limit(method, path, retryAfterMs, server) {
        await this.#order(["limit", method, path, retryAfterMs], server ?? FIRST);
    }

    /** Lets every request like this wait; 0 ends that.
     * @param {string} method @param {string} path @param {number} ms @param {Which} [server] */
    async delay(method, path, ms, server) {
        await this.#order(["delay", method, path, ms], server ?? FIRST);
    }

    /** Forgets what was ordered by `fail`, `limit` and `delay`.
     * @param {Which} [server] */
    async clear(server) {
        await this.#order(["clear"], server);
    }

    /** What was asked, the last 1000.
     * @param {Which} [server]
     * @returns {Promise<SeenRequest[]>} */
    async requests(server) {
        return (await this.#order(["requests"], server)).requests;
    }

    /** Whether this process waits for the servers before it ends by itself. */
    #hold(holds) {
        const child = this.#process;
        for (const held of [child, child?.stdin, child?.stdout, child?.stderr]) holds ? held?.ref?.() : held?.unref?.();
    }

    #takeIn(told) {
        this.servers = told.servers.map(serverOf);
        this.ca = told.ca;
    }

    #line() {
        return new Promise((resolve, reject) => {
            if (!this.#process) return reject(new Error(`the fixture is not running: ${this.#log.trim()}`));
            this.#waiting.push({ resolve, reject });
            this.#hold(true);
        });
    }

    async #order(words, server) {
        const all = [...words, ...(server === undefined ? [] : ["on", server])].map(String);
        if (all.some((word) => word === "" || /\s/.test(word))) {
            throw new Error(`no word of a command is empty or has white space in it: ${JSON.stringify(all)}`);
        }
        const line = this.#line();
        this.#process?.stdin.write(`${all.join(" ")}\n`);
        const answer = await line;
        if (!answer.ok) throw new Error(answer.error);
        return answer;
    }
}

/**
 * Starts homeservers.
 * @param {Options} [options]
 * @returns {Promise<Doorstep>}
 */
export async function startDoorstep(options = {}) {
    const { users = [], servers, names = [], port, closed = false, registrationSecret, binary } = options;
    const args = ["fixture"];
    if (servers !== undefined) args.push("--servers", String(servers));
    if (users.length) args.push("--users", users.join(","));
    if (names.length) args.push("--name", names.join(","));
    if (port !== undefined) args.push("--port", String(port));
    if (registrationSecret) args.push("--registration-secret", registrationSecret);
    if (closed) args.push("--closed");
    return new Doorstep(binary ?? process.env.DOORSTEP ?? "doorstep", args).ready();
}
