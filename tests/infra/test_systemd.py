"""The systemd unit and the start-up script: systemd accepts the unit, and the script waits for what it needs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import ROOT, ServerSettings
from tests.support.redis import require_program

UNIT = ROOT / "infra" / "systemd" / "inference-compose.service.example"
SCRIPT = ROOT / "infra" / "boot" / "before-compose.sh"
INSTALLED = "/opt/sightline"
"""Where the README has the repository put."""


def setting(name: str) -> str:
    """The value of one key of the unit."""
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)
    return str(value)


def seconds(text: str) -> float:
    """systemd's and compose's way of writing a time span: `150s`, `15min`, `1m30s`."""
    units = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([a-z]*)", text))


def verified(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """The output of `systemd-analyze verify` for the unit, with a stand-in for Docker's unit."""
    unit = folder / "inference-compose.service"
    unit.write_text(text)
    (folder / "docker.service").write_text("[Unit]\nDescription=Docker\n[Service]\nExecStart=/bin/true\n")
    command = ["systemd-analyze", "--man=no", "--recursive-errors=yes", "verify", str(unit)]
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def unit() -> str:
    """The unit with the paths of this machine, where neither Docker nor an installed copy need be."""
    require_program("systemd-analyze", "systemd")
    return UNIT.read_text().replace("/usr/bin/docker", "/bin/true").replace(INSTALLED, str(ROOT))


def test_systemd_finds_nothing_wrong(unit: str, tmp_path: Path) -> None:
    done = verified(tmp_path, unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_have_found_something(unit: str, tmp_path: Path) -> None:
    assert "Unknown key" in verified(tmp_path, unit.replace("RestartSec=", "RestartAfter=")).stderr
    assert verified(tmp_path, unit.replace("on-failure", "always")).returncode != 0


def test_it_starts_after_docker_and_stops_before_it() -> None:
    assert {"docker.service", "nginx.service"} <= set(setting("After").split())
    assert setting("Requires") == "docker.service"
    assert setting("WantedBy") == "multi-user.target"


def test_a_start_pulls_and_builds_nothing_and_waits_for_health() -> None:
    for name in ("ExecStart", "ExecReload"):
        command = setting(name).split()
        assert command[:4] == ["/usr/bin/docker", "compose", "up", "--detach"]
        assert {"--wait", "--no-build"} < set(command)
        assert command[command.index("--pull") + 1] == "never"
        assert command[-1] == "$SIGHTLINE_SERVICES"  # nothing, or several words


def test_a_stop_leaves_every_container_its_grace_period() -> None:
    command = setting("ExecStop").split()
    assert command == ["/usr/bin/docker", "compose", "--profile", '"*"', "stop"]  # --timeout would cut them short
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    periods = {name: seconds(str(service.get("stop_grace_period", "10s"))) for name, service in services.items()}

    def stopping(name: str) -> float:
        """Longest time to stop a service: compose stops all services at once, but a dependency after its dependents."""
        needed_by = [other for other, service in services.items() if name in service.get("depends_on", ())]
        return periods[name] + max(map(stopping, needed_by), default=0.0)

    assert seconds(setting("TimeoutStopSec")) > max(map(stopping, services))
    assert periods["backend"] > ServerSettings.model_fields["drain_timeout_s"].default


def test_what_it_runs_is_in_the_repository() -> None:
    script = ROOT / setting("ExecStartPre").removeprefix(f"{INSTALLED}/")
    assert script == SCRIPT
    assert os.access(SCRIPT, os.X_OK)
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


class Machine:
    """A machine whose `docker` and `nvidia-smi` are scripts of the test's own: neither runs on those that test this."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.calls = folder / "calls"
        self.calls.touch()

    def program(self, name: str, body: str) -> None:
        path = self._folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>{self.calls}\ncd {self._folder}\n{body}\n')
        path.chmod(0o755)

    def boot(self, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self._folder}:/usr/bin:/bin", "DOCKER_WAIT_S": "30", "GPU_WAIT_S": "30", **variables}
        return subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60)


DOCKER = """
case "$1 $2" in
    "info ") exit 0 ;;
    "compose config") printf 'sightline/backend:1\\ntriton:2\\n' ;;
    "image inspect") [[ ! -e absent || $3 != "$(cat absent)" ]] ;;
    *) echo "unexpected: $*" >&2; exit 1 ;;
esac"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.program("docker", DOCKER)
    made.program("nvidia-smi", "exit 0")
    return made


def test_a_machine_that_is_ready_is_left_alone(machine: Machine) -> None:
    done = machine.boot()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "nvidia-smi --list-gpus" in machine.calls.read_text()


def test_it_waits_for_docker_and_for_the_driver(machine: Machine, tmp_path: Path) -> None:
    late = "[[ -e asked ]] || { touch asked; exit 1; }"
    machine.program("docker", f"[[ $1 != info || -e asked ]] || {{ touch asked; exit 1; }}\n{DOCKER}")
    machine.program("nvidia-smi", late.replace("asked", "asked-gpu"))
    assert machine.boot().returncode == 0
    calls = machine.calls.read_text().splitlines()
    assert calls.count("docker info") == 2
    assert calls.count("nvidia-smi --list-gpus") == 2


@pytest.mark.parametrize(
    ("broken", "said"),
    [("docker", "Docker did not answer within 0 s"), ("nvidia-smi", "no GPU within 0 s")],
)
def test_a_dependency_that_never_comes_is_named(machine: Machine, broken: str, said: str) -> None:
    machine.program(broken, "exit 1")
    done = machine.boot(DOCKER_WAIT_S="0", GPU_WAIT_S="0")
    assert done.returncode == 1
    assert done.stderr.startswith(said)


def test_without_a_gpu_nobody_waits_for_one(machine: Machine) -> None:
    machine.program("nvidia-smi", "exit 1")
    assert machine.boot(SIGHTLINE_SERVICES="backend-cpu prometheus").returncode == 0
    calls = machine.calls.read_text()
    assert "nvidia-smi" not in calls
    assert "docker compose config --images backend-cpu prometheus\n" in calls


def test_what_compose_has_against_its_file_is_passed_on(machine: Machine) -> None:
    machine.program("docker", '[[ $1 = info ]] || { echo "put AUTH_TOKENS into .env" >&2; exit 15; }')
    done = machine.boot()
    assert done.returncode != 0
    assert done.stderr == "put AUTH_TOKENS into .env\n"


def test_a_missing_image_is_named_and_not_fetched(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "absent").write_text("triton:2")
    done = machine.boot()
    assert done.returncode == 1
    assert done.stderr.startswith("not on this machine: triton:2; run ")
    assert not re.search(r"pull|build", machine.calls.read_text())
