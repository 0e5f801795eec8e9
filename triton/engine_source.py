"""Prepares plans on the host: the ONNX for TensorRT, an image, and the ONNX's output for that image.

Runs in the project's environment; ONNX Runtime runs in a subprocess with the embedded Triton's interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from arcface import ARCFACE, SIDE
from configs import gpu_config, parsed
from engine_check import SURE, Head, boxes_of, compare, sure, write_outputs
from engine_device import Stop
from engine_files import checksum
from engine_graph import for_tensorrt
from ensemble import Member, ensemble_config, image_in_words, largest_group
from install import TASKS, VISION, installed_version
from numpy.typing import NDArray

from app.pipeline.boxes import letterbox
from app.pipeline.decode import decode_into, inspect
from app.settings import ROOT

PICTURE = ROOT / "app" / "web" / "sample.jpg"
BATCH = 3
"""Images in the run that checks whether the batch dimension is open."""
RUN = """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
np.savez(sys.argv[3], *session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])}))
"""


@dataclass(frozen=True)
class Installed:
    """A model that `make models` installed."""

    name: str
    onnx: Path
    about: dict[str, Any]
    """Its model.json."""

    @property
    def size(self) -> tuple[int, int]:
        """Height, width."""
        return (self.about["height"], self.about["width"]) if self.name != ARCFACE else (SIDE, SIDE)

    @property
    def parameters(self) -> dict[str, str]:
        given = {key: self.about[key] for key in ("input_mean", "input_std") if key in self.about}
        if self.about.get("parameters"):
            return {**given, **self.about["parameters"]}
        # The model.json of an older installation has no `rows`, but the layout of the export.
        rows = self.about.get("rows") or ("end_to_end" if self.about.get("layout") == "end2end" else None)
        return given | ({"layout": rows} if rows else {})

    @property
    def head(self) -> Head:
        """What its outputs mean."""
        _, _, numbers = self.parameters.get("kpt_shape", "17x3").partition("x")
        return Head(self.about["task"], self.parameters.get("layout", ""), self.size, int(numbers))


def collect(models: Path, engines: Path, picture: Path | None, onnx_python: Path) -> Iterator[str]:
    """Writes `engines/source` anew from a repository that `make models` filled; yields a line for each model.

    Raises:
        Stop: nothing is installed, or a model cannot be prepared. The previous `engines/source` stays.
    """
    found = [model for name in (*TASKS, ARCFACE) if (model := _installed(models, name))]
    if not found:
        raise Stop(
            f"no prepared model in {models}: run `make models` first (DETECT=, POSE=, … name your own); "
            "a model that was installed unprepared (--as-is) cannot be used"
        )
    engines.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=engines, prefix=".source-") as scratch:
        fresh = Path(scratch) / "source"
        for model in found:
            _prepare(model, fresh / model.name, picture or PICTURE, onnx_python)
            yield f"{model.name}: {model.about['source']} prepared for TensorRT"
        if reason := _ensemble(found, fresh):
            yield reason
        if (engines / "source").exists():
            (engines / "source").rename(Path(scratch) / "before")
        fresh.rename(engines / "source")


def _installed(models: Path, name: str) -> Installed | None:
    version = installed_version(models / name)
    if version is None or not (version / "model.json").exists():
        return None
    return Installed(name, version / "model.onnx", json.loads((version / "model.json").read_text()))


def _prepare(installed: Installed, folder: Path, picture: Path, onnx_python: Path) -> None:
    folder.mkdir(parents=True)
    if installed.about.get("batch") not in (None, 1):
        raise Stop(
            f"{installed.name}: {installed.about['source']} was exported with batch={installed.about['batch']}, but a "
            "plan needs an open batch: export it with one (Ultralytics: dynamic=True) and install that"
        )
    if installed.parameters.get("layout") == "torchvision":
        raise Stop(
            f"{installed.name}: {installed.about['source']} takes one image at a time, but a plan is built for "
            "batches; serve it from a Triton of your own, or install another model in its place"
        )
    model = for_tensorrt(onnx.load(installed.onnx))
    onnx.save(model, folder / "model.onnx")
    shown, classes = Path(installed.about["source"]).stem, installed.about.get("names", [])
    for kind, platform in (("plan", "tensorrt_plan"), ("onnx", "onnxruntime_onnx")):
        text = gpu_config(model, installed.name, platform, shown, classes, installed.parameters)
        (folder / f"{kind}.pbtxt").write_text(f"# Written by `make engine`.\n{text}")
    weights = {tensor.name for tensor in model.graph.initializer}
    (value,) = (value for value in model.graph.input if value.name not in weights)
    image = _image(installed, picture, value.type.tensor_type.elem_type)
    image.tofile(folder / "picture.bin")
    names = [output.name for output in model.graph.output]
    answer = _run(onnx_python, installed.onnx, image[None], f"{installed.name}: {installed.about['source']}", names)
    head = installed.head
    if head.task not in ("face", "classify") and not sure(boxes_of(head, _rows(answer, 0))):
        raise Stop(
            f"{installed.name}: the ONNX detects nothing on {picture.name} (no score of at least {SURE}), so no plan "
            "can be compared with it; give a JPEG with objects of its classes: make engine PICTURE=path.jpg"
        )
    _check_batch(installed, folder / "model.onnx", image, answer, onnx_python)
    write_outputs(folder / "answer.json", {name: (of.shape, of.ravel().tolist()) for name, of in answer.items()})
    sheet = {
        "name": installed.name,
        "task": installed.about["task"],
        "sha256": checksum(folder / "model.onnx"),
        "input": value.name,
        "shape": list(image.shape),
        "made_of": installed.about["source"],
        "layout": head.layout,
        "numbers": head.numbers,
    }
    (folder / "sheet.json").write_text(json.dumps(sheet, indent=2) + "\n")


def _image(installed: Installed, picture: Path, kind: int) -> NDArray[Any]:
    """The image as the model's input, without the batch dimension."""
    jpeg = picture.read_bytes()
    info = inspect(jpeg, max_bytes=1 << 26, max_pixels=1 << 26)
    height, width = installed.size
    canvas = np.empty((height, width, 3), np.uint8)
    decode_into(jpeg, info, letterbox(info.width, info.height, width, height), canvas)
    if installed.name != ARCFACE:
        return canvas
    scaled = (canvas.astype(np.float32) - float(installed.about["input_mean"])) / float(installed.about["input_std"])
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), onnx.helper.tensor_dtype_to_np_dtype(kind))


def _check_batch(
    installed: Installed, ready: Path, image: NDArray[Any], answer: dict[str, NDArray[Any]], onnx_python: Path
) -> None:
    """Checks that the prepared graph's output for an image in a batch agrees with the original's for it alone.

    Raises:
        Stop: the graph does not run with a batch, or its outputs differ.
    """
    blank = np.zeros_like(image)
    batch = np.stack([image, blank, image])[:BATCH]
    what = f"{installed.name}: {installed.about['source']} with a batch of {BATCH}"
    hint = "; export it with an open batch (Ultralytics: dynamic=True) and install that: make models DETECT=…, POSE=…"
    try:
        answers = _run(onnx_python, ready, batch, what, list(answer))
    except Stop as error:
        raise Stop(f"{error}{hint}") from None
    whole = all(len(of) == BATCH for of in answers.values())
    for row in (0, BATCH - 1):
        wrong = compare(installed.head, _rows(answer, 0), _rows(answers, row)) if whole else "too few outputs"
        if wrong:
            raise Stop(f"{what} gives another output than for a single image: {wrong}{hint}")


def _rows(answer: dict[str, NDArray[Any]], image: int) -> dict[str, list[list[float]]]:
    """The outputs for one image as `engine_check` compares them."""
    return {name: of[image].reshape(-1, of.shape[-1]).tolist() for name, of in answer.items()}


def _run(onnx_python: Path, model: Path, images: NDArray[Any], what: str, names: list[str]) -> dict[str, NDArray[Any]]:
    """The outputs by the names that they shall have, in the order of the graph."""
    if not onnx_python.exists():
        raise Stop(f"{onnx_python} is missing: run `make triton-env`")
    with tempfile.TemporaryDirectory() as scratch:
        given, answer = Path(scratch) / "given.npy", Path(scratch) / "answer.npz"
        np.save(given, images)
        command = [onnx_python, "-I", "-c", RUN, model, given, answer]
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise Stop(f"{what} does not run in ONNX Runtime: {done.stderr.strip()[-500:]}")
        with np.load(answer) as found:
            return {name: found[f"arr_{number}"] for number, name in enumerate(names)}


def _ensemble(found: list[Installed], source: Path) -> str | None:
    """Writes the configuration of the ensemble of those that take the same image; returns why one is not in it."""
    configs = {
        model.name: parsed((source / model.name / "plan.pbtxt").read_text()) for model in found if model.name != ARCFACE
    }
    if not configs:
        return None
    group = largest_group(configs)
    images = [f"{name} takes {image_in_words(config)}" for name, config in configs.items()]
    if len(group) < 2:
        if len(configs) > 1:
            return f"no ensemble: {'; '.join(images)}"
        return f"no ensemble: {next(name for name in TASKS if name not in configs)} is not installed"
    members = [Member(name, configs[name]) for name in TASKS if name in group]
    shown = " + ".join(configs[member.name].parameters["display_name"].string_value for member in members)
    classes = json.loads(configs[members[0].name].parameters["class_names"].string_value or "[]")
    text = ensemble_config(VISION, members, shown, classes)
    (source / "vision.pbtxt").write_text("# Written by `make engine`.\n" + text.partition("\n")[2])
    apart = [image for name, image in zip(configs, images, strict=True) if name not in group]
    return f"not in the ensemble, but asked apart: {'; '.join(apart)}" if apart else None
