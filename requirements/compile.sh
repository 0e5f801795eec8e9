#!/usr/bin/env bash
# Compiles every *.in into a pinned *.txt with hashes. No index address gets in.
set -euo pipefail
cd "$(dirname "$0")"
compile() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --override overrides.in "$@"
}
for name in "${@:-bootstrap service dev}"; do
    for one in $name; do compile "$one.in" -o "$one.txt"; done
done
