// `node build.mjs FOLDER`: makes the page out of the packages that stand beside this file.
import { cpSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const into = process.argv[2];
mkdirSync(into, { recursive: true });
await build({
    entryPoints: [join(here, "app.mjs")],
    outfile: join(into, "app.js"),
    bundle: true,
    format: "esm",
    // Olm looks for these where it runs in Node.
    external: ["crypto", "fs", "path"],
    logLevel: "error",
});
cpSync(join(here, "node_modules/hydrogen-view-sdk/asset-build/assets"), into, { recursive: true });
for (const file of ["olm.js", "olm.wasm", "olm_legacy.js"]) {
    cpSync(join(here, "node_modules/@matrix-org/olm", file), join(into, file));
}
cpSync(join(here, "node_modules/hydrogen-view-sdk/lib-build/sw.js"), join(into, "sw.js"));
cpSync(join(here, "index.html"), join(into, "index.html"));
