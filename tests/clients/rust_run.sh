#!/usr/bin/env bash
# Leads Element X's engine (matrix-sdk, matrix-sdk-ui) through encrypted conversations, and with it Hydrogen, a whole web
# client, where there are a node and a Chromium to run it. Compiles some 400 crates the first time, into
# target/clients/rust. Arguments go to rust_run.py: try --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${DOORSTEP_INTEROP_VENV:-$root/target/interop/venv}

# The same environment as tests/interop/run.sh makes.
if ! cmp -s "$root/tests/interop/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/tests/interop/requirements.txt"
    cp "$root/tests/interop/requirements.txt" "$venv/requirements.txt"
fi
(cd "$here/rust" && cargo build --locked --quiet)

if command -v npm > /dev/null && command -v chromium > /dev/null; then
    web=$root/target/clients/web
    if ! cmp -s "$here/web/package-lock.json" "$web/installed.json"; then
        rm -rf "$web"
        mkdir -p "$web"
        cp "$here"/web/package*.json "$web"
        npm ci --silent --no-audit --no-fund --prefix "$web" 2> /dev/null &&
            cp "$here/web/package-lock.json" "$web/installed.json" ||
            echo "     Hydrogen could not be installed, and is left out"
    fi
    if [ -f "$web/installed.json" ]; then
        cp "$here"/web/{*.mjs,index.html} "$web"
        node "$web/build.mjs" "$web/page"
        set -- --web "$web" "$@"
    fi
fi
case " $* " in
*" --doorstep"* | *" --help "* | *" -h "*) ;;
*)
    (cd "$root" && cargo build --locked)
    set -- --doorstep "${CARGO_TARGET_DIR:-$root/target}/debug/doorstep" "$@"
    ;;
esac
exec "$venv/bin/python" "$here/rust_run.py" --client "$root/target/clients/rust/debug/doorstep-rust-client" "$@"
