"""docker-compose.yml: required settings, profiles, and the limits and privileges of each container."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from app.settings import ROOT, ServerSettings, TritonSettings
from tests.infra import dockerfile
from tests.infra.composed import OURS, PROFILES, compose, services, whole

STAGES = dockerfile.read(ROOT / "infra" / "docker" / "Dockerfile")


# --- what is asked of the one who starts it ---


def test_up_alone_is_the_gpu_host() -> None:
    assert {name for name, service in services().items() if "profiles" not in service} == {
        "backend",
        "triton",
        "prometheus",
    }
    assert {profile for service in services().values() for profile in service.get("profiles", [])} == PROFILES


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_profile_starts_only_with_what_is_always_there(profile: str) -> None:
    there = {name for name, service in services().items() if profile in service.get("profiles", [profile])}
    for name in there:
        assert set(services()[name].get("depends_on", {})) <= there


def test_without_tokens_nothing_starts_and_it_is_said_why(tmp_path: Path) -> None:
    for env in ("", "AUTH_TOKENS=\n"):
        done = compose(tmp_path, env=env)
        assert done.returncode != 0
        assert "AUTH_TOKENS" in done.stderr
        assert "openssl rand" in done.stderr
    missing = compose(tmp_path / "other", env=None)
    assert missing.returncode != 0


def test_the_source_can_be_mounted_over_the_images(tmp_path: Path) -> None:
    files = ("docker-compose.yml", "docker-compose.override.example.yml")
    done = compose(tmp_path, *(word for file in files for word in ("-f", file)))
    assert (done.returncode, done.stderr) == (0, "")
    workdir = dockerfile.image(STAGES, "backend")[1]["WORKDIR"].rest
    for name, service in yaml.safe_load(done.stdout)["services"].items():
        mounted = f"{tmp_path}/app:{workdir}/app:ro" in service.get("volumes", [])
        assert mounted == (name in OURS), name


def test_b5_secrets_are_handed_over_as_files(tmp_path: Path) -> None:
    files = ("docker-compose.yml", "docker-compose.secrets.example.yml")
    done = compose(tmp_path, "--profile=cpu", "--profile=segments", *(word for file in files for word in ("-f", file)))
    assert (done.returncode, done.stderr) == (0, "")
    parsed = yaml.safe_load(done.stdout)
    holders = {name for name, service in parsed["services"].items() if "secrets" in service}
    assert holders == {"backend", "backend-cpu", "segments-worker"}
    for name in holders:
        given = parsed["services"][name]["environment"]
        assert (given["AUTH_TOKENS"], given["AUTH_TOKENS_FILE"]) == ("", "/run/secrets/auth_tokens")
    assert "a-secret" not in str([parsed["services"][name]["environment"] for name in holders])
    assert parsed["secrets"]["auth_tokens"]["file"] == f"{tmp_path}/secrets/auth_tokens"


# --- each container ---


def test_every_container_is_contained() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].split(":")[0]) > 0, name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"]["max-size"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_images_are_pinned_or_built_here() -> None:
    for name, service in services().items():
        if name in OURS:
            assert service["build"]["target"] in STAGES
            assert service["image"] == f"sightline-{service['build']['target']}"
            assert dockerfile.image(STAGES, service["build"]["target"])[1]["USER"].rest == service["user"]
        else:
            assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z0-9]+)?$", service["image"]), name


def test_each_is_watched_and_waits_for_those_it_needs() -> None:
    for name, service in services().items():
        built = service.get("build", {}).get("target")
        assert "healthcheck" in service or "HEALTHCHECK" in dockerfile.image(STAGES, built)[1], name
        for needed in service.get("depends_on", {}).values():
            assert needed == {"condition": "service_healthy"}, name
    assert "triton" in services()["backend"]["depends_on"]
    assert {"redis", "kafka", "triton"} <= set(services()["fleet-worker"]["depends_on"])


def test_stopping_takes_longer_than_draining() -> None:
    server, triton = ServerSettings(), TritonSettings()
    needed = server.drain_timeout_s + 2 * triton.triton_deadline_s + 10
    for name in OURS:
        assert float(services()[name]["stop_grace_period"].removesuffix("s")) > needed, name


def test_what_is_written_outlives_the_container() -> None:
    variables, _ = dockerfile.image(STAGES, "backend")
    for name in ("backend", "backend-cpu", "segments-reassemble"):
        mounts = [str(volume) for volume in services()[name]["volumes"]]
        assert any(mount.endswith(f":{variables['STATE_DIR']}:rw") for mount in mounts), name
        assert services()[name]["environment"]["STATE_DIR"] == variables["STATE_DIR"]
    for name in ("fleet-worker", "fleet-ingest", "segments-worker"):  # hold nothing of their own
        assert any(mount.startswith(f"{variables['STATE_DIR']}:") for mount in services()[name]["tmpfs"]), name
    assert {"state", "prometheus", "kafka"} <= set(whole()["volumes"])
