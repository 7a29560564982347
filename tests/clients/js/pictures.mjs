// Pictures and links as matrix-js-sdk asks for them. Arguments: the server's address, user, password, a folder, and perhaps the address of a
// web page. Each file of the folder is uploaded, and its thumbnails are put beside it as `<file>.<width>x<height>.<method>`; what the
// server says of each, and of the page, goes to standard output, a line of JSON each.

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { end, logIn } from "./ways.mjs";

const [baseUrl, user, password, folder, page] = process.argv.slice(2);
const SIZES = [
    [32, 32, "crop"],
    [96, 96, "crop"],
    [320, 240, "scale"],
    [640, 480, "scale"],
    [800, 600, "scale"],
];

async function main() {
    const client = await logIn(baseUrl, user, password);
    const headers = { Authorization: `Bearer ${client.getAccessToken()}` };
    for (const name of readdirSync(folder).sort()) {
        const type = { jpg: "image/jpeg", png: "image/png", gif: "image/gif" }[name.split(".").at(-1)];
        const { content_uri: uri } = await client.uploadContent(readFileSync(`${folder}/${name}`), { name, type });
        for (const [width, height, method] of SIZES) {
            const url = client.mxcUrlToHttp(uri, width, height, method, false, true, true);
            const answer = await fetch(url, { headers });
            const bytes = Buffer.from(await answer.arrayBuffer());
            const made = `${name}.${width}x${height}.${method}`;
            writeFileSync(`${folder}/${made}`, bytes);
            console.log(JSON.stringify({ made, status: answer.status, type: answer.headers.get("content-type") }));
        }
    }
    if (page) {
        const preview = await client.getUrlPreview(page, Date.now());
        const url = client.mxcUrlToHttp(preview["og:image"], undefined, undefined, undefined, false, true, true);
        const answer = await fetch(url, { headers });
        const picture = Buffer.from(await answer.arrayBuffer()).toString("base64");
        const capabilities = await client.getCapabilities();
        console.log(JSON.stringify({ preview, picture, told: capabilities["io.element.msc4452.preview_url"] }));
    }
    await client.logout(true);
}

end(main());
