"""promtool accepts every file, and its unit tests pass; each alert has a test that fires and one that does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import ROOT, VARIABLES
from tests.prometheus.expressions import PROMTOOL_TESTS, cases, plain, rules
from tests.support.prometheus import SHIPPED, promtool

ALERTS = [pytest.param(rule, id=rule["alert"]) for rule in rules("alert")]
TRITON_METRICS_PORT = 8002
"""Triton's default."""
SETTINGS = set(VARIABLES)


def firing(name: str) -> str:
    return plain(f'ALERTS{{alertname="{name}", alertstate="firing"}}')


def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    said = promtool("check", "rules", "recording.yml", "alerts.yml")
    assert said.count("SUCCESS") == 2, said


def test_targets_are_services_of_docker_compose_on_the_ports_they_have_there() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for job in yaml.safe_load((SHIPPED / "prometheus.yml").read_text())["scrape_configs"]:
        (host, port) = _address(job)
        assert host == job["job_name"]
        environment = services[host].get("environment", {})
        own = environment.get("METRICS_PORT") or environment.get("PORT") or TRITON_METRICS_PORT
        assert port == int(own), host


def _address(job: dict[str, Any]) -> tuple[str, int]:
    """The one address of a job, fixed or looked up."""
    if "static_configs" in job:
        host, _, port = job["static_configs"][0]["targets"][0].partition(":")
        return host, int(port)
    (lookup,) = job["dns_sd_configs"]
    assert lookup["type"] == "A"
    return lookup["names"][0], lookup["port"]


@pytest.mark.parametrize("path", PROMTOOL_TESTS, ids=lambda path: path.stem)
def test_promtool_passes_the_unit_tests(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


def test_unit_tests_load_the_shipped_rules() -> None:
    for path in PROMTOOL_TESTS:
        assert yaml.safe_load(path.read_text())["rule_files"] == ["../recording.yml", "../alerts.yml"], path.name


@pytest.mark.parametrize("rule", ALERTS)
def test_every_alert_is_shown_firing_and_not_firing(rule: dict[str, Any]) -> None:
    shown = [case.samples for case in cases() if case.expression == firing(rule["alert"])]
    assert any(shown), "no unit test in which it fires"
    assert not all(shown), "no unit test in which it does not"


@pytest.mark.parametrize("rule", ALERTS)
def test_every_alert_tells_who_is_woken_what_to_do_first(rule: dict[str, Any]) -> None:
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description"}
    assert "First: " in notes["description"]
    for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", notes["description"]):
        assert name in SETTINGS, f"names {name}, which is no setting"


@pytest.mark.parametrize("rule", ALERTS)
def test_labels_that_a_text_names_are_labels_of_the_alert(rule: dict[str, Any]) -> None:
    named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    samples = [sample for case in cases() if case.expression == firing(rule["alert"]) for sample in case.samples]
    for sample in samples:
        assert named <= set(re.findall(r"(\w+)=", sample)), sample


def test_the_runbook_has_every_alert_with_its_severity() -> None:
    rows = re.findall(r"^\| `(Sightline\w+)` \| (\w+) \|", (SHIPPED / "README.md").read_text(), re.M)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in rules("alert")]
