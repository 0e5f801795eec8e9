"""How the tests are shared out among processes, and how a flaky one is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from app.settings import ROOT
from tests.support.scheduler import FolderScheduling

QUICK = ["tests/fleet/test_a.py", "tests/live/test_a.py", "tests/test_a.py"]
SLOW = ["fleet/test_b", "fleet/test_c", "live/test_b", "live/test_c", "live/test_d", "nginx/test_a"]


def test_files_without_servers_come_first_and_then_each_process_stays_in_its_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, list[str]] = {"one": [], "two": []}

    def give(self: FolderScheduling, node: str) -> None:
        given[node].append(self.workqueue.popitem(last=False)[0])

    monkeypatch.setattr(LoadFileScheduling, "_assign_work_unit", give)
    config: Any = SimpleNamespace(option=SimpleNamespace(loadscopereorder=True), getvalue=lambda _: ["popen", "popen"])
    scheduling = FolderScheduling(config, None)
    assert not config.option.loadscopereorder
    scheduling.workqueue.update({file: {} for file in [*QUICK, *(f"tests/{name}.py" for name in SLOW)]})
    for node in ["one", "two", "one", *["two", "one"] * 3]:
        scheduling._assign_work_unit(node)
    slow = {node: [name.removeprefix("tests/").removesuffix(".py") for name in names] for node, names in given.items()}
    assert given["one"][:2] + given["two"][:1] == [QUICK[0], QUICK[2], QUICK[1]]
    assert slow["two"][1:] == ["live/test_b", "live/test_c", "live/test_d"]
    assert slow["one"][2:] == ["fleet/test_b", "fleet/test_c", "nginx/test_a"]


def test_a_test_that_passes_the_second_time_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_fails(): raise ValueError\n"
        "def test_is_skipped(): pytest.skip('no')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--flaky"]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", "-c", "/dev/null", tmp_path / "test_it.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("flaky: ")]
    assert len(said) == 1, done.stdout
    assert said[0].endswith("test_it.py::test_passes (failed beside others, passed alone)")
    assert done.stdout.rstrip().endswith(said[0])
