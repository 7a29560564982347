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

case " $* " in
*" --doorstep"* | *" --stand-in "* | *" --help "* | *" -h "*) ;;
*)
    (cd "$root" && cargo build --release --locked)
    set -- --doorstep "${CARGO_TARGET_DIR:-$root/target}/release/doorstep" "$@"
    ;;
esac
exec "$venv/bin/python" "$here/run.py" "$@"
