"""`python -m benchmarks.frame_way`: the files and Python calls of `app/` that one frame of a live session visits.

A real `Session` over a real pipeline runs in this process, with default settings but without OCR. The models are canned
(`app.inference.fake`), and so is the socket: a frame's way begins with its bytes at the session's `receive` and ends
with its result at the socket's `send`, so that uvicorn and gRPC are not counted. A profile function in every thread
notes each call of a function whose file lies in `app/`; a coroutine that resumes and a comprehension are no calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import orjson
from starlette.websockets import WebSocket

from app.auth import Auth
from app.inference.client import ModelSpec, TensorSpec
from app.inference.fake import FakeClient
from app.live.session import LiveEntryPoint, Session
from app.pipeline.multimodal import Pipeline
from app.settings import ROOT, Settings
from app.summary import Summaries
from benchmarks import canned, photographs

_APP = str(ROOT / "app") + os.sep
_WARM_UP = 30
"""Frames before the first one that is traced: pools have grown by then, and tracks begun."""
_TRACED = 30
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>")
"""Calls up to Python 3.11, and none from 3.12 on."""


@dataclass(frozen=True, slots=True)
class Way:
    """The functions that a typical frame calls."""

    calls: int
    """Median over the traced frames."""
    functions: dict[tuple[str, str], float]
    """(file, function) -> calls a frame, of functions that at least half of the frames call."""

    @property
    def files(self) -> list[str]:
        """Paths in `app/`, sorted."""
        return sorted({file for file, _ in self.functions})


class _Tracer:
    """Counts calls of functions in `app/`, in all threads that start after `install`."""

    def __init__(self) -> None:
        self.active = False
        self._frames: list[Counter[CodeType]] = []

    def install(self) -> None:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def begin(self) -> None:
        """Starts to count the calls of one frame."""
        self._frames.append(Counter())
        self.active = True

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.active or event != "call":
            return
        code = frame.f_code
        if not code.co_filename.startswith(_APP) or code.co_name in _COMPREHENSIONS:
            return
        if code.co_code[frame.f_lasti + 1] & 3:  # RESUME's argument: 0 at a function's start, else after a yield
            return
        self._frames[-1][code] += 1

    def way(self) -> Way:
        """The calls of a typical frame."""
        total: Counter[CodeType] = Counter()
        seen: Counter[CodeType] = Counter()
        for frame in self._frames:
            total += frame
            seen.update(frame.keys())
        count = len(self._frames)
        functions: dict[tuple[str, str], float] = {}
        for code, calls in total.items():
            if 2 * seen[code] >= count:
                key = code.co_filename.removeprefix(_APP), code.co_qualname
                functions[key] = functions.get(key, 0.0) + calls / count
        return Way(round(statistics.median(frame.total() for frame in self._frames)), functions)


class _Connection:
    """What the server puts behind a session's socket: takes messages at once."""

    left = trusted = False
    unread = 0
    end_session: Callable[[float], None] | None = None

    def __init__(self) -> None:
        self.sent: asyncio.Queue[bytes] = asyncio.Queue()

    def try_send(self, text: bytes) -> bool:
        self.sent.put_nowait(text)
        return True

    def abort(self) -> None:
        """There is no transport to be closed."""


def _client() -> FakeClient:
    """Models as `make models` installs them: one person with a pose and one dog, whatever the image shows."""
    images = (TensorSpec("images", "UINT8", (-1, canned.SIZE, canned.SIZE, 3)),)
    detections, poses = TensorSpec("detections", "FP32", (-1, 300, 6)), TensorSpec("poses", "FP32", (-1, 300, 57))
    names = {"class_names": json.dumps(["person" if i == 0 else "dog" if i == 16 else f"class_{i}" for i in range(80)])}
    answer = {
        "detections": canned.detections([canned.PERSON, canned.DOG])[None],
        "poses": canned.poses([canned.person_pose()])[None],
    }
    outputs = {"yolo": (detections,), "yolo_pose": (poses,), "vision": (detections, poses)}
    return FakeClient(
        {
            name: (
                ModelSpec(name, "1", images, specs, 16, names if name != "yolo_pose" else {}, batched=True),
                lambda _, specs=specs: {spec.name: answer[spec.name] for spec in specs},
            )
            for name, specs in outputs.items()
        }
    )


async def _run(state: Path, jpegs: Sequence[bytes]) -> Way:
    settings = Settings(ocr="off", state_dir=state)
    tracer = _Tracer()
    tracer.install()
    pipeline = Pipeline(_client(), settings)
    await pipeline.load()
    summaries = Summaries(settings.summary, settings.llm, state)
    entry_point = LiveEntryPoint(
        pipeline,
        summaries,
        settings.live,
        settings.access,
        settings.pipeline,
        Auth(settings),
        inference_deadline_s=settings.triton.triton_deadline_s,
    )
    connection = _Connection()
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send":
            connection.sent.put_nowait(message["text"].encode())

    scope = {
        "type": "websocket",
        "path": "/v1/inference",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "extensions": {"sightline.connection": connection},
    }
    incoming.put_nowait({"type": "websocket.connect"})
    session = asyncio.create_task(Session(WebSocket(scope, incoming.get, send), entry_point).run())
    try:
        for number in range(_WARM_UP + _TRACED):
            if number >= _WARM_UP:
                tracer.begin()
            incoming.put_nowait({"type": "websocket.receive", "bytes": jpegs[number % len(jpegs)]})
            while (answer := orjson.loads(await connection.sent.get()))["type"] != "result":
                if answer["type"] not in ("ready", "ping"):
                    raise RuntimeError(f"a frame was answered {answer}")
            tracer.active = False
            if not answer["objects"] or not answer["poses"]:
                raise RuntimeError(f"the canned models were not read: {answer}")
            await asyncio.sleep(0.02)  # what the frame leaves behind is over, and is not counted with the next one
        incoming.put_nowait({"type": "websocket.receive", "text": '{"type": "stop"}'})
        await session
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        session.cancel()
        pipeline.close()
        await summaries.close()
    return tracer.way()


def measure() -> Way:
    """Traces a session of its own in this process."""
    (jpegs,) = photographs.streams(1)
    with tempfile.TemporaryDirectory() as state:
        return asyncio.run(_run(Path(state), jpegs))


def main() -> None:
    """Prints both numbers, and every function with its calls a frame."""
    way = measure()
    print(f"{len(way.files)} files, {way.calls} calls")
    for file in way.files:
        functions = {name: calls for (of, name), calls in way.functions.items() if of == file}
        print(f"\n{file}: {sum(functions.values()):.1f}")
        for name, calls in sorted(functions.items(), key=lambda item: -item[1]):
            print(f"  {calls:5.1f}  {name}")


if __name__ == "__main__":
    main()
