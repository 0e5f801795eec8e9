"""Models with constant, immediate results on a real Triton, to measure and test everything around the models.

`write` makes a repository of Python-backend models in the shapes of real ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZE = 640
_MODEL = """
import os, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.outputs = dict(np.load(os.path.join(folder, "outputs.npz")))
        self.delay = float(self.outputs.pop("delay_s"))
        self.each = float(self.outputs.pop("frame_s"))
        self.batches = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            count = request.inputs()[0].shape()[0]
            if self.delay or self.each:
                time.sleep(self.delay + self.each * count)
            if count not in self.batches:
                self.batches[count] = [
                    pb_utils.Tensor(name, np.repeat(one[None], count, 0)) for name, one in self.outputs.items()
                ]
            responses.append(pb_utils.InferenceResponse(self.batches[count]))
        return responses
"""
_TYPES = {np.dtype(np.uint8): "TYPE_UINT8", np.dtype(np.float32): "TYPE_FP32"}


def detections(rows: Sequence[Sequence[float]] = (), k: int = 300) -> NDArray[np.float32]:
    """A prepared head `[k, 6]`: x1, y1, x2, y2, score, class in input pixels, the rest empty."""
    out = np.zeros((k, 6), np.float32)
    if rows:
        out[: len(rows)] = rows
    return out


def poses(rows: Sequence[Sequence[float]] = (), k: int = 300) -> NDArray[np.float32]:
    """A prepared pose head `[k, 57]`."""
    out = np.zeros((k, 57), np.float32)
    if rows:
        out[: len(rows)] = rows
    return out


def raw(head: NDArray[np.float32], size: int = SIZE) -> NDArray[np.float32]:
    """A raw YOLOv8 head `[rows, anchors]` whose first anchors are those of a prepared head's rows that score."""
    pose = head.shape[1] == 57
    anchors = sum((size // stride) ** 2 for stride in (8, 16, 32))
    out = np.zeros((56 if pose else 84, anchors), np.float32)
    for column, row in enumerate(head[head[:, 4] > 0]):
        x1, y1, x2, y2, score, label = row[:6]
        out[:4, column] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        if pose:
            out[4, column] = score
            out[5:, column] = row[6:]
        else:
            out[4 + int(label), column] = score
    return out


def model(
    repository: Path,
    name: str,
    outputs: dict[str, NDArray[np.float32]],
    *,
    dtype: str = "UINT8",
    size: int = SIZE,
    delay_s: float = 0.0,
    frame_s: float = 0.0,
    instances: int = 1,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes a model that returns `outputs` (each of one image) for any input.

    Args:
        delay_s: seconds that a request takes, however many images it contains.
        frame_s: seconds that each image of a request takes, one after the other.
    """
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_MODEL)
    times = {"delay_s": np.float64(delay_s), "frame_s": np.float64(frame_s)}
    np.savez(folder / "outputs.npz", **times, **outputs)  # type: ignore[arg-type]
    dims = f"{size}, {size}, 3" if dtype == "UINT8" else f"3, {size}, {size}"
    parameters = {"display_name": f"canned {name}"}
    if class_names is not None:
        parameters["class_names"] = json.dumps(list(class_names))
    (repository / name / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 16\n'
        f'input [{{ name: "images" data_type: TYPE_{dtype} dims: [{dims}] }}]\n'
        + "".join(
            f'output [{{ name: "{key}" data_type: {_TYPES[output.dtype]} dims: {list(output.shape)} }}]\n'
            for key, output in outputs.items()
        )
        + f"instance_group [{{ kind: KIND_CPU count: {instances} }}]\n"
        + "dynamic_batching { max_queue_delay_microseconds: 0 }\n"
        + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}\n'
            for key, value in parameters.items()
        )
    )


PERSON = (100.0, 120.0, 300.0, 520.0, 0.9, 0.0)
"""A person on the canvas. A 640x480 frame fills the canvas rows 80 to 560."""
DOG = (400.0, 300.0, 560.0, 500.0, 0.8, 16.0)


def person_pose() -> tuple[float, ...]:
    """A pose on PERSON: keypoints down its middle."""
    x1, y1, x2, y2, score, _ = PERSON
    points = [value for index in range(17) for value in ((x1 + x2) / 2, y1 + (y2 - y1) * index / 16, 0.95)]
    return (x1, y1, x2, y2, score, 0.0, *points)


def write(repository: Path, *, delay_s: float = 0.0, frame_s: float = 0.0, names: Sequence[str] | None = None) -> Path:
    """`yolo`, `yolo_pose` and `vision` over both, prepared layouts, one person and one dog."""
    times = {"delay_s": delay_s, "frame_s": frame_s}
    names = names or [*("person" if i == 0 else "dog" if i == 16 else f"class_{i}" for i in range(80))]
    found, posed = detections([PERSON, DOG]), poses([person_pose()])
    model(repository, "yolo", {"detections": found}, class_names=names, **times)
    model(repository, "yolo_pose", {"detections": posed}, **times)
    # One model in place of an ensemble, because an ensemble's own scheduling is not measured here.
    model(repository, "vision", {"detections": found, "poses": posed}, class_names=names, **times)
    return repository
