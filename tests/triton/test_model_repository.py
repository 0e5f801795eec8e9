"""The GPU repository's configurations in a real Triton: the Python backend stands where a GPU would run TensorRT.

Nothing else of them is changed: names, shapes, types, batching, warm-up and version policy are those checked in.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from configs import gpu_config
from ensemble import Member, ensemble_config
from onnx import TensorProto, helper

from app.inference.client import Reply
from app.inference.triton import TritonClient
from app.pipeline.models import ModelSet, describe
from app.pipeline.registry import create
from app.settings import ROOT, Settings, TritonSettings
from tests.support.service import running_triton

REPOSITORY = ROOT / "triton" / "model_repository"
SIZE = 640
MODEL = """
import json, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    # One row a picture, whose x1 is the picture's first byte: whose answer is whose shows.
    def initialize(self, args):
        self.dims = [int(size) for size in json.loads(args["model_config"])["output"][0]["dims"]]

    def execute(self, requests):
        time.sleep(0.01)  # as long as it takes for others to come and wait
        answers = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            rows = np.zeros((len(images), *self.dims), np.float32)
            rows[:, 0, 0] = images[:, 0, 0, 0]
            rows[:, 0, 2:5] = 300, 300, 0.9
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("detections", rows)]))
        return answers
"""


@pytest.fixture(scope="module")
def url(triton_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gpu")
    repository = folder / "repository"
    for name in ("yolo", "yolo_pose", "vision"):
        (repository / name / "1").mkdir(parents=True)
        text = (REPOSITORY / name / "config.pbtxt").read_text()
        if name != "vision":
            assert 'platform: "tensorrt_plan"' in text
            assert "KIND_GPU" in text
            text = text.replace('platform: "tensorrt_plan"', 'backend: "python"').replace("KIND_GPU", "KIND_CPU")
            (repository / name / "1" / "model.py").write_text(MODEL)
        (repository / name / "config.pbtxt").write_text(text)
    with running_triton(repository, folder / "state", TRITON_DEADLINE_S="600") as found:
        yield found


def ask(url: str, *calls: tuple[str, np.ndarray]) -> tuple[ModelSet, list[Reply]]:
    """Returns the models as the service reads them, and the replies to requests that are in flight together."""

    async def run() -> tuple[ModelSet, list[Reply]]:
        settings = TritonSettings(triton_max_in_flight=64, triton_deadline_s=30, triton_shm="off")
        client = TritonClient(url, settings)
        await client.open()
        try:
            vision = await describe(client, "vision", create(Settings()))

            async def infer(model: str, images: np.ndarray) -> Reply:
                spec = await client.describe(model)
                assert spec is not None
                buffer = client.buffer(images.shape, "UINT8")
                buffer.array[:] = images
                try:
                    return await client.infer(spec, buffer, stream=model)
                finally:
                    buffer.release()

            return vision, await asyncio.gather(*(infer(*call) for call in calls))
        finally:
            await client.close()

    return asyncio.run(run())


def pictures(*first_bytes: int) -> np.ndarray:
    images = np.zeros((len(first_bytes), SIZE, SIZE, 3), np.uint8)
    images[:, 0, 0, 0] = first_bytes
    return images


def executions(url: str, model: str) -> tuple[int, int]:
    """Pictures answered, and runs that it took: nv_inference_count and nv_inference_exec_count."""
    with grpcclient.InferenceServerClient(url) as client:
        (stats,) = client.get_inference_statistics(model).model_stats
    return stats.inference_count, stats.execution_count


def test_the_service_reads_every_model(url: str) -> None:
    vision, _ = ask(url)
    detect, pose = vision.readers["detect"], vision.readers["pose"]
    assert set(vision.ensemble) == {"detect", "pose"}
    for reader in (detect, pose, *vision.ensemble.values()):
        assert (reader.input.height, reader.input.width, reader.input.is_image) == (SIZE, SIZE, True)
        assert reader.layout == "prepared"
        assert reader.spec.max_batch == 16
    assert vision.batched
    assert (len(detect.class_names), vision.ids_of("detect", "person")) == (80, frozenset({0}))
    assert detect.spec.outputs[0].shape == (-1, 300, 6)
    assert pose.spec.outputs[0].shape == (-1, 300, 57)


def test_a_batch_of_16_goes_through_in_one_run(url: str) -> None:
    before = executions(url, "yolo"), executions(url, "yolo_pose")
    _, (reply,) = ask(url, ("vision", pictures(*range(16))))
    assert reply.outputs["detections"][:, 0, 0].tolist() == list(range(16))
    assert reply.outputs["poses"][:, 0, 0].tolist() == list(range(16))
    for model, (count, runs) in zip(("yolo", "yolo_pose"), before, strict=True):
        assert executions(url, model) == (count + 16, runs + 1)


def test_single_frames_of_many_streams_share_runs(url: str) -> None:
    count, runs = executions(url, "yolo")
    _, replies = ask(url, *(("yolo", pictures(number)) for number in range(48)))
    assert [int(reply.outputs["detections"][0, 0, 0]) for reply in replies] == list(range(48))
    now, ran = executions(url, "yolo")
    assert now - count == 48
    assert ran - runs < 40


def test_what_is_checked_in_is_what_the_tools_write() -> None:
    def stub(columns: int) -> onnx.ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
        rows = helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["N", 300, columns])
        return helper.make_model(helper.make_graph([], "stub", [images], [rows]))

    names = classes("yolo")
    written = {
        "yolo": gpu_config(stub(6), "yolo", "tensorrt_plan", "yolov8n", names, {}),
        "yolo_pose": gpu_config(stub(57), "yolo_pose", "tensorrt_plan", "yolov8n-pose", ["person"], {}),
    }
    members = [Member(name, parsed(text)) for name, text in written.items()]
    written["vision"] = ensemble_config("vision", members, "yolov8n + yolov8n-pose", names)
    for name, text in written.items():
        assert parsed((REPOSITORY / name / "config.pbtxt").read_text()) == parsed(text)


def classes(name: str) -> list[str]:
    import json

    config = parsed((REPOSITORY / name / "config.pbtxt").read_text())
    return json.loads(config.parameters["class_names"].string_value)


def parsed(text: str) -> grpcclient.model_config_pb2.ModelConfig:
    from google.protobuf import text_format

    return text_format.Parse(text, grpcclient.model_config_pb2.ModelConfig())
