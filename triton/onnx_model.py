"""A model of Triton's Python backend: runs the `model.onnx` beside this file on the CPU, in OpenVINO if it is
installed, else in ONNX Runtime.

install.py copies this file to a model's version folder as model.py. Inputs and outputs are the graph's own, as named
in the configuration. Each instance has one thread, because on a CPU two instances with one thread are faster than one
with two. Each request runs by itself, because batches save no time. A graph that was exported for a fixed batch, such
as 1 or 4, gets that many images at a time; a smaller batch is padded. A model whose configuration has no batches
(max_batch_size 0) gets its input as it is.

String parameters of the configuration: `runtime` (openvino, onnxruntime); for OpenVINO, `precision` (f32, bf16; unset:
BF16 if the processor computes in it, which moves boxes by about a tenth of a pixel); `batch`, the images at a time for
a graph whose batch dimension is open although its operators assume this number.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class _Capsule:
    """Wraps a capsule with the methods that `np.from_dlpack` calls."""

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the CPU


# The backend's own conversion uses the ABI of numpy 1.x, and returns wrong numbers with numpy 2.
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
    """Removes the capsule's destructor, because the consumer of the memory frees it, and the destructor would log an
    error.
    """
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)


class OnnxRuntime:
    """A session of ONNX Runtime with one thread."""

    title = "ONNX Runtime"

    def __init__(self, path: Path, precision: str) -> None:
        import onnxruntime

        if precision not in ("", "f32"):
            raise ValueError(f"precision={precision!r}: ONNX Runtime computes in the graph's types; leave it unset")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        first = self._session.get_inputs()[0].shape[0]
        self.batch = first if isinstance(first, int) and first > 0 else None

    def run(self, outputs: list, name: str, images: np.ndarray) -> list:
        return self._session.run(outputs, {name: images})


class OpenVino:
    """A stream of OpenVINO with one thread. It copies its outputs, because the next run overwrites them."""

    title = "OpenVINO"

    def __init__(self, path: Path, precision: str) -> None:
        import openvino

        if precision not in ("", "f32", "bf16"):
            raise ValueError(f"precision={precision!r}: want f32, bf16 or nothing")
        core = openvino.Core()
        model = core.read_model(path)
        first = model.inputs[0].partial_shape[0]
        self.batch = first.get_length() if first.is_static else None
        options = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": False}
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        self._request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(self, outputs: list, name: str, images: np.ndarray) -> list:
        self._request.infer({name: images}, share_inputs=True)
        return [self._request.get_tensor(output).data.copy() for output in outputs]


RUNTIMES = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}


def chosen(parameters: dict) -> type:
    """The runtime that the configuration names; else OpenVINO if it is installed, else ONNX Runtime."""
    named = parameters.get("runtime", {}).get("string_value", "")
    if named and named not in RUNTIMES:
        raise pb_utils.TritonModelException(f"runtime={named!r}: want {' or '.join(RUNTIMES)}")
    if named == "openvino" and importlib.util.find_spec("openvino") is None:
        raise pb_utils.TritonModelException("runtime='openvino': it is not installed; run `make openvino-env`")
    return RUNTIMES[named or ("openvino" if importlib.util.find_spec("openvino") else "onnxruntime")]


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        if not path.exists():
            raise pb_utils.TritonModelException(
                f"{path} is missing: run `make models` again, or remove what it installed with `make models REMOVE=1`"
            )
        config = json.loads(args["model_config"])
        self._batched = int(config.get("max_batch_size", 0)) > 0
        parameters = config.get("parameters", {})
        runtime = chosen(parameters)
        try:
            self._model = runtime(path, parameters.get("precision", {}).get("string_value", ""))
        except Exception as error:  # the runtimes' own errors share no base; the model cannot be served either way
            raise pb_utils.TritonModelException(f"{runtime.title} cannot load {path}: {error}") from None
        batch = parameters.get("batch", {}).get("string_value", "")
        if batch:
            self._model.batch = int(batch)
        if args["model_instance_name"].endswith("_0"):
            pb_utils.Logger.log_info(f"{args['model_name']} runs in {runtime.title}")
        self._input = config["input"][0]["name"]
        self._outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list) -> list:
        return [self._respond(request) for request in requests]

    def _respond(self, request: object) -> object:
        images = read(pb_utils.get_input_tensor_by_name(request, self._input))
        try:
            outputs = [self._run(part) for part in self._parts(images)] if self._batched else [self._whole(images)]
        except Exception as error:  # fails only this request, because the next may succeed
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{self._model.title}: {error}"))
        wanted = set(request.requested_output_names())
        tensors = []
        for name, values in zip(self._outputs, zip(*outputs, strict=True), strict=True):
            if name in wanted:
                joined = np.concatenate(values) if len(values) > 1 else np.ascontiguousarray(values[0])
                tensors.append(write(name, joined))
        return pb_utils.InferenceResponse(tensors)

    def _whole(self, images: np.ndarray) -> list:
        """Runs a model without a batch dimension at its outputs."""
        return self._model.run(self._outputs, self._input, np.ascontiguousarray(images))

    def _parts(self, images: np.ndarray) -> list:
        """The images in parts of the graph's batch size; one part if its batch is open."""
        batch = self._model.batch
        return [images] if batch is None else [images[at : at + batch] for at in range(0, len(images), batch)]

    def _run(self, images: np.ndarray) -> list:
        """Runs one part. Pads a smaller batch with its last image and drops the padding's outputs."""
        count, batch = len(images), self._model.batch or len(images)
        if count < batch:
            images = np.concatenate([images, np.repeat(images[-1:], batch - count, axis=0)])
        outputs = self._model.run(self._outputs, self._input, np.ascontiguousarray(images))
        for output in outputs:
            if len(output) != batch:
                raise ValueError(f"the output has {len(output)} rows for {batch} images")
        return [output[:count] for output in outputs]
