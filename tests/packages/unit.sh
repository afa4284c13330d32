#!/usr/bin/env bash
# The systemd unit with each drop-in, without running it: known directives only, and the scores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() {
    local threshold=$1 directory=$work/root/etc/systemd/system
    shift
    rm -rf "$work/root"
    mkdir -p "$directory/sync-server.service.d"
    cp systemd/sync-server.service "$directory"
    local name
    for name in "$@"; do
        cp "systemd/drop-ins/$name.conf" "$directory/sync-server.service.d/"
    done
    local said
    said=$(systemd-analyze security --no-pager --offline=true --root="$work/root" --threshold="$threshold" \
        sync-server.service 2>&1) || {
        printf 'the score of the unit with "%s" is over %s tenths:\n%s\n' "$*" "$threshold" "$said" >&2
        exit 1
    }
    grep '→' <<<"$said"
    ! grep -i 'unknown\|ignoring\|invalid' <<<"$said" || exit 1
}

check 15
check 15 taskchampion-sync-server directories
check 11 high-port
check 3 proxy
# Each directive of the units and of the drop-ins stands under a reason.
for file in systemd/sync-server.service systemd/sync-server.socket systemd/drop-ins/*.conf; do
    awk -v file="$file" '
        /^#/ { reason = 1 }
        /^$/ { reason = 0 }
        /^[A-Z]/ && !/^(Description|Documentation|WantedBy)=/ && !reason { print file ": without a reason: " $0; bad = 1 }
        /^\[/ && file !~ /(service|socket)$/ { reason = 1 }
        END { exit bad }' "$file"
done
