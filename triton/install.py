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
from typing import Any

from configs import Size, onnx_config, parsed, resized
from ensemble import Member, ensemble_config, image_in_words, is_bytes, largest_group
from layouts import class_names, load
from model_yaml import SILENT, ModelYaml
from prepare import layout_of, parameters_of, prepare
from service_check import check_readable

DETECT, POSE, SEGMENT, OBB, CLASSIFY = "yolo", "yolo_pose", "yolo_segment", "yolo_obb", "yolo_classify"
VISION, MEDIAPIPE = "vision", "_mediapipe"
BACKEND = Path(__file__).with_name("onnx_model.py")
TASKS = {DETECT: "detect", POSE: "pose", SEGMENT: "segment", OBB: "obb", CLASSIFY: "classify"}
"""By model: its task."""
STANDS_IN = {DETECT: "detections", POSE: "poses"}
"""By model for which MediaPipe stands in: MediaPipe's output."""


@dataclass(frozen=True)
class InstallOptions:
    """The user's options for the installation of an ONNX."""

    names: tuple[str, ...] | None = None
    """Class names by id."""
    layout: str | None = None
    """The output's layout, `raw` or `end_to_end`."""
    as_is: bool = False
    """Installs the ONNX unprepared."""
    about: ModelYaml = SILENT
    """The ONNX's `model.yaml`."""


def install(source: Path, name: str, repository: Path, options: InstallOptions = InstallOptions()) -> Path:
    """Installs an ONNX as `name`, prepared unless `options.as_is`; returns its version folder.

    Raises:
        UnknownLayout: the layout is unknown. The repository is not changed.
    """

    def fill(fresh: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        return fill_version(source, name, fresh, options)

    return place(name, repository, source.stem, fill)


def fill_version(
    source: Path, name: str, fresh: Path, options: InstallOptions
) -> tuple[Sequence[str], Mapping[str, str]]:
    """Writes model.onnx and, if it is prepared, model.json; returns names and parameters as `place` wants them.

    Raises:
        UnknownLayout: the layout is unknown, or the service would not read the model.
    """
    hints = {"task": TASKS[name], "given": options.names, "told": options.layout, "about": options.about}
    classes: Sequence[str]
    if options.as_is:
        shutil.copyfile(source, fresh / "model.onnx")
        model = load(source)
        layout = layout_of(model, source, **hints)
        classes = class_names(model, layout, options.names or options.about.names)
        image = options.about.image(layout.as_is, layout.task)
        given = parameters_of(model, layout, options.about, image, as_is=True)
    else:
        sheet = prepare(source, fresh / "model.onnx", **hints)
        classes, given = sheet.names, sheet.parameters
        model = load(fresh / "model.onnx")
    config = onnx_config(model, name, source.stem, classes, 1, 1, given)
    check_readable(TASKS[name], config, source.name)
    if options.as_is and layout.batch:
        given |= {"batch": str(layout.batch)}
    return classes, given


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
    """Writes the ensemble of the installed models that take the same image; MediaPipe stands in for a missing one.

    Returns:
        Why there is no ensemble of installed models, or which of them are not in it; None if all are, or if no model is
        installed.
    """
    configs = {name: parsed(text) for name in TASKS if (text := _installed_text(repository / name))}
    missing = [name for name in STANDS_IN if name not in configs]
    for name in (*missing, MEDIAPIPE, VISION):
        remove(name, repository)
    (repository / VISION / "not_served.txt").unlink(missing_ok=True)
    if not configs:
        return None
    group = largest_group(configs)
    members = {name: Member(name, configs[name]) for name in group}
    if missing and is_bytes(configs[group[0]]) and (repository / MEDIAPIPE / "config.pbtxt").exists():
        height, width, _ = configs[group[0]].input[0].dims
        members |= _stand_in(repository, missing, (height, width))
    elif len(missing) == len(STANDS_IN) and len(group) == 1 and (repository / MEDIAPIPE / "config.pbtxt").exists():
        return None  # the checked-in ensemble is MediaPipe's, which nothing has replaced
    apart = {name: config for name, config in configs.items() if name not in members}
    if len(members) < 2:
        if apart:
            reason = f"{_images(configs)}: one call for several needs one size (export them with the same imgsz)"
        elif missing and (repository / MEDIAPIPE / "config.pbtxt").exists():
            reason = f"{_images(configs)}, which MediaPipe, in place of {missing[0]}, does not"
        else:
            reason = f"{next(name for name in TASKS if name not in members)} is not installed"
        if (repository / VISION).is_dir():
            (repository / VISION / "not_served.txt").write_text(reason + "\n")
        return f"no ensemble: {reason}"
    _write_ensemble(repository, [members[name] for name in TASKS if name in members])
    return f"not in the ensemble, but asked apart: {_images(apart)}" if apart else None


def _installed_text(folder: Path) -> str | None:
    """The installed configuration of an ONNX; None if none is installed."""
    config = folder / "configs" / "installed.pbtxt"
    text = config.read_text() if config.exists() else ""
    return text if "version_policy" in text else None


def _stand_in(repository: Path, missing: Sequence[str], size: Size) -> dict[str, Member]:
    """Gives MediaPipe this size; returns it as a member for each missing model."""
    for name in (*missing, MEDIAPIPE):
        write_config(repository / name, resized((repository / name / "config.pbtxt").read_text(), size))
    text = (repository / MEDIAPIPE / "configs" / "installed.pbtxt").read_text()
    members = {}
    for name in missing:
        config = parsed(text)
        output = next(value for value in config.output if value.name == STANDS_IN[name])
        del config.output[:]
        config.output.append(output)
        members[name] = Member(name, config, MEDIAPIPE, output.name)
    return members


def _images(configs: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} takes {image_in_words(config)}" for name, config in configs.items())


def _write_ensemble(repository: Path, members: Sequence[Member]) -> None:
    (repository / VISION / "1").mkdir(parents=True, exist_ok=True)
    first = members[0]
    said = {key: value.string_value for key, value in first.config.parameters.items()}
    classes = ["person", "face"] if first.runs else json.loads(said.get("class_names", "[]"))
    shown = [
        "mediapipe" if member.runs else member.config.parameters["display_name"].string_value for member in members
    ]
    text = ensemble_config(VISION, members, " + ".join(dict.fromkeys(shown)), classes)
    write_config(repository / VISION, text)


def installed_version(folder: Path) -> Path | None:
    """The version folder that the installed configuration names, if there is one."""
    config = folder / "configs" / "installed.pbtxt"
    version = re.search(r"versions: \[ (\d+) \]", config.read_text()) if config.exists() else None
    return folder / version[1] if version else None


def write_config(folder: Path, text: str) -> None:
    (folder / "configs").mkdir(exist_ok=True)
    fresh = folder / "configs" / f".installed-{os.getpid()}"
    fresh.write_text(text)
    fresh.replace(folder / "configs" / "installed.pbtxt")


def versions(folder: Path) -> list[int]:
    """The numbers of the version folders."""
    return [int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
