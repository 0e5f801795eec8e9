"""OpenVINO in the embedded Triton gives the same results as ONNX Runtime; how the runtime is chosen."""

import asyncio
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import graphs
import numpy as np
import pytest
from install import DETECT, install
from test_cpu_repository import Served

from app.errors import SightlineError
from app.inference.embedded import EmbeddedTriton
from app.settings import TritonSettings

SPREAD = np.random.default_rng(5)
WEIGHTS, BIAS = SPREAD.normal(0, 1, (7, 3)), SPREAD.normal(0, 1, 7)
IMAGES = SPREAD.integers(0, 256, (2, 160, 192, 3), np.uint8)
Serve = Callable[..., Served]


@pytest.fixture
def openvino(triton_python: Path) -> None:
    """OpenVINO in the embedded Triton's environment."""
    asked = subprocess.run([triton_python, "-I", "-c", "import openvino"], capture_output=True, timeout=60, check=False)
    if asked.returncode:
        message = f"{triton_python} has no OpenVINO: run `make openvino-env`"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


def repository(folder: Path, batch: int | str = "batch", **parameters: str) -> Path:
    """One installed ONNX with the string parameters given."""
    folder.mkdir()
    names = {"names": "{0: 'crane', 1: 'truck', 2: 'hut'}", "task": "detect"}
    install(graphs.save(folder / "site.onnx", WEIGHTS, BIAS, batch=batch, metadata=names), DETECT, folder / "models")
    config = folder / "models" / DETECT / "configs" / "installed.pbtxt"
    lines = [f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in parameters.items()]
    config.write_text(config.read_text() + "".join(lines))
    return folder / "models"


@pytest.fixture
def serve(openvino: None, tmp_path: Path) -> Iterator[Serve]:
    started: list[Served] = []

    def start(batch: int | str = "batch", **parameters: str) -> Served:
        folder = tmp_path / f"{len(started)}"
        started.append(Served(repository(folder, batch, **parameters), folder / "state"))
        return started[-1]

    yield start
    for running in started:
        running.close()


def log_of(served: Served) -> str:
    return served._triton.log_path.read_text(errors="replace")


@pytest.mark.parametrize("batch", ["batch", 1])
def test_it_answers_as_onnx_runtime_does(serve: Serve, batch: int | str) -> None:
    openvino = serve(batch, precision="f32")  # chosen by itself
    onnxruntime = serve(batch, runtime="onnxruntime")
    assert re.search("yolo runs in OpenVINO", log_of(openvino))
    assert re.search("yolo runs in ONNX Runtime", log_of(onnxruntime))
    rows, expected = (runtime.infer("yolo", *IMAGES)["detections"] for runtime in (openvino, onnxruntime))
    assert rows.shape == expected.shape == (2, 480, 6)
    assert (expected[..., 4] > 0.5).any()
    np.testing.assert_allclose(rows[..., 4], expected[..., 4], atol=1e-4)
    sure = expected[..., 4] > 0.5
    np.testing.assert_allclose(np.sort(rows[sure][:, 0]), np.sort(expected[sure][:, 0]), atol=0.05)


def test_one_answer_is_not_the_next_ones_memory(serve: Serve) -> None:
    served = serve(precision="f32")
    first = served.infer("yolo", IMAGES[0])["detections"]
    again = [served.infer("yolo", image)["detections"] for image in (IMAGES[1], IMAGES[0])]
    np.testing.assert_array_equal(first, again[1])
    assert not np.array_equal(first, again[0])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"runtime": "tensorflow"}, "want openvino or onnxruntime"), ({"precision": "f8"}, "want f32, bf16 or nothing")],
)
def test_a_word_that_it_does_not_know_is_refused(
    openvino: None, parameters: dict[str, str], said: str, tmp_path: Path
) -> None:
    models = repository(tmp_path / "wrong", **parameters)
    triton = EmbeddedTriton(TritonSettings(triton_repository=models, triton_start_timeout_s=60), tmp_path / "state")

    async def start() -> None:
        try:
            await triton.start()
        finally:
            await triton.stop()

    with pytest.raises(SightlineError, match=said):
        asyncio.run(start())
