"""TritonClient against a real Triton with canned models."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY
from tritonclient.grpc import service_pb2, service_pb2_grpc

from app.errors import ConfigurationError, InferenceError, InferenceTimeout, InferenceUnavailable
from app.inference import shared_memory, triton
from app.inference.client import ModelSpec, TensorSpec
from app.inference.shared_memory import Buffer
from app.inference.triton import TritonClient
from app.settings import ROOT, TritonSettings
from benchmarks import canned
from tests.conftest import SLOW_S
from tests.support.service import require_environment, running_triton
from tests.support.triton import mortal

pytestmark = pytest.mark.anyio
SHAPE = (1, canned.SIZE, canned.SIZE, 3)
PERSON = np.array(canned.PERSON, np.float32)


@pytest.fixture(scope="module", autouse=True)
async def one_loop(anyio_backend: str) -> None:
    """One event loop for all tests here: grpc.aio's poller is the process's and keeps to those it has met."""
    return


@asynccontextmanager
async def client(
    url: str, on_change: Callable[[bool], None] | None = None, **settings: object
) -> AsyncIterator[TritonClient]:
    """An open client; afterwards no request of its holds the concurrency limit."""
    opened = TritonClient(url, TritonSettings(**settings), on_change=on_change)  # type: ignore[arg-type]
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()
    assert REGISTRY.get_sample_value("sightline_inference_in_flight") == 0


async def described(opened: TritonClient, model: str = "yolo") -> ModelSpec:
    spec = await opened.describe(model)
    assert spec is not None
    return spec


async def ask(opened: TritonClient, spec: ModelSpec, stream: str = "s") -> bool:
    """One request, its answer looked at; whether its pixels lay in shared memory."""
    buffer = opened.buffer(SHAPE, "UINT8")
    try:
        buffer.array[:] = 7
        reply = await opened.infer(spec, buffer, stream=stream)
        np.testing.assert_array_equal(reply.outputs["detections"][0, 0], PERSON)
        assert reply.outputs["detections"].shape == (1, 300, 6)
        return buffer.slot is not None
    finally:
        buffer.release()


async def until(condition: Callable[[], bool], patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def mapped(opened: TritonClient) -> None:
    """Waits until there is shared memory."""

    def there() -> bool:
        buffer = opened.buffer(SHAPE, "UINT8")
        buffer.release()
        return buffer.slot is not None

    await until(there)


async def regions(url: str) -> set[str]:
    """Names that are registered at this Triton."""
    async with grpc.aio.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        status = await stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest())
    return set(status.regions)


def in_shm() -> set[str]:
    ours = shared_memory.region_name().rpartition("-")[0]
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"{ours}-")}


# --- what a model looks like ---


async def test_a_model_is_described_as_the_server_has_it(canned_triton: str) -> None:
    async with client(canned_triton) as opened:
        spec = await described(opened)
    assert (spec.name, spec.version, spec.max_batch) == ("yolo", "1", 16)
    assert spec.inputs == (TensorSpec("images", "UINT8", (-1, 640, 640, 3)),)
    assert spec.outputs == (TensorSpec("detections", "FP32", (-1, 300, 6)),)
    assert spec.parameters["display_name"] == "canned yolo"
    assert spec.batched


async def test_a_model_that_is_not_served_is_none(canned_triton: str) -> None:
    async with client(canned_triton) as opened:
        assert await opened.describe("unicorn") is None
        assert opened.up


async def test_a_server_that_is_away_cannot_be_asked() -> None:
    async with client("127.0.0.1:9") as opened:
        assert not opened.up
        assert opened.generation == 0
        with pytest.raises(InferenceUnavailable, match=r"127.0.0.1:9"):
            await opened.describe("yolo")


async def test_a_server_too_busy_to_say_what_it_serves_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        async def ServerReady(self, request: object, context: object) -> object:
            return service_pb2.ServerReadyResponse(ready=True)

        async def ModelReady(self, request: object, context: object) -> object:
            await asyncio.sleep(10)
            return service_pb2.ModelReadyResponse(ready=True)

    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Busy(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setattr(triton, "PROBE_DEADLINE_S", 0.5)
    try:
        async with client(f"127.0.0.1:{port}", triton_shm="off") as opened:
            with pytest.raises(InferenceUnavailable, match="did not describe its models in time"):
                await opened.describe("yolo")
    finally:
        await server.stop(None)


# --- memory ---


async def test_pixels_and_answers_go_through_shared_memory_once_it_is_mapped(canned_triton: str) -> None:
    async with client(canned_triton) as opened:
        spec = await described(opened)
        assert await ask(opened, spec) is False  # the first need not wait for the mapping
        await mapped(opened)
        assert await ask(opened, spec) is True
        assert opened.shared_memory
        assert len([name for name in await regions(canned_triton) if f"-{os.getpid()}." in name]) == 1
        assert in_shm() == set()  # names live only until the server has them
    assert not [name for name in await regions(canned_triton) if f"-{os.getpid()}." in name]


async def test_batches_of_all_sizes_share_slots_and_are_answered_right(canned_triton: str) -> None:
    async with client(canned_triton) as opened:
        spec = await described(opened, "vision")
        for count in (4, 3, 1, 4, 2, 3):
            shape = (count, *SHAPE[1:])
            await until(lambda shape=shape: lent(opened, shape))
            buffer = opened.buffer(shape, "UINT8")
            assert buffer.array.shape == shape
            assert buffer.slot is not None
            reply = await opened.infer(spec, buffer, stream="s")
            assert {name: len(found) for name, found in reply.outputs.items()} == {"detections": count, "poses": count}
            np.testing.assert_array_equal(reply.outputs["detections"][:, 0], [PERSON] * count)
            buffer.release()


def lent(opened: TritonClient, shape: tuple[int, ...]) -> bool:
    """Whether memory for this shape lies in a slot."""
    buffer = opened.buffer(shape, "UINT8")
    buffer.release()
    return buffer.slot is not None


def unshared() -> float:
    return REGISTRY.get_sample_value("sightline_inference_unshared_total") or 0.0


async def test_when_all_slots_are_taken_the_heap_serves(canned_triton: str, caplog: pytest.LogCaptureFixture) -> None:
    async with client(canned_triton) as opened:
        spec = await described(opened)
        await mapped(opened)
        held: list[Buffer] = []

        def full() -> bool:
            held.append(opened.buffer(SHAPE, "UINT8"))
            return any("used up" in line for line in caplog.messages)

        await until(full)
        held += [opened.buffer(SHAPE, "UINT8") for _ in range(20)]
        await asyncio.sleep(0.1)  # whatever may still be said is said
        assert {buffer.slot is None for buffer in held} == {True, False}
        before = unshared()
        for buffer, whole in ((held[0], 0), (held[-1], 1)):
            reply = await opened.infer(spec, buffer, stream="s")
            np.testing.assert_array_equal(reply.outputs["detections"][0, 0], PERSON)
            assert unshared() == before + whole
        (line,) = [line for line in caplog.messages if "used up" in line]
        assert line.startswith("the 256 MiB shared with Triton are used up: more batches of 1 (1.2 MB each)")
        for buffer in held:
            buffer.release()
        assert await ask(opened, spec) is True


async def test_every_batch_of_a_prepared_pair_has_room_in_shared_memory(tmp_path: Path) -> None:
    """8,400 rows of each image, of which a pose's are 1.9 MB; together more than the image itself."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    found, posed = canned.detections([canned.PERSON], k=8400), canned.poses([canned.person_pose()], k=8400)
    repository = tmp_path / "repository"
    canned.model(repository, "yolo", {"detections": found})
    canned.model(repository, "yolo_pose", {"detections": posed})
    canned.model(repository, "vision", {"detections": found, "poses": posed})
    canned.model(repository, "arcface", {"embeddings": np.zeros(512, np.float32)}, size=112)
    with running_triton(repository, tmp_path / "state") as url:
        async with client(url) as opened:
            detect, pose, both, _ = [
                await described(opened, name) for name in ("yolo", "yolo_pose", "vision", "arcface")
            ]
            for count in (1, 2, 4, 8, 16):
                await until(lambda count=count: lent(opened, (count, *SHAPE[1:])))
            for models in ([both], [detect, pose]):
                buffer = opened.buffer((16, *SHAPE[1:]), "UINT8")
                assert buffer.slot is not None
                memory = np.frombuffer(buffer.slot.region.memory, np.uint8)
                for answer in await asyncio.gather(*(opened.infer(model, buffer, stream="s") for model in models)):
                    assert all(np.shares_memory(head, memory) for head in answer.outputs.values())
                buffer.release()
            await until(lambda: lent(opened, (16, 112, 112, 3)))
            crops = opened.buffer((16, 112, 112, 3), "UINT8")
            assert crops.slot is not None
            assert crops.slot.region.slot_bytes < 1_000_000  # of what a face model answers, not of 8,400 rows
            crops.release()


async def test_two_models_read_one_buffer_and_answer_side_by_side(canned_triton: str) -> None:
    async with client(canned_triton) as opened:
        detect, pose = await described(opened), await described(opened, "yolo_pose")
        await mapped(opened)
        buffer = opened.buffer(SHAPE, "UINT8")
        assert buffer.slot is not None
        found, posed = await asyncio.gather(
            opened.infer(detect, buffer, stream="s"), opened.infer(pose, buffer, stream="s")
        )
        np.testing.assert_array_equal(found.outputs["detections"][0, 0], PERSON)
        np.testing.assert_array_equal(posed.outputs["detections"][0, 0], np.array(canned.person_pose(), np.float32))
        buffer.release()


async def test_without_shared_memory_the_pixels_travel(canned_triton: str) -> None:
    known = await regions(canned_triton)  # on a slow machine an earlier test may have left one
    async with client(canned_triton, triton_shm="off") as opened:
        spec = await described(opened)
        before = unshared()
        assert [await ask(opened, spec) for _ in range(3)] == [False] * 3
        assert unshared() == before  # as was asked for
        assert not opened.shared_memory
        assert not [name for name in await regions(canned_triton) - known if f"-{os.getpid()}." in name]


async def test_a_full_memory_is_done_without(canned_triton: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SHM", "/proc/nowhere")
    async with client(canned_triton) as opened:
        assert not opened.shared_memory
        assert await ask(opened, await described(opened)) is False
    refusing = TritonClient(canned_triton, TritonSettings(triton_shm="on"))
    with pytest.raises(ConfigurationError, match=r"TRITON_SHM='on'.*TRITON_SHM=auto"):
        await refusing.open()
    await refusing.close()


def test_a_name_that_a_killed_process_left_is_unlinked(canned_triton: str) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = shared_memory.region_name()
    left = Path("/dev/shm", mine.replace(f"-{os.getpid()}.", f"-{dead.pid}."))
    alive = Path("/dev/shm", mine)
    left.touch()
    alive.touch()

    async def connect() -> None:
        async with client(canned_triton):
            pass

    try:
        asyncio.run(connect())
        assert not left.exists()
        assert alive.exists()
    finally:
        alive.unlink()


async def test_what_a_killed_process_left_registered_is_swept(canned_triton: str) -> None:
    code = """
import asyncio, sys
from app.inference.triton import TritonClient
from app.settings import TritonSettings

async def main():
    client = TritonClient(sys.argv[1], TritonSettings())
    await client.open()
    spec = await client.describe("yolo")
    while True:
        buffer = client.buffer((1, 640, 640, 3), "UINT8")
        await client.infer(spec, buffer, stream="s")
        buffer.release()
        if buffer.slot is not None:
            print("mapped", flush=True)
            await asyncio.sleep(60)

asyncio.run(main())
"""
    command = [sys.executable, "-c", code, canned_triton]
    killed = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    assert killed.stdout is not None
    assert await killed.stdout.readline() == b"mapped\n"
    left = {name for name in await regions(canned_triton) if f"-{killed.pid}." in name}
    assert len(left) == 1
    async with client(canned_triton):
        assert left <= await regions(canned_triton)  # of one who lives
    killed.kill()
    await killed.wait()
    async with client(canned_triton):
        assert not left & await regions(canned_triton)


# --- requests that fail ---


async def test_no_answer_in_time_is_a_timeout_that_names_the_setting(canned_triton: str) -> None:
    async with client(canned_triton, triton_deadline_s=SLOW_S / 3) as opened:
        spec = await described(opened, "slow")
        with pytest.raises(InferenceTimeout, match=r"slow.*TRITON_DEADLINE_S=0.1 "):
            await ask(opened, spec)
        assert await ask(opened, await described(opened)) in (True, False)  # others are answered


async def test_a_request_may_have_more_time_than_others(canned_triton: str) -> None:
    async with client(canned_triton, triton_deadline_s=SLOW_S / 3) as opened:
        spec = await described(opened, "slow")
        buffer = opened.buffer((1, *spec.inputs[0].shape[1:]), spec.inputs[0].dtype)
        with pytest.raises(InferenceTimeout, match=r"slow: no answer within 0\.02 seconds"):
            await opened.infer(spec, buffer, stream="s", deadline_s=0.02)
        assert (await opened.infer(spec, buffer, stream="s", deadline_s=60)).infer_s > SLOW_S / 3
        buffer.release()


async def test_d7_memory_of_a_request_that_timed_out_is_lent_to_nobody_while_triton_may_write(
    canned_triton: str,
) -> None:
    async with client(canned_triton) as opened:
        slow = await described(opened, "slow")
        await mapped(opened)
        late, orderly = opened.buffer(SHAPE, "UINT8"), opened.buffer(SHAPE, "UINT8")
        assert late.slot is not None
        with pytest.raises(InferenceTimeout):
            await opened.infer(slow, late, stream="s", deadline_s=SLOW_S / 3)
        await opened.infer(slow, orderly, stream="s", deadline_s=60)
        late.release()
        orderly.release()
        assert reused(opened, [late, orderly]) == [False, True]


async def test_a_request_that_the_server_refuses_fails_alone(canned_triton: str) -> None:
    async with client(canned_triton, triton_max_in_flight=1) as opened:
        spec = await described(opened)
        for _ in range(3):
            buffer = opened.buffer((1, 64, 64, 3), "UINT8")
            with pytest.raises(InferenceError, match=r"yolo: .*shape"):
                await opened.infer(spec, buffer, stream="s")
            buffer.release()
        assert opened.up
        await ask(opened, spec)


async def test_the_gate_bounds_what_is_at_the_server(canned_triton: str) -> None:
    async with client(canned_triton, triton_max_in_flight=2) as opened:
        spec = await described(opened)
        tasks = [asyncio.create_task(ask(opened, spec, f"s{number % 5}")) for number in range(40)]
        most = 0.0
        while not all(task.done() for task in tasks):
            most = max(most, REGISTRY.get_sample_value("sightline_inference_in_flight") or 0)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert most == 2


async def test_requests_given_up_in_flight_leak_neither_places_nor_memory(canned_triton: str) -> None:
    async with client(canned_triton, triton_max_in_flight=2) as opened:
        slow = await described(opened, "slow")
        await mapped(opened)
        buffers = [opened.buffer(SHAPE, "UINT8") for _ in range(6)]
        tasks = [asyncio.create_task(opened.infer(slow, buffer, stream="s")) for buffer in buffers]
        await asyncio.sleep(SLOW_S / 3)  # two are at the server, four wait for the concurrency limit
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        for buffer in buffers:
            buffer.release()
        # The two run on at the server, and it may write: neither places nor memory of theirs are given away yet.
        assert REGISTRY.get_sample_value("sightline_inference_in_flight") == 2
        assert reused(opened, buffers) == [False, False, True, True, True, True]
        await until(lambda: REGISTRY.get_sample_value("sightline_inference_in_flight") == 0)
        assert reused(opened, buffers) == [True] * 6
        async with asyncio.timeout(5):
            await asyncio.gather(*(ask(opened, slow) for _ in range(2)))


def reused(opened: TritonClient, old: list[Buffer]) -> list[bool]:
    """Whether the memory of each of these is given to others now."""
    new = [opened.buffer(SHAPE, "UINT8") for _ in range(200)]
    found = [any(np.shares_memory(buffer.array, other.array) for other in new) for buffer in old]
    for buffer in new:
        buffer.release()
    return found


async def test_close_waits_for_what_is_in_flight(canned_triton: str) -> None:
    async with client(canned_triton) as opened:
        task = asyncio.create_task(ask(opened, await described(opened, "slow")))
        await asyncio.sleep(SLOW_S / 3)
    assert task.done()
    await task


# --- coming and going ---


async def test_killed_and_restarted_it_is_away_then_back_with_memory_and_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    monkeypatch.setattr(triton, "PROBE_INTERVAL_S", 0.5)
    monkeypatch.setattr(triton, "PROBE_DEADLINE_S", 0.5)
    with mortal(canned.write(tmp_path / "repository"), tmp_path / "state") as server:
        changes: list[bool] = []
        async with client(server.url, changes.append) as opened:
            spec = await described(opened)
            await mapped(opened)
            assert (opened.up, opened.generation, changes) == (True, 1, [True])
            held = opened.buffer(SHAPE, "UINT8")  # across the server's death

            server.kill()
            await until(lambda: not opened.up)
            with pytest.raises(InferenceUnavailable):
                await ask(opened, spec)
            await until(lambda: opened.up)
            assert changes == [True, False, True]
            assert opened.generation == 2
            spec = await described(opened)
            reply = await opened.infer(spec, held, stream="s")  # its memory means nothing to the new one: pixels travel
            np.testing.assert_array_equal(reply.outputs["detections"][0, 0], PERSON)
            held.release()
            await mapped(opened)
            assert await ask(opened, spec) is True

            # Standing still is like being away; but then it still has what was registered, which must not add up.
            before = await regions(server.url)
            server.process.send_signal(signal.SIGSTOP)
            try:
                await until(lambda: not opened.up)
            finally:
                server.process.send_signal(signal.SIGCONT)
            await until(lambda: opened.up)
            assert opened.generation == 3
            await mapped(opened)
            assert await ask(opened, spec) is True
            after = await regions(server.url)
            assert len(after) == len(before) == 1
            assert after != before
    assert in_shm() == set()


async def test_memory_forgotten_by_the_server_is_mapped_anew(canned_triton: str) -> None:
    async with client(canned_triton) as opened:
        spec = await described(opened)
        await mapped(opened)
        async with grpc.aio.insecure_channel(canned_triton) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for name in await regions(canned_triton):
                if f"-{os.getpid()}." in name:
                    await stub.SystemSharedMemoryUnregister(service_pb2.SystemSharedMemoryUnregisterRequest(name=name))
        with pytest.raises(InferenceError, match="shared memory region"):
            await ask(opened, spec)
        await until(lambda: opened.generation == 2)
        await mapped(opened)
        assert await ask(opened, spec) is True
