"""Videos whose files are cut off, and complete ones that look as if they were."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from app.segments.local import LocalFolder
from app.segments.submit import Submission, record
from app.segments.video import TruncatedVideo
from app.settings import SegmentSettings
from app.sources.truncation import truncation
from tests.segments.films import assert_lines, run
from tests.support.movie import movie, shown


def remuxed(source: Path, target: Path, **options: str) -> Path:
    with av.open(str(source)) as video, av.open(str(target), "w", options=options) as out:
        copy(video, out)
    return target


def copy(video: Any, out: Any) -> None:
    streams = {one.index: out.add_stream_from_template(one) for one in video.streams}
    for packet in video.demux():
        if packet.dts is not None:
            packet.stream = streams[packet.stream.index]
            out.mux(packet)


def cut_off(video: Path, share: float = 0.6) -> Path:
    """Writes a file with the first `share` of the video's bytes."""
    whole = video.read_bytes()
    target = video.with_stem(f"{video.stem}-cut")
    target.write_bytes(whole[: int(len(whole) * share)])
    return target


def fast(folder: Path, name: str = "film.mp4", **options: Any) -> Path:
    """Writes an MP4 with its tables at the beginning, so that it can be read when it is cut off."""
    return remuxed(movie(folder / f"slow-{name}", **options), folder / name, movflags="faststart")


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.flv", "a.asf", "a.webm", "fragments.mp4"])
def test_c14_a_file_that_was_cut_off_is_told_from_a_whole_one(tmp_path: Path, name: str, share: float) -> None:
    if name.endswith("webm"):
        video = movie(tmp_path / name, seconds=3, codec="libvpx", deadline="realtime")
    elif name == "fragments.mp4":
        flags = "frag_keyframe+empty_moov"
        video = remuxed(movie(tmp_path / "a.mp4", seconds=3), tmp_path / name, movflags=flags)
    elif name in ("a.mp4", "a.mov"):
        video = fast(tmp_path, name, seconds=3)
    else:
        video = movie(tmp_path / name, seconds=3)
    assert truncation(video) is None
    said = truncation(cut_off(video, share))
    assert said is not None
    assert said.startswith(f"{video.stem}-cut{video.suffix} is truncated: it ends after ")


def test_c14_what_is_there_and_what_is_declared_are_said(tmp_path: Path) -> None:
    video = fast(tmp_path, seconds=6)
    said = truncation(cut_off(video))
    assert said is not None
    assert said.endswith(" of the 6.00 s that its file declares")
    there = float(said.split(" after ")[1].split(" s of ")[0])
    frames = len(remade(cut_off(video)))
    assert 0 <= frames - round(there * 25) <= 3  # B-frames: a later one may be there before an earlier one


def remade(video: Path) -> list[int]:
    """Times of the frames that can be read."""
    with av.open(str(video)) as opened:
        return [packet.pts for packet in opened.demux(video=0) if packet.pts is not None]


class Pipe(io.RawIOBase):
    """A file that cannot seek, as a browser's recording: its header cannot be corrected at the end."""

    def __init__(self) -> None:
        self.written = io.BytesIO()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.written.write(data)


def recorded(folder: Path) -> Path:
    """Writes a video as a browser's MediaRecorder does, without duration and sizes."""
    source = movie(folder / "source.webm", seconds=2, codec="libvpx", deadline="realtime")
    pipe = Pipe()
    with av.open(str(source)) as video, av.open(pipe, "w", format="webm", options={"live": "1"}) as out:
        copy(video, out)
    target = folder / "recorded.webm"
    target.write_bytes(pipe.written.getvalue())
    return target


def healthy(folder: Path) -> Iterator[Path]:
    times = [0, 40, 90, 500, 2000, 2100, 5000]
    for suffix in ("mp4", "mkv", "avi", "flv", "ts", "mov"):
        yield movie(folder / f"plain.{suffix}", seconds=2)
        yield movie(folder / f"silent.{suffix}", seconds=2, sound_s=None)
        yield movie(folder / f"long-sound.{suffix}", seconds=1, sound_s=3.7)
        yield movie(folder / f"short-sound.{suffix}", seconds=3, sound_s=0.5)
        if suffix != "avi":
            yield movie(folder / f"changing.{suffix}", times_ms=times, sound_s=None)
    # An edit list hides the frames before a time that is not at a key frame.
    late = folder / "edited.mp4"
    with av.open(str(folder / "plain.mp4")) as video, av.open(str(late), "w") as out:
        stream = out.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                moved = round(0.5 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - moved, packet.dts - moved, stream
                out.mux(packet)
    yield late
    yield fast(folder, seconds=2)
    junk = folder / "junk.mp4"
    junk.write_bytes((folder / "film.mp4").read_bytes() + b"\xff" * 1000)
    yield junk
    yield recorded(folder)
    yield cut_off(folder / "plain.ts")  # a transport stream declares nothing, so that its end may be intended


def test_c14_healthy_videos_are_never_said_to_be_truncated(tmp_path: Path) -> None:
    said = {video.name: truncation(video) for video in healthy(tmp_path)}
    assert len(said) > 30
    assert {name: words for name, words in said.items() if words} == {}


def test_c14_what_is_no_video_is_not_truncated(tmp_path: Path) -> None:
    for name, content in (("a.mp4", b""), ("b.mkv", b"\x1a\x45\xdf\xa3"), ("c.avi", b"RIFF"), ("d.flv", b"FLV\x01")):
        (tmp_path / name).write_bytes(content)
        assert truncation(tmp_path / name) is None


def test_c14_the_job_says_that_its_video_is_truncated(tmp_path: Path) -> None:
    video = cut_off(fast(tmp_path, seconds=3))
    local = LocalFolder(tmp_path / "out", SegmentSettings())
    try:
        with pytest.raises(TruncatedVideo, match=r"of the 3\.00 s .* --allow-truncated"):
            record(local.resources, Submission(video))
        allowed = record(local.resources, Submission(video, allow_truncated=True))
        assert allowed.status == "failed"  # the same job, which continues when truncation is allowed
        assert allowed.reason is not None
        assert allowed.reason.startswith("film-cut.mp4 is truncated")
        assert not (tmp_path / "out" / "segments").exists()
    finally:
        local.close()


def test_c14_a_truncated_video_is_refused_unless_that_is_allowed(tmp_path: Path, canned_triton: str) -> None:
    video, out, log = cut_off(fast(tmp_path, seconds=3)), tmp_path / "out", tmp_path / "submit.log"
    given = {"TRITON_URL": canned_triton}
    said = run(["submit", str(video), "--seconds", "1"], given, log, folder=out, code=1)
    assert "is truncated: it ends after 1." in said
    assert "--allow-truncated" in said
    assert not (out / "jobs").exists()
    final = Path(run(["submit", str(video), "--seconds", "1", "--allow-truncated"], given, log, folder=out))
    assert "is truncated: it ends after 1." in log.read_text()
    frames = shown(final)
    assert 30 < len(frames) < 60
    assert_lines(final.with_suffix(".jsonl"), len(frames))
    # Without the option it is refused again.
    run(["submit", str(video), "--seconds", "1"], given, log, folder=out, code=1)
    assert final.exists()
