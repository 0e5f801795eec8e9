"""`make models`: installs YOLO, other detection models and ArcFace in the embedded Triton's repository.

    make models                                      yolov8n and yolov8n-pose, downloaded and exported
    make models DETECT=yolo11s POSE=yolo11s-pose     any name that Ultralytics knows; also SEGMENT=, OBB=, CLASSIFY=
    make models SEGMENT=best.pt                      your own weights
    make models DETECT=best.onnx                     your own export: offline, without Ultralytics
    make models DETECT=best.onnx NAMES=names.txt     with class names, if the export has none
    make models DETECT=rfdetr.onnx                   of another family, with a model.yaml beside it: triton/README.md
    make models ARCFACE=w600k_r50.onnx               face embeddings: your ONNX, offline
    make models REMOVE=1                             back to MediaPipe

No model is replaced before all requested models are ready. The service loads the new models at its next start.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from arcface import ARCFACE, install_arcface, read_arcface
from class_names import given_names
from install import DETECT, POSE, TASKS, InstallOptions, compose, fill_version, install, remove
from layouts import LAYOUTS, UnknownLayout, load, names
from model_yaml import read_model_yaml
from prepare import layout_of

REPOSITORY = Path(__file__).with_name("cpu_repository")
DEFAULTS = {DETECT: "yolov8n", POSE: "yolov8n-pose"}
LICENCE = """\
YOLO's weights and the tool that exports them belong to Ultralytics and are under the AGPL-3.0 licence (or one bought
from Ultralytics): https://www.ultralytics.com/license. The tool runs in a temporary environment that is deleted
afterwards. The weights stay on this machine and are not part of this project. Press Ctrl-C now to cancel."""
EXPORT = """\
import sys
from ultralytics import YOLO
size = {"imgsz": [int(side) for side in sys.argv[2].split(",")]} if sys.argv[2] else {}
print(YOLO(sys.argv[1]).export(format="onnx", simplify=True, **size))
"""
EXPORT_PACKAGES = ("ultralytics", "onnx", "onnxslim", "onnxruntime", "opencv-python-headless")
# Ultralytics depends on the desktop build of OpenCV, which needs libGL; servers usually lack it.
OVERRIDES = "opencv-python ; sys_platform == 'never'\nopencv-python-headless\n"


SIZES = {"detect": "640", "pose": "640", "segment": "640"}
"""By task: the size to export at. Models of the other tasks are exported at the size that they were trained at."""


class Stop(Exception):
    """The command ends without installing anything. The message says why, and what to do."""


def main() -> int:
    options = _options()
    wanted = {name: given for name, task in TASKS.items() if (given := getattr(options, task))}
    try:
        if options.remove:
            for name in (*TASKS, ARCFACE):
                remove(name, options.repository)
        else:
            arcface = _arcface(options.arcface) if options.arcface else None
            if wanted or arcface is None:
                _install(wanted or DEFAULTS, options)
            if arcface is not None:
                print(f"{ARCFACE}: {arcface.name} -> {install_arcface(arcface, options.repository)}")
        if reason := compose(options.repository):
            print(reason)
    except (Stop, UnknownLayout, OSError) as error:
        print(f"{error}\nNothing was changed.", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "an Ultralytics name, or a path to a .pt or .onnx"
    for task in TASKS.values():
        parser.add_argument(f"--{task}", help=f"model for {task}: {what}")
    parser.add_argument(
        "--names", help="class names of the model, if its export has none: a file (one a line, or YAML), or a,b,c"
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="the model's output, if the graph does not show it")
    parser.add_argument("--arcface", help="face embedding model: a path to a .onnx")
    parser.add_argument(
        "--imgsz",
        default="",
        help="size to export at: one number, or HEIGHT,WIDTH (default 640; OBB and CLASSIFY: as trained)",
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="the repository (default triton/cpu_repository)"
    )
    parser.add_argument("--as-is", action="store_true", help="install a .onnx unprepared")
    parser.add_argument("--remove", action="store_true", help="remove the installed models")
    options = parser.parse_args()
    if options.imgsz and not re.fullmatch(r"\d+(,\d+)?", options.imgsz):
        parser.error(f"--imgsz {options.imgsz!r}: want one number, or HEIGHT,WIDTH, for example 480,640")
    return options


def _install(wanted: dict[str, str], options: argparse.Namespace) -> None:
    named = given_names(options.names) if options.names else None
    of = DETECT if DETECT in wanted else next(iter(wanted)) if len(wanted) == 1 else None
    if (named or options.layout) and of is None:
        raise Stop(
            "NAMES and LAYOUT apply to one model, of several to the detection model: name it as well, with DETECT="
        )
    with tempfile.TemporaryDirectory(prefix="sightline-models-") as scratch:
        folder = Path(scratch)
        sources = {name: _local(given) for name, given in wanted.items()}
        to_export = {name: given for name, given in wanted.items() if sources[name] is None}
        if to_export:
            if options.as_is:
                raise Stop(f"--as-is takes .onnx files, not {', '.join(to_export.values())}")
            print(LICENCE, flush=True)
            python = _export_environment(folder)
            sources |= {
                name: _export(python, given, options.imgsz or SIZES.get(TASKS[name], ""), folder / name)
                for name, given in to_export.items()
            }
        ready = {name: source for name, source in sources.items() if source is not None}
        per_model = {
            name: InstallOptions(
                names=named if name == of else None,
                layout=options.layout if name == of else None,
                as_is=options.as_is,
                about=read_model_yaml(source),
            )
            for name, source in ready.items()
        }
        warnings = [
            warning
            for name, source in ready.items()
            for warning in _check(name, source, per_model[name], folder / "check")
        ]
        for name, source in ready.items():
            version = install(source, name, options.repository, per_model[name])
            print(f"{name}: {source.name} -> {version}")
        for warning in warnings:
            print(f"WARNING: {warning}", file=sys.stderr)


def _local(given: str) -> Path | None:
    """The path of a given .onnx; None if the model must be exported first.

    Raises:
        Stop: there is no such file, or the text is no name of a model.
    """
    path = Path(given).expanduser()
    if path.suffix in (".onnx", ".pt") and not path.exists() and len(path.parts) > 1:
        raise Stop(f"{given}: there is no such file")
    if path.suffix == ".onnx":
        if not path.exists():
            raise Stop(f"{given}: there is no such file")
        return path
    if not path.exists() and not re.fullmatch(r"[\w.-]+", given):
        raise Stop(f"{given}: neither a file nor a model's name; want for example yolov8n, best.pt or best.onnx")
    return None


def _arcface(given: str) -> Path:
    """The path of a given ArcFace, checked before anything is installed.

    Raises:
        Stop, UnknownLayout: there is no such file, or it is no ArcFace.
    """
    path = Path(given).expanduser()
    if path.suffix != ".onnx" or not path.is_file():
        raise Stop(
            f"ARCFACE={given}: there is no such .onnx file; ArcFace's weights are not downloaded, bring your own"
        )
    read_arcface(path)
    return path


def _check(name: str, source: Path, options: InstallOptions, scratch: Path) -> list[str]:
    """Checks that a model can be installed; returns warnings about it.

    Raises:
        UnknownLayout, Stop: it cannot be installed.
    """
    scratch.mkdir(exist_ok=True)
    fill_version(source, name, scratch, options)
    model, about = load(source), options.about
    layout = layout_of(model, source, task=TASKS[name], given=options.names, told=options.layout, about=about)
    warnings = []
    if not (layout.pose or options.names or about.names or names(model)):
        count = f"its {layout.classes} classes are" if layout.classes else "its classes are"
        variable = TASKS[name].upper()
        warnings.append(
            f"{source.name} has no class names: {count} called class_0, class_1, …, and no class counts as `person`. "
            f"Name them: make models {variable}=… NAMES=names.txt (one a line, or YAML), or NAMES=person,car"
        )
    if layout.batch not in (None, 1):
        warnings.append(
            f"{source.name} was exported with batch={layout.batch}: a single image takes as long as {layout.batch}. An "
            "export with batch=1, or dynamic=True, is faster"
        )
    return warnings


def _export_environment(folder: Path) -> Path:
    uv = Path(sys.executable).with_name("uv")
    run = [str(uv) if uv.exists() else shutil.which("uv") or "uv"]
    environment = folder / "environment"
    made = subprocess.run([*run, "venv", "--quiet", "--python", sys.executable, environment], check=False)
    if made.returncode != 0:
        raise Stop("the temporary environment for Ultralytics' export tool could not be created (see above)")
    python = environment / "bin" / "python"
    overrides = folder / "overrides.txt"
    overrides.write_text(OVERRIDES)
    packages = [*run, "pip", "install", "--python", str(python), "--override", str(overrides), *EXPORT_PACKAGES]
    # PyTorch without CUDA has a tenth of the size, but its separate index is not reachable from every network.
    if any(subprocess.run([*packages, *extra], check=False).returncode == 0 for extra in (["--torch-backend=cpu"], [])):
        return python
    raise Stop(
        "Ultralytics' export tool could not be installed (see above): it needs a package index. Without one, export "
        "the model elsewhere and give the file: make models DETECT=path/to/best.onnx"
    )


def _export(python: Path, given: str, size: str, folder: Path) -> Path:
    """Runs Ultralytics' export in a new folder, which also receives its downloads; returns the ONNX.

    Raises:
        Stop: the export failed.
    """
    folder.mkdir()
    path = Path(given).expanduser()
    if path.exists():
        weights = Path(shutil.copy(path, folder))
    else:
        weights = folder / (given if path.suffix else f"{given}.pt")
    tool = subprocess.run([python, "-c", EXPORT, weights.name, size], cwd=folder, check=False)
    exported = weights.with_suffix(".onnx")
    if tool.returncode != 0 or not exported.exists():
        raise Stop(f"{given}: Ultralytics did not export it (see above); weights given by name are downloaded")
    return exported


if __name__ == "__main__":
    sys.exit(main())
