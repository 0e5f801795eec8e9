"""`sightline send`, as a process, against a real service."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import orjson
import pytest
from PIL import Image

from app.client import decode
from app.protocol.messages import Result
from app.settings import ROOT
from benchmarks import canned
from tests.conftest import SLOW, Serve
from tests.support import clip
from tests.support.service import Service

PAN = clip.Pan(step=(4, 2), count=8)
# The canned person on the 640x640 canvas, 80 above the frame.
PERSON = [canned.PERSON[0], canned.PERSON[1] - 80, canned.PERSON[2], canned.PERSON[3] - 80]


@dataclass
class Done:
    code: int
    out: bytes
    err: str

    @property
    def results(self) -> list[Result]:
        return results(self.out)


def results(lines: bytes) -> list[Result]:
    found = [decode(line) for line in lines.splitlines()]
    assert all(isinstance(one, Result) for one in found)
    return found  # type: ignore[return-value]


def sightline(*arguments: object) -> Done:
    command = [sys.executable, "-m", "app", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    return Done(done.returncode, done.stdout, done.stderr.decode())


def send(service: Service, *arguments: object) -> Done:
    return sightline("send", *arguments, "--url", service.url)


def assert_refused(done: Done, *words: str) -> None:
    """Exit code 1, nothing on stdout, one line on stderr that names what is wrong."""
    assert (done.code, done.out) == (1, b"")
    assert done.err.startswith("sightline: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip.write_mp4(tmp_path_factory.mktemp("films") / "pan.mp4", PAN.pictures())


def test_a_film_gives_a_line_a_frame(service: Service, film: Path) -> None:
    done = send(service, film)
    assert done.code == 0
    assert [result.seq for result in done.results] == list(range(1, PAN.count + 1))
    for result in done.results:
        assert (result.frame.image.width, result.frame.image.height) == (clip.WIDTH, clip.HEIGHT)
        assert [one.class_name for one in result.frame.objects] == ["person", "dog"]
        assert result.frame.stages["detect"].status == "ok"
    # It is the film that was sent: its camera moves.
    camera = done.results[-1].frame.motion.camera
    assert (camera.dx, camera.dy) == pytest.approx((-4, -2), abs=0.6)
    assert f"{PAN.count} frames received, {PAN.count} answered, dropped: none, failed: 0" in done.err
    assert done.err.count("\n") == 1


def test_an_annotated_film_has_every_frame_and_its_boxes(service: Service, film: Path, tmp_path: Path) -> None:
    done = send(service, film, "-o", tmp_path / "seen.mp4")
    assert (done.code, done.out) == (0, b"")
    with av.open(str(tmp_path / "seen.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == PAN.count
    x1, y1, x2, y2 = (round(side) for side in PERSON)
    for before, after in zip(PAN.pictures(), frames, strict=True):
        difference = np.abs(before.astype(int) - after).mean(axis=2)
        edges = difference[y1 + 30 : y2 - 9, [x1, x2]], difference[[y2], x1:x2]
        assert all(np.median(edge) > 40 for edge in edges)
        assert np.median(difference[y1 + 30 : y2 - 9, x1 + 9 : x1 + 60]) < 10


def test_a_folder_is_sent_by_name_and_what_is_no_picture_is_named(service: Service, tmp_path: Path) -> None:
    for index, (name, size) in enumerate({"a.png": (320, 240), "b.jpg": (101, 67), "c.webp": (64, 200)}.items()):
        Image.fromarray(PAN.pictures()[index]).resize(size).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture, and not taken for one")
    (tmp_path / "bb.jpg").write_bytes(b"no picture, but a picture's name")
    done = send(service, tmp_path, "-o", tmp_path / "out.jsonl")
    assert (done.code, done.out) == (0, b"")
    found = results((tmp_path / "out.jsonl").read_bytes())
    assert [(one.seq, one.frame.image.width) for one in found] == [(1, 320), (2, 101), (3, 64)]
    assert "left out: " in done.err
    assert "bb.jpg: no picture that can be read" in done.err
    # Pictures of several sizes make a film of the first one's.
    assert send(service, tmp_path, "-o", tmp_path / "out.mp4").code == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(320, 240)] * 3


def test_one_picture_is_one_line(service: Service, tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(PAN.jpegs()[0])
    (result,) = send(service, tmp_path / "one.jpg", "--confidence", 0.85).results
    assert [one.class_name for one in result.frame.objects] == ["person"]  # the dog has 0.8
    assert b"\n" not in orjson.dumps(result)


def test_limit_ends_it(service: Service, film: Path) -> None:
    assert len(send(service, film, "--limit", 3).results) == 3


def test_realtime_keeps_the_pace_that_is_asked_for(service: Service, film: Path) -> None:
    found = send(service, film, "--realtime", "--fps", 20).results
    taken = np.array([one.captured_at_ms for one in found])
    # Frames are due every 50 ms from the first one on; on a busy machine one comes late, never early.
    due = np.array([one.seq - found[0].seq for one in found]) * 50
    assert (taken - taken[0] >= due - 5).all()
    assert len(found) > 1


def test_realtime_leaves_out_what_a_slow_service_is_too_late_for(serve: Serve, film: Path) -> None:
    slow = serve(**SLOW)  # 0.3 s a frame; the film's 8 last 0.8 s
    done = send(slow, film, "--realtime")
    assert done.code == 0
    (left_out,) = [int(line.split()[0]) for line in done.err.splitlines() if "their time was over" in line]
    received = int(done.err.split()[0])
    assert left_out + received == PAN.count
    assert left_out >= 1
    every_frame = send(slow, film)
    assert len(every_frame.results) == PAN.count
    assert "their time was over" not in every_frame.err


def test_a_reader_that_has_enough_ends_it_quietly(service: Service, film: Path) -> None:
    command = [sys.executable, "-m", "app", "send", film, "--url", service.url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert results(child.stdout.readline())[0].seq == 1
        child.stdout.close()
        said = child.stderr.read()
        assert child.wait(30) == 1
    assert said == b""


@pytest.fixture(scope="module")
def locked(serve: Serve) -> Service:
    return serve(AUTH_TOKENS="open-sesame")


def test_a_token_opens_the_service(locked: Service, film: Path) -> None:
    assert len(send(locked, film, "--limit", 1, "--token", "open-sesame").results) == 1
    assert_refused(send(locked, film, "--token", "wrong"), "this token does not open the service")
    assert_refused(send(locked, film), "this service wants a token")


def test_what_cannot_be_sent_is_said_in_one_line(service: Service, film: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "torn.png").write_text("no picture")
    for source, words in (
        ("nowhere.mp4", ("nowhere.mp4", "no such file")),
        (tmp_path / "empty", ("empty", "no pictures")),
        (tmp_path / "text.mp4", ("text.mp4", "no video")),
        (tmp_path / "torn.png", ("torn.png", "no picture")),
        ("97", ("camera 97", "cannot be opened")),
    ):
        assert_refused(send(service, source), *words)
    assert_refused(send(service, film, "-o", tmp_path / "out.avi"), "out.avi", ".mp4 or .jsonl")
    assert_refused(send(service, film, "-o", tmp_path / "no" / "out.mp4"), "out.mp4", "No such file or directory")


def test_an_unreachable_service_is_said_in_one_line_and_no_file_is_touched(film: Path, tmp_path: Path) -> None:
    done = sightline("send", film, "--url", "http://127.0.0.1:9", "-o", tmp_path / "out.jsonl")
    assert_refused(done, "http://127.0.0.1:9")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["serve", "triton", "send", "schema", "Start with"]),
        (["serve"], ["--host", "--port", "--workers", "HOST", "TRITON_URL", "environment", "README"]),
        (["triton"], ["TRITON_URL", "Ctrl-C"]),
        (["send"], ["SOURCE", "camera number", "--url", "http://127.0.0.1:8000", "--token", "SIGHTLINE_TOKEN", ".mp4"]),
        (["schema"], ["JSON Schema"]),
    ],
)
def test_help_tells_what_matters(command: list[str], words: list[str]) -> None:
    done = sightline(*command, "--help")
    assert done.code == 0
    for word in words:
        assert word in done.out.decode(), word


def test_schema_is_json() -> None:
    assert set(orjson.loads(sightline("schema").out)) >= {"client", "server", "$defs"}
