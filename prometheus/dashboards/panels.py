"""Builds dashboards as Grafana's classic dashboard JSON (schema version 41, Grafana 12).

A dashboard consists of rows of panels. Their order determines their positions on Grafana's grid of 24 columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

COLUMNS = 24
SCHEMA_VERSION = 41
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
FPS = "suffix: frames/s"
"""A custom unit, because Grafana has none for frames."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph over time, or the last value as a large number: orange from `warn` on, red from `bad` on."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 12
    stacked: bool = False
    most: float | None = None
    warn: float | None = None
    bad: float | None = None

    @property
    def height(self) -> int:
        return 8 if self.kind == "timeseries" else 4


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A drop-down above the panels, with the values of a metric's label."""

    label: str
    metric: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()


def graph(
    title: str, unit: str, description: str, *queries: tuple[str, str], stacked: bool = False, most: float | None = None
) -> Panel:
    """Lines over time, half a page wide. Queries are (expression, legend)."""
    return Panel(title, description, unit, _queries(queries), stacked=stacked, most=most)


def figure(
    title: str,
    unit: str,
    description: str,
    *queries: tuple[str, str],
    warn: float | None = None,
    bad: float | None = None,
) -> Panel:
    """The last value as a large number, a sixth of a page wide."""
    return Panel(title, description, unit, _queries(queries), kind="stat", width=4, warn=warn, bad=bad)


def row(title: str, *panels: Panel) -> Row:
    return Row(title, panels)


def _queries(pairs: Iterable[tuple[str, str]]) -> tuple[Query, ...]:
    return tuple(Query(expr, legend) for expr, legend in pairs)


def render(board: Dashboard) -> Json:
    """The dashboard as Grafana reads it from a file."""
    return {
        "uid": f"sightline-{board.name.lower()}",
        "title": f"Sightline / {board.name}",
        "description": board.description,
        "tags": ["sightline"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "Sightline",
                "tags": ["sightline"],
                "asDropdown": False,
                "includeVars": False,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "annotations": {"list": []},
        "templating": {"list": [_source(), *map(_variable, board.variables)]},
        "panels": list(_lay_out(board.rows)),
    }


def _source() -> Json:
    return {
        "name": "datasource",
        "label": "Source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.label})"
    return {
        "name": variable.label,
        "label": variable.label.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "A"},
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "options": [],
        "refresh": 2,
        "regex": "",
        "sort": 1,
    }


def _lay_out(rows: Sequence[Row]) -> Iterable[Json]:
    ids, y = count(1), 0
    for row_of_panels in rows:
        yield {
            "id": next(ids),
            "type": "row",
            "title": row_of_panels.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        y += 1
        x = tallest = 0
        for panel in row_of_panels.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            yield _panel(panel, next(ids), {"x": x, "y": y, "w": panel.width, "h": panel.height})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(query, index) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


def _target(query: Query, index: int) -> Json:
    return {
        "refId": "ABCDEFGH"[index],
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "range": True,
        "instant": False,
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    steps += [{"color": "orange", "value": panel.warn}] if panel.warn is not None else []
    steps += [{"color": "red", "value": panel.bad}] if panel.bad is not None else []
    defaults: Json = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["color"] = {"mode": "palette-classic"}
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    else:
        defaults["color"] = {"mode": "thresholds"}
    return defaults


_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    },
}
