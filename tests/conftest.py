"""Fixtures of the real thing: a Triton with canned models, services in processes of their own."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from app.pipeline import registry  # noqa: F401 - so that a result has the parts here that it has in the service
from app.settings import SECTIONS, OcrSettings, TritonSettings
from benchmarks import canned
from tests.support.service import Service, require_environment, running_triton, serving

Serve = Callable[..., Service]
SLOW_S = 0.3
SLOW = {"TRITON_DETECT_MODEL": "slow", "TRITON_POSE_MODEL": "none", "TRITON_ENSEMBLE": "none"}
"""Settings of a service whose only model takes `SLOW_S` a frame."""


hypothesis.settings.register_profile("tests", deadline=None, database=None)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--flaky",
        action="store_true",
        help="these tests failed a moment ago (see --last-failed): name those that pass now, as the last thing said",
    )


_passed: dict[str, bool] = {}
"""Whether setup, call and teardown of a test passed."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _passed[report.nodeid] = _passed.get(report.nodeid, True) and report.passed


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.getoption("--flaky"):
        for name in (name for name, passed in _passed.items() if passed):
            print(f"flaky: {name} (failed beside others, passed alone)")


def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and with them what they start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A developer's own settings must not change what is tested.
    for section in SECTIONS:
        for name in section.model_fields:
            os.environ.pop(name.upper(), None)
            os.environ.pop(f"{name.upper()}_FILE", None)
    # Nor must a proxy stand between the tests and what they start; what they download goes through it.
    around = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if around != "*":
        around = ",".join(filter(None, (around, "127.0.0.1", "localhost", "::1")))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = around


SERVERS = {"serve", "service", "real", "canned_triton", "redis_server", "kafka", "aws"}
"""Fixtures that start a server."""
SLOW_FOLDERS = {"benchmarks", "browser", "integration", "triton"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need no server come first, so that a plain mistake is found within a minute. A file stays together."""
    slow = {
        item.path
        for item in items
        if SERVERS & set(getattr(item, "fixturenames", ())) or SLOW_FOLDERS & set(item.path.parts)
    }
    items.sort(key=lambda item: item.path in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who runs which file with `--dist loadfile`: see `tests/support/scheduler.py`."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.support.scheduler import FolderScheduling

    return FolderScheduling(config, log)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """No test leaves this process real-time: it would starve all other processes on every core that it uses."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(scope="session")
def canned_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a real Triton whose models answer one person and one dog at once; see `SLOW`, too."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    folder = tmp_path_factory.mktemp("canned")
    repository = canned.write(folder / "repository")
    names = ["person", *(f"class_{number}" for number in range(1, 80))]
    found = {"detections": canned.detections([canned.PERSON])}
    canned.model(repository, "slow", found, delay_s=SLOW_S, class_names=names)
    with running_triton(repository, folder / "state") as url:
        yield url


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The backend of tests that are coroutines."""
    return "asyncio"


@pytest.fixture(scope="module")
def serve(canned_triton: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts a service on the canned Triton with the settings given; ends it with the module."""
    started: list[Service] = []
    with ExitStack() as stack:

        def start(**settings: str) -> Service:
            settings = {"TRITON_URL": canned_triton, "OCR": "off", **settings}
            started.append(stack.enter_context(serving(tmp_path_factory.mktemp("service"), settings)))
            return started[-1]

        yield start
        for service in started:  # all at once: each takes a moment
            service.process.terminate()


@pytest.fixture(scope="session")
def service(canned_triton: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with default settings on the canned Triton, OCR off; the same for all tests."""
    with serving(tmp_path_factory.mktemp("service"), {"TRITON_URL": canned_triton, "OCR": "off"}) as running:
        yield running


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as it comes: its own embedded Triton with the checked-in models, and text reading."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    require_environment(OcrSettings().ocr_python, "make ocr-env")
    with serving(tmp_path_factory.mktemp("real"), {"OCR": "on"}) as running:
        yield running


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A photograph, 640x480, as a camera sends it."""
    return photograph()


def photograph(width: int = 640, height: int = 480, quality: int = 80) -> bytes:
    """skimage's astronaut (it ships inside the package), cut to size, JPEG 4:2:0."""
    import simplejpeg
    from PIL import Image
    from skimage import data

    picture = Image.fromarray(data.astronaut()).resize((width, height))
    encoded: bytes = simplejpeg.encode_jpeg(np.asarray(picture), quality=quality, colorsubsampling="420")
    return encoded


def pillow_jpeg(picture: object, **options: object) -> bytes:
    """A JPEG as Pillow writes it: progressive, CMYK, EXIF and the like."""
    out = io.BytesIO()
    picture.save(out, "JPEG", **options)  # type: ignore[attr-defined]
    return out.getvalue()


@pytest.fixture(scope="session")
def run() -> Callable[..., object]:
    """`asyncio.run`."""
    return asyncio.run


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"
