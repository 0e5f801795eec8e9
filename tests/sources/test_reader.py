"""Reading files and streams: orientation, times, any file name, limits, and errors without secrets."""

from __future__ import annotations

import io
import os
import subprocess
from fractions import Fraction
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from app.sources.address import parse
from app.sources.options import Options
from app.sources.reader import Reader, ReadLimits, SourceError, SourceFrame, SourceLost, encode, open_source, played
from tests.segments.test_kinds import combs, interlaced, panned
from tests.segments.test_truncated import cut_off, fast
from tests.support import clip
from tests.support.movie import movie
from tests.support.redis import require_program


def opened(path: Path | str, options: Options | None = None, **limits: object) -> Reader:
    return open_source(parse(str(path)), options, ReadLimits(**limits))  # type: ignore[arg-type]


def frames(path: Path | str, options: Options | None = None, **limits: object) -> list[SourceFrame]:
    with opened(path, options, **limits) as reader:
        return list(reader)


def as_ffmpeg_shows_it(path: Path, width: int, height: int) -> clip.Pixels:
    """The first frame by the program `ffmpeg`, which turns frames as players do: RGB."""
    require_program("ffmpeg", "ffmpeg")
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_c9_frames_of_a_video_are_upright_as_players_show_them(tmp_path: Path, rotation: int, hflip: bool) -> None:
    video = movie(tmp_path / "a.mp4", seconds=0.2, sound_s=None, rotation=rotation, hflip=hflip)
    found = frames(video)[0].pixels()
    width, height = (240, 320) if rotation % 180 else (320, 240)
    assert found.shape == (height, width, 3)
    assert np.abs(found.astype(int) - as_ffmpeg_shows_it(video, width, height)).mean() < 3
    jpeg = clip.decode(frames(video)[0].encoded(90))
    assert np.abs(jpeg.astype(int) - found).mean() < 5


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_c9_a_rotation_that_is_asked_for_replaces_the_videos_own(tmp_path: Path, rotation: int) -> None:
    video = movie(tmp_path / "a.mp4", seconds=0.2, sound_s=None, rotation=90)
    stored = frames(video, Options(rotation=0))[0].pixels()
    turned = frames(video, Options(rotation=rotation))[0].pixels()
    assert np.array_equal(turned, np.rot90(stored, -rotation // 90))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.mjpeg"])
def test_c9_a_jpegs_exif_orientation_is_applied(tmp_path: Path, orientation: int, name: str) -> None:
    image = Image.fromarray(clip.Pan().pictures()[0]).resize((320, 240))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    image.save(data, "JPEG", quality=92, exif=exif)
    path = tmp_path / name
    path.write_bytes(data.getvalue() * (1 if name == "a.jpg" else 3))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data.getvalue()))))
    for frame in frames(path):
        assert np.abs(clip.decode(frame.encoded(92)).astype(int) - upright).mean() < 4
    if orientation == 1:
        assert frames(path)[0].jpeg == data.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        b"12:30:00.mp4",
        b"caf\xe9.mp4",
        b"-film.mp4",
        b"100%d.mp4",
        b"%03d.mp4",
        b"[ab]*?.mp4",
        b"a b\tc.mp4",
        "😀.mp4".encode(),
        "मुख्य द्वार.mp4".encode(),
        "فيلم.mp4".encode(),
        b"rtsp:x.mp4",
        b"concat:a.mp4",
        b"x" * 251 + b".mp4",
    ],
)
def test_c16_a_video_is_read_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    video = movie(tmp_path / "plain.mp4", seconds=0.2, sound_s=None)
    monkeypatch.chdir(tmp_path)
    os.rename(video, name)
    assert len(frames(os.fsdecode(name))) == 5
    assert len(frames(tmp_path)) == 5  # and in its folder


@pytest.mark.parametrize("name", [b"12:30.png", b"a%03d.png", b"caf\xe9.jpg", b"[x].jpg"])
def test_c16_an_image_is_read_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    kind = "PNG" if name.endswith(b"png") else "JPEG"
    with open(name, "wb") as file:
        Image.fromarray(clip.Pan().pictures()[0]).save(file, kind)
    assert frames(os.fsdecode(name))[0].pixels().shape == (480, 640, 3)
    assert len(frames(tmp_path)) == 1


def joined(path: Path, count: int, rotation: int = 0) -> Path:
    """One recording after the other in one stream: times go back where the next begins."""
    part = movie(path.with_name("part.ts"), seconds=2, sound_s=None)
    path.write_bytes(part.read_bytes() * count)
    return path


def test_c12_recordings_that_were_joined_take_as_long_as_all_of_them(tmp_path: Path) -> None:
    times = [float(frame.at) for frame in frames(joined(tmp_path / "three.ts", 3))]
    assert len(times) == 150
    assert times == pytest.approx([number / 25 for number in range(150)], abs=0.002)


def test_c12_a_gap_of_an_hour_is_passed_over_where_it_would_be_waited_for(tmp_path: Path) -> None:
    times_ms = [*range(0, 1000, 40), *range(3_600_000, 3_601_000, 40)]
    video = movie(tmp_path / "gap.mkv", times_ms=times_ms, sound_s=None)
    times = [float(frame.at) for frame in frames(video)]
    assert times == pytest.approx([number / 25 for number in range(50)], abs=0.002)
    kept = [float(frame.at) for frame in frames(video, keeps_pauses=True)]
    assert kept == pytest.approx([time / 1000 for time in times_ms], abs=0.002)


def test_c12_a_recording_that_starts_over_keeps_its_pace(tmp_path: Path) -> None:
    video = joined(tmp_path / "two.ts", 2)
    times = []
    for _, frame in played(lambda: opened(video), again=True):
        times.append(float(frame.at))
        if len(times) == 250:
            break
    assert [after - before for before, after in pairwise(times)] == pytest.approx([1 / 25] * 249, abs=0.002)


@pytest.mark.parametrize("last", ["image", "video"])
def test_c12_a_folder_that_starts_over_shows_its_last_frame_for_that_frames_own_time(tmp_path: Path, last: str) -> None:
    movie(tmp_path / ("a.mp4" if last == "image" else "z.mp4"), seconds=0.2, sound_s=None)
    Image.new("RGB", (320, 240)).save(tmp_path / "m.png")
    round_s = 0.2 + 0.5
    times: list[float] = []
    for _, frame in played(lambda: opened(tmp_path, image_s=0.5), again=True):
        times.append(float(frame.at))
        if len(times) == 13:
            break
    once = [*np.arange(5) / 25, 0.2] if last == "image" else [0, *(0.5 + np.arange(5) / 25)]
    assert times == pytest.approx([*once, *(np.add(once, round_s)), 2 * round_s], abs=0.002)


def test_frames_that_are_larger_than_allowed_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", seconds=0.2, sound_s=None)
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    for path in (video, tmp_path / "a.png", tmp_path / "a.jpg"):
        with pytest.raises(SourceError, match="MAX_PIXELS"):
            frames(path, max_pixels=320 * 240 - 1)
    assert len(frames(video, max_pixels=320 * 240)) == 5


def test_b4_what_goes_wrong_with_a_url_is_said_without_its_secrets() -> None:
    for url in (
        "rtsp://admin:hunter2@127.0.0.1:1/live?password=hunter2",
        "http://127.0.0.1:1/user=a&password=hunter2",
        "rtmp://127.0.0.1:1/app/hunter2",
        "srt://127.0.0.1:1?passphrase=hunter2hunter2",
    ):
        with pytest.raises(SourceError) as caught:
            opened(url)
        assert "127.0.0.1:1" in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_d10_no_playlist_on_the_web_reads_files_of_this_machine(tmp_path: Path) -> None:
    video = movie(tmp_path / "secret.ts", seconds=1, sound_s=None)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    (tmp_path / "evil.m3u8").write_text(playlist.format(f"file://{video}"))
    (tmp_path / "good.m3u8").write_text(playlist.format("secret.ts"))

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            assert len(frames(f"{url}/good.m3u8")) == 25
            with pytest.raises(SourceLost):
                frames(f"{url}/evil.m3u8")
        finally:
            server.shutdown()
            thread.join()


def test_a_torn_piece_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mkv", seconds=2, sound_s=None, codec="mpeg4", key_every=5)
    problems: list[str] = []
    with av.open(str(video)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos]
    data = bytearray(video.read_bytes())
    data[places[20] : places[21]] = bytes(places[21] - places[20])
    video.write_bytes(data)
    with open_source(parse(str(video)), None, ReadLimits(), lambda problem, code: problems.append(code)) as reader:
        count = sum(1 for _ in reader)
    assert 0 < count <= 50
    assert problems == ["undecodable"] * reader.damaged


def test_c14_what_a_source_lacks_is_said_of_files_and_of_folders(tmp_path: Path) -> None:
    whole = fast(tmp_path, seconds=3)
    cut = cut_off(whole)
    for path, lacking in ((whole, 0), (cut, 1), (tmp_path, 1)):
        with opened(path) as reader:
            said = reader.truncated()
        assert len(said) == lacking
        assert all(line.startswith(f"{cut} is truncated: it ends after 1.") for line in said)


@pytest.mark.parametrize("bottom_first", [False, True])
def test_c15_a_recording_has_no_fields(tmp_path: Path, bottom_first: bool) -> None:
    video = interlaced(tmp_path / "a.mp4", bottom_first=bottom_first)
    found = frames(video)
    assert [float(frame.at) for frame in found] == pytest.approx(np.arange(30) / 25)
    assert [float(frame.lasts) for frame in found] == pytest.approx(np.full(30, 1 / 25))
    assert np.mean([combs(frame.pixels()) for frame in found]) < 0.8


def two_fields_a_packet(path: Path, count: int) -> Path:
    """Motion JPEG of a fast pan as capture cards write it: a packet holds the JPEGs of both fields, the earlier first.

    The earlier is the lower field in AVI, the upper one in QuickTime.
    """
    earlier = 1 if path.suffix == ".avi" else 0
    with av.open(str(path), "w") as video:
        stream: Any = video.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        for number in range(count):
            fields = [panned(2 * number, (160, 120))[earlier::2], panned(2 * number + 1, (160, 120))[1 - earlier :: 2]]
            packet = av.Packet(b"".join(encode(field, 95) for field in fields))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            video.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.avi", "a.mov"])
@pytest.mark.parametrize(("options", "limits"), [(None, {}), (Options(rotation=180), {}), (None, {"video_file": True})])
def test_c15_no_frame_of_motion_jpeg_has_fields(
    tmp_path: Path, name: str, options: Options | None, limits: dict[str, object]
) -> None:
    found = frames(two_fields_a_packet(tmp_path / name, 10), options, **limits)
    assert [float(frame.at) for frame in found] == pytest.approx(np.arange(10) / 25)
    assert all(frame.pixels().shape == (120, 160, 3) for frame in found)
    assert max(combs(frame.pixels()) for frame in found) < 0.8  # the first is no exception
    moments = [panned(2 * number, (160, 120)) for number in range(10)]
    turned = [moment[::-1, ::-1] if options else moment for moment in moments]
    assert (
        np.mean([np.abs(frame.pixels() - moment.astype(int)) for frame, moment in zip(found, turned, strict=True)]) < 4
    )


def test_c15_recorded_video_is_no_playlist_and_no_script(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", seconds=1)
    ts = movie(tmp_path / "a.ts", seconds=1, sound_s=None)
    (tmp_path / "script.txt").write_text(f"ffconcat version 1.0\nfile '{video}'\n")
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n"
    (tmp_path / "list.m3u8").write_text(f"{head}{ts.name}\n#EXT-X-ENDLIST\n")
    for name in ("script.txt", "list.m3u8"):
        with pytest.raises(SourceError):
            frames(tmp_path / name, video_file=True)
    assert len(frames(video, video_file=True)) == len(frames(ts, video_file=True)) == 25


def test_c15_frames_of_recorded_video_are_decoded(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.avi", seconds=1, codec="mjpeg", pix_fmt="yuvj420p", sound_s=None)
    assert all(frame.jpeg is not None for frame in frames(video))
    found = frames(video, video_file=True)
    assert len(found) == 25
    assert all(frame.jpeg is None and frame.decoded is not None for frame in found)
