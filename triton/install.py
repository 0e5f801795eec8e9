"""Installs ONNX models in a repository, and updates its ensemble to the installed models.

An installed model consists of a new version folder (`2/`, `3/`, …: model.onnx, model.json, model.py) and of
`configs/installed.pbtxt`, which takes precedence over the checked-in `config.pbtxt` and names the version. Replacing
this one file is the switch, so that Triton starts with either the old or the new model, never with half of one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs import Size, ensemble_config, onnx_config, resized
from layouts import class_names, load
from prepare import Sheet, layout_of, prepare

DETECT, POSE, VISION, MEDIAPIPE = "yolo", "yolo_pose", "vision", "_mediapipe"
BACKEND = Path(__file__).with_name("onnx_model.py")
TASKS = {DETECT: "detect", POSE: "pose"}


@dataclass(frozen=True)
class InstallOptions:
    """The user's options for the installation of an ONNX."""

    names: tuple[str, ...] | None = None
    """Class names by id."""
    layout: str | None = None
    """The output's layout, `raw` or `end_to_end`."""
    as_is: bool = False
    """Installs the ONNX unprepared."""


def install(source: Path, name: str, repository: Path, options: InstallOptions = InstallOptions()) -> Path:
    """Installs an ONNX as `name`, prepared unless `options.as_is`; returns its version folder.

    Raises:
        UnknownLayout: the layout is unknown. The repository is not changed.
    """

    def fill(fresh: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        hints = {"task": TASKS[name], "given": options.names, "told": options.layout}
        if options.as_is:
            shutil.copyfile(source, fresh / "model.onnx")
            model = load(source)
            layout = layout_of(model, source, **hints)
            classes = class_names(model, layout, options.names)
            size = {"input_size": f"{layout.height}x{layout.width}"}  # the graph's own may be open
            batch = {"batch": str(layout.batch)} if layout.batch else {}
            return classes, {"layout": layout.as_is, **size, **batch}
        sheet = prepare(source, fresh / "model.onnx", **hints)
        return sheet.names, {"layout": sheet.rows}

    return place(name, repository, source.stem, fill)


def place(
    name: str,
    repository: Path,
    shown: str,
    fill: Callable[[Path], tuple[Sequence[str], Mapping[str, str]]],
) -> Path:
    """Makes a new version folder and switches to it; returns it.

    Args:
        fill: writes model.onnx into the folder that it gets, and returns the class names and further string parameters
            of the configuration.
    """
    folder = repository / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as scratch:
        fresh = Path(scratch) / "version"
        fresh.mkdir()
        classes, given = fill(fresh)
        shutil.copyfile(BACKEND, fresh / "model.py")
        number = max((1, *versions(folder))) + 1
        model = load(fresh / "model.onnx")
        config = onnx_config(model, name, shown, classes, number, os.cpu_count() or 1, given)
        fresh.rename(folder / str(number))
    write_config(folder, config)
    for old in versions(folder):
        if 1 < old < number:
            shutil.rmtree(folder / str(old))
    return folder / str(number)


def remove(name: str, repository: Path) -> None:
    """Removes the model that was installed as `name`, so that Triton serves the checked-in one, if there is one."""
    folder = repository / name
    if not folder.is_dir():
        return
    (folder / "configs" / "installed.pbtxt").unlink(missing_ok=True)
    for version in versions(folder):
        if version > 1:
            shutil.rmtree(folder / str(version))
    if (folder / "configs").is_dir():
        (folder / "configs").rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()  # nothing was checked in under this name


def compose(repository: Path) -> str | None:
    """Writes the ensemble of the installed models; MediaPipe replaces a missing one.

    Returns:
        Why there is no ensemble of installed models; None if there is one, or if no model is installed.
    """
    sheets = {name: installed(repository / name) for name in (DETECT, POSE)}
    sizes = {name: (sheet.height, sheet.width) for name, sheet in sheets.items() if sheet}
    as_is = [name for name in (DETECT, POSE) if name not in sizes and _has_onnx(repository / name)]
    parts = [name for name in (DETECT, POSE) if name not in sizes and name not in as_is]
    for name in (*parts, MEDIAPIPE, VISION):
        remove(name, repository)
    (repository / VISION / "not_served.txt").unlink(missing_ok=True)
    if not sizes and not as_is:
        return None
    mediapipe = (repository / MEDIAPIPE / "config.pbtxt").exists()
    reason = None
    if as_is:
        reason = f"{as_is[0]} is installed as it is, not prepared"
    elif len(set(sizes.values())) > 1:
        reason = "; ".join(f"{name} takes {height}x{width}" for name, (height, width) in sizes.items())
        reason += ": one call for both needs one size (export both with the same imgsz)"
    elif parts and not mediapipe:
        reason = f"{parts[0]} is not installed"
    size = next(iter(sizes.values()), None)
    if mediapipe and parts and size:
        for name in (*parts, MEDIAPIPE):
            write_config(repository / name, resized((repository / name / "config.pbtxt").read_text(), size))
    if reason is None and size:
        _write_ensemble(repository, sheets, size)
    elif (repository / VISION).is_dir():
        (repository / VISION / "not_served.txt").write_text(reason + "\n")
    return reason


def _write_ensemble(repository: Path, sheets: dict[str, Sheet | None], size: Size) -> None:
    (repository / VISION / "1").mkdir(parents=True, exist_ok=True)
    standing_in = (repository / MEDIAPIPE / "config.pbtxt").read_text() if None in sheets.values() else ""
    steps = []
    for name, output in ((DETECT, "detections"), (POSE, "poses")):
        sheet = sheets[name]
        if sheet:
            steps.append((name, "detections", output, sheet.candidates, sheet.columns))
        else:
            rows, columns = re.search(
                rf'"{output}" data_type: TYPE_FP32 dims: \[ (\d+), (\d+) \]', standing_in
            ).groups()
            steps.append((MEDIAPIPE, output, output, int(rows), int(columns)))
    detect = sheets[DETECT]
    classes = detect.names if detect else ["person", "face"]
    shown = " + ".join(sheet.source.removesuffix(".onnx") if sheet else "mediapipe" for sheet in sheets.values())
    write_config(repository / VISION, ensemble_config(VISION, size, steps, shown, classes))


def installed(folder: Path) -> Sheet | None:
    """The sheet of the prepared model that the installed configuration names, if there is one."""
    version = installed_version(folder)
    sheet = version / "model.json" if version else None
    return Sheet(**json.loads(sheet.read_text())) if sheet and sheet.exists() else None


def installed_version(folder: Path) -> Path | None:
    """The version folder that the installed configuration names, if there is one."""
    config = folder / "configs" / "installed.pbtxt"
    version = re.search(r"versions: \[ (\d+) \]", config.read_text()) if config.exists() else None
    return folder / version[1] if version else None


def _has_onnx(folder: Path) -> bool:
    config = folder / "configs" / "installed.pbtxt"
    return config.exists() and "version_policy" in config.read_text()


def write_config(folder: Path, text: str) -> None:
    (folder / "configs").mkdir(exist_ok=True)
    fresh = folder / "configs" / f".installed-{os.getpid()}"
    fresh.write_text(text)
    fresh.replace(folder / "configs" / "installed.pbtxt")


def versions(folder: Path) -> list[int]:
    """The numbers of the version folders."""
    return [int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
