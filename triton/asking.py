"""Asks a model itself what its rows are, where neither its metadata nor its graph tells: one run in ONNX Runtime.

Runs in the project's environment; ONNX Runtime runs in the embedded Triton's.
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
size = [int(one) for one in sys.argv[3:]]
shape = [one if isinstance(one, int) else open for one, open in zip(value.shape, (1, 3, *size))]
picture = np.random.default_rng(0).random(shape)
picture = picture.astype("float16" if "float16" in value.type else "float32")
np.save(sys.argv[2], session.run(None, {value.name: picture})[0])
"""
TIMEOUT_S = 300


def are_finished(model: Path, size: tuple[int, int], python: Path) -> str | None:
    """Whether the rows [N, K, 6 or more] that a graph answers to noise are corners in pixels.

    Returns:
        None when they are, or when it finds nothing at all; else what they look like, or why it could not be asked.
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
            return f"it could not be asked: {error}"
        if done.returncode != 0:
            return f"it could not be asked: {done.stderr.strip()[-300:]}"
        rows = np.load(answer)
    return implausible(rows[0], "end_to_end", 0)


def default_python() -> Path:
    """The embedded Triton's interpreter, beside the project's own environment."""
    return Path(os.environ.get("TRITON_PYTHON") or Path(sys.prefix).with_name(".venv-triton") / "bin" / "python")
