# What the tests of packages and images share: words for steps and for what must hold, two devices with
# Taskwarrior, containers that are gone when the test ends.
# shellcheck shell=bash

root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
tools=$(realpath "${CARGO_TARGET_DIR:-$root/target}")/test-tools
work=$(mktemp -d)
containers=()
volumes=()
networks=()

step() { printf -- '--- %s (after %d s)\n' "$1" "$SECONDS"; }

fail() {
    local container
    for container in "${containers[@]}"; do
        printf -- '--- the last lines of %s\n' "$container" >&2
        docker logs --tail 30 "$container" >&2 || true
        docker exec "$container" journalctl --no-pager -n 40 >&2 2>/dev/null || true
    done
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 1
}

clean_up() {
    local name
    if [[ -f $work/nginx.pid ]]; then kill "$(cat "$work/nginx.pid")" || true; fi
    for name in "${containers[@]}"; do docker rm -f -v "$name" >/dev/null 2>&1 || true; done
    for name in "${volumes[@]}"; do docker volume rm -f "$name" >/dev/null 2>&1 || true; done
    for name in "${networks[@]}"; do docker network rm "$name" >/dev/null 2>&1 || true; done
    rm -rf "$work"
}
trap clean_up EXIT

# holds TEXT WORDS: the text contains the words.
holds() { [[ $1 == *"$2"* ]] || fail "expected \"$2\" in:
$1"; }

# same LEFT RIGHT WHAT
same() { [[ $1 == "$2" ]] || fail "$3: expected \"$2\", found \"$1\""; }

# refuses CODE COMMAND...: the command ends with this exit code; prints what it said.
refuses() {
    local expected=$1 code=0 said
    shift
    said=$("$@" 2>&1) || code=$?
    [[ $code == "$expected" ]] || fail "expected exit code $expected of $*, got $code: $said"
    printf '%s\n' "$said"
}

# eventually COMMAND...: it succeeds within two minutes.
eventually() {
    local deadline=$((SECONDS + 120))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "this never succeeded: $*"
        sleep 0.2
    done
}

# How images run here, as everywhere: without any right.
export strict=(--read-only --cap-drop=ALL --security-opt no-new-privileges)

inspect() { docker inspect --format "$1" "$2"; }

# is CONTAINER STATE: of its health.
is() { [[ $(inspect '{{.State.Health.Status}}' "$1") == "$2" ]]; }

volume() {
    volumes+=("$1")
    docker volume create "$1" >/dev/null
}

# proxy UPSTREAM [DIRECTIVES]: nginx on a free port, found by trying; $nginx is its URL.
nginx=
proxy() {
    local port
    stop_proxy
    for port in $(shuf -i 20000-30000 -n 20); do
        cat >"$work/nginx.conf" <<-CONF
			pid $work/nginx.pid;
			error_log $work/nginx.log;
			events {}
			http {
			    access_log off;
			    client_body_temp_path $work/body;
			    proxy_temp_path $work/proxy;
			    fastcgi_temp_path $work/fastcgi;
			    uwsgi_temp_path $work/uwsgi;
			    scgi_temp_path $work/scgi;
			    server {
			        listen 127.0.0.1:$port;
			        client_max_body_size 100m;
			        location / {
			            proxy_pass $1;
			            ${2:-}
			        }
			    }
			}
		CONF
        if nginx -c "$work/nginx.conf" 2>>"$work/nginx.log"; then
            nginx=http://127.0.0.1:$port/
            return
        fi
    done
    fail "nginx does not start: $(cat "$work/nginx.log")"
}

stop_proxy() {
    [[ -f $work/nginx.pid ]] || return 0
    kill "$(cat "$work/nginx.pid")"
    eventually test ! -e "$work/nginx.pid"
}

# points URL DEVICE...: these devices sync there.
points() {
    local url=$1 device
    shift
    for device in "$@"; do
        task "$device" config sync.server.url "$url" >/dev/null 2>&1
    done
}

# A name that no other run of these tests uses.
fresh() { printf 'sync-server-test-%s-%s-%s\n' "$1" "$$" "$RANDOM"; }

# build ARGUMENT...: an image, or what a stage of it holds. Takes minutes, so its progress can be watched in a
# file. An engine whose newest client lacks the builder may have an older client that brings it.
build() {
    local docker=(docker build) log=$tools/build.log
    if ! docker buildx version >/dev/null 2>&1 && [[ -x /usr/bin/docker ]]; then
        docker=(env DOCKER_BUILDKIT=1 /usr/bin/docker build)
    fi
    printf 'docker build %s (tail -f %s)\n' "$*" "$log"
    "${docker[@]}" --progress plain -f "$root/packaging/docker/Dockerfile" "$@" "$root" >"$log" 2>&1 ||
        fail "docker build $*: $(tail -n 60 "$log")"
}

# Which network the devices are in: that of a container, or, while this is empty, this machine's.
export place=

# task DEVICE ARGUMENT...: Taskwarrior of one device, out of its own C library.
task() {
    local device=$work/$1 at=$tools/taskwarrior enter=()
    shift
    local libraries=$at/usr/lib/x86_64-linux-gnu
    [[ -z $place ]] || enter=(nsenter "--net=/proc/$(docker inspect --format '{{.State.Pid}}' "$place")/ns/net")
    (
        cd "$at/usr/share/taskwarrior" || exit
        env -i HOME="$device" TASKRC="$device/taskrc" "${enter[@]}" \
            "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$at/usr/bin/task" "$@" </dev/null
    )
}

# device NAME SETTINGS: a device that runs the lines that add-client printed.
device() {
    mkdir -p "$work/$1"
    printf 'data.location=%s\nconfirmation=off\nhooks=off\nverbose=nothing\n' "$work/$1" >"$work/$1/taskrc"
    local key value
    while read -r _ _ key value; do
        task "$1" rc.confirmation=off config "$key" "$value" >/dev/null 2>&1
    done < <(grep '^task config ' <<<"$2")
    grep -q '^sync.server.client_id=' "$work/$1/taskrc" || fail "no settings for a device in: $2"
}

# syncs FROM TO: a new task of one device arrives on the other.
syncs() {
    local word="task-$RANDOM$RANDOM"
    task "$1" add "$word" >/dev/null || fail "task add on $1"
    task "$1" sync >"$work/said" 2>&1 || fail "sync of $1: $(cat "$work/said")"
    task "$2" sync >"$work/said" 2>&1 || fail "sync of $2: $(cat "$work/said")"
    task "$2" rc.verbose=nothing export | grep -q "$word" || fail "$2 has no task $word of $1"
}

# boot SUITE NAME, start IMAGE NAME: a container with systemd. Its cgroups are its own.
boot() { start "sync-server-test/$1" "$2"; }

start() {
    containers+=("$2")
    # By that signal systemd shuts down.
    docker run --detach --name "$2" --hostname tasks --stop-signal SIGRTMIN+3 --cap-add ALL --cap-drop SYS_RESOURCE \
        --security-opt seccomp=unconfined --security-opt apparmor=unconfined --cgroupns=private \
        --tmpfs /sys/fs/cgroup --tmpfs /run --tmpfs /run/lock --env container=docker \
        "$1" /sbin/init >/dev/null
    booted "$2"
}

booted() { eventually docker exec "$1" sh -c 'systemctl is-system-running | grep -q "running\|degraded"'; }
