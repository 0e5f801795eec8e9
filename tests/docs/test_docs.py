"""The documents say what the code says."""

from __future__ import annotations

import re
import subprocess

import pytest

from app.settings import ROOT, SECRETS, SECTIONS, VARIABLES
from tests.docs.tables import TABLES, fill, metric_objects

README = ROOT / "README.md"


def test_the_readme_holds_every_table_as_the_code_has_it() -> None:
    text = README.read_text()
    assert re.findall(r"<!-- table: (\w+) -->", text) == ["client", "server", "result", "settings", "metrics"]
    assert set(TABLES) == {"client", "server", "result", "settings", "metrics"}
    assert fill(text) == text, "run `make docs`"


def test_every_setting_and_metric_has_a_description() -> None:
    missing = [n for section in SECTIONS for n, field in section.model_fields.items() if not field.description]
    assert missing == []
    assert [metric._name for metric in metric_objects() if not metric._documentation] == []


def test_variables_named_in_the_texts_exist() -> None:
    known = set(VARIABLES)
    known |= {f"{name}_FILE" for name in SECRETS}
    others = {"SIGHTLINE_TOKEN", "SIGHTLINE_TOKEN_FILE"}  # the command line's own
    for path in (README, ROOT / "ARCHITECTURE.md"):
        for name in re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", path.read_text()):
            assert name in known | others, f"{path.name} names {name}"


FOLDERS = ("app", "triton", "nginx", "prometheus", "infra", "tests", "benchmarks", "requirements")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_top_level_folder_explains_itself(folder: str) -> None:
    assert (ROOT / folder / "README.md").read_text().startswith("# ")


def test_links_between_the_documents_lead_somewhere() -> None:
    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in names.stdout.split():
        path = ROOT / name
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{name} links to {target}"


def test_make_targets_named_in_the_texts_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"`make ([a-z-]+)", (ROOT / name).read_text()):
            assert target in targets, f"{name} names `make {target}`"
