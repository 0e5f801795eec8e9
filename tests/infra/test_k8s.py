"""The Kubernetes manifests: every reference exists, related values agree, and each pod has minimal privileges."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import app
from app.settings import ROOT, SECTIONS, VARIABLES, Settings
from tests.support.redis import require_program

FOLDER = ROOT / "infra" / "k8s"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
SETTINGS = set(VARIABLES)
DEPLOYMENTS = ("fleet-worker", "fleet-ingest", "triton")


def find(kind: str, name: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in OBJECTS if manifest["kind"] == kind and manifest["metadata"]["name"] == name]
    return found


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = find("Deployment", name)["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    (found,) = pod(name)["containers"]
    return dict(found)


def settings_map() -> dict[str, str]:
    (generator,) = KUSTOMIZATION["configMapGenerator"]
    assert generator["name"] == "fleet-settings"
    return dict(line.split("=", 1) for line in generator["literals"])


def words(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from words(inner)
    else:
        yield str(value)


def test_the_kustomization_lists_every_file() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == {"kustomization.yaml", *KUSTOMIZATION["resources"]}
    dashboards = yaml.safe_load((FOLDER / "dashboards" / "kustomization.yaml").read_text())
    (generator,) = dashboards["configMapGenerator"]
    listed = {(FOLDER / "dashboards" / name).resolve() for name in generator["files"]}
    assert listed == set((ROOT / "prometheus" / "dashboards").glob("*.json"))


def test_every_deployment_is_there() -> None:
    assert {manifest["metadata"]["name"] for manifest in OBJECTS if manifest["kind"] == "Deployment"} == set(
        DEPLOYMENTS
    )


def test_every_variable_is_a_setting_and_its_value_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(settings_map()) <= SETTINGS
    for name, value in settings_map().items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.triton.triton_url == "triton:8001"
    assert settings.server.host == "0.0.0.0"  # probes and Prometheus come from outside the pod


def test_no_secret_is_in_the_files() -> None:
    secrets = {
        name.upper()
        for section in SECTIONS
        for name, field in section.model_fields.items()
        if "Secret" in str(field.annotation)
    }
    assert secrets.isdisjoint(settings_map())
    assert not [manifest for manifest in OBJECTS if manifest["kind"] == "Secret"]
    for name in ("fleet-worker", "fleet-ingest"):
        assert {"secretRef": {"name": "fleet-secrets"}} in container(name)["envFrom"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_selectors_find_the_pods(name: str) -> None:
    spec = find("Deployment", name)["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_the_budget_the_service_and_the_scaling_find_what_they_are_for() -> None:
    def labels(name: str) -> Any:
        return find("Deployment", name)["spec"]["template"]["metadata"]["labels"]

    assert find("PodDisruptionBudget", "fleet-worker")["spec"]["selector"]["matchLabels"] == labels("fleet-worker")
    service = find("Service", "triton")["spec"]
    assert service["selector"] == labels("triton")
    ports = {port["name"]: port["containerPort"] for port in container("triton")["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    host, _, port = settings_map()["TRITON_URL"].partition(":")
    assert (host, int(port)) == ("triton", ports["grpc"])
    assert find("ScaledObject", "fleet-worker")["spec"]["scaleTargetRef"] == {"name": "fleet-worker"}
    assert "replicas" not in find("Deployment", "fleet-worker")["spec"]  # KEDA's to say


def test_images_are_pinned_and_those_of_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert container("triton")["image"] == compose["triton"]["image"]
    (ours,) = KUSTOMIZATION["images"]
    assert ours["newTag"] == app.__version__
    assert ours["newName"] == compose["fleet-worker"]["image"].partition(":")[0]
    for name in ("fleet-worker", "fleet-ingest"):
        assert container(name)["image"] == ours["name"]
        assert container(name)["args"] == compose[name]["command"]
    assert container("triton")["command"] == compose["triton"]["command"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_resources_are_asked_for_and_bounded(name: str) -> None:
    resources = container(name)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert "memory" in resources["limits"]
    assert ("nvidia.com/gpu" in resources["limits"]) == (name == "triton")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_nobody_gets_more_than_it_needs(name: str) -> None:
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    security = pod(name)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 1000  # of the image
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(name)["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostPath"} & set(words(pod(name)))


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_what_is_written_is_on_a_volume(name: str) -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in container(name)["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod(name)["volumes"]}
    assert "/tmp" in mounts
    if name != "triton":
        assert settings_map()["STATE_DIR"] in mounts


@pytest.mark.parametrize("name", ["fleet-worker", "fleet-ingest"])
def test_probes_and_prometheus_ask_where_metrics_port_listens(name: str) -> None:
    (port,) = container(name)["ports"]
    assert port == {"name": "metrics", "containerPort": int(settings_map()["METRICS_PORT"])}
    probes = {kind: container(name)[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {kind: (probe["path"], probe["port"]) for kind, probe in probes.items()} == {
        "startupProbe": ("/health", "metrics"),
        "livenessProbe": ("/health/live", "metrics"),
        "readinessProbe": ("/health/ready", "metrics"),
    }
    annotations = find("Deployment", name)["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/port"] == settings_map()["METRICS_PORT"]


def test_a_worker_is_given_the_time_to_finish() -> None:
    assert pod("fleet-worker")["terminationGracePeriodSeconds"] > 2 * Settings().server.drain_timeout_s


def test_one_ingest_at_a_time() -> None:
    spec = find("Deployment", "fleet-ingest")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_scaling_asks_for_metrics_that_there_are() -> None:
    declared = (ROOT / "app" / "metrics.py").read_text()
    triggers = find("ScaledObject", "fleet-worker")["spec"]["triggers"]
    assert {trigger["type"] for trigger in triggers} == {"prometheus"}
    for trigger in triggers:
        names = re.findall(r"sightline_\w+", trigger["metadata"]["query"])
        assert names
        assert all(f'"{name}"' in declared for name in names)
        assert float(trigger["metadata"]["threshold"]) > 0


def test_scaling_queries_are_promql(tmp_path: Path) -> None:
    require_program("promtool", "prometheus")
    triggers = find("ScaledObject", "fleet-worker")["spec"]["triggers"]
    rules = [
        {"record": "asked", "labels": {"by": trigger["name"]}, "expr": trigger["metadata"]["query"]}
        for trigger in triggers
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "scaling", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "dashboards"])
def test_kustomize_renders_it(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is missing: the manifests are not rendered by it")
    render = ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(folder)]
    done = subprocess.run(render, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    if folder == FOLDER:
        images = {found["image"] for item in objects if item["kind"] == "Deployment" for found in _containers(item)}
        assert all(re.search(r":\d", image) for image in images)
        (settings,) = [item["metadata"]["name"] for item in objects if item["kind"] == "ConfigMap"]
        assert {settings} == {
            ref["configMapRef"]["name"]
            for item in objects
            if item["kind"] == "Deployment"
            for found in _containers(item)
            for ref in found.get("envFrom", [])
            if "configMapRef" in ref
        }
    else:
        assert all(json.loads(text)["panels"] for text in objects[0]["data"].values())


def _containers(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deployment["spec"]["template"]["spec"]["containers"]
    return found
