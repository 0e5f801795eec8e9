"""Triton's Python backend: the `model.onnx` beside this file, in ONNX Runtime on the CPU.

Copied to a model's version folder as model.py by install.py. Inputs and outputs are the graph's own, as the
configuration names them. One thread a session: on a CPU two sessions of one thread beat one of two, and batches
gain nothing, so every request runs by itself.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class _Capsule:
    """What `np.from_dlpack` wants to see around a capsule."""

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the CPU


# The backend's own conversion speaks numpy's 1.x ABI: with numpy 2 it gives wrong numbers.
DLPACK = np.lib.NumpyVersion(np.__version__) >= "2.0.0"


def read(tensor: object) -> np.ndarray:
    if not DLPACK:
        return tensor.as_numpy()
    source = _Capsule(tensor.to_dlpack())
    array = np.from_dlpack(source)
    _keep_quiet(source.capsule)
    return array


def write(name: str, array: np.ndarray) -> object:
    if not DLPACK:
        return pb_utils.Tensor(name, array)
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _keep_quiet(capsule)
    return tensor


def _keep_quiet(capsule: object) -> None:
    """Whoever took the memory gives it back; the capsule's own destructor would look for it in vain and complain."""
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        if not path.exists():
            raise pb_utils.TritonModelException(
                f"{path} is missing: run `make models` again, or remove what it installed with `make models REMOVE=1`"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors share no base; the model cannot be served either way
            raise pb_utils.TritonModelException(f"{path} is no model that ONNX Runtime can run: {error}") from None
        config = json.loads(args["model_config"])
        self._input = config["input"][0]["name"]
        self._outputs = [output["name"] for output in config["output"]]
        # A graph exported for single frames is run frame by frame.
        self._single = self._session.get_inputs()[0].shape[0] == 1

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request: object) -> object:
        images = read(pb_utils.get_input_tensor_by_name(request, self._input))
        parts = np.split(images, len(images)) if self._single and len(images) > 1 else [images]
        try:
            answers = [self._session.run(self._outputs, {self._input: part}) for part in parts]
        except Exception as error:  # this request's own answer; the next may well succeed
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"ONNX Runtime: {error}"))
        wanted = set(request.requested_output_names())
        tensors = []
        for name, values in zip(self._outputs, zip(*answers, strict=True), strict=True):
            if name in wanted:
                joined = np.concatenate(values) if len(values) > 1 else np.ascontiguousarray(values[0])
                tensors.append(write(name, joined))
        return pb_utils.InferenceResponse(tensors)
