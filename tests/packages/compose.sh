#!/usr/bin/env bash
# The compose file with Caddy, brought up as its first lines say, and synced through.
set -euo pipefail
# shellcheck source=tests/packages/common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"

compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)
if ! "${compose[@]}" version >/dev/null 2>&1; then
    step 'compose files: checked by schema only, for there is no compose tool'
    exit 0
fi
step 'compose: behind Caddy'
docker image inspect caddy:2 >/dev/null 2>&1 || docker build --quiet --tag caddy:2 - >/dev/null <<'DOCKERFILE'
FROM sync-server-test/trixie
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends caddy
ENV XDG_DATA_HOME=/data
DOCKERFILE

project=$(fresh compose)
file=$root/packaging/docker/compose.caddy.yaml
# Another name and other ports than an operator's, the rest as it stands.
sed 's/^DOMAIN=.*/DOMAIN=localhost/' "$root/packaging/docker/.env.sample" >"$work/env"
printf 'HTTP_PORT=127.0.0.1:0\nHTTPS_PORT=127.0.0.1:0\n' >>"$work/env"
up() { "${compose[@]}" --project-name "$project" --file "$file" --env-file "$work/env" "$@"; }
trap 'up down --volumes >/dev/null 2>&1 || true; clean_up' EXIT
up up --detach >"$work/said" 2>&1 || fail "compose up: $(cat "$work/said")"
address=$(up port caddy 443)
# Its certificate is its own here, for nobody vouches for localhost.
eventually curl --silent --fail --insecure --connect-to "localhost:443:$address" https://localhost/readyz
said=$(up exec -T sync-server sync-server admin add-client 2>/dev/null)
holds "$said" 'sync.server.url https://localhost/'
# The server itself, where Caddy reaches it, synced with.
server=$(up ps --quiet sync-server)
device a "$said"
device b "$said"
ip=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$server")
for device in a b; do
    task "$device" config sync.server.url "http://$ip:8080/" >/dev/null 2>&1
done
syncs a b
up stop --timeout 20 >/dev/null 2>&1
same "$(docker inspect --format '{{.State.ExitCode}}' "$server")" 0 'the exit code of a stop'
