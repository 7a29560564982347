// A `fetch` for a client of matrix-js-sdk that hands out the answer to a `/sync` after the answers to what was being sent.
//
// An event may come by `/sync` before the server's answer to who sent it is read: two connections, and a machine with much to
// do. For an event of a thread matrix-js-sdk then finds its own echo gone, "not a local echo", and the sending fails although
// it did not (models/room.js, updatePendingEvent). That is the library's, and nothing that these flows ask of a server.

const LONGEST_WAIT_MS = 5000; // a server that was killed answers nothing

export function sentFirst() {
    const sending = new Set();
    const whole = async (url, options) => {
        const answer = await fetch(url, options);
        const body = await answer.arrayBuffer();
        return new Response(body.byteLength ? body : null, answer);
    };
    return async (url, options) => {
        const path = new URL(url).pathname;
        if (options?.method === "PUT" && /\/(send|redact|state)\//.test(path)) {
            const answer = whole(url, options);
            sending.add(answer);
            return answer.finally(() => sending.delete(answer));
        }
        const answer = await fetch(url, options);
        if (path.endsWith("/sync")) {
            await Promise.race([Promise.allSettled(sending), new Promise((done) => setTimeout(done, LONGEST_WAIT_MS).unref())]);
            // Once more round the loop, for those who took the answers.
            await new Promise((done) => setTimeout(done));
        }
        return answer;
    };
}
