#!/usr/bin/env bash
# Prints figures of Doorstep and of a Synapse on this machine, side by side from one run. Needs what tests/interop/run.sh
# needs, whose environment it uses. Arguments go to run.py: try --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${DOORSTEP_INTEROP_VENV:-$root/target/interop/venv}
"$here/../interop/run.sh" --help > /dev/null # makes the environment
exec "$venv/bin/python" "$here/run.py" "$@"
