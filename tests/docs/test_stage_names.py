"""The core knows no stage by name: only the stages' own files and the registry spell them (docs/stages.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.pipeline import registry
from app.protocol.stages import PARTS
from app.settings import FleetSettings

ROOT = Path(__file__).parents[2]
CORE = (
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "app/protocol").glob("*.py")),
    "app/pipeline/batching.py",
    "app/pipeline/models.py",
    "app/pipeline/multimodal.py",
    "app/pipeline/postprocess.py",
    "app/pipeline/preprocess.py",
    "app/pipeline/stage.py",
    "app/pipeline/startup.py",
    "app/pipeline/threaded.py",
    "app/pipeline/types.py",
    "app/client.py",
    "app/drawing.py",
    "app/fleet/analysis.py",
    "app/live/routes.py",
    "app/live/sender.py",
    "app/live/session.py",
    "app/segments/annotate.py",
)
NAMES = frozenset(stage.name for stage in registry.BUILT_IN) | PARTS.keys()
_WORD = re.compile(r"[A-Za-z_]\w*")


def spelt(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each identifier, attribute, keyword and word in a string; without comments and docstrings."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from ((line, word) for word in _WORD.findall(node.value))
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield from ((line, part) for part in word.split("."))


def test_what_is_looked_for_is_found() -> None:
    source = """'pose'
from a.face import track
if pose:
    stages["detect"] = x.motion
    f"no ocr {y}"
    call(segment=1)  # obb
"""
    found = {name for _, name in spelt(source)} & NAMES
    assert found == {"track", "pose", "detect", "motion", "ocr", "segment"}


@pytest.mark.parametrize("path", CORE)
def test_no_stage_is_spelt_in_the_core(path: str) -> None:
    found = [f"{path}:{line}: {name}" for line, name in spelt((ROOT / path).read_text()) if name in NAMES]
    assert found == []


def test_the_setting_of_the_cameras_stages_names_none() -> None:
    field = FleetSettings.model_fields["fleet_stages"]
    assert not {*_WORD.findall(f"{field.description} {field.annotation} {field.metadata}")} & NAMES
    assert field.get_default(call_default_factory=True) == ()
