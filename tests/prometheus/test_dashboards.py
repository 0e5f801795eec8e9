"""The dashboards match their source and are complete enough for Grafana."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
import yaml

from tests.prometheus.expressions import DASHBOARDS, boards, panels
from tests.support.prometheus import SHIPPED

BOARDS = [pytest.param(board, id=board["uid"]) for board in boards()]


def test_the_committed_files_are_what_the_source_builds() -> None:
    command = [sys.executable, str(SHIPPED / "dashboards" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_four_are_there_under_addresses_of_their_own() -> None:
    assert {path.stem: board["uid"] for path, board in zip(DASHBOARDS, boards(), strict=True)} == {
        name: f"sightline-{name}" for name in ("fleet", "inference", "live", "summaries")
    }


@pytest.mark.parametrize("board", BOARDS)
def test_every_panel_says_what_it_shows_and_in_which_unit(board: dict[str, Any]) -> None:
    for panel in panels(board):
        assert panel["title"], panel["id"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("board", BOARDS)
def test_the_source_of_data_is_chosen_above_and_used_by_all(board: dict[str, Any]) -> None:
    first = board["templating"]["list"][0]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    for panel in panels(board):
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


@pytest.mark.parametrize("board", BOARDS)
def test_no_two_panels_lie_on_each_other_and_none_hangs_out(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for first, other in combinations(places, 2):
        apart_x = first["x"] + first["w"] <= other["x"] or other["x"] + other["w"] <= first["x"]
        apart_y = first["y"] + first["h"] <= other["y"] or other["y"] + other["h"] <= first["y"]
        assert apart_x or apart_y, (first, other)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_grafana_is_told_of_prometheus_and_of_the_folder() -> None:
    (source,) = yaml.safe_load((SHIPPED / "grafana" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    scraped = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    (provider,) = yaml.safe_load((SHIPPED / "grafana" / "dashboards" / "sightline.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
