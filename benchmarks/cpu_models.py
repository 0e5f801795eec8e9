"""A YOLO on the processor: ONNX Runtime against OpenVINO; FP32, BF16, INT8; square input against the frame's own shape.

The network has YOLOv8n's layers and random weights (`yolov8n.py`): a frame costs the same, and nothing is
downloaded. It is prepared as `make models` does it and runs as the embedded Triton runs it: one instance a core, one
thread each. INT8 is calibrated on images (`triton/calibrate.py`) of the folder BENCH_PICTURES, or on
photographs of scikit-image. Everything runs in an environment of its own, made on the first run from
requirements/cpu.txt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from app.settings import ROOT
from benchmarks import photographs, turns, yolov8n
from benchmarks.harness import BenchmarkError
from benchmarks.turns import Figures, Ratio

ENVIRONMENT = ROOT / ".state" / "bench" / "cpu"
REQUIREMENTS = ROOT / "requirements" / "cpu.txt"
SHAPES = {"square": (640, 640), "wide": (480, 640)}
"""Height and width of the input; a 640x480 frame fills the second."""
RUNTIMES = {
    "onnxruntime-f32": "ONNX Runtime, FP32",
    "onnxruntime-int8": "ONNX Runtime, INT8",
    "openvino-f32": "OpenVINO, FP32",
    "openvino-bf16": "OpenVINO, BF16",
    "openvino-int8": "OpenVINO, INT8",
}
VARIANTS = {
    f"{name}-{shape}": f"{title}, {width}x{height}"
    for name, title in RUNTIMES.items()
    for shape, (height, width) in SHAPES.items()
}
_BASE, _BF16, _BF16_WIDE = "onnxruntime-f32-square", "openvino-bf16-square", "openvino-bf16-wide"
RATIOS = (
    Ratio("a YOLO on the CPU: OpenVINO over ONNX Runtime, FP32", "cpu_ms", _BASE, "openvino-f32-square"),
    Ratio("OpenVINO in BF16 over ONNX Runtime in FP32", "cpu_ms", _BASE, _BF16),
    Ratio("OpenVINO in INT8 over ONNX Runtime in FP32", "cpu_ms", _BASE, "openvino-int8-square"),
    Ratio("OpenVINO in INT8 over OpenVINO in BF16", "cpu_ms", _BF16, "openvino-int8-square"),
    Ratio("ONNX Runtime in INT8 over ONNX Runtime in FP32", "cpu_ms", _BASE, "onnxruntime-int8-square"),
    Ratio("OpenVINO in BF16: 640x480 over 640x640", "cpu_ms", _BF16, _BF16_WIDE),
    Ratio("OpenVINO in BF16 at 640x480 over ONNX Runtime in FP32 at 640x640", "cpu_ms", _BASE, _BF16_WIDE),
)


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 1.2
    warm_up_s: float = 0.3
    turns: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


def environment() -> Path:
    """Returns the interpreter with both runtimes; makes it if it is missing or has other versions.

    Raises:
        BenchmarkError: the packages cannot be got.
    """
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "made-of.txt"
    wanted = REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    uv = str(Path(sys.executable).with_name("uv"))
    made = [[uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)]]
    install = [uv, "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--python", str(python)]
    made.append([*install, "-r", str(REQUIREMENTS)])
    for command in made:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            raise BenchmarkError(f"the environment of both runtimes cannot be made:\n{done.stderr[-2000:]}")
    stamp.write_text(wanted)
    return python


def networks(python: Path, folder: Path) -> None:
    """`square.onnx`, `square-int8.onnx` and so on, prepared as they are served."""
    pictures = Path(os.environ.get("BENCH_PICTURES") or photographs.write(folder / "pictures", len(photographs.NAMES)))
    for shape, (height, width) in SHAPES.items():
        export = yolov8n.write(folder / f"{shape}-export.onnx", height, width)
        calibrated = folder / f"{shape}-int8-export.onnx"
        calibrate = [str(python), str(ROOT / "triton" / "calibrate.py"), str(export), "--pictures", str(pictures)]
        _do([*calibrate, "--most", "32", "-o", str(calibrated)])
        for source in (export, calibrated):
            target = folder / source.name.replace("-export", "")
            _do([sys.executable, str(ROOT / "triton" / "prepare.py"), str(source), "-o", str(target)])


def _do(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command[1:3])} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def measure_turn(python: Path, folder: Path, plan: Plan, variant: str) -> Figures:
    """One turn: an instance a core, each a thread with a session of its own, in a fresh process."""
    runtime, precision, shape = variant.split("-")
    model = folder / f"{shape}{'-int8' if precision == 'int8' else ''}.onnx"
    # An INT8 graph marks its INT8 layers itself; the other layers run in the precision that suits the processor.
    hint = "" if precision == "int8" or runtime == "onnxruntime" else precision
    command = [str(python), str(Path(__file__).with_name("cpu_models_run.py")), str(model), runtime, hint or "-"]
    command += [str(plan.warm_up_s), str(plan.seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120 + plan.seconds)
    if done.returncode != 0:
        raise BenchmarkError(f"{variant} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: Figures = json.loads(done.stdout)
    return found


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

    Raises:
        BenchmarkError: the runtimes are not there and cannot be got, or one of them failed.
    """
    python = environment()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        networks(python, folder)
        found = turns.run(
            "cpu_models",
            plan,
            lambda variant: measure_turn(python, folder, plan, variant),
            RATIOS,
            say,
            shown="frames_per_s",
        )
    return {**found, "network": "YOLOv8n's layers, random weights, 80 classes"}


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {
        "frames_per_s": "frames/s",
        "cpu_ms": "CPU ms a frame",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "faults": "page faults a frame",
        "instances": "instances",
    }
    turns.show(results, f"cpu_models: {results['network']}", VARIANTS, columns, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
