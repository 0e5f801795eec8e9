"""docker-compose.yml agrees with the settings, commands, nginx, Prometheus, Triton, Redis and Kafka it names."""

from __future__ import annotations

import http.server
import ipaddress
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from app.settings import ROOT, VARIABLES, Settings
from tests.infra.composed import OURS, Service, services, whole
from tests.support import forks
from tests.support.kafka import JarsMissing, jars
from tests.support.nginx import free_ports, require

NO_SETTINGS = {"FORWARDED_ALLOW_IPS", "TMPDIR"}
"""Uvicorn's, and Python's."""
COMMANDS = ("fleet-worker", "fleet-ingest", "segments-worker", "segments-reassemble")


# --- settings and commands ---


@pytest.mark.parametrize("name", OURS)
def test_the_settings_exist_and_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(VARIABLES)
    given = services()[name]["environment"]
    assert set(given) <= known | NO_SETTINGS
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.server.host == "0.0.0.0"
    assert settings.triton.triton_url == ("triton:8001" if given.get("TRITON_URL") else None)
    if name.startswith("backend"):
        assert [token.get_secret_value() for token in settings.access.auth_tokens] == ["a-secret"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_knows_the_command(name: str) -> None:
    done = forks.run(*services()[name]["command"], "--help")
    assert done.returncode == 0, done.stderr


def test_films_are_analysed_by_the_service_unless_something_else_is_said() -> None:
    worker, service = services()["segments-worker"]["environment"], services()["backend"]["environment"]
    assert worker["INFERENCE_BACKEND"] == "http"
    assert worker["INFERENCE_HTTP_URL"] == f"http://backend:{service['PORT']}"
    assembling = services()["segments-reassemble"]
    assert f"segments:{assembling['environment']['TMPDIR']}:rw" in assembling["volumes"]


def test_the_health_checks_tell_well_from_ill() -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/health", "/v2/health/ready") else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        well, port = {}, server.server_port
        ours = [sys.executable, str(ROOT / "infra" / "docker" / "healthcheck.py")]
        triton = [sys.executable, *services()["triton"]["healthcheck"]["test"][2:]]
        for name in COMMANDS:
            service = services()[name]
            assert (
                service["healthcheck"]["test"][3] == f":{service['environment']['METRICS_PORT']}/health"
            )  # 503 where it hangs
        for path in ("/health", "/health/live", "/v2/health/ready"):
            well[path] = subprocess.run([*ours, f":{port}{path}"], check=False).returncode == 0
        assert subprocess.run([word.replace("8000", str(port)) for word in triton], check=False).returncode == 0
        ill = [word.replace("8000", str(port)).replace("/ready", "/unready") for word in triton]
        assert subprocess.run(ill, stderr=subprocess.DEVNULL, check=False).returncode != 0
        server.shutdown()
        thread.join()
    assert well == {"/health": True, "/health/live": False, "/v2/health/ready": True}
    gone = subprocess.run([*ours, f":{port}/health"], capture_output=True, text=True, check=False)
    assert (gone.returncode, gone.stderr) == (1, "")
    assert "refused" in gone.stdout


# --- one with another ---


def test_nginx_and_the_service_find_and_trust_each_other() -> None:
    nginx = (ROOT / "nginx" / "backend.conf").read_text()
    (address,) = re.findall(r"^\s*server (127\.0\.0\.1:\d+);", nginx, re.M)
    (network,) = whole()["networks"]["default"]["ipam"]["config"]
    for name in ("backend", "backend-cpu"):
        service = services()[name]
        assert service["ports"] == [f"{address}:{service['environment']['PORT']}/tcp"]
        # Docker passes on what comes to a published port of loopback from the gateway's address.
        assert service["environment"]["FORWARDED_ALLOW_IPS"] == network["gateway"]
    assert ipaddress.ip_address(network["gateway"]) in ipaddress.ip_network(network["subnet"])


def test_memory_is_shared_with_triton_and_with_nobody_else() -> None:
    def shares(service: Service) -> bool:
        return any(
            isinstance(v, dict) and (v["source"], v["target"]) == ("shm", "/dev/shm") for v in service["volumes"]
        )

    asks = {name for name in OURS if services()[name]["environment"].get("TRITON_URL") and name != "fleet-ingest"}
    sharing = {name for name, service in services().items() if shares({"volumes": [], **service})}
    assert sharing == asks | {"triton"}
    assert {services()[name]["user"] for name in sharing} == {"1000:1000"}  # regions are their owner's alone
    options = dict(word.partition("=")[::2] for word in whole()["volumes"]["shm"]["driver_opts"]["o"].split(","))
    assert (options["uid"], options["mode"], options["size"]) == ("1000", "0700", "1g")


def test_prometheus_targets_are_services_of_the_network() -> None:
    names = set(services()) | {"alertmanager"}
    for service in services().values():
        names |= {alias for net in (service.get("networks") or {}).values() if net for alias in net.get("aliases", [])}
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    asked = {}
    for job in config["scrape_configs"]:
        for target in (target for group in job.get("static_configs", []) for target in group["targets"]):
            name, _, port = target.partition(":")
            asked[name] = int(port)
        for group in job.get("dns_sd_configs", []):
            asked |= dict.fromkeys(group["names"], group["port"])
    assert set(asked) <= names
    assert asked["backend"] == int(services()["backend"]["environment"]["PORT"])
    for name in COMMANDS:
        assert asked[name] == int(services()[name]["environment"]["METRICS_PORT"])


def test_what_is_mounted_is_in_the_repository() -> None:
    raw = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = listing.stdout.splitlines()
    mounted = {
        str(v).split(":")[0] for service in raw.values() for v in service.get("volumes", []) if str(v).startswith("./")
    }
    assert mounted >= {"./triton", "./prometheus"}
    for folder in mounted:  # Docker would make a missing one, as root, and nobody could write there
        assert any(file.startswith(f"{folder[2:]}/") for file in files), folder


def test_triton_has_a_gpu_and_the_engines_command() -> None:
    (device,) = services()["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    program = services()["triton"]["command"][1]
    assert (ROOT / "triton" / Path(program).relative_to("/srv/triton")).is_file()
    said = subprocess.run(
        [sys.executable, str(ROOT / "triton" / "engine.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "serve" in said.stdout


# --- the programs of others take what they are given ---


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[list[str]]:
    """A client of a redis-server that was started by compose's own command."""
    program, *arguments = services()["redis"]["command"]
    (port,) = free_ports(1)
    bound = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    process = subprocess.Popen([require(program), *arguments, *bound], stdout=subprocess.DEVNULL)
    client = [require("redis-cli"), "-p", str(port)]
    deadline = time.monotonic() + 20
    try:
        while subprocess.run([*client, "ping"], capture_output=True, check=False).stdout != b"PONG\n":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield client
    finally:
        process.terminate()
        process.wait(20)


def test_redis_keeps_frames_in_memory_within_its_limit(redis: list[str], tmp_path: Path) -> None:
    for name, value in {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}.items():
        answer = subprocess.run([*redis, "config", "get", name], capture_output=True, text=True, check=True)
        assert answer.stdout.splitlines() == [name, value]
    subprocess.run([*redis, "set", "a", "b"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*redis, "shutdown"], check=False)
    assert list(tmp_path.iterdir()) == []
    service = services()["redis"]
    limit = service["command"][service["command"].index("--maxmemory") + 1]
    assert (limit, service["mem_limit"]) == ("1gb", "1536m")  # room for what Redis needs beside the data


def test_kafka_makes_a_broker_of_its_variables(tmp_path: Path) -> None:
    try:
        classpath = f"{jars()}/*"
    except JarsMissing as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    version = re.search(r"<artifactId>kafka_[^<]*</artifactId>\s*<version>([^<]+)<", _pom())
    assert version is not None
    kafka = services()["kafka"]
    assert kafka["image"] == f"apache/kafka:{version[1]}"  # the release that the fleet is tested with
    for folder in ("defaults", "mounted", "final"):
        (tmp_path / folder).mkdir()
    (tmp_path / "defaults" / "server.properties").touch()
    for name in ("log4j2.yaml", "tools-log4j2.yaml"):
        (tmp_path / "defaults" / name).write_text("Configuration:\n  Loggers:\n    Root: {level: INFO}\n")
    data = tmp_path / "data"
    variables = {**kafka["environment"], "KAFKA_LOG_DIRS": str(data)}
    variables |= {"PATH": os.environ["PATH"], "CLUSTER_ID": "5L6g3nShT-eMCtK--X86sw"}  # the image's own
    setup = ["java", "-Xmx128m", "-cp", classpath, "kafka.docker.KafkaDockerWrapper", "setup"]
    where = ("--default-configs-dir", "defaults", "--mounted-configs-dir", "mounted", "--final-configs-dir", "final")
    done = subprocess.run([*setup, *where], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (data / "meta.properties").is_file()  # formatted by what it made of them
    written = (tmp_path / "final" / "server.properties").read_text().splitlines()
    assert "advertised.listeners=PLAINTEXT://kafka:9092" in written
    assert services()["fleet-worker"]["environment"]["KAFKA_BOOTSTRAP_SERVERS"] == "kafka:9092"
    mounts = [str(volume).split(":") for volume in kafka["volumes"]]
    assert kafka["environment"]["KAFKA_LOG_DIRS"] in [mount[1] for mount in mounts]


def _pom() -> str:
    return (ROOT / "tests" / "kafka" / "pom.xml").read_text()
