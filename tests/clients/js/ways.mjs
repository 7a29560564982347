// What the flows of matrix-js-sdk have in common: its chatter silenced, a client that syncs, waiting for what is to be seen, and
// how a flow ends.

import { createClient } from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";
import { sentFirst } from "./sent_first.mjs";

logger.disableAll?.();
// The library writes to the console, where answers go.
for (const level of ["info", "debug", "warn"]) console[level] = () => {};

export const PATIENCE_MS = 60_000;
const LOOK_AGAIN_MS = 25;

export function demand(condition, what) {
    if (!condition) throw new Error(what);
}

// What `look` gives, once that is something. `what` says what is looked for, or is a function that says it in the end.
export async function until(what, look) {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
        const got = await look();
        if (got) return got;
        if (Date.now() > deadline) throw new Error(`not seen in time: ${typeof what === "function" ? what() : what}`);
        await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
    }
}

// A client of a new device, which has not begun to sync.
export async function logIn(baseUrl, user, password) {
    const login = await createClient({ baseUrl }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user },
        password,
    });
    return createClient({
        baseUrl,
        userId: login.user_id,
        accessToken: login.access_token,
        deviceId: login.device_id,
        timelineSupport: true,
        fetchFn: sentFirst(),
    });
}

// The same, after its first sync.
export async function start(made, options = {}) {
    await made.startClient({ initialSyncLimit: 20, ...options });
    await until(`the first sync of ${made.getUserId()}`, () => made.isInitialSyncComplete());
    return made;
}

export const syncing = async (baseUrl, user, password, options) => start(await logIn(baseUrl, user, password), options);

export const membership = (of, room) => of.getRoom(room)?.getMyMembership();

// The exit status is the flow's answer; why it failed goes to standard error.
export function end(flow) {
    flow.then(
        () => process.exit(0),
        (error) => {
            process.stderr.write(`${error?.stack ?? JSON.stringify(error?.body ?? error)}\n`);
            process.exit(1);
        },
    );
}
