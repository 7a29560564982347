#!/usr/bin/env bash
# Proves Doorstep against a real Synapse. Needs python3 (3.10 or newer) and the Python package registry; on the first
# run it makes a virtual environment in target/interop. Arguments go to run.py: try --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${DOORSTEP_INTEROP_VENV:-$root/target/interop/venv}

# The environment is made anew when the list of packages has changed.
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi

# A client library of the other big ecosystem, where there is a node to run it.
if command -v npm > /dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; then
    js=$root/target/interop/js
    if ! cmp -s "$here/js/package-lock.json" "$js/installed.json"; then
        mkdir -p "$js"
        cp "$here"/js/package*.json "$js"
        npm ci --silent --no-audit --no-fund --prefix "$js" 2> /dev/null &&
            cp "$here/js/package-lock.json" "$js/installed.json" ||
            echo "     matrix-js-sdk could not be installed, and is left out"
    fi
    if [ -f "$js/installed.json" ]; then
        cp "$here/js/smoke.mjs" "$js"
        export DOORSTEP_INTEROP_JS=$js
    fi
fi

case " $* " in
*" --doorstep"* | *" --stand-in "* | *" --help "* | *" -h "*) ;;
*)
    (cd "$root" && cargo build --release --locked)
    set -- --doorstep "${CARGO_TARGET_DIR:-$root/target}/release/doorstep" "$@"
    ;;
esac
exec "$venv/bin/python" "$here/run.py" "$@"
