#!/usr/bin/env bash
# Which images each kind of event makes, and under which tags.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sha=0123456789abcdef0123456789abcdef01234567

# tags EXPECTED EVENT REF [RELEASE...]
tags() {
    local expected=$1 event=$2 ref=$3 found
    shift 3
    found=$(printf '%s\n' "$@" | packaging/pipeline/tags "$event" "$ref" "$sha" 20260131 main | xargs)
    [[ $found == "sha-0123456 $expected" ]] || {
        printf '%s of %s with releases %s: expected "sha-0123456 %s", found "%s"\n' "$event" "$ref" "$*" "$expected" "$found" >&2
        exit 1
    }
}

tags 'main edge' push refs/heads/main
tags 'main edge' workflow_dispatch refs/heads/main
tags 'main edge 20260131' schedule refs/heads/main
tags 'feature-new_thing' push refs/heads/feature/new_thing
tags 'pr-17' pull_request refs/pull/17/merge
tags '1.2.3 1.2 latest' push refs/tags/v1.2.3 v1.2.3
tags '1.2.3 1.2 latest' workflow_dispatch refs/tags/v1.2.3 v1.2.3 v1.2.2
tags '1.10.0 1.10 latest' push refs/tags/v1.10.0 v1.9.0 v1.10.0
# An older release's patch, and an older patch built again.
tags '1.2.4 1.2' push refs/tags/v1.2.4 v1.2.3 v1.2.4 v1.3.0
tags '1.2.3' push refs/tags/v1.2.3 v1.2.3 v1.2.4 v1.3.0
# Pre-releases: neither newer than the release, nor latest.
tags '2.0.0-rc.1' push refs/tags/v2.0.0-rc.1 v1.2.3 v2.0.0-rc.1
tags '2.0.0 2.0 latest' push refs/tags/v2.0.0 v1.2.3 v2.0.0-rc.1 v2.0.0
tags 'nightly' push refs/tags/nightly v1.2.3
tags '1.2' push refs/tags/v1.2 v1.2.3

# A repository in which one commit changes the program and the next one a document.
export GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x@example.org GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x@example.org
affected=$PWD/packaging/pipeline/affected
git init -q "$work"
cd "$work"
mkdir src
commit() {
    git add -A
    git commit -q -m x
    git rev-parse HEAD
}
echo 1 >README.md && first=$(commit)
echo 2 >src/main.rs && program=$(commit)
echo 3 >README.md && document=$(commit)

# affected EXPECTED EVENT REF BEFORE AFTER
is() {
    local expected=$1 found
    shift
    found=$("$affected" "$@")
    [[ $found == "$expected" ]] || {
        printf 'affected %s: expected %s, found %s\n' "$*" "$expected" "$found" >&2
        exit 1
    }
}
zero=0000000000000000000000000000000000000000
is true push refs/heads/main "$first" "$program"
is true push refs/heads/main "$first" "$document"
is false push refs/heads/main "$program" "$document"
is true push refs/heads/new "$zero" "$document"
is true push refs/heads/forced "$sha" "$document"
is true push refs/tags/v1.0.0 "$zero" "$document"
is true schedule refs/heads/main '' "$document"
is true workflow_dispatch refs/heads/main '' "$document"
