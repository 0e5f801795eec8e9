"""Videos of other kinds: codecs that MP4 does not accept, interlacing, odd sides, audio that is not needed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from app.segments.keys import Mode
from app.segments.video import concat, cut, dropped_audio, probe
from tests.segments.films import assert_lines, run
from tests.segments.test_analyze import analyzed
from tests.support.clip import Pixels
from tests.support.movie import TONE_HZ, movie, picture, shown, tone

FPS = 25


def coded(path: Path, codec: str, pix_fmt: str, sound: str | None = None, *, late: int = 0) -> Path:
    """Fifty frames, a key frame every ten, and a tone; the first frame `late` frames after it."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=FPS, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, pix_fmt
        audio: Any = None if sound is None else container.add_stream(sound, rate=48000)
        if audio is not None:
            audio.layout = "mono"
        container.start_encoding()
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(picture(number, 160, 120), format="rgb24")
            frame.pts, frame.time_base = number + late, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            size = audio.codec_context.frame_size or 1024
            shaped = av.AudioResampler(format=audio.format, layout=audio.layout, rate=48000, frame_size=size)
            for piece in [out for frame in tone(2.0, 48000) for out in shaped.resample(frame)]:
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path


def through(video: Path, folder: Path, mode: Mode = "annotate") -> tuple[Path, list[dict[str, Any]]]:
    """Cuts a video, analyses its parts and joins them; returns the joined video and the lines of the results."""
    parts, lines = [], []
    for index, part in enumerate(cut(video, folder / "parts", 0.8, silent=mode == "results_only")):
        _, out, found = analyzed(part, folder, mode, name=f"seen{index}")
        parts.append(out)
        lines += found
    if mode != "results_only":
        concat(parts, folder / "final.mp4")
    return folder / "final.mp4", lines


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "sound", "kept"),
    [
        ("a.webm", "libvpx", "yuv420p", "libopus", True),
        ("a.mkv", "libvpx-vp9", "yuv420p", "libopus", True),
        ("a.mov", "prores_ks", "yuv422p10le", "pcm_s16le", True),
        ("a.mpg", "mpeg2video", "yuv420p", "mp2", True),
        ("a.mkv", "ffv1", "yuv420p", "flac", True),
        ("a.avi", "mjpeg", "yuvj422p", "pcm_u8", False),
        ("a.avi", "huffyuv", "yuv422p", None, True),
        ("a.avi", "rawvideo", "yuv420p", None, True),
        ("a.avi", "rawvideo", "bgr24", None, True),
        ("a.nut", "rawvideo", "rgb24", None, True),
        ("a.avi", "mpeg4", "yuv420p", "pcm_s16le", True),
        ("a.gif", "gif", "rgb8", None, True),
        ("a.mxf", "mpeg2video", "yuv422p", None, True),
        ("a.mp4", "libx265", "yuv420p10le", None, True),
        ("a.flv", "flv", "yuv420p", None, True),
        ("a.mkv", "libx264", "yuv420p10le", "libopus", True),
    ],
)
def test_c15_codecs_that_mp4_does_not_take_are_taken(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, sound: str | None, kept: bool
) -> None:
    video = coded(tmp_path / name, codec, pix_fmt, sound)
    final, lines = through(video, tmp_path)
    assert [line["frame_id"] for line in lines] == list(range(50))
    steps = np.diff([line["pts_s"] for line in lines])
    assert steps == pytest.approx(np.full(49, 1 / FPS), abs=0.0011)
    info = probe(final)
    assert (info.frames, info.width, info.height) == (50, 160, 120)
    assert info.audio == (sound is not None and kept)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    for (_, before), (_, after) in list(zip(shown(video), shown(final), strict=True))[::10]:
        assert np.median(np.abs(before.astype(int) - after)) < 12  # boxes are drawn on it


@pytest.mark.parametrize(("sound", "lost"), [("pcm_alaw", True), ("pcm_s16le", False), ("libopus", False)])
def test_c15_sound_that_mp4_does_not_take_is_left_out_and_said(tmp_path: Path, sound: str, lost: bool) -> None:
    video = coded(tmp_path / "a.nut", "libx264", "yuv420p", sound)
    assert dropped_audio(video) == ([sound] if lost else [])
    final, lines = through(video, tmp_path)
    assert len(lines) == 50
    assert probe(final).audio is not lost
    if not lost:
        with av.open(str(final)) as opened:
            wave = np.concatenate([frame.to_ndarray().ravel() for frame in opened.decode(audio=0)])
        spectrum = np.abs(np.fft.rfft(wave.astype(float)))
        assert abs(int(spectrum.argmax()) * 48000 / len(wave) - TONE_HZ) < 5


def test_c15_sound_is_no_matter_where_only_results_are_wanted(tmp_path: Path, canned_triton: str) -> None:
    video = coded(tmp_path / "alaw.mov", "prores_ks", "yuv422p10le", "pcm_alaw")
    for part in cut(video, tmp_path / "parts", 0.8, silent=True):
        assert not probe(part).audio
    given, log, out = {"TRITON_URL": canned_triton}, tmp_path / "submit.log", tmp_path / "out"
    results = Path(run(["submit", str(video), "--mode", "results_only"], given, log, folder=out))
    assert_lines(results, 50)
    assert "left out" not in log.read_text()
    # With a new video, its audio is left out, and the log says so.
    final = Path(run(["submit", str(video)], given, log, folder=out))
    assert not probe(final).audio
    assert "the sound (pcm_alaw) is left out" in log.read_text()


def test_c15_frames_are_as_late_as_they_were_where_the_sound_before_them_is_left_out(tmp_path: Path) -> None:
    video = coded(tmp_path / "a.mkv", "libx264", "yuv420p", "aac", late=5)
    alaw = coded(tmp_path / "alaw.nut", "libx264", "yuv420p", "pcm_alaw", late=5)
    for number, (source, mode) in enumerate(((video, "annotate"), (video, "results_only"), (alaw, "annotate"))):
        (folder := tmp_path / str(number)).mkdir()
        _, lines = through(source, folder, mode)  # type: ignore[arg-type]
        assert [line["pts_s"] for line in lines] == pytest.approx(0.2 + np.arange(50) / FPS, abs=0.03)


def combs(pixels: Pixels) -> float:
    """How much neighbouring lines differ, divided by how much lines of the same field do."""
    grey = pixels.astype(int).sum(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() / np.abs(grey[2:] - grey[:-2]).mean())


def panned(number: int, size: tuple[int, int]) -> Pixels:
    """A fast pan."""
    return np.asarray(cv2.resize(picture(number, 160, 120), size), np.uint8)


def interlaced(
    path: Path,
    codec: str = "libx264",
    *,
    bottom_first: bool = False,
    woven: bool = True,
    rotation: int = 0,
    numbers: range = range(30),
) -> Path:
    """Writes a video of a fast pan, interlaced or (`woven=False`) progressive."""
    size = (720, 576) if codec == "dvvideo" else (160, 120)
    order = "bff" if bottom_first else "tff"
    with av.open(str(path), "w") as video:
        options = {"g": "10", "crf": "12", "qmax": "3", "bf": "2" if len(numbers) == 30 else "0"}
        if woven:
            options["flags"] = "+ildct+ilme"
        stream: Any = video.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        video.start_encoding()
        for number in numbers:
            pixels = panned(2 * number, size)
            if woven:
                later = slice(0 if bottom_first else 1, None, 2)
                pixels[later] = panned(2 * number + 1, size)[later]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            video.mux(stream.encode(flagged(frame, order if woven else "prog")))
        video.mux(stream.encode(None))
    return path


def flagged(frame: Any, order: str) -> Any:
    """Sets a frame's field order, because x264 uses each frame's own order and not its options."""
    form = {"width": frame.width, "height": frame.height, "format": frame.format.name, "time_base": frame.time_base}
    graph = av.filter.Graph()
    steps = [graph.add("format", "yuv420p"), graph.add("setfield", order), graph.add("buffersink")]
    graph.link_nodes(graph.add_buffer(**form), *steps).configure()
    graph.push(frame)
    return graph.pull()


@pytest.mark.parametrize(
    ("name", "codec", "bottom_first", "rotation"),
    [
        ("a.mp4", "libx264", False, 0),
        ("a.mp4", "libx264", True, 0),
        ("a.mp4", "libx264", True, 90),
        ("a.mpg", "mpeg2video", False, 0),
        ("a.avi", "dvvideo", True, 0),
    ],
)
def test_c15_interlaced_video_becomes_progressive(
    tmp_path: Path, name: str, codec: str, bottom_first: bool, rotation: int
) -> None:
    video = interlaced(tmp_path / name, codec, bottom_first=bottom_first, rotation=rotation)
    with av.open(str(video)) as opened:
        assert all(frame.interlaced_frame for frame in opened.decode(video=0))
    assert_progressive(tmp_path, video, rotation=rotation)


def test_c15_video_that_is_interlaced_in_part_becomes_progressive(tmp_path: Path) -> None:
    parts = [
        interlaced(tmp_path / "whole.ts", woven=False, numbers=range(10)),
        interlaced(tmp_path / "fields.ts", numbers=range(10, 20)),
        interlaced(tmp_path / "again.ts", woven=False, numbers=range(20, 30)),
    ]
    video = tmp_path / "a.ts"
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    with av.open(str(video)) as opened:
        assert [frame.interlaced_frame for frame in opened.decode(video=0)] == [10 <= n < 20 for n in range(30)]
    assert_progressive(tmp_path, video, fields=range(10, 20))


def assert_progressive(folder: Path, video: Path, *, rotation: int = 0, fields: range = range(30)) -> None:
    """Asserts that a video of `interlaced` becomes progressive, and that each frame is there at its time."""
    final, lines = through(video, folder)
    with av.open(str(final)) as opened:
        frames = list(opened.decode(video=0))
    assert not any(frame.interlaced_frame for frame in frames)
    assert len(frames) == len(lines) == 30
    times = np.arange(30) / FPS
    assert [float(frame.time) for frame in frames] == pytest.approx(times, abs=0.001)
    assert [line["pts_s"] for line in lines] == pytest.approx(times, abs=0.001)
    before = [pixels for _, pixels in shown(video)]
    after = [np.rot90(pixels, -rotation // 90) for _, pixels in shown(final)]  # as it was stored, line by line
    woven, whole = (np.mean([combs(pixels[number]) for number in fields]) for pixels in (before, after))
    assert woven > 1.1  # interlaced
    assert whole < 0.8
    # Each frame shows the moment of its first field.
    size = after[0].shape[1], after[0].shape[0]
    for number in (5, 15, 25):
        there = after[number].astype(int)
        errors = [np.abs(there - panned(2 * number + moment, size)).mean() for moment in (0, 1)]
        assert errors[0] < errors[1]


def test_c15_a_size_of_odd_sides_stays(tmp_path: Path) -> None:
    for width, height in ((321, 240), (320, 241), (321, 241)):
        video = movie(tmp_path / f"{width}.mp4", seconds=2, width=width, height=height, pix_fmt="yuv444p")
        final, _ = through(video, tmp_path)
        assert {pixels.shape for _, pixels in shown(final)} == {(height, width, 3)}
        for (_, before), (_, after) in list(zip(shown(video), shown(final), strict=True))[::10]:
            assert np.median(np.abs(before.astype(int) - after)) < 12
