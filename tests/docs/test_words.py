"""The code speaks the field's words: names that earlier versions had for them are not used again."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import ROOT

RETIRED = {
    "door": "entry",
    "wish": "settings patch, PendingFrame",
    "telling": "summary stream",
    "farewell": "close",
    "intake": "receiver",
    "answering": "results",
    "ledger": "stats",
    "seat": "slot",
    "crew": "supervisor",
    "inhand": "in_flight",
    "roster": "membership",
    "tally": "metrics buffer",
    "bury": "dead-letter",
    "passage": "video processor",
    "reel": "reader",
    "footage": "media file",
    "depot": "backends",
    "shelf": "disk buffer",
    "estate": "recovery",
    "heir": "successor",
    "loading": "loadtest",
}
"""Parts of names, and what to say instead."""
FILES = sorted(path for path in (ROOT / "app").rglob("*.py"))


def names(path: Path) -> Iterator[str]:
    """The module, its classes, functions and methods: those without an underscore."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name


def parts(name: str) -> set[str]:
    """`in_flight` and `InFlight` are both `in`, `flight` and `inflight`."""
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)
    return {word.lower() for word in words} | {"".join(words).lower()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_public_name_holds_a_retired_word(path: Path) -> None:
    found = {name: word for name in names(path) for word in parts(name) & (RETIRED.keys() | {f"{w}s" for w in RETIRED})}
    assert found == {}, f"say instead: {RETIRED}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_loop_variables_are_named_for_what_they_hold(path: Path) -> None:
    loops = (
        node.target for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.For | ast.comprehension)
    )
    called = [
        name.lineno for target in loops for name in ast.walk(target) if isinstance(name, ast.Name) and name.id == "one"
    ]
    assert called == [], f"lines {called}"


def test_no_public_class_name_exists_twice() -> None:
    where: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


def test_no_name_is_bound_twice_at_the_top_of_a_module() -> None:
    """The second silently replaces the first, which happens where two modules become one."""
    twice = []
    for path in FILES:
        seen: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            bound: list[str] = []
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if not any("overload" in ast.unparse(decorator) for decorator in node.decorator_list):
                    bound = [node.name]
            elif isinstance(node, ast.Assign):
                bound = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                bound = [node.target.id]
            twice += [f"{path.relative_to(ROOT)}: {name}" for name in bound if name in seen]
            seen |= set(bound)
    assert twice == []
