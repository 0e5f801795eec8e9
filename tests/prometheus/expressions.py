"""Every expression of the shipped dashboards and rules, and the promtool tests' expectations of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tests.support.prometheus import SHIPPED

DASHBOARDS = sorted((SHIPPED / "dashboards").glob("*.json"))
PROMTOOL_TESTS = sorted((SHIPPED / "tests").glob("*.yml"))
_VARIABLES = {"$__rate_interval": "5m", "$entry": ".+"}
"""What Grafana puts in."""
_WORDS = {
    *("and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"),
    *("inf", "nan"),
}
_LABEL_LISTS = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"
_SELECTOR = r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}"
_MATCHER = r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"'


def plain(expression: str) -> str:
    """With Grafana's variables filled in and white space evened out, so that two spellings compare."""
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return re.sub(r"\s*([(){}\[\],])\s*", r"\1", " ".join(expression.split()))


@cache
def boards() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(path.read_text()) for path in DASHBOARDS)


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The board's panels except rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def panel_expressions() -> dict[str, str]:
    """The panels' expressions by their place: dashboard and title."""
    return {
        f"{board['title']} / {panel['id']} {panel['title']} / {target['refId']}": plain(target["expr"])
        for board in boards()
        for panel in panels(board)
        for target in panel["targets"]
    }


@cache
def rules(kind: str) -> tuple[dict[str, Any], ...]:
    """All rules of a kind, `record` or `alert`."""
    files = ("recording.yml", "alerts.yml")
    groups = [group for name in files for group in yaml.safe_load((SHIPPED / name).read_text())["groups"]]
    return tuple(rule for group in groups for rule in group["rules"] if kind in rule)


def everything() -> dict[str, str]:
    """The expressions of panels and rules by their place."""
    stated = {f"record {rule['record']}": plain(rule["expr"]) for rule in rules("record")}
    stated |= {f"alert {rule['alert']}": plain(rule["expr"]) for rule in rules("alert")}
    return panel_expressions() | stated


@dataclass(frozen=True)
class Case:
    """One expectation of a promtool test."""

    expression: str
    samples: tuple[str, ...]
    """Expected series, as written."""


@cache
def cases() -> tuple[Case, ...]:
    """The expectations of all promtool tests. `test_files.py` runs the files themselves with promtool."""
    groups = [group for path in PROMTOOL_TESTS for group in yaml.safe_load(path.read_text())["tests"]]
    return tuple(
        Case(plain(case["expr"]), tuple(sample["labels"] for sample in case["exp_samples"]))
        for group in groups
        for case in group["promql_expr_test"]
    )


def proven() -> set[str]:
    """Expressions that give something in a promtool test, and recorded names that do: their rule's expression, too."""
    found = {case.expression for case in cases() if case.samples}
    return found | {plain(rule["expr"]) for rule in rules("record") if rule["record"] in found}


def metric_names(expression: str) -> set[str]:
    """The names of the series that an expression reads."""
    rest = re.sub(r'"[^"]*"', "", expression)
    rest = re.sub(_LABEL_LISTS, " ", rest)
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", rest)
    rest = re.sub(r"\boffset\s+\w+", "", rest)
    names = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", rest)
    return {name for name in names if name.lower() not in _WORDS}


def matchers(expression: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Metric, label and the values named, for each matcher; a pattern's alternatives apart, wildcards left out."""
    for metric, inside in re.findall(_SELECTOR, expression):
        for label, _, value in re.findall(_MATCHER, inside):
            yield (
                metric,
                label,
                tuple(alternative for alternative in value.split("|") if not re.search(r"[.+*]", alternative)),
            )


def grouping_labels(expression: str) -> set[str]:
    """Labels in `by (…)` and the like."""
    lists: Iterable[str] = re.findall(_LABEL_LISTS, expression)
    return {label.strip() for listed in lists for label in listed.split(",") if label.strip()}
