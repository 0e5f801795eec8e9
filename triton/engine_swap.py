"""Installs the chosen plan or ONNX in the repository that Triton serves. Uses only the standard library.

A model's files go into a new version folder. `configs/installed.pbtxt`, which takes precedence over the checked-in
config.pbtxt (`--model-config-name=installed`), names that version. Replacing this one file is the switch, so that
Triton finds a complete model at any start. The previous version stays beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from engine_files import Choice

_VERSIONS = re.compile(r"versions: \[ (\d+) \]")
FILES = {"plan": "model.plan", "onnx": "model.onnx"}


def install(choice: Choice, repository: Path) -> Path:
    """Installs a file; returns the version folder that serves from the next start on, the same if nothing changed."""
    folder = repository / choice.source.name
    folder.mkdir(parents=True, exist_ok=True)
    config = choice.source.config(choice.kind)
    about = {"kind": choice.kind, "sha256": choice.sha256, "made_of": choice.source.made_of, "reason": choice.reason}
    before = installed_version(folder)
    if before is not None and _is(folder / str(before), choice.kind, about["sha256"]):
        number = before
    else:
        number = max((1, *versions(folder))) + 1
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as scratch:
            fresh = Path(scratch) / "version"
            fresh.mkdir()
            shutil.copyfile(choice.file, fresh / FILES[choice.kind])
            (fresh / "engine.json").write_text(json.dumps(about, indent=2) + "\n")
            fresh.rename(folder / str(number))
    write_config(folder, _VERSIONS.sub(f"versions: [ {number} ]", config))
    if number != before:
        for old in versions(folder):
            if old > 1 and old not in (number, before):
                shutil.rmtree(folder / str(old))
    return folder / str(number)


def install_ensemble(config: str | None, folder: Path) -> None:
    """Writes the ensemble's configuration; None removes it, so that the ensemble is not served."""
    if config is None:
        (folder / "configs" / "installed.pbtxt").unlink(missing_ok=True)
        return
    (folder / "1").mkdir(parents=True, exist_ok=True)
    write_config(folder, config)


def served(repository: Path) -> list[str]:
    """Names of the models to load: installed ones, and others with files in a version folder."""
    return sorted(
        folder.name
        for folder in repository.iterdir()
        if folder.is_dir()
        and not folder.name.startswith(".")
        and ((folder / "configs" / "installed.pbtxt").exists() or any(folder.glob("[0-9]*/model.*")))
    )


def installed_version(folder: Path) -> int | None:
    """The version that the installed configuration names."""
    config = folder / "configs" / "installed.pbtxt"
    found = _VERSIONS.search(config.read_text()) if config.exists() else None
    return int(found[1]) if found else None


def versions(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]


def write_config(folder: Path, text: str) -> None:
    (folder / "configs").mkdir(exist_ok=True)
    fresh = folder / "configs" / f".installed-{os.getpid()}"
    fresh.write_text(text)
    fresh.replace(folder / "configs" / "installed.pbtxt")


def _is(version: Path, kind: str, sha256: object) -> bool:
    try:
        about = json.loads((version / "engine.json").read_text())
    except (OSError, ValueError):
        return False
    return about.get("kind") == kind and about.get("sha256") == sha256 and (version / FILES[kind]).exists()
