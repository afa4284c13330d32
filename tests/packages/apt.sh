#!/usr/bin/env bash
# A signed repository, installed from by apt in a clean root.
#
#   tests/packages/apt.sh PACKAGE SUITE
set -euo pipefail
# shellcheck source=tests/packages/common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"

package=$(realpath "$1")
suite=$2
repository=$work/repository
export GNUPGHOME=$work/gnupg
trap 'gpgconf --kill all; clean_up' EXIT

step "$suite: an apt repository"
mkdir -m 700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-generate-key 'Test <test@example.org>' ed25519 sign never
"$root/packaging/apt/build" "$repository" file:/repository test@example.org "$package"
# A second release beside the first, and never another file under the name of one.
dpkg-deb -R "$package" "$work/tree"
sed -i 's/^Version: .*/Version: 9.0.0-1/' "$work/tree/DEBIAN/control"
dpkg-deb --root-owner-group -Zgzip -z1 -b "$work/tree" "$work/sync-server_9.0.0-1_amd64.deb" >/dev/null
"$root/packaging/apt/build" "$repository" file:/repository test@example.org "$work/sync-server_9.0.0-1_amd64.deb"
cp "$work/sync-server_9.0.0-1_amd64.deb" "$work/$(basename "$package")"
holds "$(refuses 73 "$root/packaging/apt/build" "$repository" file:/repository test@example.org "$work/$(basename "$package")")" \
    'published already'

box=$(fresh apt)
containers+=("$box")
docker run --detach --name "$box" "sync-server-test/$suite" sleep infinity >/dev/null
docker cp "$repository" "$box:/repository"
in_box() { docker exec --env DEBIAN_FRONTEND=noninteractive "$box" "$@"; }
in_box sh -c 'rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*; cp /repository/sync-server.sources /etc/apt/sources.list.d/'
said=$(in_box apt-get update 2>&1) || fail "apt-get update: $said"
! grep -q '^[WE]:' <<<"$said" || fail "apt-get update: $said"
in_box apt-get install -y sync-server >"$work/said" 2>&1 || fail "apt-get install: $(cat "$work/said")"
# shellcheck disable=SC2016  # dpkg-query, not the shell, expands this.
same "$(in_box dpkg-query -W -f '${Version}' sync-server)" 9.0.0-1 'the newest release'
in_box sync-server --version >/dev/null

# What was changed on the way is refused.
in_box sh -c 'echo >>/repository/dists/stable/main/binary-amd64/Packages; rm /repository/dists/stable/main/binary-amd64/Packages.gz
    sed -i "s/^Suite: .*/Suite: other/" /repository/dists/stable/InRelease; rm -rf /var/lib/apt/lists/*'
said=$(refuses 100 docker exec "$box" apt-get update)
holds "$said" 'signature'
