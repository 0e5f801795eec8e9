"""Many sessions at once against a model whose answer depends on every pixel: each must get its own.

Shared memory, the concurrency limit, cancelled requests and broken sockets all have their chance to swap two pictures.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect as open_socket

from app.client import connect
from app.inference.triton import TritonClient
from app.protocol.result import FrameResult
from app.settings import TritonSettings
from tests.support import clip
from tests.support.live import settle
from tests.support.service import Service, assert_adds_up, require_environment, running_triton, serving

SIDE = 320
SESSIONS, FRAMES = 8, 30
ALONE = {
    "TRITON_DETECT_MODEL": "alone_yolo",
    "TRITON_POSE_MODEL": "alone_yolo_pose",
    "TRITON_ENSEMBLE": "alone_vision",
}
MODEL = """
import json, random, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.names = [output["name"] for output in json.loads(args["model_config"])["output"]]
        self.columns = [output["dims"][1] for output in json.loads(args["model_config"])["output"]]

    def execute(self, requests):
        # Late and out of order: a buffer that was given away too soon holds another picture by now.
        responses = [None] * len(requests)
        for index in random.sample(range(len(requests)), len(requests)):
            time.sleep(random.choice([0, 0, 0.001, 0.002, 0.02]))
            images = pb_utils.get_input_tensor_by_name(requests[index], "images").as_numpy()
            rows = np.zeros((len(images), 1, 57), np.float32)
            for image, row in zip(images.reshape(len(images), -1, 3), rows[:, 0]):
                red, green, blue = image.mean(axis=0)
                spread = (image.max(axis=0).astype(int) - image.min(axis=0)).max()
                row[:9] = red, green, red + 40, green + 40, 0.9, 0, blue, spread, 0.9
            tensors = [pb_utils.Tensor(n, rows[..., :c].copy()) for n, c in zip(self.names, self.columns)]
            responses[index] = pb_utils.InferenceResponse(tensors)
        return responses
"""


def echoing(repository: Path) -> Path:
    """Models that answer a picture's mean colour as a box and a keypoint; the server batches those not `alone`."""
    kinds = (
        ("yolo", {"detections": 6}),
        ("yolo_pose", {"detections": 57}),
        ("vision", {"detections": 6, "poses": 57}),
    )
    for alone, (kind, outputs) in itertools.product((False, True), kinds):
        name = f"alone_{kind}" if alone else kind
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        tensors = ", ".join(
            f'{{ name: "{output}" data_type: TYPE_FP32 dims: [ 1, {columns} ] }}' for output, columns in outputs.items()
        )
        (version.parent / "config.pbtxt").write_text(
            f'backend: "python" max_batch_size: 4\ninput [ {{ name: "images" data_type: TYPE_UINT8 '
            f"dims: [ {SIDE}, {SIDE}, 3 ] }} ]\noutput [ {tensors} ]\n"
            "instance_group [ { kind: KIND_CPU count: 3 } ]\n" + ("" if alone else "dynamic_batching { }\n")
        )
    return repository


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_environment(TritonSettings().triton_python, "make triton-env")
    folder = tmp_path_factory.mktemp("echo")
    with running_triton(echoing(folder / "repository"), folder / "state") as url:
        yield url


def colour_of(session: int, seq: int) -> np.ndarray:
    """R, G, B, different for every frame and small enough that the box stays inside the image."""
    return np.random.default_rng((session, seq)).integers(0, 240, 3)


def picture(colour: np.ndarray) -> bytes:
    return clip.encode(np.broadcast_to(colour.astype(np.uint8), (SIDE, SIDE, 3)), quality=100)


def assert_is(colour: np.ndarray, frame: FrameResult) -> None:
    (thing,), (pose,) = frame.objects, frame.poses
    blue, spread = pose.keypoints[0].x, pose.keypoints[0].y
    seen = np.array([thing.box.x1, thing.box.y1, blue])
    assert np.abs(seen - colour).max() < 4, (seen, colour)
    assert np.abs(np.array([pose.box.x1, pose.box.y1]) - colour[:2]).max() < 4
    assert spread < 8  # one colour all over: nobody wrote into it meanwhile


async def well_behaved(url: str, number: int) -> None:
    stages = {"ocr": False, "motion": False, "track": False}
    async with connect(url, mode="lossless", stages=stages) as session:
        seen = 0
        async for result in session.stream(picture(colour_of(number, seq)) for seq in range(1, FRAMES + 1)):
            seen += 1
            assert result.seq == seen
            assert_is(colour_of(number, seen), result.frame)
        assert seen == FRAMES


async def rude(service: Service, over: asyncio.Event, number: int) -> None:
    """A client that connects, sends, and disconnects while the service still processes its frames."""
    fate = random.Random(number)
    while not over.is_set():
        socket = await open_socket(service.socket_url, compression=None)
        await socket.send('{"type":"init","stages":{"ocr":false}}')
        for seq in range(fate.randrange(1, 5)):
            await socket.send(picture(colour_of(1000 + number, seq)))
        await asyncio.sleep(fate.random() * 0.02)
        socket.transport.abort()
        await socket.wait_closed()


async def impatient(service: Service, over: asyncio.Event) -> None:
    """A client that posts single images and cancels some of its requests."""
    async with httpx.AsyncClient() as http:
        for seq in range(100_000):
            if over.is_set():
                return
            timeout = random.Random(seq).choice([0.005, 5.0])
            colour = colour_of(2000, seq)
            try:
                answer = await http.post(f"{service.url}/v1/frames", content=picture(colour), timeout=timeout)
            except httpx.TimeoutException:
                continue
            box = answer.json()["objects"][0]["box"]
            assert np.abs(np.array([box["x1"], box["y1"]]) - colour[:2]).max() < 4


@pytest.mark.parametrize(
    "settings",
    [{}, ALONE, {"TRITON_ENSEMBLE": "none"}, {"TRITON_SHM": "off"}],
    ids=["together", "each alone", "two requests on one picture", "without shared memory"],
)
def test_every_session_gets_its_own(triton: str, tmp_path: Path, settings: dict[str, str]) -> None:
    async def run(service: Service) -> None:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            trouble = [tasks.create_task(rude(service, over, number)) for number in range(6)]
            trouble.append(tasks.create_task(impatient(service, over)))
            await asyncio.gather(*(well_behaved(service.url, number) for number in range(SESSIONS)))
            over.set()

    with serving(tmp_path, {"TRITON_URL": triton, "OCR": "off", **settings}) as service:
        asyncio.run(run(service))
        live, http = assert_adds_up(service), assert_adds_up(service, "http")
        assert live["processed"] >= SESSIONS * FRAMES
        assert live["dropped"] > 0
        assert http["processed"] > 0
        # Requests of those who left run on to their end.
        settle(service, "sightline_inference_in_flight", 0)
        assert httpx.get(f"{service.url}/status").json()


def test_memory_of_a_cancelled_request_is_not_given_away_while_the_server_has_it(triton: str) -> None:
    async def run() -> None:
        client = TritonClient(triton, TritonSettings())
        await client.open()
        spec = await client.describe("vision")
        assert spec is not None
        assert client.shared_memory
        shape = 1, SIDE, SIDE, 3
        while (buffer := client.buffer(shape, "UINT8")).slot is None:  # the first ones come before the server has any
            buffer.release()
            await asyncio.sleep(0.01)
        request = asyncio.create_task(client.infer(spec, buffer, stream="one"))
        await asyncio.sleep(0.001)  # it is sent
        request.cancel()
        buffer.release()
        others = [client.buffer(shape, "UINT8") for _ in range(4)]
        assert not any(np.shares_memory(buffer.array, other.array) for other in others)
        for other in others:
            other.release()
        with pytest.raises(asyncio.CancelledError):
            await request
        async with asyncio.timeout(10):  # once it is answered, its memory serves again
            while True:
                again = client.buffer(shape, "UINT8")
                again.release()
                if np.shares_memory(buffer.array, again.array):
                    break
                await asyncio.sleep(0.01)
        await client.close()

    asyncio.run(run())
