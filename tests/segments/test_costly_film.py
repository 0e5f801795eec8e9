"""Motion JPEG with frames that are expensive to decode: they are left out and counted, the others are read."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from app import metrics
from app.segments.video import ENTRY, VideoReader, count_undecodable, open_video
from app.sources.address import parse
from app.sources.reader import open_source
from tests.support.jpegs import encode, photo, scans

SIDE = 1024
GOOD = encode(photo(SIDE, SIDE))
HOSTILE = [scans(1000, side=SIDE), scans(883, marker=0xC2, side=SIDE, before=b"\xff\x01")]


def motion_jpeg(path: Path, jpegs: list[bytes]) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream("mjpeg", rate=25)
        video.width = video.height = SIDE
        video.pix_fmt = "yuvj420p"
        video.encode(av.VideoFrame.from_ndarray(np.zeros((SIDE, SIDE, 3), np.uint8)).reformat(format="yuvj420p"))
        for number, jpeg in enumerate(jpegs):
            packet = av.Packet(jpeg)
            packet.stream, packet.time_base = video, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return path


@pytest.mark.parametrize("kind", ["avi", "mkv"])
def test_a1_a_costly_frame_of_a_video_is_left_out_and_counted(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = motion_jpeg(tmp_path / f"a.{kind}", [GOOD, *HOSTILE, GOOD])
    failed = metrics.FRAMES_FAILED.labels(ENTRY, "decode")
    before, began = failed._value.get(), time.process_time()
    with open_video(path, on_damage=count_undecodable) as media:
        reader = VideoReader(media)
        frames = reader.read(10)
    assert time.process_time() - began < 3
    assert (len(frames), reader.undecodable) == (2, 2)
    assert failed._value.get() == before + 2
    assert f"a frame is left out: a.{kind}: a frame of Motion JPEG has" in caplog.text


@pytest.mark.parametrize("first", ["good", "hostile"])
def test_a1_readers_of_sources_leave_it_out_too(tmp_path: Path, first: str) -> None:
    jpegs = [GOOD, *HOSTILE, GOOD] if first == "good" else [HOSTILE[0], GOOD, HOSTILE[1], GOOD]
    path, said = motion_jpeg(tmp_path / "a.mkv", jpegs), list[str]()
    began = time.process_time()
    with open_source(parse(str(path)), on_damage=lambda problem, _: said.append(problem)) as reader:
        frames = list(reader)
    assert time.process_time() - began < 3
    assert (len(frames), reader.damaged, len(said)) == (2, 2, 2)
    assert "scans; at most" in said[0]
