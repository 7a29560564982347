#!/usr/bin/env bash
# `make.sh INTO`: makes the web client's page and its driver in that folder, with the node that is in $PATH.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
into=$1
npm=$(dirname "$(dirname "$(command -v node)")")/lib/node_modules/npm/bin/npm-cli.js

mkdir -p "$into"
if ! cmp -s "$here/package-lock.json" "$into/installed.json"; then
    cp "$here"/package*.json "$into"
    node "$npm" ci --loglevel error --no-audit --no-fund --prefix "$into" > /dev/null
    cp "$here/package-lock.json" "$into/installed.json"
fi
cp "$here"/{*.mjs,index.html} "$into"
node "$into/build.mjs" "$into/page"
