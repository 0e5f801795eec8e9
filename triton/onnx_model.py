"""Triton's Python backend: the `model.onnx` beside this file, in ONNX Runtime on the CPU.

Copied to a model's version folder as model.py by install.py. Inputs and outputs are the graph's own, as the
configuration names them. One thread a session: on a CPU two sessions of one thread beat one of two, and batches
gain nothing, so every request runs by itself. Tensors pass as DLPack: the backend's own conversion speaks numpy's
1.x ABI and gives wrong numbers with numpy 2.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


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
        images = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, self._input))
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
                tensors.append(pb_utils.Tensor.from_dlpack(name, joined))
        return pb_utils.InferenceResponse(tensors)
