#!/usr/bin/env bash
# Builds the static binary for a kind of Linux machine: `packaging/build.sh x86_64|aarch64`, which prints its path. Needs Rust;
# on Debian it gets the rest with apt-get: as root the compilers, and for aarch64 in any case the headers of the C library (musl),
# which are for that machine only and stay in target/packaging.
set -euo pipefail
machine=${1:-}
case $machine in
x86_64) needed="musl-gcc musl-tools" ;;
aarch64) needed="aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu" ;;
*) echo "usage: packaging/build.sh x86_64|aarch64" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
target=$machine-unknown-linux-musl
made=$(realpath -m "${CARGO_TARGET_DIR:-target}")

if ! command -v "${needed% *}" > /dev/null; then
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${needed#* }" >&2
fi
if [ "$machine" = aarch64 ]; then
    # Debian has no compiler for musl on another machine, but its headers, for which the one for GNU's library does as well.
    headers=$made/packaging/musl-arm64
    if [ ! -d "$headers" ]; then
        lists=$made/packaging/apt
        mkdir -p "$lists/lists/partial" "$lists/archives/partial"
        (
            cd "$lists"
            apt=(apt-get -qq -o "Dir::State::Lists=$lists/lists" -o "Dir::Cache=$lists" -o APT::Architectures::=arm64 -o APT::Sandbox::User=)
            "${apt[@]}" update
            "${apt[@]}" download musl-dev:arm64
            dpkg-deb -x musl-dev_*_arm64.deb unpacked
            mv unpacked "$headers"
        ) >&2
        rm -r "$lists"
    fi
    cat > "$made/packaging/aarch64-musl-cc" <<END
#!/bin/sh
# The atomics of the processor itself are asked for by functions that only GNU's library prepares.
exec aarch64-linux-gnu-gcc -nostdinc -isystem "$headers/usr/include/aarch64-linux-musl" \\
    -isystem "$(aarch64-linux-gnu-gcc -print-file-name=include)" -mno-outline-atomics "\$@"
END
    chmod +x "$made/packaging/aarch64-musl-cc"
    export CC_aarch64_unknown_linux_musl=$made/packaging/aarch64-musl-cc AR_aarch64_unknown_linux_musl=aarch64-linux-gnu-ar
fi
rustup target list --installed | grep -qx "$target" || rustup target add "$target" >&2
cargo build --locked --release --target "$target" >&2
if [ "$machine" = aarch64 ]; then
    # The compiler was seen to leave the symbols in.
    aarch64-linux-gnu-strip "$made/$target/release/doorstep"
fi
echo "$made/$target/release/doorstep"
