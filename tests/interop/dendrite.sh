#!/usr/bin/env bash
# Proves Doorstep against a real Dendrite. Needs python3 as run.sh does, and Go, whose module proxy gives Dendrite; on the first
# run it is built in target/dendrite. Arguments go to run.py: try --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
version=v0.13.8
export PATH="$PATH:/usr/local/go/bin"
command -v go > /dev/null || { echo "there is no Go here, which builds Dendrite" >&2; exit 2; }

bin=$root/target/dendrite/$version
if [ ! -x "$bin/dendrite" ]; then
    GOBIN=$bin go install "github.com/matrix-org/dendrite/cmd/dendrite@$version"
fi
exec "$here/run.sh" --dendrite "$bin/dendrite" --pairs nd,dn --no-kills --no-partitions "$@"
