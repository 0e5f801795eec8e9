"""Finds out what a model's rows mean by running it once on noise, if neither its metadata nor its graph shows it.

Runs in the project's environment; ONNX Runtime runs in a subprocess with the embedded Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from app.pipeline.layouts import implausible

RUN = """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
value = session.get_inputs()[0]
size = [int(side) for side in sys.argv[3:]]
shape = [dim if isinstance(dim, int) else default for dim, default in zip(value.shape, (1, 3, *size))]
image = np.random.default_rng(0).random(shape)
image = image.astype("float16" if "float16" in value.type else "float32")
np.save(sys.argv[2], session.run(None, {value.name: image})[0])
"""
TIMEOUT_S = 300


def end_to_end_problem(model: Path, size: tuple[int, int], python: Path, *, oriented: bool = False) -> str | None:
    """Runs the model on noise and checks that its rows [N, K, 6 or more] have corners in pixels.

    Args:
        size: height and width of the input.
        python: an interpreter with ONNX Runtime.
        oriented: whether the rows are oriented boxes, whose first numbers are centre and size.

    Returns:
        None if they have, or if the model detects nothing; else a description of the rows, or why the run failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.npy"
        command = [python, "-I", "-c", RUN, model, answer, *map(str, size)]
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"it could not be run: {error}"
        if done.returncode != 0:
            return f"it could not be run: {done.stderr.strip()[-300:]}"
        rows = np.load(answer)
    if oriented:
        return implausible(rows[0, :, :5].T, "raw", 1)
    return implausible(rows[0], "end_to_end", 0)


def default_python() -> Path:
    """The embedded Triton's interpreter, beside the project's own environment."""
    return Path(os.environ.get("TRITON_PYTHON") or Path(sys.prefix).with_name(".venv-triton") / "bin" / "python")
