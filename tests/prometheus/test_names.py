"""Every metric, label and label value in an expression exists in the service or in Triton."""

from __future__ import annotations

import ast
from functools import cache

import yaml

from app.settings import ROOT
from tests.docs.tables import metric_objects
from tests.prometheus.expressions import (
    boards,
    everything,
    grouping_labels,
    matchers,
    metric_names,
    panels,
    plain,
    rules,
)
from tests.prometheus.triton_names import DOCUMENTED
from tests.support.prometheus import SHIPPED

BUILT_IN = {"up", "ALERTS"}
TARGET_LABELS = {"job", "instance"}


@cache
def ours() -> dict[str, set[str]]:
    """Labels by the name of a series, as in the text exposition."""
    series: dict[str, set[str]] = {}
    for metric in metric_objects():
        labels, name = set(metric._labelnames), metric._name
        if metric._type == "histogram":
            series |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            series[name + ("_total" if metric._type == "counter" else "")] = labels
    return series


@cache
def literals() -> set[str]:
    """Every string in the code of the service."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "app").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def recorded() -> set[str]:
    return {rule["record"] for rule in rules("record")}


def test_every_name_in_an_expression_exists() -> None:
    known = set(ours()) | set(DOCUMENTED) | recorded() | BUILT_IN
    for where, expression in everything().items():
        names = metric_names(expression)
        assert names, where
        assert names <= known, f"{where}: {names - known}"


def test_every_label_that_is_matched_or_grouped_by_exists() -> None:
    for where, expression in everything().items():
        labels = set(TARGET_LABELS)
        for name in metric_names(expression):
            labels |= ours().get(name, set()) | set(DOCUMENTED.get(name, ())) | _kept(name)
        used = {label for metric, label, _ in matchers(expression) if metric not in BUILT_IN}
        used |= grouping_labels(expression)
        assert used <= labels, f"{where}: {used - labels}"


def _kept(name: str) -> set[str]:
    """Labels that a recorded name says are kept: `entry_reason:…`, `gpu_uuid:…`."""
    first = name.split(":")[0] if ":" in name else ""
    return {label for labels in (*ours().values(), *DOCUMENTED.values()) for label in labels if label in first}


def test_every_value_that_a_label_is_compared_with_is_one_that_the_code_writes() -> None:
    for where, expression in everything().items():
        for metric, label, values in matchers(expression):
            if metric in BUILT_IN or label in TARGET_LABELS:
                continue
            assert set(values) <= literals(), f"{where}: {label}: {set(values) - literals()}"


def test_every_job_that_is_named_is_scraped() -> None:
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    named = {
        job_name
        for text in everything().values()
        for _, label, values in matchers(text)
        if label == "job"
        for job_name in values
    }
    assert named
    assert named <= jobs


def test_every_metric_of_ours_is_on_a_dashboard_or_in_the_readme() -> None:
    shown = {plain(target["expr"]) for board in boards() for panel in panels(board) for target in panel["targets"]}
    behind = {rule["record"]: plain(rule["expr"]) for rule in rules("record")}
    names = {name for expression in shown for name in metric_names(expression)}
    while (
        more := {metric_name for name in names if name in behind for metric_name in metric_names(behind[name])} - names
    ):
        names |= more
    readme = (ROOT / "README.md").read_text()
    for metric in metric_objects():
        series = {name for name in ours() if name.startswith(metric._name)}
        in_readme = f"| `{metric._name}{'_total' if metric._type == 'counter' else ''}` |" in readme
        assert series & names or in_readme, metric._name
