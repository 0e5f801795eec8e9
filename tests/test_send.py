"""`sightline send`, as a process, against a real service."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
from tests.segments.test_kinds import coded, combs, interlaced
from tests.segments.test_truncated import cut_off, fast
from tests.support import clip, forks
from tests.support.movie import heard, movie, picture, shown
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
    assert all(isinstance(result, Result) for result in found)
    return found  # type: ignore[return-value]


def sightline(*arguments: object) -> Done:
    done = forks.run(*map(str, arguments))
    return Done(done.returncode, done.stdout.encode(), done.stderr)


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
        assert [detection.class_name for detection in result.frame.objects] == ["person", "dog"]
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
    assert [(result.seq, result.frame.image.width) for result in found] == [(1, 320), (2, 101), (3, 64)]
    assert "left out: " in done.err
    assert "bb.jpg: no image that can be read" in done.err
    # Pictures of several sizes make a film of the first one's.
    assert send(service, tmp_path, "-o", tmp_path / "out.mp4").code == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(320, 240)] * 3


def test_one_picture_is_one_line(service: Service, tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(PAN.jpegs()[0])
    done = send(service, tmp_path / "one.jpg", "--confidence", 0.85)
    (result,) = done.results
    assert [detection.class_name for detection in result.frame.objects] == ["person"]  # the dog has 0.8
    assert done.out.count(b"\n") == 1


def test_limit_ends_it(service: Service, film: Path) -> None:
    assert len(send(service, film, "--limit", 3).results) == 3


def test_realtime_keeps_the_pace_that_is_asked_for(service: Service, film: Path) -> None:
    found = send(service, film, "--realtime", "--fps", 20).results
    taken = np.array([result.captured_at_ms for result in found])
    # Frames are due every 50 ms, and none is sent early. On a busy machine the first one may itself be sent up to a
    # period late, so that the others seem to be as early.
    due = np.array([result.seq - found[0].seq for result in found]) * 50
    assert (taken - taken[0] >= due - 50).all()
    assert len(found) > 1


def test_realtime_leaves_out_what_a_slow_service_is_too_late_for(serve: Serve, film: Path) -> None:
    slow = serve(**SLOW)  # 0.3 s a frame; the film's 8 last 0.8 s
    done = send(slow, film, "--realtime")
    assert done.code == 0
    (left_out,) = [int(line.split()[0]) for line in done.err.splitlines() if "they were late" in line]
    received = int(done.err.split()[0])
    assert left_out + received == PAN.count
    assert left_out >= 1
    every_frame = send(slow, film)
    assert len(every_frame.results) == PAN.count
    assert "they were late" not in every_frame.err


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
        (tmp_path / "empty", ("empty", "no images or videos")),
        (tmp_path / "text.mp4", ("text.mp4", "no video")),
        (tmp_path / "torn.png", ("torn.png", "no image")),
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


def interrupted(*arguments: object, when: Callable[[], bool], number: int = signal.SIGINT) -> Done:
    """Runs `send` and sends it a signal as soon as `when` returns true."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = forks.start(["send", *map(str, arguments)], os.environ, stdout=out.fileno(), stderr=err.fileno())
        try:
            deadline = time.monotonic() + 30
            while not when():
                assert time.monotonic() < deadline
                assert child.poll() is None, os.pread(err.fileno(), 65536, 0)
                time.sleep(0.05)
            child.send_signal(number)
            code = child.wait(30)
        finally:
            child.kill()
        out.seek(0)
        err.seek(0)
        return Done(code, out.read(), err.read().decode())


@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl"])
def test_e7_ctrl_c_before_the_first_answer_leaves_no_file(tmp_path: Path, film: Path, name: str) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        held: list[socket.socket] = []

        def connected() -> bool:
            with suppress(BlockingIOError):
                held.append(server.accept()[0])
            return bool(held)

        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = interrupted(film, "--url", url, "-o", folder / name, when=connected)
        for connection in held:
            connection.close()
    assert (done.code, done.out, done.err) == (130, b"", "sightline: interrupted\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_e7_a_film_that_was_begun_is_whole_when_it_is_interrupted(
    service: Service, tmp_path: Path, number: int, code: int
) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    film = movie(tmp_path / "long.mp4", seconds=60, fps=10, width=160, height=120)
    begun = lambda: any(path.stat().st_size for path in folder.iterdir())  # noqa: E731
    done = interrupted(film, "--url", service.url, "--fps", 5, "-o", folder / "out.mp4", when=begun, number=number)
    assert done.code == code, done.err
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    with av.open(str(folder / "out.mp4")) as container:
        assert 0 < sum(1 for _ in container.decode(video=0)) < 600


def test_e7_where_no_service_is_it_says_what_to_do_next(film: Path, tmp_path: Path) -> None:
    class Other(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{other.server_address[1]}"
            assert_refused(sightline("send", film, "--url", url), "no Sightline service", "sightline serve")
        finally:
            other.shutdown()
            thread.join()
    for url, words in (
        ("http://127.0.0.1:9", ("no service answers there", "sightline serve", "--url")),
        ("http://nowhere.invalid", ("name is not known", "--url")),
    ):
        done = sightline("send", film, "--url", url, "-o", tmp_path / "out.mp4")
        assert_refused(done, url, *words)
        assert "Errno" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_e7_a_token_that_is_missing_says_how_to_give_it(locked: Service, film: Path) -> None:
    assert_refused(send(locked, film), "--token", "SIGHTLINE_TOKEN")


def durations(path: Path) -> tuple[float, dict[str, float]]:
    """Seconds of the whole file, and of its streams by kind."""
    with av.open(str(path)) as container:
        streams = {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}
        return container.duration / av.time_base, streams


def test_c13_a_film_keeps_its_times_its_sound_and_its_rotation(service: Service, tmp_path: Path) -> None:
    times = [*range(0, 1000, 33), *range(1990, 10_000, 1000)]
    source = movie(tmp_path / "12:30:00.mkv", times_ms=times, width=320, height=240, sound_s=10, codec="mpeg4", bf="0")
    assert send(service, source, "-o", tmp_path / "out.mp4").code == 0
    seen = [time for time, _ in shown(tmp_path / "out.mp4")]
    assert seen == pytest.approx([time / 1000 for time in times], abs=0.002)
    assert durations(tmp_path / "out.mp4")[1]["audio"] == pytest.approx(10, abs=0.1)
    started, tone = heard(tmp_path / "out.mp4")
    assert started == pytest.approx(0, abs=0.05)
    assert np.abs(tone).max() > 0.2

    phone = movie(tmp_path / "phone.mp4", seconds=1, rotation=90, hflip=True)
    done = send(service, phone, "-o", tmp_path / "turned.mp4")
    assert done.code == 0
    found = shown(tmp_path / "turned.mp4")
    assert found[0][1].shape == (320, 240, 3)
    assert [time for time, _ in found] == pytest.approx([number / 25 for number in range(25)], abs=0.002)


def test_c14_a_film_that_was_cut_off_is_sent_and_that_is_said(service: Service, tmp_path: Path) -> None:
    film = cut_off(fast(tmp_path, seconds=3))
    done = send(service, film)
    assert done.code == 0
    assert 30 < len(done.results) < 60
    assert f"{film} is truncated: it ends after 1." in done.err
    assert "of the 3.00 s that its file declares" in done.err
    assert "truncated" not in send(service, tmp_path / "film.mp4", "--limit", "2").err


def test_c15_interlaced_film_is_sent_without_fields(service: Service, tmp_path: Path) -> None:
    film, seen = interlaced(tmp_path / "fields.mp4"), tmp_path / "seen.mp4"
    assert send(service, film, "-o", seen).code == 0
    pictures = shown(seen)
    assert len(pictures) == 30
    assert [at for at, _ in pictures] == pytest.approx(np.arange(30) / 25, abs=0.001)
    assert (
        np.mean([combs(pixels) for _, pixels in pictures]) < 0.8 < np.mean([combs(pixels) for _, pixels in shown(film)])
    )


def test_c15_an_avis_sound_that_does_not_say_which_channels_it_has_is_copied(service: Service, tmp_path: Path) -> None:
    film, seen = coded(tmp_path / "a.avi", "mpeg4", "yuv420p", "pcm_s16le"), tmp_path / "seen.mp4"
    done = send(service, film, "-o", seen)
    assert (done.code, len(shown(seen))) == (0, 50), done.err
    with av.open(str(seen)) as opened:
        assert [stream.codec_context.name for stream in opened.streams.audio] == ["pcm_s16le"]


def test_c13_variable_rates_last_as_long_as_their_source(service: Service, tmp_path: Path) -> None:
    times = [*range(0, 1000, 33), *range(1990, 10_000, 1000)]
    source = movie(tmp_path / "vfr.mp4", times_ms=times, width=320, height=240, sound_s=None)
    assert send(service, source, "-o", tmp_path / "out.mp4").code == 0
    assert durations(tmp_path / "out.mp4")[0] == pytest.approx(10.02, abs=0.05)


def test_c12_joined_recordings_become_one_film_with_their_sound_beside_the_pictures(
    service: Service, tmp_path: Path
) -> None:
    part = movie(tmp_path / "part.ts", seconds=2, width=320, height=240)
    (tmp_path / "three.ts").write_bytes(part.read_bytes() * 3)
    assert send(service, tmp_path / "three.ts", "-o", tmp_path / "out.mp4").code == 0
    whole, streams = durations(tmp_path / "out.mp4")
    assert whole == pytest.approx(6, abs=0.1)
    assert streams["video"] == pytest.approx(streams["audio"], abs=0.1)


def test_c13_what_an_mp4_cannot_take_is_said(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "alaw.mov"
    with av.open(str(source), "w") as film:
        video = film.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        sound = film.add_stream("pcm_alaw", rate=8000)
        sound.layout = "mono"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(picture(number, 320, 240), format="rgb24")
            frame.pts = number
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
        noise.sample_rate, noise.pts = 8000, 0
        film.mux(sound.encode(noise))
    done = send(service, source, "-o", tmp_path / "out.mp4")
    assert done.code == 0
    assert "left out: the sound, pcm_alaw; MP4 does not take it" in done.err
    assert len(shown(tmp_path / "out.mp4")) == 5
