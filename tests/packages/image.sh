#!/usr/bin/env bash
# The image with SQLite, as its users run it: without rights, behind a proxy, killed, adopted, refused.
#
#   tests/packages/image.sh IMAGE
set -euo pipefail
# shellcheck source=tests/packages/common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"

image=$1
data=/var/lib/taskchampion-sync-server/data

main() {
    step 'image: what it says of itself'
    of_itself
    step 'image: behind a proxy, without rights'
    ordinary
    step 'image: restarted, killed, stopped, hanging'
    upheaval
    step 'image: other users, other data, other configurations'
    adoption
    wrong_permissions
    any_user
    configured
    resolves_names
}

of_itself() {
    local size
    size=$(inspect '{{.Size}}' "$image")
    ((size < 12000000)) || fail "the image has $size bytes"
    printf '%s bytes\n' "$size"
    same "$(inspect '{{.Config.User}} {{.Config.Entrypoint}}' "$image")" '1092:100 [/usr/bin/sync-server]' 'user and program'
    same "$(inspect '{{json .Config.Volumes}}' "$image")" "{\"$data\":{}}" 'volumes'
    local version label
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
    same "$(inspect '{{index .Config.Labels "org.opencontainers.image.version"}}' "$image")" "$version" 'the version of the label'
    for label in title description licenses vendor revision created source url documentation; do
        inspect '{{json .Config.Labels}}' "$image" | grep -q "\"org.opencontainers.image.$label\":" || fail "no label $label"
    done
    same "$(docker run --rm "${strict[@]}" "$image" --version)" "sync-server $version" 'flags go to the program'
}

# run NAME VOLUME ARGUMENT...: a server that its engine asks for its health every second.
run() {
    local name=$1 volume=$2
    shift 2
    containers+=("$name")
    docker run --detach --name "$name" "${strict[@]}" --health-interval=1s --health-retries=1 \
        --volume "$volume:$data" --publish 127.0.0.1::8080 "$@" >/dev/null
}

url() { printf 'http://%s\n' "$(docker port "$1" 8080/tcp | head -n 1)"; }

ordinary() {
    server=$(fresh image)
    local volume said
    volume=$(fresh data)
    volume "$volume"
    run "$server" "$volume" "$image"
    eventually is "$server" healthy
    proxy "$(url "$server")"
    said=$(docker exec "$server" sync-server --public-url "$nginx" admin add-client --label alice 2>/dev/null)
    holds "$said" "$nginx"
    device a "$said"
    device b "$said"
    syncs a b
    # As with the reference server's image, whoever comes first is let in, unless told otherwise.
    device c "$said"
    task c config sync.server.client_id "$(cat /proc/sys/kernel/random/uuid)" >/dev/null 2>&1
    task c add unknown >/dev/null
    task c sync >"$work/said" 2>&1 || fail "a client that the server did not know: $(cat "$work/said")"
    docker exec "$server" sync-server reload || fail 'reload'
    holds "$(docker exec "$server" sync-server admin list-clients 2>/dev/null)" alice
}

upheaval() {
    docker restart "$server" >/dev/null
    at_new_port
    syncs a b
    docker kill "$server" >/dev/null
    docker start "$server" >/dev/null
    at_new_port
    syncs b a
    # A program that hangs is not well; one that goes on is.
    docker kill --signal STOP "$server" >/dev/null
    eventually is "$server" unhealthy
    docker kill --signal CONT "$server" >/dev/null
    eventually is "$server" healthy
    docker stop --time 20 "$server" >/dev/null
    same "$(inspect '{{.State.ExitCode}}' "$server")" 0 'the exit code of a stop'
    holds "$(docker logs --tail 3 "$server" 2>&1)" stopped
}

# The engine gives another port at every start.
at_new_port() {
    eventually is "$server" healthy
    proxy "$(url "$server")"
    points "$nginx" a b
}

# fill VOLUME OWNER: the reference server's database, as its image leaves it.
fill() {
    local keeper
    keeper=$(fresh keeper)
    containers+=("$keeper")
    docker create --name "$keeper" --volume "$1:/data" sync-server-test/bookworm \
        sh -c "chown -R $2 /data && chmod 700 /data" >/dev/null
    docker cp "$root/tests/fixtures/tss-sqlite/taskchampion-sync-server.sqlite3" "$keeper:/data/"
    docker start --attach "$keeper"
}

adoption() {
    local volume name
    volume=$(fresh reference)
    name=$(fresh adopted)
    volume "$volume"
    fill "$volume" 1092:100
    run "$name" "$volume" "$image"
    eventually is "$name" healthy
    holds "$(docker exec "$name" sync-server admin list-clients --json 2>/dev/null)" client_id
}

# Who must act, and with which command.
wrong_permissions() {
    local volume name said
    volume=$(fresh foreign)
    name=$(fresh refused)
    volume "$volume"
    fill "$volume" 0:0
    said=$(refuses 1 docker run --rm --name "$name" "${strict[@]}" --volume "$volume:$data" "$image")
    holds "$said" 'uid 1092'
    holds "$said" "chown -R 1092:100 $data"
}

any_user() {
    local volume name
    volume=$(fresh theirs)
    name=$(fresh theirs)
    volume "$volume"
    fill "$volume" 4711:4712
    run "$name" "$volume" --user 4711:4712 "$image"
    eventually is "$name" healthy
}

# A configuration file counts more than what the image chose, a variable more than the file.
configured() {
    local volume name
    volume=$(fresh configured)
    name=$(fresh configured)
    volume "$volume"
    printf 'listen = ["0.0.0.0:8081"]\ncreate_clients = false\n' >"$work/config.toml"
    chmod 644 "$work/config.toml"
    run "$name" "$volume" --volume "$work/config.toml:/etc/sync-server/config.toml:ro" "$image"
    eventually is "$name" healthy
    holds "$(docker logs "$name" 2>&1)" 'listening on http://0.0.0.0:8081/'
    holds "$(docker run --rm "${strict[@]}" --env LISTEN=0.0.0.0:9000 "$image" config show)" 0.0.0.0:9000
    holds "$(refuses 78 docker run --rm "${strict[@]}" --env SNAPSHOT_DAYS=often "$image")" SNAPSHOT_DAYS
}

# A static program has to find other machines by itself.
resolves_names() {
    local network name volume
    network=$(fresh network)
    name=$(fresh named)
    volume=$(fresh named)
    networks+=("$network")
    docker network create --internal "$network" >/dev/null
    volume "$volume"
    run "$name" "$volume" --network "$network" --network-alias tasks "$image"
    eventually is "$name" healthy
    docker run --rm "${strict[@]}" --network "$network" "$image" healthcheck http://tasks:8080/readyz ||
        fail 'the name of another container is not found'
    refuses 1 docker run --rm "${strict[@]}" --network "$network" "$image" healthcheck http://nobody:8080/ >/dev/null
}

main
