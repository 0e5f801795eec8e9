"""The documents say what the code says."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from app.settings import ROOT, SECRETS, SECTIONS, VARIABLES
from tests.docs.tables import TABLES, fill, metric_objects

README = ROOT / "README.md"


def test_the_readme_holds_every_table_as_the_code_has_it() -> None:
    text = README.read_text()
    assert re.findall(r"<!-- table: (\w+) -->", text) == ["client", "server", "stages", "result", "settings", "metrics"]
    assert set(TABLES) == {"client", "server", "stages", "result", "settings", "metrics"}
    assert fill(text) == text, "run `make docs`"


def test_every_setting_and_metric_has_a_description() -> None:
    missing = [n for section in SECTIONS for n, field in section.model_fields.items() if not field.description]
    assert missing == []
    assert [metric._name for metric in metric_objects() if not metric._documentation] == []


def test_variables_named_in_the_texts_exist() -> None:
    known = set(VARIABLES)
    known |= {f"{name}_FILE" for name in SECRETS}
    # The command line's own, and ONNX Runtime's.
    others = {"SIGHTLINE_TOKEN", "SIGHTLINE_TOKEN_FILE", "ORT_DISABLE_TELEMETRY"}
    for path in (README, ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")):
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


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    records = {path.name: path.read_text() for path in folder.glob("[0-9]*.md")}
    assert len(records) >= 60
    rows = re.findall(r"^\| \[(\d+)\]\(([^)]+)\) \| (.+?) \|", (folder / "README.md").read_text(), re.M)
    assert [name for _, name, _ in rows] == sorted(records)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1)), (
        "numbers are used once, without gaps"
    )
    for number, name, title in rows:
        assert re.fullmatch(rf"{int(number):04d}-[a-z0-9-]+\.md", name)
        assert records[name].startswith(f"# {number}. {title}\n"), name
        assert re.findall(r"^\*\*(\w+)\.\*\*", records[name], re.M) == ["Context", "Decision", "Consequence"], name


UNDER = re.compile(r"(?:app|benchmarks|docs|infra|nginx|prometheus|requirements|tests|triton)/[\w./-]*[/\w]")


def paths_named(text: str) -> set[str]:
    """What stands in backticks and begins with a folder of the repository."""
    return {found for found in re.findall(r"`([^`\s*{}<>…=]+)`", text) if UNDER.fullmatch(found)}


def test_paths_named_in_the_texts_exist() -> None:
    texts = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in texts
        for name in paths_named(path.read_text())
        if not ((ROOT / name).exists() or (ROOT / f"{name}.py").exists())
    ]
    assert missing == []


def test_the_layers_are_drawn_as_import_linter_holds_them() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawn = re.search(r"```\n(__main__ .*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.S)
    assert drawn is not None
    assert [" ".join(layer.split()) for layer in drawn[1].split("→")] == layers


def test_the_table_of_packages_names_every_module() -> None:
    rows = [line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("| `app/")]
    missing = []
    for path in sorted((ROOT / "app").rglob("*.py")):
        parts = path.relative_to(ROOT / "app").with_suffix("").parts
        if parts[-1] in ("__init__", "__pycache__"):
            continue
        if len(parts) == 1:
            named = any(f"`app/{path.name}`" in row or f"`{path.name}`" in row for row in rows if ".py`" in row)
        else:  # a package of its own inside stands as a whole, or by its modules
            row = next((row for row in rows if row.startswith(f"| `app/{parts[0]}` ")), "")
            named = any(f"`{part}`" in row or f"`{part}/`" in row for part in parts[1:])
        if not named:
            missing.append("/".join(parts))
    assert missing == []
