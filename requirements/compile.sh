#!/usr/bin/env bash
# Compiles every *.in, or the files named as arguments, into *.txt files with pinned versions and hashes, without index addresses.
set -euo pipefail
cd "$(dirname "$0")"
for name in "${@:-bootstrap service dev triton openvino cpu ocr ocr-headless}"; do
    for file in $name; do
        case $file in
            ocr) options=(--override ocr-overrides.in) ;;
            triton | openvino | ocr-headless) options=(--no-deps) ;; # every package is named: nothing else is wanted
            *) options=(--override overrides.in) ;;
        esac
        uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
            --no-emit-index-url "${options[@]}" "$file.in" -o "$file.txt"
    done
done
