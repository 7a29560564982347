// `node drive.mjs PAGE PROFILE CHROMIUM`: Hydrogen in Chromium without a screen, led by lines on the standard input.
//
// A line is a JSON list, a name of `acts` and its words; the answer is a line, `ok` or `no` and what was seen instead.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { createInterface } from "node:readline";
import puppeteer from "puppeteer-core";

const [folder, profile, executablePath] = process.argv.slice(2);
const PATIENCE_MS = 90_000;
const TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
};

const server = createServer(async (request, response) => {
    const path = normalize(new URL(request.url, "http://localhost").pathname);
    try {
        const content = await readFile(join(folder, path === "/" ? "index.html" : path));
        response.writeHead(200, { "Content-Type": TYPES[extname(path)] ?? (path === "/" ? "text/html" : "application/octet-stream") });
        response.end(content);
    } catch {
        response.writeHead(404).end();
    }
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const address = `http://localhost:${server.address().port}/`;

let browser, page;
const files = []; // what the page was answered to requests for files: path and status

async function open() {
    browser = await puppeteer.launch({
        executablePath,
        userDataDir: profile,
        headless: true,
        protocolTimeout: 2 * PATIENCE_MS,
        args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,800"],
        defaultViewport: { width: 1100, height: 800 },
    });
    page = (await browser.pages())[0];
    page.setDefaultTimeout(PATIENCE_MS);
    page.on("pageerror", (error) => process.stderr.write(`page: ${error.message}\n`));
    page.on("response", (response) => {
        const path = new URL(response.url()).pathname;
        if (path.startsWith("/_matrix/") && path.includes("/media/") && response.request().method() === "GET") {
            files.push(`${path} ${response.status()}`);
        }
    });
    page.on("console", (message) => {
        if (message.type() === "error" || message.type() === "warn") {
            process.stderr.write(`console: ${message.text()}\n`);
        }
    });
}

/** The text of what matches, without white space at the ends. */
const texts = (selector) => page.$$eval(selector, (found) => found.map((one) => one.innerText.trim()));

async function until(what, look) {
    const end = Date.now() + PATIENCE_MS;
    for (;;) {
        const seen = await look();
        if (seen === true) {
            return;
        }
        if (Date.now() > end) {
            throw new Error(`${what}: not seen; seen was ${JSON.stringify(seen)}`);
        }
        await new Promise((later) => setTimeout(later, 100));
    }
}

/** The message that begins with this text. */
async function tileOf(text) {
    let tile;
    await until(text, async () => {
        for (tile of await page.$$(".Timeline_message")) {
            const said = await tile.$eval(".Timeline_messageBody", (one) => one.innerText.trim()).catch(() => "");
            if (said.startsWith(text)) {
                return true;
            }
        }
        return texts(".Timeline_messageBody");
    });
    return tile;
}

/** Chooses a room in the list on the left. */
async function choose(room) {
    await until(`${room} in the list`, async () => {
        for (const tile of await page.$$(".RoomList li a")) {
            const name = await tile.$eval(".name", (one) => one.innerText.trim());
            if (name === room) {
                await tile.click();
                return true;
            }
        }
        return texts(".RoomList .name");
    });
}

const acts = {
    async log_in(homeserver, user, password) {
        await open();
        await page.goto(`${address}#/login`);
        await page.waitForSelector("#homeserver");
        await page.$eval("#homeserver", (field) => (field.value = ""));
        await page.type("#homeserver", homeserver);
        await page.$eval("#homeserver", (field) => field.dispatchEvent(new Event("change")));
        await page.waitForSelector("#password");
        await page.type("#username", user);
        await page.type("#password", password);
        await page.click(".PasswordLoginView button[type=submit]");
        await page.waitForSelector(".LeftPanel");
    },
    async join(room) {
        await choose(room);
        await page.waitForSelector(".InviteView_buttonRow .primary");
        await page.click(".InviteView_buttonRow .primary:not(.destructive)");
        await page.waitForSelector(".MessageComposer textarea");
    },
    async choose(room) {
        await choose(room);
        await page.waitForSelector(".MessageComposer textarea");
    },
    /** Gives the key of the secret storage, by which the key backup is read. */
    async restore(key) {
        await page.click(".button-utility.settings");
        await page.waitForSelector(".Settings");
        await until("the field for the key", async () => {
            const field = await page.$('.Settings input[placeholder="Security key"]');
            if (field) {
                await field.type(key);
                await field.evaluate((one) => one.parentElement.querySelector("button").click());
                return true;
            }
            const other = await page.$("::-p-xpath(//button[text()='use your security key'])");
            await other?.click();
            return texts(".Settings p");
        });
        await until("the backup is enabled", async () => {
            const shown = await texts(".Settings p");
            return shown.some((one) => one.startsWith("Key backup is enabled")) || shown;
        });
    },
    async is_encrypted() {
        await until("the composer for encrypted messages", async () => {
            const shown = await page.$eval(".MessageComposer textarea", (field) => field.placeholder);
            return shown.includes("encrypted") || shown;
        });
    },
    async say(text) {
        await page.type(".MessageComposer textarea", text);
        await page.keyboard.press("Enter");
        await acts.sees(text);
    },
    async sees(text) {
        await until(text, async () => {
            const shown = await texts(".Timeline_messageBody");
            return shown.some((one) => one.split("\n")[0].startsWith(text)) || shown;
        });
    },
    async send_picture(file) {
        const chosen = page.waitForFileChooser();
        await page.click(".MessageComposer .sendFile");
        await (await page.waitForSelector("::-p-xpath(//*[contains(@class, 'menu')]//button[text()='Send picture'])")).click();
        await (await chosen).accept([file]);
    },
    /** A picture of this name and shape is loaded and drawn. What is shown in small may have fewer pixels. */
    async sees_picture(name, width, height) {
        await until(`the picture ${name}`, async () => {
            const shown = await page.$$eval(".Timeline img", (found) =>
                found.map((one) => [one.alt, one.complete ? one.naturalWidth : -1, one.naturalHeight, one.src.slice(0, 140)]),
            );
            return shown.some(([label, w, h]) => label === name && w > 0 && w <= width && Math.abs(h / w - height / width) < 0.02) || shown;
        });
    },
    /** So far files were asked for by the paths for which a token is needed, and all were given: some in small. */
    async files_were_given() {
        const given = files.filter((one) => /^\/_matrix\/client\/v1\/media\/(download|thumbnail)\/.* (200|304)$/.test(one));
        if (given.length < files.length || !given.some((one) => one.includes("/thumbnail/"))) {
            throw new Error(`files were asked for: ${JSON.stringify(files)}`);
        }
    },
    async react(text, emoji) {
        const tile = await tileOf(text);
        await tile.hover();
        await (await tile.$(".Timeline_messageOptions")).click();
        await (await page.waitForSelector(`::-p-xpath(//*[contains(@class, 'quick-reactions')]//button[text()='${emoji}'])`)).click();
    },
    async sees_reaction(text, emoji, count) {
        const tile = await tileOf(text);
        await until(`${count} ${emoji} at ${text}`, async () => {
            const shown = await tile.$$eval(".Timeline_messageReactions button", (found) => found.map((one) => one.innerText.trim()));
            return shown.includes(`${emoji} ${count}`) || shown;
        });
    },
    /** The number beside a room in the list on the left; 0 is none. */
    async badge(room, number) {
        await until(`${number} beside ${room}`, async () => {
            const shown = await page.$$eval(".RoomList li a", (found) =>
                found.map((one) => {
                    const badge = one.querySelector(".badge");
                    const hidden = !badge || getComputedStyle(badge).display === "none" || badge.classList.contains("hidden");
                    return [one.querySelector(".name").innerText.trim(), hidden ? "0" : badge.innerText.trim()];
                }),
            );
            return shown.some(([name, told]) => name === room && told === number) || shown;
        });
    },
    async all_is_readable() {
        const shown = await texts(".Timeline_messageBody");
        const lost = shown.filter((one) => /decrypt|keys? (was|were|for)|not sent/i.test(one));
        if (lost.length) {
            throw new Error(`it could not decrypt: ${JSON.stringify(lost)}`);
        }
    },
    async reload() {
        await page.reload();
        await page.waitForSelector(".LeftPanel");
    },
    async close_and_open() {
        const last = page.url();
        await browser.close();
        await open();
        await page.goto(address + (last.split("#")[1] ? `#${last.split("#")[1]}` : ""));
        await page.waitForSelector(".LeftPanel");
    },
    async picture(file) {
        await page.screenshot({ path: file });
    },
    async end() {
        await browser?.close();
    },
};

for await (const line of createInterface({ input: process.stdin })) {
    const [act, ...words] = JSON.parse(line);
    try {
        await acts[act](...words);
        process.stdout.write("ok\n");
    } catch (error) {
        await page?.screenshot({ path: `${profile}-failed.png` }).catch(() => {});
        process.stdout.write(`no ${act}: ${String(error.message ?? error).replaceAll("\n", " ")}\n`);
    }
}
await browser?.close();
server.close();
