#!/usr/bin/env bash
# The Debian package under a real systemd: installed, used, upgraded, removed, installed again, purged.
#
#   tests/packages/deb.sh PACKAGE SUITE
set -euo pipefail
# shellcheck source=tests/packages/common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"

package=$(realpath "$1")
suite=$2
box=$(fresh "$suite")
data=/var/lib/sync-server
database=$data/taskchampion-sync-server.sqlite3
config=/etc/sync-server/config.toml
unit=sync-server.service

main() {
    repack "$package" 0.0.1-1 "$work/older.deb"
    repack "$package" 9.0.0-1 "$work/newer.deb" new_default
    step "$suite: a fresh installation"
    boot "$suite" "$box"
    place=$box
    docker cp -q "$package" "$box:/root/this.deb" 2>/dev/null || docker cp "$package" "$box:/root/this.deb"
    docker cp "$work/older.deb" "$box:/root/older.deb"
    docker cp "$work/newer.deb" "$box:/root/newer.deb"
    fresh_installation
    step "$suite: scores"
    scores
    step "$suite: a client and its devices"
    use_it
    step "$suite: drop-ins"
    drop_ins
    step "$suite: reboot"
    docker restart --time 60 "$box" >/dev/null
    booted "$box"
    eventually is_active
    syncs a b
    step "$suite: removed, installed again, purged"
    remove_and_purge
    step "$suite: upgrades"
    upgrades
}

in_box() { docker exec "$box" "$@"; }
in_box_pid() { docker inspect --format '{{.State.Pid}}' "$box"; }
# A program of this machine, in the network of that one.
in_network() { nsenter "--net=/proc/$(in_box_pid)/ns/net" "$@"; }
# What a person at a terminal of that machine types.
typed() { docker exec "$box" sh -c "$1"; }
is_active() { in_box systemctl --quiet is-active "$unit"; }
property() { in_box systemctl show --value --property "$1" "$unit"; }

# Its terminal ends lines as terminals do.
install() { typed "DEBIAN_FRONTEND=noninteractive apt-get install -y --allow-downgrades $2 /root/$1.deb 2>&1" </dev/null | tr -d '\r'; }

# The same content under another version; what else differs is the third argument's to make.
repack() {
    local tree=$work/tree
    rm -rf "$tree"
    dpkg-deb -R "$1" "$tree"
    sed -i "s/^Version: .*/Version: $2/" "$tree/DEBIAN/control"
    [[ -z ${4:-} ]] || "$4" "$tree"
    dpkg-deb --root-owner-group -Zgzip -z1 -b "$tree" "$3" >/dev/null
}

new_default() { printf '\n# A remark that is new in this release.\n' >>"$1$config"; }

fresh_installation() {
    local said
    said=$(install this '')
    same "$(grep -v '^Processing triggers' <<<"$said" | tail -n 1)" '  sudo sync-server admin add-client' 'the last line'
    is_active || fail 'the service does not run'
    same "$(in_box systemctl is-enabled "$unit")" enabled 'the unit'
    same "$(in_box stat -c '%U:%G %a' "$config")" 'root:sync-server 640' "$config"
    same "$(in_box stat -c '%U:%G %a' "$data")" 'sync-server:sync-server 700' "$data"
    same "$(in_box stat -c '%U:%G %a' "$database")" 'sync-server:sync-server 600' "$database"
    same "$(property User)" sync-server 'the user'
    # It listens on this machine only, and lets in nobody whom its operator did not make.
    local sockets
    sockets=$(in_network ss -Hltn | awk '{ print $4 }' | sort | xargs)
    [[ $sockets =~ ^127.0.0.1:8080(\ \[::1\]:8080)?$ ]] || fail "it listens on $sockets"
    typed 'sync-server healthcheck'
    said=$(install this --reinstall)
    [[ $said != *add-client* ]] || fail "who has the package already is told the first step again: $said"
    is_active || fail 'the service does not run after the package was installed over itself'
}

# As shipped, on a high port, behind a proxy: with this machine's systemd and its kernel's calls.
scores() {
    same "$(typed "systemd-analyze verify --man=no $unit 2>&1")" '' "what this systemd finds in the unit"
    score 15 ''
    score 11 high-port
    score 3 proxy
}

score() {
    local threshold=$1 dropin=$2
    with "$dropin"
    typed "systemd-analyze security --no-pager --threshold=$threshold $unit" >"$work/said" ||
        fail "the score is over $threshold tenths with the drop-in \"$dropin\": $(cat "$work/said")"
    grep '→' "$work/said"
    with
}

# The unit with these drop-ins and no other, and a start with them.
with() {
    local name
    in_box rm -rf "/etc/systemd/system/$unit.d"
    for name in "$@"; do
        [[ -z $name ]] || in_box install -D -m 644 -t "/etc/systemd/system/$unit.d" "/usr/share/sync-server/drop-ins/$name.conf"
    done
    in_box systemctl daemon-reload
    in_box systemctl reset-failed "$unit"
    # While it is there, the server gets its sockets.
    [[ " $* " == *' proxy '* ]] || in_box systemctl stop sync-server.socket 2>/dev/null
    in_box systemctl restart "$unit" || fail "it does not start with the drop-ins: $*"
}

use_it() {
    local said
    said=$(typed 'sync-server admin add-client --label alice 2>/dev/null')
    device a "$said"
    device b "$said"
    syncs a b
    syncs b a
    said=$(sed -n 's/^sync.server.client_id=//p' "$work/a/taskrc")
    [[ $(in_box journalctl --no-pager -u "$unit") != *"$said"* ]] || fail 'the journal has a whole client ID'
    in_box systemctl reload "$unit" || fail 'reload'
    said=$(in_box runuser -u sync-server -- sync-server admin list-clients 2>/dev/null)
    holds "$said" alice
    # A wrong configuration is reported and not tried again and again.
    in_box cp "$config" /root/config.toml
    typed "echo 'listem = [\"localhost:8080\"]' >>$config"
    refuses 1 docker exec "$box" systemctl restart "$unit" >/dev/null
    same "$(property ExecMainStatus)" 78 'the exit code'
    same "$(property NRestarts)" 0 'the restarts'
    holds "$(in_box journalctl --no-pager -u "$unit")" 'listem'
    in_box cp /root/config.toml "$config"
    in_box systemctl reset-failed "$unit"
    in_box systemctl start "$unit"
    # A crash is not the end.
    in_box systemctl kill --signal=KILL "$unit"
    eventually is_active
    syncs a b
}

drop_ins() {
    with high-port
    syncs a b
    same "$(capabilities)" 0000000000000000 'capabilities on a high port'
    with
    same "$(capabilities)" 0000000000000400 'capabilities as shipped'
    # Without mounts of its own, as a container without nesting wants it.
    with lxc
    syncs a b
    same "$(in_box readlink "/proc/$(property MainPID)/ns/mnt")" "$(in_box readlink /proc/1/ns/mnt)" 'the namespace of mounts'
    with high-port lxc
    syncs a b
    # Behind a proxy: sockets that the service manager hands over, no network at all.
    with proxy
    syncs a b
    typed 'sync-server --listen unix:/run/sync-server.sock healthcheck'
    same "$(in_box nsenter -t "$(property MainPID)" -n cat /proc/net/dev | grep -c :)" 1 'the networks'
    uninterrupted
    with
    elsewhere
    take_over
}

# With the sockets of the service manager whoever comes while the server restarts waits, and is served.
uninterrupted() {
    local restarts asked=0
    # So many in so short a time would be taken for a server that cannot start.
    for _ in 1 2 3 4 5; do in_box systemctl reset-failed "$unit" && in_box systemctl restart "$unit"; done &
    restarts=$!
    while kill -0 "$restarts" 2>/dev/null; do
        for socket in 127.0.0.1:8080 /run/sync-server.sock; do
            reaches "$socket" || fail "nobody answers at $socket while the server restarts"
            asked=$((asked + 1))
        done
    done
    wait "$restarts" || fail 'a restart failed'
    ((asked >= 5)) || fail "only $asked requests in all that time"
    printf '%d requests, none refused\n' "$asked"
}

# reaches SOCKET: an address or a path of the container.
reaches() {
    local to=()
    [[ $1 != /* ]] || to=(--unix-socket "/proc/$(in_box_pid)/root$1")
    in_network curl --silent --fail --max-time 60 --output /dev/null "${to[@]}" http://127.0.0.1:8080/healthz
}

capabilities() { in_box sed -n 's/^CapEff:\t//p' "/proc/$(property MainPID)/status"; }

# Data, backups and log in other directories; without the drop-in the error names the line that helps.
elsewhere() {
    typed 'install -d -m 700 -o sync-server -g sync-server /srv/tasks /var/backups/sync-server /var/log/sync-server'
    ! starts_with 'log.file = "/var/log/sync-server/sync-server.log"' || fail 'a log on a read-only path'
    holds "$(complaint)" ReadWritePaths=/var/log/sync-server
    ! starts_with 'data_dir = "/srv/tasks"' || fail 'data on a read-only path'
    holds "$(complaint)" ReadWritePaths=/srv/tasks
    starts_with 'backup.dir = "/var/backups/sync-server"' 'backup.interval = "24h"' || fail 'backups on a read-only path'
    eventually typed "journalctl -u $unit | grep -q ReadWritePaths=/var/backups/sync-server"
    ! starts_with 'data_dir = "/srv/tasks"' 'backup.dir = "/var/backups/sync-server"' 'backup.interval = "24h"' \
        'log.file = "/var/log/sync-server/sync-server.log"' || fail 'the log on a read-only path, among others'
    with directories
    typed 'sync-server admin add-client --label elsewhere' >/dev/null 2>&1
    in_box test -s /srv/tasks/taskchampion-sync-server.sqlite3 || fail 'no database elsewhere'
    eventually typed 'ls /var/backups/sync-server/*.backup'
    in_box grep -q 'listening on' /var/log/sync-server/sync-server.log || fail 'no log elsewhere'
    in_box cp /root/config.toml "$config"
    with
    syncs a b
}

# starts_with LINE...: with these lines before all others in the configuration file.
starts_with() {
    typed "{ printf '%s\\n' $(printf "'%s' " "$@"); cat /root/config.toml; } >$config"
    in_box systemctl reset-failed "$unit"
    in_box systemctl restart "$unit" 2>/dev/null
}

complaint() { in_box journalctl --no-pager -u "$unit" -n 20; }

# The reference server's data, in their place, with the step that the README names.
take_over() {
    local reference=/var/lib/taskchampion-sync-server
    in_box systemctl stop "$unit"
    in_box mv "$data" /root/kept
    typed "mkdir -p $reference/data"
    docker cp "$root/tests/fixtures/tss-sqlite/taskchampion-sync-server.sqlite3" "$box:$reference/data/"
    typed "chown -R 1092:100 $reference; chmod 700 $reference $reference/data"
    # Until the operator has said so, no second history begins beside the first.
    refuses 1 docker exec "$box" systemctl start "$unit" >/dev/null
    holds "$(in_box journalctl --no-pager -u "$unit" -n 10)" "$reference"
    in_box systemctl reset-failed "$unit"
    with taskchampion-sync-server
    [[ $(typed 'sync-server admin list-clients --json 2>/dev/null') == *client_id* ]] || fail 'its clients are not there'
    same "$(in_box stat -c %U "$reference/data/taskchampion-sync-server.sqlite3")" sync-server 'the owner of the data'
    in_box systemctl stop "$unit"
    typed "rm -r $reference; rmdir $data 2>/dev/null; mv /root/kept $data"
    with
}

remove_and_purge() {
    local said
    with proxy
    in_box apt-get remove -y sync-server >/dev/null 2>&1
    ! is_active || fail 'it runs though it was removed'
    ! reaches 127.0.0.1:8080 || fail 'its socket is there though it was removed'
    in_box test -f "$config" || fail 'remove took the configuration'
    in_box test -s "$database" || fail 'remove took the data'
    install this '' >/dev/null
    is_active || fail 'it does not run after it was installed again'
    same "$(in_box systemctl is-enabled "$unit")" enabled 'the unit, installed again'
    syncs a b
    with
    said=$(in_box apt-get purge -y sync-server 2>&1)
    holds "$said" "the data stays in $data"
    ! in_box test -e /etc/sync-server || fail 'purge left the configuration'
    in_box test -s "$database" || fail 'purge took the data'
    [[ $(in_box find /etc/systemd /var/lib/systemd -name '*sync-server*') == '' ]] || fail 'purge left links to the unit'
    install this '' >/dev/null
    is_active || fail 'it does not run after the purge'
    syncs a b
}

upgrades() {
    local said
    install older '' >/dev/null
    is_active || fail 'it does not run after a downgrade'
    # Data of an older schema, and a configuration that the operator changed, while the new one has another
    # default. Stopped, so that it is not the old program that migrates the data.
    in_box systemctl stop "$unit"
    docker cp "$root/tests/fixtures/tss-sqlite/taskchampion-sync-server.sqlite3" "$box:/root/old.sqlite3"
    typed "rm -f $database*; install -m 600 -o sync-server -g sync-server /root/old.sqlite3 $database"
    typed "sed -i 's/^create_clients = .*/create_clients = true/' $config"
    said=$(install newer '-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold')
    same "$(in_box systemctl is-enabled "$unit")" enabled 'the unit after an upgrade'
    in_box systemctl start "$unit"
    is_active || fail "it does not run after the upgrade: $said"
    [[ $(typed 'sync-server admin list-clients --json 2>/dev/null') == *client_id* ]] || fail 'the data are gone'
    in_box grep -q '^create_clients = true' "$config" || fail "the operator's configuration is gone"
    in_box grep -q 'new in this release' "$config.dpkg-dist" || fail 'the new default is not beside it'
    same "$(in_box stat -c '%U:%G %a' "$config")" 'root:sync-server 640' "$config after an upgrade"

    # Behind a proxy an upgrade leaves the sockets open.
    with proxy
    said=$(in_box systemctl show --value --property InvocationID sync-server.socket)
    install this '-o Dpkg::Options::=--force-confold' >/dev/null
    same "$(in_box systemctl show --value --property InvocationID sync-server.socket)" "$said" 'the socket after an upgrade'
    is_active || fail 'it does not run after an upgrade behind a proxy'
    with
    install newer '-o Dpkg::Options::=--force-confold' >/dev/null

    # A sync in the middle of an upload is finished by the server that began it.
    local before
    before=$(property MainPID)
    python3 "$root/tests/packages/held_upload.py" "$(in_box_pid)" \
        docker exec "$box" sh -c 'DEBIAN_FRONTEND=noninteractive apt-get install -y --allow-downgrades -o Dpkg::Options::=--force-confold /root/this.deb </dev/null' \
        >"$work/said" 2>&1 || fail "an upload during an upgrade: $(cat "$work/said")"
    is_active || fail 'it does not run after an upgrade under load'
    [[ $(property MainPID) != "$before" ]] || fail 'the upgrade did not restart the service'

    # What the operator switched off stays off.
    in_box systemctl disable --now "$unit" 2>/dev/null
    install newer '-o Dpkg::Options::=--force-confold' >/dev/null
    ! is_active || fail 'an upgrade started what its operator had stopped'
    same "$(in_box systemctl is-enabled "$unit" || true)" disabled 'the unit that was disabled'
}

main
