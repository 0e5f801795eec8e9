"""The service under test, in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks import harness, photographs
from benchmarks.harness import Cores

SAME_WORK: dict[str, Any] = {"stages": {"ocr": False, "track": False}}
"""Settings of an `init` for the same work as the naive service's."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The clips, the Triton and the cores that all turns of a run share."""

    folder: Path
    cores: Cores
    triton_url: str
    triton_pids: list[int]

    @property
    def frames(self) -> Path:
        return self.folder / "frames"


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers."""

    port: int
    pid: int

    @property
    def pids(self) -> list[int]:
        """Its own process and those that it started, which with --workers do the work."""
        return [self.pid, *(process.pid for process in psutil.Process(self.pid).children(recursive=True))]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/inference"


@contextmanager
def bench(repository: Callable[[Path], Path], streams: int, places: Cores | None = None) -> Iterator[Bench]:
    """Clips and the embedded Triton on the models that `repository` writes."""
    places = places or harness.cores()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        photographs.write(folder / "frames", streams)
        models = repository(folder / "repository")
        with harness.triton(models, folder / "state", places.triton) as (url, pids):
            yield Bench(folder, places, url, pids)


@contextmanager
def served(stand: Bench, on: frozenset[int], **settings: str) -> Iterator[Running]:
    """`sightline serve` on these cores, without OCR, on the stand's Triton."""
    port, log = harness.free_port(), stand.folder / "service.log"
    settings = {
        "TRITON_URL": stand.triton_url,
        "OCR": "off",
        "PORT": str(port),
        "STATE_DIR": str(stand.folder / "state"),
        "MAX_MESSAGES_PER_S": "100000",
        **settings,
    }
    with harness.process(["app", "serve"], on, log, **settings) as child:
        harness.wait_until_ready(child, f"http://127.0.0.1:{port}", log)
        yield Running(port, child.pid)


def init(mode: str, **wishes: Any) -> str:
    """The first message of a session that does the naive service's work."""
    return orjson.dumps({"type": "init", "mode": mode, **SAME_WORK, **wishes}).decode()


def pressed(stand: Bench, service: Running, first: str, warm_up_s: float, seconds: float, **options: Any) -> Any:
    """What `benchmarks.load` saw: closed loop, frames always in flight."""
    arguments = ["benchmarks.load", "--url", service.socket_url, "--init", first, f"--frames={stand.frames}"]
    return _asked(stand, service, arguments, warm_up_s, seconds, options)


def paced(stand: Bench, service: Running, first: str, warm_up_s: float, seconds: float, **options: Any) -> Any:
    """What `benchmarks.pace` saw: open loop, frames when they are due."""
    arguments = ["benchmarks.pace", "--url", service.socket_url, "--init", first, f"--frames={stand.frames}"]
    return _asked(stand, service, arguments, warm_up_s, seconds, options)


def _asked(
    stand: Bench, service: Running, arguments: list[str], warm_up_s: float, seconds: float, options: Mapping[str, Any]
) -> dict[str, Any]:
    arguments += [f"--warm-up={warm_up_s}", f"--seconds={seconds}"]
    arguments += [f"--{name}={value}" for name, value in options.items()]
    arguments += ["--watch", *map(str, service.pids), "--triton", *map(str, stand.triton_pids)]
    return harness.answer(arguments, stand.cores.load, 90 + warm_up_s + seconds)
