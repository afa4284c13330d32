#!/usr/bin/env bash
# The image for Postgres: refused without a database, two servers on one, and what happens to either.
#
#   tests/packages/postgres.sh IMAGE
set -euo pipefail
# shellcheck source=tests/packages/common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"

image=$1
network=$(fresh network)
networks+=("$network")
database=$(fresh database)
containers+=("$database")
password=$(openssl rand -hex 16)

main() {
    step 'image for Postgres: what it says of itself'
    of_itself
    step 'image for Postgres: without a database'
    alone
    step 'image for Postgres: two servers, one database'
    start_database
    two
    step 'image for Postgres: the smoke test of the pipeline'
    "$root/packaging/pipeline/smoke" "$image"
}

of_itself() {
    local size
    size=$(inspect '{{.Size}}' "$image")
    ((size < 12000000)) || fail "the image has $size bytes"
    printf '%s bytes\n' "$size"
    same "$(inspect '{{.Config.User}} {{.Config.Entrypoint}} {{json .Config.Volumes}}' "$image")" \
        '1092:100 [/usr/bin/sync-server] null' 'user, program and volumes'
    same "$(inspect '{{index .Config.Labels "org.opencontainers.image.title"}}' "$image")" sync-server-postgres 'the title'
}

# Never a database of its own instead, whatever else is given.
alone() {
    local given
    for given in DATA_DIR=/tmp CONNECTION= CONNECTION_FILE=; do
        holds "$(refuses 78 docker run --rm "${strict[@]}" --tmpfs /tmp --env "$given" "$image")" 'give CONNECTION'
    done
}

start_database() {
    docker network create --internal "$network" >/dev/null
    docker run --detach --name "$database" --network "$network" --network-alias database --env POSTGRES_DB=tasks \
        --env POSTGRES_USER=tasks --env POSTGRES_PASSWORD="$password" postgres:17 >/dev/null
    eventually docker exec "$database" pg_isready --quiet --host=127.0.0.1
}

# run NAME ARGUMENT...: a server on that database, with the data directory that the reference's image names, too.
run() {
    local name=$1
    shift
    containers+=("$name")
    docker run --detach --name "$name" "${strict[@]}" --health-interval=1s --health-retries=1 --network "$network" \
        --env DATA_DIR=/var/lib/taskchampion-sync-server/data --env CREATE_CLIENTS=false "$@" "$image" >/dev/null
    eventually is "$name" healthy
}

two() {
    local one two said
    one=$(fresh one)
    two=$(fresh two)
    printf 'postgresql://tasks:%s@database/tasks\n' "$password" >"$work/connection"
    chown 1092 "$work/connection"
    chmod 400 "$work/connection"
    run "$one" --env "CONNECTION=postgresql://tasks:$password@database/tasks"
    run "$two" --env CONNECTION_FILE=/connection --volume "$work/connection:/connection:ro"
    said=$(docker exec "$one" sync-server admin add-client --label alice 2>/dev/null)
    holds "$(docker exec "$two" sync-server admin list-clients 2>/dev/null)" alice
    docker exec "$one" sync-server reload >/dev/null || fail 'reload'
    docker exec "$one" sync-server admin doctor >"$work/said" 2>&1 || fail "what the doctor finds: $(cat "$work/said")"
    device a "$said"
    device b "$said"
    points "$(url "$one")" a
    points "$(url "$two")" b
    syncs a b
    syncs b a
    # What one acknowledged outlives it.
    docker kill "$one" >/dev/null
    points "$(url "$two")" a
    syncs a b
    docker start "$one" >/dev/null
    eventually is "$one" healthy
    points "$(url "$one")" a
    syncs b a
    # Without the database nobody is well, and with it again everyone is.
    docker stop "$database" >/dev/null
    eventually is "$one" unhealthy
    eventually is "$two" unhealthy
    docker start "$database" >/dev/null
    eventually is "$one" healthy
    eventually is "$two" healthy
    syncs a b
    docker stop --time 20 "$one" "$two" >/dev/null
    same "$(inspect '{{.State.ExitCode}}' "$one") $(inspect '{{.State.ExitCode}}' "$two")" '0 0' 'the exit codes of stops'
    [[ $(docker logs "$one" 2>&1; docker logs "$two" 2>&1) != *"$password"* ]] || fail 'the log tells the password'
}

# Nothing is published from a network that is closed, but this machine is in it.
url() { printf 'http://%s:8080/\n' "$(inspect '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1")"; }

main
