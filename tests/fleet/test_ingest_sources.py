"""Ingest of unusual sources: rotated, in bursts, joined, by UDP, with credentials, with hostile content."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
import orjson
import pytest
import redis as redis_library
from PIL import Image
from prometheus_client import REGISTRY, generate_latest

from tests.fleet.rtsp import camera
from tests.support import clip
from tests.support.ingest import entries, frames_counted, ingesting, until
from tests.support.movie import movie
from tests.support.redis import RedisServer


@pytest.mark.parametrize(("rotation", "hflip"), [(90, False), (180, True), (270, True)])
def test_c9_a_film_on_its_side_comes_out_upright(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path, rotation: int, hflip: bool
) -> None:
    film = movie(tmp_path / "phone.mp4", seconds=0.4, sound_s=None, rotation=rotation, hflip=hflip)
    with av.open(str(film)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    upright = np.rot90(stored, rotation // 90)[:, :: -1 if hflip else 1]
    with ingesting(redis_server, str(film)):
        seen = until(lambda: entries(redis, "phone"))
    assert np.abs(clip.decode(seen[0][b"frame"]).astype(int) - upright).mean() < 6


def test_c12_joined_recordings_keep_their_pace(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path
) -> None:
    part = movie(tmp_path / "part.ts", seconds=1, sound_s=None)
    film = tmp_path / "three.ts"
    film.write_bytes(part.read_bytes() * 3)
    with ingesting(redis_server, str(film), ingest_fps=60, ingest_maxlen=1000) as ingest:
        until(lambda: ingest.cameras and ingest.cameras["three"].state == "ended")
        seen = until(lambda: len(entries(redis, "three")) == 75 and entries(redis, "three"))
    times = [float(fields[b"captured_at_ms"]) for fields in seen]
    assert times[-1] - times[0] >= 74 * 40 - 150  # nothing is rushed: three seconds, not one
    assert max(np.diff(times)) < 2000  # and nothing stands still


def test_c12_a_gap_of_an_hour_is_not_waited_for(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path
) -> None:
    times = [*range(0, 1000, 40), *range(3_600_000, 3_601_000, 40)]
    film = movie(tmp_path / "gap.mp4", times_ms=times, sound_s=None)
    with ingesting(redis_server, str(film), ingest_maxlen=1000) as ingest:
        until(lambda: ingest.cameras and ingest.cameras["gap"].state == "ended")
        until(lambda: len(entries(redis, "gap")) == 50)


@contextmanager
def live_playlist(film: Path, folder: Path, *, at_once: int) -> Iterator[str]:
    """A video as live HLS: begins with so many two-second segments and adds another every two seconds."""
    folder.mkdir()
    with av.open(str(film)) as source, av.open(str(folder / "all.m3u8"), "w", format="hls", options={
        "hls_time": "2", "hls_list_size": "0", "hls_segment_filename": str(folder / "%03d.ts")}) as out:  # fmt: skip
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    pieces = sorted(path.name for path in folder.glob("*.ts"))
    began = time.monotonic()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition("?")[0].rpartition("/")[2]
            there = pieces[: at_once + int((time.monotonic() - began) / 2)]
            if name == "live.m3u8":
                lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2", "#EXT-X-MEDIA-SEQUENCE:0"]
                body = "\n".join([*lines, *(f"#EXTINF:2.0,\n{segment}" for segment in there), ""]).encode()
            else:
                body = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/live.m3u8?token=hunter2"
        finally:
            server.shutdown()
            thread.join()


def test_c11_live_hls_is_sampled_by_the_pictures_own_times(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path
) -> None:
    film = movie(tmp_path / "film.mp4", seconds=12, key_every=50, sound_s=None, width=160, height=120)
    left_out, sent = frames_counted("sampled_out"), frames_counted("sent")
    with (
        live_playlist(film, tmp_path / "hls", at_once=3) as url,
        ingesting(redis_server, f"gate={url}", ingest_fps=10, ingest_maxlen=1000) as ingest,
    ):
        until(lambda: ingest.cameras)
        gate = ingest.cameras["gate"]
        until(lambda: gate.taken + frames_counted("sampled_out") - left_out >= 290, patience_s=90)
        assert gate.taken == pytest.approx(120, abs=6)
        until(lambda: frames_counted("sent") - sent >= gate.taken - 4)
    # Not seconds at once: workers would lag, and Redis would drop what is too much.
    times = [float(fields[b"captured_at_ms"]) for fields in entries(redis, "gate")]
    assert np.median(np.diff(times)) > 30


@pytest.mark.parametrize("options", [{}, {"transport": "udp"}])
def test_d10_a_camera_that_has_udp_alone_is_read(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path, options: dict[str, str]
) -> None:
    film = clip.write_mp4(tmp_path / "pan.mp4", clip.Pan(step=(2, 1), count=20).pictures(), fps=15)
    with camera(film, tmp_path / "camera", udp=True, password="p/w@d?#x") as url:
        entry = {"source": url, "rotation": 90, "fps": 5, "name": "Front Door", **options}
        redis.hset("fleet:sources", "gate", orjson.dumps(entry))
        with ingesting(redis_server) as ingest:
            (first, *_) = until(lambda: len(seen := entries(redis, "gate")) >= 5 and seen)
            assert clip.decode(first[b"frame"]).shape == (640, 480, 3)
            assert ingest.cameras["gate"].sampler.fps == 5
            assert "Front Door" in ingest.cameras["gate"].source.shown


def test_d10_a_transport_that_the_camera_does_not_have_is_said(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path
) -> None:
    film = clip.write_mp4(tmp_path / "pan.mp4", clip.Pan(step=(2, 1), count=20).pictures(), fps=15)
    with camera(film, tmp_path / "camera", udp=True) as url:
        redis.hset("fleet:sources", "gate", orjson.dumps({"source": url, "transport": "tcp"}))
        with ingesting(redis_server) as ingest:
            until(lambda: ingest.cameras and ingest.cameras["gate"].state == "retrying")
            assert "transport" in ingest.cameras["gate"].problem


def test_b4_no_secret_of_a_source_is_in_redis_metrics_or_log(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film = movie(tmp_path / "film.mp4", seconds=4, key_every=50, sound_s=None, width=160, height=120)
    password = "hunter2/@?"
    with (
        live_playlist(film, tmp_path / "hls", at_once=2) as url,
        camera(film, tmp_path / "camera", password=password) as rtsp,
        ingesting(redis_server, url, rtsp, f"http://127.0.0.1:1/user=admin&password={quote(password)}") as ingest,
    ):
        until(lambda: sorted(camera.state for camera in ingest.cameras.values()) == ["retrying", "running", "running"])
        until(
            lambda: all(entries(redis, camera.source.camera_id) for camera in ingest.cameras.values() if camera.taken)
        )
        held = b"\n".join(redis.keys("*")) + b"".join(  # type: ignore[arg-type]
            value for camera in ingest.cameras for fields in entries(redis, camera) for key, value in fields.items()
            if key != b"frame"
        )  # fmt: skip
        shown = " ".join(
            f"{camera.source.shown} {camera.source!r} {camera.problem}" for camera in ingest.cameras.values()
        )
    everything = caplog.text + shown + held.decode() + generate_latest(REGISTRY).decode()
    assert "hunter2" not in everything
    assert "127.0.0.1:1/" in everything


def test_a1_a_jpeg_that_costs_too_much_is_left_out_and_counted(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path
) -> None:
    data = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(data, "JPEG")
    plain = data.getvalue()
    scan = plain[plain.index(b"\xff\xda") : -2]
    evil = plain[:-2] + scan[:12] * 500 + plain[-2:]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, jpeg in (("1.jpg", clip.Pan().jpegs()[0]), ("2.jpg", evil), ("3.jpg", clip.Pan().jpegs()[1])):
        (folder / name).write_bytes(jpeg)
    (tmp_path / "film.mjpeg").write_bytes(clip.Pan().jpegs()[0] + evil + clip.Pan().jpegs()[1])
    before = frames_counted("too_expensive")
    with ingesting(redis_server, str(folder), str(tmp_path / "film.mjpeg")) as ingest:
        until(lambda: len(ingest.cameras) == 2 and all(camera.state == "ended" for camera in ingest.cameras.values()))
        until(lambda: len(entries(redis, "pictures")) == 2)
        until(lambda: len(entries(redis, "film")) == 2)
    assert frames_counted("too_expensive") - before == 2
