#!/usr/bin/env bash
# Proves that Doorstep gets its certificates from an authority that nobody here wrote: Pebble, of Let's Encrypt. Needs python3 and
# Go, whose module proxy gives Pebble; on the first run it is built in target/acme. Arguments go to run.py: try --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
version=v2.10.3
export PATH="$PATH:/usr/local/go/bin"
command -v go > /dev/null || { echo "there is no Go here, which builds Pebble" >&2; exit 2; }

bin=$root/target/acme/$version
if [ ! -x "$bin/pebble" ] || [ ! -x "$bin/pebble-challtestsrv" ]; then
    GOBIN=$bin go install "github.com/letsencrypt/pebble/v2/cmd/pebble@$version"
    GOBIN=$bin go install "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv@$version"
fi
certificates=$(go env GOMODCACHE)/github.com/letsencrypt/pebble/v2@$version/test/certs

case " $* " in
*" --doorstep"* | *" --help "* | *" -h "*) ;;
*)
    (cd "$root" && cargo build --locked)
    set -- --doorstep "${CARGO_TARGET_DIR:-$root/target}/debug/doorstep" "$@"
    ;;
esac
exec python3 "$here/run.py" --pebble "$bin" --certificates "$certificates" "$@"
