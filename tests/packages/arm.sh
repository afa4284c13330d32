#!/usr/bin/env bash
# The program for the other processors that are released, 32 bits among them: compiled across, and run in an
# emulator as far as a client that is made while the server runs. The releases themselves are built by the
# pipeline on machines of that kind.
set -euo pipefail
# shellcheck source=tests/packages/common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"

target=$(dirname "$tools")/cross

main() {
    try aarch64-unknown-linux-gnu aarch64-linux-gnu qemu-aarch64
    try armv7-unknown-linux-gnueabihf arm-linux-gnueabihf qemu-arm
}

# try TRIPLE COMPILER EMULATOR
try() {
    local triple=$1 compiler=$2 emulator=$3 variable program server url said
    if ! rustup target list --installed 2>/dev/null | grep -qx "$triple" && ! rustup --quiet target add "$triple" 2>/dev/null; then
        step "$triple: left out, for its standard library is not to be had"
        return
    fi
    step "$triple"
    variable=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$triple")_LINKER
    env "$variable=$compiler-gcc" "CC_${triple//-/_}=$compiler-gcc" cargo build --quiet --locked --bin sync-server \
        --manifest-path "$root/Cargo.toml" --target "$triple" --target-dir "$target"
    program=$target/$triple/debug/sync-server
    export QEMU_LD_PREFIX=/usr/$compiler
    mkdir "$work/$triple"
    "$emulator" "$program" --data-dir "$work/$triple" --listen 127.0.0.1:0 --log-file "$work/$triple/log" &
    server=$!
    eventually grep -q 'listening on' "$work/$triple/log"
    url=$(sed -n 's/.*listening on //p' "$work/$triple/log")
    said=$("$emulator" "$program" --data-dir "$work/$triple" --public-url "$url" admin add-client 2>/dev/null)
    device "$triple-a" "$said"
    device "$triple-b" "$said"
    syncs "$triple-a" "$triple-b"
    kill "$server"
    wait "$server" || fail "$triple: the server did not stop well: $(tail -n 5 "$work/$triple/log")"
}

main
