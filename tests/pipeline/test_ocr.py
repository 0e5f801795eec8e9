"""The real OCR process. Skipped where its environment is not installed, which in CI is a failure."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import uvloop
from prometheus_client import REGISTRY

from app.errors import ConfigurationError
from app.pipeline.stages.ocr import Ocr, OcrMemory
from app.pipeline.stages.ocr import process as ocr_process
from app.pipeline.stages.ocr.policy import Text
from app.protocol.result import Stage
from app.settings import ROOT, OcrSettings

PYTHON = OcrSettings(_env_file=None).ocr_python
needs_ocr = pytest.mark.skipif(
    not PYTHON.is_file() and not os.environ.get("CI"), reason="OCR's environment is not installed: run `make ocr-env`"
)
PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: the models are laid out once."""
    return tmp_path_factory.mktemp("state")


def settings(**changed: Any) -> OcrSettings:
    return OcrSettings(**{"_env_file": None, "ocr_min_interval_s": 0.0, **changed})


def sign(text: str, *, width: int = 640, height: int = 480, x: int = 80, y: int = 250) -> np.ndarray:
    """BGR, dark letters on a light wall; the baseline starts at x, y."""
    image = np.full((height, width, 3), 225, np.uint8)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 1.8, (25, 25, 25), 4, cv2.LINE_AA)
    return image


def jpeg_of(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


class Stream:
    """A camera that looks at one sign at a time. Its clock moves only when told to."""

    def __init__(self, ocr: Ocr, image: np.ndarray) -> None:
        self.ocr, self.memory, self.now = ocr, OcrMemory(), 1000.0
        self.show(image)

    def show(self, image: np.ndarray) -> None:
        self.jpeg = jpeg_of(image)
        self.grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (160, 120), interpolation=cv2.INTER_AREA)

    def frame(self) -> tuple[list[Text], Stage]:
        return self.ocr.attach(self.memory, self.jpeg, self.grey, now=self.now)

    async def until(self, *wanted: str) -> tuple[list[Text], Stage]:
        await until(lambda: self.frame()[1].status in wanted)
        return self.frame()


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


def run(ocr: Ocr, main: Callable[[], Coroutine[Any, Any, None]], *, loop: Callable[..., Any] = asyncio.run) -> None:
    """Runs `main`, closes, and checks that no process is left."""

    async def whole() -> None:
        try:
            await main()
        finally:
            pid = ocr.health()["pid"]
            await ocr.close()
            assert ocr.health()["state"] == "disabled"
            assert pid is None or not psutil.pid_exists(pid)

    loop(whole())


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("sightline_ocr_runs_total", {"outcome": outcome}) or 0.0


@needs_ocr
@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_a_sign_is_read_where_it_stands(state: Path, loop: Callable[..., Any]):
    ocr, before = Ocr(settings(), state_dir=state), counted("ok")

    async def main() -> None:
        stream = Stream(ocr, sign("GATE 7 EXIT", x=80, y=250))
        assert stream.frame() == ([], Stage("skipped", "running"))
        texts, stage = await stream.until("ok", "error")
        assert stage == Stage("ok")
        (text,) = texts
        assert text.text == "GATE 7 EXIT"
        assert text.confidence > 0.9
        (width, ascent), _ = cv2.getTextSize("GATE 7 EXIT", cv2.FONT_HERSHEY_SIMPLEX, 1.8, 4)
        corners = [(80, 250 - ascent), (80 + width, 250 - ascent), (80 + width, 250), (80, 250)]
        assert np.abs(np.array(text.polygon) - corners).max() < 16
        assert ocr.health()["state"] == "ok"
        assert ocr.health()["rss_bytes"] > 50e6
        assert counted("ok") == before + 1

    run(ocr, main, loop=loop)


@needs_ocr
def test_polygons_are_in_pixels_of_the_frame_as_sent(state: Path):
    ocr = Ocr(settings(), state_dir=state)
    orientation_6 = bytes.fromhex("ffe1 0022 457869660000 4d4d002a 00000008 0001 0112 0003 00000001 0006 0000 00000000")

    async def main() -> None:
        upright = sign("GATE 7 EXIT", x=80, y=250)
        large = Stream(ocr, cv2.resize(upright, (2560, 1920), interpolation=cv2.INTER_CUBIC))
        tagged = Stream(ocr, upright)
        tagged.jpeg = tagged.jpeg[:2] + orientation_6 + tagged.jpeg[2:]
        assert cv2.imdecode(np.frombuffer(tagged.jpeg, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (640, 480)
        for stream, scale in ((large, 4), (tagged, 1)):
            (text,), _ = await stream.until("ok", "error")
            assert text.text == "GATE 7 EXIT"
            assert np.abs(np.array(text.polygon[0]) / scale - (80, 210)).max() < 16

    run(ocr, main)


def page(*lines: str) -> np.ndarray:
    image = np.full((480, 640, 3), 225, np.uint8)
    for index, line in enumerate(lines):
        cv2.putText(image, line, (40, 110 + 90 * index), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (25, 25, 25), 3, cv2.LINE_AA)
    return image


@needs_ocr
def test_c8_text_is_read_upright_whichever_way_round_it_stands(state: Path):
    ocr = Ocr(settings(), state_dir=state)
    lines = ["Fire exit only", "Track 12 to Bern", "NOON"]

    async def main() -> None:
        for turns in range(4):
            image = np.ascontiguousarray(np.rot90(page(*lines), turns))
            stream = Stream(ocr, image)
            texts, stage = await stream.until("ok", "error")
            assert stage == Stage("ok")
            assert [text.text for text in texts] == lines
            height, width = image.shape[:2]
            for index, text in enumerate(texts):
                # Turned back, its first corner is the upper left one.
                corner = np.array(text.polygon[0]) - (width / 2, height / 2)
                for _ in range(turns):
                    corner = np.array((-corner[1], corner[0]))
                assert np.abs(corner - (40 - 320, 78 + 90 * index - 240)).max() < 20

    run(ocr, main)


@needs_ocr
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_c8_a_short_word_and_lines_of_two_ways_round_are_read(state: Path, turns: int):
    ocr = Ocr(settings(), state_dir=state)

    async def main() -> None:
        short = Stream(ocr, np.ascontiguousarray(np.rot90(sign("A1"), turns)))
        texts, _ = await short.until("ok", "error")
        assert [text.text for text in texts] == ["A1"]
        both = sign("UPRIGHT LINE", x=40, y=110)
        both[240:] = np.rot90(sign("OTHER WAY", x=40, y=110), 2)[240:]
        texts, _ = await Stream(ocr, both).until("ok", "error")
        assert sorted(text.text for text in texts) == ["OTHER WAY", "UPRIGHT LINE"]

    run(ocr, main)


@needs_ocr
def test_c8_what_nobody_can_read_is_not_ok(state: Path):
    ocr = Ocr(settings(), state_dir=state)

    async def main() -> None:
        mirrored = Stream(ocr, np.ascontiguousarray(page("Fire exit only", "Track 12 to Bern")[:, ::-1]))
        await until(lambda: mirrored.frame()[1] != Stage("skipped", "running"))
        assert mirrored.frame() == ([], Stage("skipped", "unreadable"))

    run(ocr, main)


@needs_ocr
def test_two_streams_share_the_process_and_keep_their_own_text(state: Path):
    ocr = Ocr(settings(), state_dir=state)

    async def main() -> None:
        streams = [Stream(ocr, sign("PLATFORM 9")), Stream(ocr, sign("TICKETS"))]
        for stream in streams:
            stream.frame()
        for stream, wanted in zip(streams, ("PLATFORM 9", "TICKETS"), strict=True):
            texts, _ = await stream.until("ok", "error")
            assert [text.text for text in texts] == [wanted]
        assert ocr.health()["runs"] == 2
        assert ocr.health()["restarts"] == 0

    run(ocr, main)


@needs_ocr
def test_a_run_starts_on_change_and_never_sooner_than_the_interval(state: Path):
    ocr = Ocr(settings(ocr_min_interval_s=1.0), state_dir=state)

    async def main() -> None:
        stream = Stream(ocr, sign("GATE 7 EXIT"))
        await stream.until("ok", "error")
        stream.now += 60.0
        assert stream.frame()[1] == Stage("ok")
        assert ocr.health()["runs"] == 1

        stream.now = 1000.5
        stream.show(sign("GATE 1 EXIT"))
        texts, stage = stream.frame()
        assert [text.text for text in texts] == ["GATE 7 EXIT"]
        assert stage == Stage("stale", "throttled", 500.0)
        assert ocr.health()["runs"] == 1

        stream.now = 1001.0
        assert stream.frame()[1] == Stage("stale", "running", 1000.0)
        texts, stage = await stream.until("ok", "error")
        assert [text.text for text in texts] == ["GATE 1 EXIT"]
        assert ocr.health()["runs"] == 2

    run(ocr, main)


@needs_ocr
def test_the_newest_frame_in_line_wins_and_an_ended_stream_leaves_it(state: Path):
    ocr = Ocr(settings(), state_dir=state)

    async def main() -> None:
        stream, ended = Stream(ocr, sign("FIRST")), Stream(ocr, sign("ENDED"))
        stream.frame()
        ended.frame()
        stream.show(sign("SECOND"))
        stream.frame()
        assert ocr.health()["waiting"] == 2
        ocr.forget(ended.memory)
        ocr.forget(ended.memory)
        texts, _ = await stream.until("ok", "error")
        assert [text.text for text in texts] == ["SECOND"]
        assert ocr.health()["runs"] == 1

    run(ocr, main)


@needs_ocr
def test_no_text_is_ok_and_empty(state: Path):
    ocr, before = Ocr(settings(), state_dir=state), counted("empty")

    async def main() -> None:
        stream = Stream(ocr, np.full((480, 640, 3), 128, np.uint8))
        assert await stream.until("ok", "error") == ([], Stage("ok"))
        assert counted("empty") == before + 1

    run(ocr, main)


@needs_ocr
def test_a_text_below_ocr_min_confidence_is_left_out(state: Path):
    strict = Ocr(settings(ocr_min_confidence=1.0), state_dir=state)

    async def main() -> None:
        stream = Stream(strict, sign("PLATFORM 9"))
        await until(lambda: stream.frame() == ([], Stage("skipped", "unreadable")))

    run(strict, main)


@needs_ocr
def test_what_is_no_picture_is_an_error_of_that_frame_alone(state: Path):
    ocr, before = Ocr(settings(ocr_min_interval_s=1.0), state_dir=state), counted("failed")

    async def main() -> None:
        stream = Stream(ocr, sign("EXIT"))
        good = stream.jpeg
        await stream.until("ok", "error")
        pid = ocr.health()["pid"]
        for count, bad in enumerate((b"", b"\xff\xd8\xff\xe0 this is no picture"), start=1):
            stream.now += 1.0
            stream.jpeg = bad
            stream.grey = 255 - stream.grey
            stream.frame()
            await until(lambda wanted=before + count: counted("failed") == wanted)
            texts, stage = stream.frame()
            assert texts == []
            assert stage.status == "error"
            assert "not an image" in str(stage.reason)

        stream.now += 1.0
        stream.jpeg = good
        texts, _ = await stream.until("ok")
        assert [text.text for text in texts] == ["EXIT"]
        assert ocr.health()["pid"] == pid
        assert ocr.health()["state"] == "ok"

    run(ocr, main)


@needs_ocr
def test_a_hung_run_is_killed_and_the_line_goes_on(state: Path):
    ocr, before = Ocr(settings(ocr_timeout_s=3.0, ocr_min_interval_s=1.0), state_dir=state), counted("timeout")

    async def main() -> None:
        ocr.warm()
        await until(lambda: ocr.health()["pid"])
        hung = ocr.health()["pid"]
        os.kill(hung, signal.SIGSTOP)
        stream = Stream(ocr, sign("EXIT"))
        _, stage = await stream.until("ok", "error")
        assert stage.status == "error"
        assert "OCR_TIMEOUT_S=3" in str(stage.reason)
        assert ocr.health()["state"] == "degraded"
        assert counted("timeout") == before + 1

        stream.now += 1.0
        texts, _ = await stream.until("ok")
        assert [text.text for text in texts] == ["EXIT"]
        assert ocr.health()["state"] == "ok"
        assert ocr.health()["restarts"] == 1
        assert not psutil.pid_exists(hung)

    run(ocr, main)


@needs_ocr
def test_a_killed_process_comes_back(state: Path):
    ocr, before = Ocr(settings(ocr_min_interval_s=1.0), state_dir=state), counted("crashed")

    async def main() -> None:
        ocr.warm()
        await until(lambda: ocr.health()["pid"])
        pid = ocr.health()["pid"]
        # Stopped, so that the run is under way for sure when it dies.
        os.kill(pid, signal.SIGSTOP)
        stream = Stream(ocr, sign("EXIT"))
        stream.frame()
        await until(lambda: stream.memory.running)
        os.kill(pid, signal.SIGKILL)
        _, stage = await stream.until("ok", "error")
        assert stage == Stage("error", "the OCR process was killed by SIGKILL")
        assert counted("crashed") == before + 1

        stream.now += 1.0
        await stream.until("ok")
        second = ocr.health()["pid"]
        assert second != pid

        # Between two runs nobody's frame is lost.
        os.kill(second, signal.SIGKILL)
        await until(lambda: ocr.health()["pid"] is None)
        stream.now += 1.0
        stream.show(sign("ENTRANCE"))
        texts, stage = await stream.until("ok", "error")
        assert [text.text for text in texts] == ["ENTRANCE"]
        assert counted("crashed") == before + 1

    run(ocr, main)


@needs_ocr
@pytest.mark.parametrize("bound", [{"ocr_max_runs": 1}, {"ocr_max_rss_mb": 100}])
def test_a_worn_process_is_replaced_between_two_runs(state: Path, bound: dict[str, int]):
    ocr = Ocr(settings(**bound), state_dir=state)

    async def main() -> None:
        pids = set()
        stream = Stream(ocr, sign("ONE"))
        for word in ("ONE", "TWO"):
            stream.show(sign(word))
            ocr.warm()
            await until(lambda: ocr.health()["pid"] not in {None, *pids})
            pids.add(ocr.health()["pid"])
            texts, _ = await stream.until("ok", "error")
            assert [text.text for text in texts] == [word]
        assert len(pids) == 2
        await until(lambda: ocr.health()["restarts"] == 2)
        assert not any(psutil.pid_exists(pid) for pid in pids)

    run(ocr, main)


@needs_ocr
def test_closing_in_the_middle_of_a_start_leaves_nothing(state: Path):
    ocr = Ocr(settings(), state_dir=state)

    async def main() -> None:
        before = set(psutil.Process().children())
        Stream(ocr, sign("EXIT")).frame()
        await until(lambda: set(psutil.Process().children()) - before)
        assert ocr.health()["state"] == "starting"
        await ocr.close()
        assert set(psutil.Process().children()) == before
        memory = OcrMemory()
        assert ocr.attach(memory, b"", None, now=0.0) == ([], Stage("disabled", "the service is stopping"))

    run(ocr, main)


@needs_ocr
def test_the_process_sees_nothing_of_the_services_environment(state: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AUTH_TOKENS", "secret")
    ocr = Ocr(settings(), state_dir=state)

    async def main() -> None:
        ocr.warm()
        await until(lambda: ocr.health()["pid"])
        process = psutil.Process(ocr.health()["pid"])
        assert "AUTH_TOKENS" not in process.environ()
        assert process.environ()["ORT_DISABLE_TELEMETRY"] == "1"
        assert process.net_connections() == []

    run(ocr, main)


@needs_ocr
def test_the_process_ends_with_a_service_that_is_killed(state: Path):
    service = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from app.pipeline.stages.ocr import Ocr
        from app.settings import OcrSettings

        async def main():
            ocr = Ocr(OcrSettings(_env_file=None), state_dir=Path(sys.argv[1]))
            ocr.warm()
            while not ocr.health()["pid"]:
                await asyncio.sleep(0.02)
            print(ocr.health()["pid"], flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    command = [sys.executable, "-c", service, str(state)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        assert worker.nice() > psutil.Process(process.pid).nice()
        process.kill()
    gone, _ = psutil.wait_procs([worker], timeout=PATIENCE_S)
    assert gone


@needs_ocr
def test_own_models_are_used_and_broken_ones_named(state: Path, tmp_path: Path):
    (built,) = (state / "ocr").glob("models-*")
    own = tmp_path / "own"
    own.mkdir()
    for kind in ("det", "rec"):
        (own / f"{kind}.onnx").write_bytes((built / kind / "inference.onnx").read_bytes())
    good = Ocr(settings(ocr_models=own), state_dir=tmp_path)

    async def read() -> None:
        texts, _ = await Stream(good, sign("EXIT")).until("ok", "error")
        assert [text.text for text in texts] == ["EXIT"]

    run(good, read)
    (own / "rec.onnx").write_bytes(b"not a model")
    bad = Ocr(settings(ocr_models=own), state_dir=tmp_path)

    async def refuse() -> None:
        stream = Stream(bad, sign("EXIT"))
        _, stage = await stream.until("ok", "error")
        assert stage.status == "error"
        assert "rec.onnx" in str(stage.reason)

    run(bad, refuse)


@needs_ocr
def test_a_broken_environment_is_told_and_so_is_its_repair(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ocr_process, "restart_wait_s", lambda starts, runs: 0.2 if starts else 0.0)
    repaired, python = tmp_path / "repaired", tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ -e {repaired} ] && exec {PYTHON} "$@"\necho no numpy here >&2\nexit 3\n')
    python.chmod(0o755)
    told: list[tuple[bool, str | None]] = []
    ocr = Ocr(settings(ocr_python=python), state_dir=state, on_change=lambda *change: told.append(change))

    async def main() -> None:
        stream = Stream(ocr, sign("EXIT"))
        assert stream.frame() == ([], Stage("skipped", "running"))
        _, stage = await stream.until("error")
        assert not ocr.available
        assert stage.reason == ocr.reason
        assert "ended with code 3: no numpy here" in str(ocr.reason)
        assert ocr.health()["state"] == "degraded"
        repaired.touch()
        await until(lambda: ocr.available)
        assert told == [(False, stage.reason), (True, None)]
        texts, _ = await stream.until("ok")
        assert [text.text for text in texts] == ["EXIT"]

    run(ocr, main)


def test_a_missing_environment_is_disabled_and_says_what_to_do(tmp_path: Path):
    ocr = Ocr(settings(ocr_python=tmp_path / "python"), state_dir=tmp_path)
    reason = "OCR's environment is not installed: run `make ocr-env`"

    async def main() -> None:
        ocr.warm()
        assert Stream(ocr, sign("EXIT")).frame() == ([], Stage("disabled", reason))
        assert (ocr.available, ocr.reason) == (False, reason)
        assert ocr.health()["state"] == "disabled"

    run(ocr, main)


def test_switched_off_is_disabled(tmp_path: Path):
    ocr = Ocr(settings(ocr="off"), state_dir=tmp_path)
    assert ocr.reason == "switched off: OCR=off"


def test_on_insists_on_its_environment(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"OCR_PYTHON=.*OCR=on insists"):
        Ocr(settings(ocr="on", ocr_python=tmp_path / "python"), state_dir=tmp_path)


def test_a_models_folder_without_models_stops_the_start(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"OCR_MODELS=.*has no det\.onnx"):
        Ocr(settings(ocr_models=tmp_path), state_dir=tmp_path)
