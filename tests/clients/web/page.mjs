// `node page.mjs PAGE PROFILE CHROMIUM`: a server's own page in Chromium without a screen, with scripts switched off, led by
// lines on the standard input as drive.mjs is. Fields and buttons are found by the names that they have for who cannot see.
import { createInterface } from "node:readline";
import puppeteer from "puppeteer-core";

const [, profile, executablePath] = process.argv.slice(2);
const PATIENCE_MS = 60_000;
const complaints = []; // what the browser refused, its policy's refusals among it

const browser = await puppeteer.launch({
    executablePath,
    userDataDir: profile,
    headless: true,
    protocolTimeout: 2 * PATIENCE_MS,
    // By this name it is a server elsewhere, without HTTPS: the browser says less of where a form comes from.
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP doorstep.test 127.0.0.1"],
});
const page = (await browser.pages())[0];
page.setDefaultTimeout(PATIENCE_MS);
// What a refused form is answered is told there too, and wanted.
const isWanted = (message) => message.startsWith("Failed to load resource: the server responded with a status of 40");
page.on("console", (message) => {
    if (["error", "warn"].includes(message.type()) && !isWanted(message.text())) {
        complaints.push(message.text());
    }
});
page.on("pageerror", (error) => complaints.push(error.message));
await page.setJavaScriptEnabled(false);

const text = () => page.$eval("body", (body) => body.innerText);

async function press(selector) {
    const element = await page.waitForSelector(selector);
    await Promise.all([page.waitForNavigation(), element.evaluate((one) => one.click())]);
}

const acts = {
    /** Goes to an address in a window of this width, with a light or a dark scheme. */
    async open(url, width, scheme) {
        await acts.look(width, scheme);
        await page.goto(url);
    },
    async look(width, scheme) {
        // As a phone it would load the page anew, and send once more what a form had.
        await page.setViewport({ width: Number(width), height: 800 });
        await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    },
    async fill(label, value) {
        const field = await page.waitForSelector(`aria/${label}[role="textbox"]`);
        await field.evaluate((one) => (one.value = ""));
        await field.type(value);
    },
    async press(name) {
        await press(`aria/${name}[role="button"]`);
    },
    /** Presses a button of the entry of a list in which this stands. */
    async press_in(entry, name) {
        const found = await page.$$("li");
        for (const one of found) {
            if ((await one.evaluate((li) => li.innerText)).includes(entry)) {
                const button = await one.waitForSelector(`aria/${name}[role="button"]`);
                await Promise.all([page.waitForNavigation(), button.evaluate((it) => it.click())]);
                return;
            }
        }
        throw new Error(`${entry} is in no list of ${await text()}`);
    },
    async fill_in(entry, label, value) {
        for (const one of await page.$$("li")) {
            if ((await one.evaluate((li) => li.innerText)).includes(entry)) {
                await (await one.waitForSelector(`aria/${label}[role="textbox"]`)).type(value);
                return;
            }
        }
        throw new Error(`${entry} is in no list of ${await text()}`);
    },
    async follow(name) {
        await press(`aria/${name}[role="link"]`);
    },
    async sees(wanted) {
        const shown = await text();
        if (!shown.includes(wanted)) {
            throw new Error(`${wanted} is not in ${shown}`);
        }
    },
    async sees_no(unwanted) {
        const shown = await text();
        if (shown.includes(unwanted)) {
            throw new Error(`${unwanted} is in ${shown}`);
        }
    },
    /** Whether everything can be used and read: nothing beyond the window's edge, every field named, the focus seen wherever
     * the tabulator leads, enough contrast, landmarks and one heading, and no complaint of the browser's. */
    async is_accessible() {
        const found = await page.evaluate(() => {
            const wrong = [];
            const root = document.documentElement;
            if (root.scrollWidth > window.innerWidth) {
                wrong.push(`${root.scrollWidth} pixels wide in ${window.innerWidth}`);
            }
            for (const landmark of ["header", "main#main", "footer", "h1", "html[lang]", "title"]) {
                if (document.querySelectorAll(landmark).length !== 1) {
                    wrong.push(`not one ${landmark}`);
                }
            }
            for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
                if (!field.labels?.length && !field.ariaLabel) {
                    wrong.push(`a field without a label: ${field.outerHTML}`);
                }
            }
            const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
            if (new Set(ids).size < ids.length) {
                wrong.push(`an id twice: ${ids}`);
            }
            const rgba = (color) => color.match(/[\d.]+/g).map(Number);
            const light = ([r, g, b]) => {
                const [x, y, z] = [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
                return 0.2126 * x + 0.7152 * y + 0.0722 * z;
            };
            const ground = (one) => {
                for (let at = one; at; at = at.parentElement) {
                    const color = rgba(getComputedStyle(at).backgroundColor);
                    if (color.length < 4 || color[3] > 0) {
                        return color;
                    }
                }
                return [255, 255, 255];
            };
            for (const one of document.querySelectorAll("body *")) {
                const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
                if (own && one.checkVisibility()) {
                    const [a, b] = [light(rgba(getComputedStyle(one).color)), light(ground(one))];
                    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                    if (contrast < 4.5) {
                        wrong.push(`contrast ${contrast.toFixed(1)} of ${one.outerHTML.slice(0, 80)}`);
                    }
                }
                const box = one.getBoundingClientRect();
                if (["BUTTON", "SELECT"].includes(one.tagName) && box.width && box.height < 40) {
                    wrong.push(`${box.height} pixels high for a finger: ${one.outerHTML.slice(0, 80)}`);
                }
            }
            return wrong;
        });
        const stops = await page.$$eval("a, button, input:not([type=hidden]), select", (all) => all.filter((one) => one.checkVisibility()).length);
        await page.focus("body").catch(() => {});
        for (let n = 0; n < Math.min(stops, 60); n++) {
            await page.keyboard.press("Tab");
            const hidden = await page.evaluate(() => {
                const one = document.activeElement;
                if (!one || one === document.body) {
                    return false;
                }
                return getComputedStyle(one).outlineStyle === "none" ? one.outerHTML : false;
            });
            if (hidden) {
                found.push(`the focus is not seen: ${hidden}`);
            }
        }
        found.push(...complaints.splice(0).map((one) => `the browser says: ${one}`));
        if (found.length) {
            throw new Error(found.join("; "));
        }
    },
    async picture(file) {
        await page.evaluate(() => document.activeElement?.blur());
        await page.evaluate(() => window.scrollTo(0, 0));
        await page.screenshot({ path: file, fullPage: true });
    },
};

for await (const line of createInterface({ input: process.stdin })) {
    const [act, ...words] = JSON.parse(line);
    try {
        await acts[act](...words);
        process.stdout.write("ok\n");
    } catch (error) {
        await page.screenshot({ path: `${profile}-failed.png`, fullPage: true }).catch(() => {});
        process.stdout.write(`no ${act}: ${String(error.message ?? error).replaceAll("\n", " ")}\n`);
    }
}
await browser.close();
