"""One variant of `cpu_models`, in the environment of both runtimes: knows nothing of the rest of this project.

python cpu_models_run.py MODEL onnxruntime|openvino PRECISION|- WARM_UP_S SECONDS
"""

import json
import os
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from time import perf_counter, process_time, sleep

import numpy as np

MODEL, RUNTIME, PRECISION, WARM_UP_S, SECONDS = sys.argv[1:]


def onnxruntime_step() -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    image = picture(given.shape[1:])
    return lambda: session.run(None, {given.name: image})


def openvino_step() -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    options = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": False}
    if PRECISION != "-":
        options["INFERENCE_PRECISION_HINT"] = PRECISION
    compiled = core.compile_model(MODEL, "CPU", options)
    request = compiled.create_infer_request()
    image = picture([dimension.get_length() for dimension in list(compiled.inputs[0].partial_shape)[1:]])
    return lambda: request.infer({0: image}, share_inputs=True)


def picture(shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (1, *shape), np.uint8)


def faults() -> int:
    """Page faults of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    steps = [{"onnxruntime": onnxruntime_step, "openvino": openvino_step}[RUNTIME]() for _ in range(cores)]
    for step in steps:
        step()
    begin = perf_counter() + float(WARM_UP_S)
    end = begin + float(SECONDS)
    walls: list[float] = []

    def run(step: Callable[[], object]) -> None:
        now = perf_counter()
        while now < end:
            step()
            then, now = now, perf_counter()
            if then >= begin:
                walls.append(now - then)

    threads = [threading.Thread(target=run, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    sleep(max(0.0, begin - perf_counter()))
    cpu, begun, before = process_time(), perf_counter(), faults()
    for thread in threads:
        thread.join()
    cpu, wall = process_time() - cpu, perf_counter() - begun
    walls.sort()
    figures = {
        "frames_per_s": len(walls) / wall,
        "cpu_ms": cpu / len(walls) * 1000,
        "p50_ms": walls[len(walls) // 2] * 1000,
        "faults": (faults() - before) / len(walls),
        "p99_ms": walls[int(0.99 * (len(walls) - 1))] * 1000,
        "instances": cores,
    }
    json.dump(figures, sys.stdout)


main()
