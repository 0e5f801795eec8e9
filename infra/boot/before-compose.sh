#!/usr/bin/env bash
# Runs before `docker compose up`, at every start of the machine: waits until Docker and the GPU are available, and checks
# that every image exists. It pulls and builds nothing.
set -euo pipefail

docker_wait_s=${DOCKER_WAIT_S:-120}
gpu_wait_s=${GPU_WAIT_S:-180}
read -ra services <<<"${SIGHTLINE_SERVICES:-}"

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# wait_for SECONDS COMMAND…: repeats the command until it succeeds; fails after SECONDS.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 1
    done
}

wants_gpu() {
    [[ " ${services[*]-} " != *" backend-cpu "* ]]
}

missing_images() {
    local image
    docker compose config --images "${services[@]}" | sort --unique | while read -r image; do
        docker image inspect "$image" >/dev/null 2>&1 || printf '%s ' "$image"
    done
}

wait_for "$docker_wait_s" docker info ||
    fail "Docker did not answer within $docker_wait_s s: see 'systemctl status docker'"

if wants_gpu; then
    # The driver loads after the kernel, and a container that starts before it never gets the GPU.
    wait_for "$gpu_wait_s" nvidia-smi --list-gpus ||
        fail "no GPU within $gpu_wait_s s: see 'nvidia-smi', or have backend-cpu in SIGHTLINE_SERVICES to go without"
fi

missing=$(missing_images)
[[ -z $missing ]] ||
    fail "not on this machine: ${missing% }; run 'docker compose pull --ignore-buildable && docker compose build' once"
