"""The Python that the Makefile chooses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")

# Answers `-c` as an interpreter of another version would, and makes an environment whose own Python does nothing.
INTERPRETER = """#!{python}
import pathlib, sys
sys.version_info = {version}
if sys.argv[1] == "-c":
    exec(sys.argv[2])
elif sys.argv[1:3] == ["-m", "venv"]:
    pathlib.Path(".venv/bin").mkdir(parents=True)
    own = pathlib.Path(".venv/bin/python")
    own.write_text("#!/bin/sh\\n")
    own.chmod(0o755)
    print("made by {name}")
else:
    sys.exit(1)
"""


def make(folder: Path, interpreters: dict[str, tuple[int, int]], *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the first step of `make install` with only these interpreters on the PATH."""
    binaries = folder / "bin"
    binaries.mkdir()
    for name, version in interpreters.items():
        program = binaries / name
        program.write_text(INTERPRETER.format(python=sys.executable, version=(*version, 1, "final", 0), name=name))
        program.chmod(0o755)
    for tool in ("make", "bash", "touch"):
        found = shutil.which(tool)
        assert found is not None
        (binaries / tool).symlink_to(found)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements").mkdir()
    (folder / "requirements" / "bootstrap.txt").touch()
    environment = {"PATH": str(binaries), "HOME": os.environ.get("HOME", "/")}
    command = ["make", ".venv/.bootstrap", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3": (3, 11)}, "python3"),
        ({"python3": (3, 12), "python3.11": (3, 11)}, "python3"),
        ({"python3": (3, 13), "python3.11": (3, 11)}, "python3.11"),
        ({"python3": (3, 14), "python3.11": (3, 11), "python3.12": (3, 12)}, "python3.12"),
        ({"python3": (3, 9), "python3.12": (3, 12)}, "python3.12"),
    ],
)
def test_a_suitable_python_is_taken(tmp_path: Path, there: dict[str, tuple[int, int]], taken: str) -> None:
    done = make(tmp_path, there)
    assert done.returncode == 0, done.stderr
    assert f"made by {taken}\n" in done.stdout


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_without_a_suitable_python_one_line_names_the_versions(tmp_path: Path, version: tuple[int, int]) -> None:
    done = make(tmp_path, {"python3": version})
    assert done.returncode != 0
    said = done.stderr.splitlines()
    assert said[0] == (
        f"Sightline needs Python 3.11 or 3.12; python3 is 3.{version[1]}. Name another: make PYTHON=python3.12 ..."
    )
    assert len(said) == 2  # the other is make's own
    assert "made by" not in done.stdout


def test_a_named_python_is_taken_with_a_warning(tmp_path: Path) -> None:
    there = {"python3": (3, 12), "python3.13": (3, 13), "python3.10": (3, 10)}
    done = make(tmp_path, there, "PYTHON=python3.13")
    assert done.returncode == 0, done.stderr
    assert "made by python3.13\n" in done.stdout
    assert "Python 3.13: MediaPipe" in done.stdout


def test_a_named_python_that_is_too_old_is_refused(tmp_path: Path) -> None:
    done = make(tmp_path, {"python3": (3, 12), "python3.10": (3, 10)}, "PYTHON=python3.10")
    assert done.returncode != 0
    assert "python3.10 is 3.10" in done.stderr
