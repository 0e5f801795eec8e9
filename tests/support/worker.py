"""A worker of recorded film in a thread, and servers for it to talk to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import REGISTRY

from app.segments.handler import Timings
from app.segments.keys import beside, uri
from app.segments.ports import Objects, WorkerResources
from app.segments.worker import SegmentWorker
from app.settings import SegmentSettings

QUICK = Timings(poll_s=0.2, retry_s=0.2, unavailable_s=0.05, early_s=0.2, reconcile_s=0.2, jobs_s=0.5, lease_s=0.5)
WAIT_S = 60.0


@contextmanager
def working(
    parts: WorkerResources, settings: SegmentSettings, *, timings: Timings = QUICK, drain_s: float = 10.0
) -> Iterator[SegmentWorker]:
    """A worker at work while the block lasts; it must end well."""
    worker = SegmentWorker(parts, settings, timings)
    troubles: list[BaseException] = []

    def run() -> None:
        try:
            worker.run(drain_s)
        except BaseException as error:
            troubles.append(error)

    thread = threading.Thread(target=run, name="worker")
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(WAIT_S)
    assert not thread.is_alive()
    assert not troubles, troubles


def until(true: Callable[[], Any], what: str = "") -> Any:
    """Waits until the value is true; returns it."""
    deadline = time.monotonic() + WAIT_S
    while not (found := true()):
        assert time.monotonic() < deadline, what or "it did not come to be"
        time.sleep(0.05)
    return found


class Counts:
    """The growth of counters since this object was made."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, tuple[str, ...]], float] = {}

    def __call__(self, name: str, *labels: str) -> float:
        return self._now(name, labels) - self._before.get((name, labels), 0.0)

    def since(self, name: str, *labels: str) -> Counts:
        self._before[name, labels] = self._now(name, labels)
        return self

    def _now(self, name: str, labels: tuple[str, ...]) -> float:
        names = {"segments": ("backend", "outcome"), "segment_messages": ("queue", "outcome")}[name]
        found = REGISTRY.get_sample_value(f"sightline_{name}_total", dict(zip(names, labels, strict=True)))
        return found or 0.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: Any


@contextmanager
def listening(owner: Any, page: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    """Serves `page`, which finds `owner` at its server; yields the address."""
    server = _Server(("127.0.0.1", port), page)
    server.owner = owner
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Page(BaseHTTPRequestHandler):
    """One request; `owner.answer(page)` does it."""

    server: _Server

    def do_GET(self) -> None:
        self.server.owner.get(self)

    def do_POST(self) -> None:
        self.server.owner.post(self)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def say(self, status: int, value: Any, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, word in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), word)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@dataclass
class Analyser:
    """A server of `/ping` and `/invocations` that turns films to upper case."""

    objects: Objects
    script: list[int] = field(default_factory=list)
    """Statuses of the next answers; 200 when there is no more."""
    says: Any = field(default_factory=lambda: {"frames": 1})
    """Its answer, when it is 200."""
    takes_s: float = 0.0
    up: bool = True
    at_once: int = 0
    most_at_once: int = 0
    asked: list[dict[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    go_on: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[str]:
        with listening(self, Page, port) as url:
            yield url

    def get(self, page: Page) -> None:
        self.tokens.add(page.headers.get("Authorization"))
        page.say(200 if self.up and page.path == "/ping" else 503, {})

    def post(self, page: Page) -> None:
        asked = json.loads(page.body())
        with self.lock:
            self.asked.append(asked)
            self.tokens.add(page.headers.get("Authorization"))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            status = self.script.pop(0) if self.script else 200
        try:
            self.go_on.wait(self.takes_s)
            if status == 200:
                analyse(self.objects, asked)
        finally:
            with self.lock:
                self.at_once -= 1
        page.say(status, {"error": {"code": "film", "message": "cannot be read"}} if status != 200 else self.says)


def analyse(objects: Objects, asked: dict[str, str]) -> None:
    """What a container does with `{s3_input_uri, s3_output_uri, mode}`."""
    film = objects.read(asked["s3_input_uri"]).upper()
    objects.write(beside(asked["s3_output_uri"]), b'{"frame_id": 0}\n')
    if asked["mode"] != "results_only":
        objects.write(asked["s3_output_uri"], film)


@dataclass
class Runtime:
    """SageMaker's runtime for one asynchronous endpoint: the call as boto3 makes it, answers as objects in S3.

    moto has the call, but its answers fall into a bucket that it makes on the spot, and it runs no container.
    """

    objects: Objects
    bucket: str
    script: list[str] = field(default_factory=list)
    """What becomes of the next calls: `early` (answered before the call returns), `late` (by `answer_all`), `fail`,
    `refuse` (the container has no room), `refuse quoted`, `busy`; `early` when there is no more."""
    keeps_names: bool = True
    """Whether the answer's file has the name that was asked for."""
    calls: list[dict[str, str]] = field(default_factory=list)
    waiting: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def serving(self) -> Iterator[str]:
        with listening(self, Page) as url:
            yield url

    def get(self, page: Page) -> None:
        page.say(404, {})

    def post(self, page: Page) -> None:
        page.body()
        asked = {name.lower(): value for name, value in page.headers.items()}
        with self.lock:
            self.calls.append(asked | {"path": page.path})
            what = self.script.pop(0) if self.script else "early"
            number = len(self.calls)
        if what == "busy":
            page.say(400, {"message": "Rate exceeded"}, x_amzn_ErrorType="ThrottlingException")
            return
        name = asked["x-amzn-sagemaker-filename"] if self.keeps_names else f"answer-{number}.out"
        body = json.loads(self.objects.read(asked["x-amzn-sagemaker-inputlocation"]))
        if what == "early":
            self.answer(name, body)
        elif what == "fail":
            self.fail(name)
        elif what in ("refuse", "refuse quoted"):
            self.refuse(name, quoted=what != "refuse")
        else:
            with self.lock:
                self.waiting.append((name, body))
        page.say(
            202,
            {"InferenceId": asked["x-amzn-sagemaker-inference-id"]},
            **{
                "X-Amzn-SageMaker-OutputLocation": uri(self.bucket, f"async/{name}"),
                "X-Amzn-SageMaker-FailureLocation": uri(self.bucket, f"async-failures/{name}"),
            },
        )

    def answer(self, name: str, asked: dict[str, str]) -> None:
        analyse(self.objects, asked)
        self.objects.write(uri(self.bucket, f"async/{name}"), b'{"frames": 1}')

    def answer_all(self) -> None:
        """Answers the calls that wait."""
        with self.lock:
            waiting, self.waiting = self.waiting, []
        for name, asked in waiting:
            self.answer(name, asked)

    def fail(self, name: str) -> None:
        self.objects.write(uri(self.bucket, f"async-failures/{name}"), b'{"error": {"message": "CUDA out of memory"}}')

    def refuse(self, name: str, *, quoted: bool) -> None:
        said = '{"error":{"code":"busy","message":"1 videos are being analysed","field":null}}'
        words = f"Received server error (503) from primary with message {json.dumps(said) if quoted else said}. See …"
        self.objects.write(uri(self.bucket, f"async-failures/{name}"), words.encode())
