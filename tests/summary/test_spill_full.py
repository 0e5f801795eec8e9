"""Spill on a file system that is really full: ENOSPC, not a bound of the settings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import ROOT

_MOUNT = 'mount -t tmpfs -o size=4m tmpfs "$1" && shift && exec "$@"'


def test_a_full_file_system_stops_the_spilling_and_nothing_else(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is missing")
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(tmp_path)]
    tried = subprocess.run([*own, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:  # a matter of the machine's kernel and container, with CI as without
        pytest.skip(f"no file system of our own here: {tried.stderr.strip()}")
    command = [*own, sys.executable, "-m", "tests.support.full_disk", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["full"]["health"] == {"state": "degraded", "reason": "full"}
    assert told["full"]["counts"]["on_disk"] > 100
    assert told["full"]["counts"]["merged"] > 0
    assert told["after"]["dropped"] == 0
    assert told["in_order"]
    assert told["last"] < 5000  # it was tried again by itself
    assert told["errors"] >= 1
    assert told["summaries"] == ["said while it was full"]
    assert "free space on the disk of STATE_DIR" in done.stderr
