#!/usr/bin/env bash
# The compose files, each brought up as its first lines say, and synced through.
set -euo pipefail
# shellcheck source=tests/packages/common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"

compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)
project=
files=()

main() {
    if ! "${compose[@]}" version >/dev/null 2>&1; then
        step 'compose files: checked by schema only, for there is no compose tool'
        return
    fi
    step 'compose: behind Caddy'
    behind_caddy
    step 'compose: alone, with a certificate by itself'
    alone
    step 'compose: two servers that share a Postgres'
    shared
}

# Another name and other ports than an operator's, the rest as it stands.
begin() {
    project=$(fresh compose)
    files=(--file "$root/packaging/docker/compose.$1.yaml")
    sed "s/^DOMAIN=.*/DOMAIN=$2/; s/^POSTGRES_PASSWORD=.*/POSTGRES_PASSWORD=$(openssl rand -hex 24)/" \
        "$root/packaging/docker/.env.sample" >"$work/env"
    printf 'HTTP_PORT=127.0.0.1:0\nHTTPS_PORT=127.0.0.1:0\n' >>"$work/env"
}

up() { "${compose[@]}" --project-name "$project" "${files[@]}" --env-file "$work/env" "$@"; }

start_up() { up up --detach "$@" >"$work/said" 2>&1 || fail "compose up: $(cat "$work/said")"; }

end() {
    local service
    for service in "$@"; do
        [[ $(up logs "$service" 2>&1) != *'not believed'* ]] || fail "$service does not believe its proxy"
        up stop --timeout 20 "$service" >/dev/null 2>&1
        same "$(inspect '{{.State.ExitCode}}' "$(up ps --quiet "$service")")" 0 "the exit code of $service at a stop"
    done
    up down --volumes >/dev/null 2>&1
    project=
}

leave() {
    [[ $? == 0 || -z $project ]] || up logs --no-color --tail 20 >&2
    [[ -z $project ]] || up down --volumes >/dev/null 2>&1 || true
    clean_up
}
trap leave EXIT

# clients SERVICE NAME: two devices of a client that add-client made, which take off the TLS that they cannot
# trust here in a proxy of their own.
clients() {
    local said
    said=$(up exec -T "$1" sync-server admin add-client 2>/dev/null)
    holds "$said" "sync.server.url https://$2/"
    device a "$said"
    device b "$said"
    points "$nginx" a b
}

behind_caddy() {
    begin caddy localhost
    start_up
    # Its certificate is its own here, for nobody vouches for localhost.
    behind_tls caddy localhost 'proxy_ssl_verify off;'
    clients sync-server localhost
    syncs a b
    end sync-server
}

# behind_tls SERVICE NAME DIRECTIVE: a proxy before its port 443, which says this name.
behind_tls() {
    local address
    address=$(up port "$1" 443)
    proxy "https://$address" "proxy_ssl_server_name on; proxy_ssl_name $2; proxy_set_header Host $2; $3"
    eventually curl --silent --fail "${nginx}readyz"
}

# With an authority of this test's own in the same network.
alone() {
    local name=tasks.example.org authority
    begin acme "$name"
    make_authority
    printf 'ACME_DIRECTORY=https://authority:14000/dir\n' >>"$work/env"
    cat >"$work/authority.yaml" <<-YAML
		services:
		  authority:
		    image: sync-server-test/pebble
		    command: ["pebble", "-config", "/authority/pebble.json", "-dnsserver", "127.0.0.11:53"]
		    environment: {PEBBLE_VA_NOSLEEP: "1"}
		    volumes: ["$work/authority:/authority:ro"]
		  sync-server:
		    environment: {ACME_ROOT: /authority/root.pem, ACME_RETRY: 1s}
		    volumes: ["$work/authority/root.pem:/authority/root.pem:ro"]
		    networks: {default: {aliases: ["$name"]}}
		    depends_on: [authority]
	YAML
    files+=(--file "$work/authority.yaml")
    start_up authority
    authority=$(inspect '{{.State.Pid}}' "$(up ps --quiet authority)")
    eventually nsenter "--net=/proc/$authority/ns/net" curl --silent --fail --insecure --output "$work/issued.pem" \
        https://127.0.0.1:15000/roots/0
    start_up
    behind_tls sync-server "$name" "proxy_ssl_verify on; proxy_ssl_verify_depth 3; proxy_ssl_trusted_certificate $work/issued.pem;"
    eventually is "$(up ps --quiet sync-server)" healthy
    holds "$(up exec -T sync-server sync-server admin cert status 2>/dev/null)" "$name"
    clients sync-server "$name"
    syncs a b
    # People who come by plain HTTP are led to HTTPS.
    holds "$(curl --silent --include "http://$(up port sync-server 80)/")" "https://$name"
    end sync-server
}

# Its answers have a certificate of an authority that the server is told to trust.
make_authority() {
    mkdir "$work/authority"
    (
        cd "$work/authority"
        openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=root -days 2 -keyout root.key -out root.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=authority -keyout api.key -out api.csr
        printf 'subjectAltName=DNS:authority\nbasicConstraints=CA:FALSE\n' >extensions
        openssl x509 -req -in api.csr -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile extensions -out api.pem
        printf '{"pebble": {"listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000",
            "certificate": "/authority/api.pem", "privateKey": "/authority/api.key", "httpPort": 80, "tlsPort": 443}}' >pebble.json
        chmod 755 .
        chmod 644 ./*
    ) >"$work/said" 2>&1 || fail "no authority: $(cat "$work/said")"
    chmod 755 "$work"
}

shared() {
    local server
    begin postgres localhost
    start_up
    behind_tls caddy localhost 'proxy_ssl_verify off;'
    clients sync-server-1 localhost
    for _ in 1 2 3; do
        syncs a b
        syncs b a
    done
    # Both had their share of it.
    for server in sync-server-1 sync-server-2; do
        holds "$(up logs "$server" 2>&1)" 'path=/v1/client/'
    done
    # One is killed. What was on its way there may fail; then the other goes on.
    docker kill "$(up ps --quiet sync-server-1)" >/dev/null
    eventually task a sync
    eventually task b sync
    for _ in 1 2 3; do syncs a b; done
    syncs b a
    docker start "$(up ps --quiet sync-server-1)" >/dev/null
    eventually is "$(up ps --quiet sync-server-1)" healthy
    # The database is gone for a while, and comes back.
    up restart database >/dev/null 2>&1
    eventually curl --silent --fail "${nginx}readyz"
    syncs a b
    end sync-server-1 sync-server-2
}

main
