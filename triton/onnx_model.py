"""Triton's Python backend: the `model.onnx` beside this file, in ONNX Runtime on the CPU.

Copied to a model's version folder as model.py by install.py. Inputs and outputs are the graph's own, as the
configuration names them. One thread a session: on a CPU two sessions of one thread beat one of two, and batches
gain nothing, so every request runs by itself.
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
        images = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
        parts = np.split(images, len(images)) if self._single and len(images) > 1 else [images]
        try:
            answers = [self._session.run(self._outputs, {self._input: part}) for part in parts]
        except Exception as error:  # this request's own answer; the next may well succeed
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"ONNX Runtime: {error}"))
        joined = [np.concatenate(tensors) if len(tensors) > 1 else tensors[0] for tensors in zip(*answers, strict=True)]
        wanted = set(request.requested_output_names())
        tensors = (pb_utils.Tensor(name, value) for name, value in zip(self._outputs, joined, strict=True))
        return pb_utils.InferenceResponse([tensor for tensor in tensors if tensor.name() in wanted])
