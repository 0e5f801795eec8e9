"""Reads docker-compose.yml by Debian's docker-compose."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from app.settings import ROOT
from tests.support.nginx import require

Service = dict[str, Any]
OURS = ("backend", "backend-cpu", "fleet-worker", "fleet-ingest", "segments-worker", "segments-reassemble")
PROFILES = {"cpu", "grafana", "fleet", "segments"}


def compose(
    folder: Path, *arguments: str, env: str | None = "AUTH_TOKENS=a-secret\n"
) -> subprocess.CompletedProcess[str]:
    """`docker-compose config` on a copy of the files, with this `.env` beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("docker-compose.yml", "docker-compose.override.example.yml", "docker-compose.secrets.example.yml"):
        shutil.copy(ROOT / name, folder)
    if env is not None:
        (folder / ".env").write_text(env)
    command = [require("docker-compose"), *arguments, "config"]
    return subprocess.run(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@functools.cache
def whole() -> dict[str, Any]:
    """The composed file with every profile on; callers must not change it."""
    with tempfile.TemporaryDirectory() as folder:
        done = compose(Path(folder), *(f"--profile={name}" for name in sorted(PROFILES)))
    assert (done.returncode, done.stderr) == (0, "")
    parsed: dict[str, Any] = yaml.safe_load(done.stdout)
    return parsed


def services() -> dict[str, Service]:
    found: dict[str, Service] = whole()["services"]
    return found
