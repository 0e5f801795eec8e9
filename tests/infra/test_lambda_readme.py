"""The README's cost table follows from its own formula, and names what the template has."""

from __future__ import annotations

import re

import yaml

from app.settings import ROOT

README = (ROOT / "infra" / "README.md").read_text()


def test_every_row_of_the_cost_table_follows_from_the_formula() -> None:
    formula = re.search(r"cost = ([\d.]+) × hours on \+ ([\d.]+) × GB of disk \+ ([\d.]+) × (\d+)", README)
    overhead = re.search(r"hours used \+ starts × \(([\d.]+) \+ ([\d.]+) \+ ([\d.]+)\) / 60", README)
    disk = re.search(r"With a disk of (\d+) GB", README)
    assert formula
    assert overhead
    assert disk
    hour, gigabyte, address, month = map(float, formula.groups())
    fixed = gigabyte * float(disk[1]) + address * month
    rows = re.findall(
        r"^\| [^|]+ \| (\d+) \| (\d+|–) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|$", README, re.M
    )
    assert len(rows) == 5
    for used, starts, on, machine, rest, total in rows:
        wakes = 0 if starts == "–" else int(starts)
        hours = float(used) + wakes * sum(map(float, overhead.groups())) / 60
        assert abs(float(on) - hours) <= 0.051
        assert abs(float(machine) - hour * hours) <= 0.0051
        assert float(rest) == round(fixed, 2)
        assert abs(float(total) - hour * hours - fixed) <= 0.0051


def test_parameters_and_outputs_that_the_readme_names_exist() -> None:
    text = (ROOT / "infra" / "template.yaml").read_text()
    tree = yaml.compose(text)
    assert isinstance(tree, yaml.MappingNode)
    maps = {key.value: node for key, node in tree.value if isinstance(node, yaml.MappingNode)}
    sections = {section: {name.value for name, _ in node.value} for section, node in maps.items()}
    named = set(re.findall(r"`([A-Z][a-z]+[A-Z][A-Za-z]+)(?:=\w+)?`", README))
    known = sections["Parameters"] | sections["Outputs"] | sections["Resources"] | {"ActiveSessions"}
    assert named - known <= {"Maximum"}
    assert {"IdleMinutes", "StartTokens", "StartServerUrl"} <= named
