// Pictures and links as matrix-js-sdk asks for them. Arguments: the server's address, user, password, a folder, and perhaps the address of a
// web page. Each file of the folder is uploaded, and its thumbnails are put beside it as `<file>.<width>x<height>.<method>`; what the
// server says of each, and of the page, goes to standard output, a line of JSON each.

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createClient } from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.disableAll?.();
for (const level of ["info", "debug", "warn"]) console[level] = () => {};

const [baseUrl, user, password, folder, page] = process.argv.slice(2);
const SIZES = [
    [32, 32, "crop"],
    [96, 96, "crop"],
    [320, 240, "scale"],
    [640, 480, "scale"],
    [800, 600, "scale"],
];

async function main() {
    const login = await createClient({ baseUrl }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user },
        password,
    });
    const client = createClient({
        baseUrl,
        userId: login.user_id,
        accessToken: login.access_token,
        deviceId: login.device_id,
    });
    for (const name of readdirSync(folder).sort()) {
        const type = { jpg: "image/jpeg", png: "image/png", gif: "image/gif" }[name.split(".").at(-1)];
        const { content_uri: uri } = await client.uploadContent(readFileSync(`${folder}/${name}`), { name, type });
        for (const [width, height, method] of SIZES) {
            const url = client.mxcUrlToHttp(uri, width, height, method, false, true, true);
            const answer = await fetch(url, { headers: { Authorization: `Bearer ${login.access_token}` } });
            const bytes = Buffer.from(await answer.arrayBuffer());
            const made = `${name}.${width}x${height}.${method}`;
            writeFileSync(`${folder}/${made}`, bytes);
            console.log(JSON.stringify({ made, status: answer.status, type: answer.headers.get("content-type") }));
        }
    }
    if (page) {
        const preview = await client.getUrlPreview(page, Date.now());
        const url = client.mxcUrlToHttp(preview["og:image"], undefined, undefined, undefined, false, true, true);
        const answer = await fetch(url, { headers: { Authorization: `Bearer ${login.access_token}` } });
        const picture = Buffer.from(await answer.arrayBuffer()).toString("base64");
        const capabilities = await client.getCapabilities();
        console.log(JSON.stringify({ preview, picture, told: capabilities["io.element.msc4452.preview_url"] }));
    }
    await client.logout(true);
}

main().then(
    () => process.exit(0),
    (error) => {
        process.stderr.write(`${error.stack}\n`);
        process.exit(1);
    },
);
