#!/usr/bin/env bash
# Compiles every *.in into a pinned *.txt with hashes; or those named. No index address gets in.
set -euo pipefail
cd "$(dirname "$0")"
for name in "${@:-bootstrap service dev triton openvino cpu ocr ocr-headless}"; do
    for one in $name; do
        case $one in
            ocr) options=(--override ocr-overrides.in) ;;
            triton | openvino | ocr-headless) options=(--no-deps) ;; # every package is named: nothing else is wanted
            *) options=(--override overrides.in) ;;
        esac
        uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
            --no-emit-index-url "${options[@]}" "$one.in" -o "$one.txt"
    done
done
