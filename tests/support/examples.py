"""The packages in `examples/`, installed as somebody else's would be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from app.settings import ROOT


def install(example: str, target: Path) -> dict[str, str]:
    """Installs the package in this folder of `examples/`; returns the variables with which a process finds it.

    Only the package comes from elsewhere: its build's tools and `sightline` itself are those of this environment.
    """
    source = target.with_name(f"{target.name}-source")
    subprocess.run(["cp", "-r", str(ROOT / "examples" / example), str(source)], check=True)  # building writes into it
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target, source]
    subprocess.run([*command, "--python", sys.executable], check=True)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))}


def run_its_tests(example: str, variables: dict[str, str]) -> str:
    """Runs the tests of an installed example in a process of their own; returns what pytest wrote."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "examples" / example)]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
