"""The tools of triton/ are scripts beside the repositories, not a package: they are imported from their folder."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.settings import ROOT, TritonSettings
from tests.support.service import require_environment

sys.path.insert(0, str(ROOT / "triton"))

RUN = """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
np.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])})[int(sys.argv[4])])
"""


@pytest.fixture(scope="session")
def triton_python() -> Path:
    """The interpreter of the embedded Triton's environment."""
    python = TritonSettings().triton_python
    require_environment(python, "make triton-env")
    return python


@pytest.fixture
def run_onnx(triton_python: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """Runs an ONNX in ONNX Runtime, where it will be served, and returns its first output, or another."""

    def run(model: Path, images: np.ndarray, output: int = 0) -> np.ndarray:
        given, answer = tmp_path / "given.npy", tmp_path / "answer.npy"
        np.save(given, images)
        subprocess.run([triton_python, "-I", "-c", RUN, model, given, answer, str(output)], check=True, timeout=60)
        return np.load(answer)

    return run
