// Hydrogen as its own entry point puts it together, from the parts that its package has built.
import { FeatureSet, Platform, RootView, RootViewModel, createNavigation, createRouter } from "hydrogen-view-sdk";

const assetPaths = {
    downloadSandbox: "download-sandbox.html",
    worker: "main.js",
    serviceWorker: "sw.js",
    olm: { wasm: "olm.wasm", legacyBundle: "olm_legacy.js", wasmBundle: "olm.js" },
};
const container = document.querySelector("#hydrogen");
const platform = new Platform({
    container,
    assetPaths,
    config: { defaultHomeServer: new URLSearchParams(location.search).get("homeserver") ?? "" },
    options: { development: true },
});
await platform.init();
const navigation = createNavigation();
platform.setNavigation(navigation);
const urlRouter = createRouter({ navigation, history: platform.history });
urlRouter.attach();
const features = await FeatureSet.load(platform.settingsStorage);
const viewModel = new RootViewModel({ platform, urlRouter, navigation, features });
await viewModel.load();
container.appendChild(new RootView(viewModel).mount());
