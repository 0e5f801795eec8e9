"""Videos are cut into parts and joined again: every frame and all audio is where it was."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pytest

from app.segments.video import Position, VideoError, concat, cut, probe
from tests.support.movie import TONE_HZ, heard, movie, packets, shown


def there_and_back(video: Path, folder: Path, seconds: float = 1.0) -> tuple[list[Path], Path]:
    parts = list(cut(video, folder / "parts", seconds))
    concat(parts, folder / "final.mp4")
    return parts, folder / "final.mp4"


def position(path: Path) -> Position:
    with av.open(str(path)) as container:
        return Position.read(container.metadata)


def test_probe_says_what_is_in_it(tmp_path: Path) -> None:
    info = probe(movie(tmp_path / "a.mp4", seconds=2, fps=30, rotation=90))
    assert (info.frames, info.fps, info.width, info.height, info.audio) == (60, 30.0, 240, 320, True)
    assert info.duration_s == pytest.approx(2.0)
    silent = probe(movie(tmp_path / "b.mkv", seconds=1.2, sound_s=None))
    assert (silent.frames, silent.width, silent.audio) == (30, 320, False)
    assert silent.duration_s == pytest.approx(1.2)


def test_every_packet_comes_back_with_its_times(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", seconds=5.4, fps=25)
    parts, final = there_and_back(video, tmp_path)
    assert [part.name for part in parts] == [f"{i:05d}.mp4" for i in range(6)]
    assert packets(final) == packets(video)
    assert probe(final) == probe(video)


def test_each_part_is_a_video_of_its_own_and_says_where_it_stands(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", seconds=5, fps=25)
    parts = list(cut(video, tmp_path / "parts", 2.0))
    assert [probe(part).frames for part in parts] == [50, 50, 25]
    assert [position(part) for part in parts] == [
        Position(Fraction(start), 25 * start, Fraction(25), (320, 240), known=True) for start in (0, 2, 4)
    ]
    expected = iter(shown(video))
    for part, start in zip(parts, (0, 2, 4), strict=True):
        for at, pixels in shown(part):
            where, wanted = next(expected)
            assert at + start == pytest.approx(where)
            assert np.array_equal(pixels, wanted)


def test_parts_are_there_as_soon_as_they_are_cut(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", seconds=4)
    seen = []
    for part in cut(video, tmp_path / "parts", 1.0):
        seen.append(probe(part).frames)
        assert len(list((tmp_path / "parts").iterdir())) == len(seen)
    assert seen == [25] * 4


def test_the_sound_goes_on_without_a_gap(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", seconds=4.5)
    _, final = there_and_back(video, tmp_path)
    (starts, before), (begins, after) = heard(video), heard(final)
    assert begins == starts
    assert np.array_equal(before, after)
    spectrum = np.abs(np.fft.rfft(after))
    assert np.argmax(spectrum) * 44100 / len(after) == pytest.approx(TONE_HZ, abs=1)


@pytest.mark.parametrize("sound_s", [None, 1.3, 6.0])
def test_sound_that_is_missing_or_shorter_or_longer(tmp_path: Path, sound_s: float | None) -> None:
    video = movie(tmp_path / "a.mp4", seconds=3, sound_s=sound_s)
    parts, final = there_and_back(video, tmp_path)
    assert len(parts) == 3
    assert packets(final) == packets(video)


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    dice = random.Random(5)
    times = np.cumsum([dice.choice([16, 33, 40, 100, 333]) for _ in range(90)]).tolist()
    video = movie(tmp_path / "a.mp4", times_ms=times, key_every=15)
    parts, final = there_and_back(video, tmp_path)
    assert len(parts) > 3
    assert [at for at, _ in shown(final)] == pytest.approx([at for at, _ in shown(video)])
    assert packets(final)["video"] == packets(video)["video"]


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.avi"])
def test_other_containers_give_the_same_frames_at_the_same_distances(tmp_path: Path, name: str) -> None:
    plain = {"sound_s": None, "bf": "0"} if name == "a.avi" else {}  # AVI has no times for frames out of order
    video = movie(tmp_path / name, seconds=3, **plain)  # type: ignore[arg-type]
    parts, final = there_and_back(video, tmp_path)
    before, after = shown(video), shown(final)
    assert len(parts) == 3
    assert len(after) == len(before) == 75
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True))
    steps = np.diff([at for at, _ in after])
    assert steps == pytest.approx(np.full(74, 0.04), abs=0.0011)  # Matroska's unit is a millisecond
    assert probe(final).duration_s == pytest.approx(3.0, abs=0.04)


def test_av1_whose_decoder_is_no_coder(tmp_path: Path) -> None:
    # SVT-AV1, run by root, makes the thread that opens it real-time, above all else, and with it whatever it starts.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        video = pool.submit(movie, tmp_path / "a.mp4", seconds=2, codec="libsvtav1", preset="12").result()
    parts, final = there_and_back(video, tmp_path)
    assert len(parts) == 2
    assert packets(final) == packets(video)
    assert probe(final) == probe(video)


def test_a_rotation_stays(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", seconds=2, rotation=90)
    parts, final = there_and_back(video, tmp_path)
    for path in (*parts, final):
        with av.open(str(path)) as opened:
            assert next(opened.decode(video=0)).rotation == 90


@pytest.mark.parametrize("sound_s", [None, -1.0])
def test_times_that_go_back_are_refused_with_a_remedy(tmp_path: Path, sound_s: float | None) -> None:
    one = movie(tmp_path / "one.ts", seconds=2, sound_s=sound_s)
    video = tmp_path / "twice.ts"
    video.write_bytes(2 * one.read_bytes())
    with pytest.raises(
        VideoError, match=r"twice\.ts: its times go back at 0:0[12]; remux it: ffmpeg .* -i VIDEO -c copy"
    ):
        list(cut(video, tmp_path / "parts", 0.5))


def test_sound_whose_times_go_back_is_refused_too(tmp_path: Path) -> None:
    one, more, video = movie(tmp_path / "one.ts", seconds=2), tmp_path / "more.ts", tmp_path / "twice.ts"
    with av.open(str(one)) as source, av.open(str(more), "w", format="mpegts") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None or packet.pts is None:
                continue
            later = 2 * 90_000 if packet.stream.type == "video" else 0
            packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, streams[packet.stream_index]
            out.mux(packet)
    video.write_bytes(one.read_bytes() + more.read_bytes())
    with pytest.raises(VideoError, match=r"twice\.ts: its times go back at 0:0[012]; remux it"):
        list(cut(video, tmp_path / "parts", 0.5))


def test_open_groups_of_pictures_are_not_torn(tmp_path: Path) -> None:
    options = {"x264-params": "open-gop=1:keyint=25:min-keyint=25:bframes=3:b-adapt=0:scenecut=0"}
    video = movie(tmp_path / "a.mp4", seconds=4, preset="veryfast", bf="3", **options)
    parts, final = there_and_back(video, tmp_path)
    before = shown(video)
    assert len(before) == 100
    frames = [pixels for part in parts for _, pixels in shown(part)]
    assert len(frames) == 100
    assert all(np.array_equal(a, b) for (_, a), b in zip(before, frames, strict=True))
    assert packets(final) == packets(video)


def test_a_video_with_one_key_frame_is_one_part(tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", seconds=30, fps=25, key_every=10_000, sound_s=None)
    parts, final = there_and_back(video, tmp_path)
    assert len(parts) == 1
    assert packets(final) == packets(video)


def test_parts_that_say_nothing_go_one_after_the_other(tmp_path: Path) -> None:
    first = movie(tmp_path / "a.mp4", seconds=1)
    concat([first, first, first], tmp_path / "final.mp4")
    assert [at for at, _ in shown(tmp_path / "final.mp4")] == pytest.approx(np.arange(75) / 25)
    assert probe(tmp_path / "final.mp4").duration_s == pytest.approx(3.0)


def test_parts_that_are_coded_otherwise_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    one, other = movie(tmp_path / "a.mp4", seconds=1), movie(tmp_path / "b.mp4", seconds=1, width=160)
    with pytest.raises(VideoError, match=r"b\.mp4: its video is encoded differently from .* \(h264 160x240\)"):
        concat([one, other], tmp_path / "final.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    with pytest.raises(VideoError, match="there are no parts to join"):
        concat([], tmp_path / "final.mp4")


def test_metadata_that_makes_no_sense_is_the_beginning() -> None:
    for start, first in (("1/0", "3"), ("-1", "0"), ("x", "0"), ("1", "-2"), ("1", "1.5")):
        assert Position.read({"sightline_start": start, "sightline_first_frame": first}) == Position()
    for size in ((1920, 1080), None):
        said = Position(Fraction(3, 7), 9, Fraction(30000, 1001), size)
        assert Position.read(said.tags()) == replace(said, known=True)
    for words in ("0x4", "-3x-3", "90000x90000"):
        assert Position.read({**Position().tags(), "sightline_size": words}) == Position(known=True), words
    for words in ("x", "3", "3x4x5", "ax4"):
        assert Position.read({**Position().tags(), "sightline_size": words}) == Position(), words


def test_what_is_no_video_is_refused_in_words(tmp_path: Path, jpeg: bytes) -> None:
    whole = movie(tmp_path / "whole.mp4", seconds=2)
    torn, text, empty, listing = (tmp_path / name for name in ("torn.mp4", "text.mp4", "empty.mp4", "list.mp4"))
    torn.write_bytes(whole.read_bytes()[:4000])
    text.write_text("not a video")
    empty.write_bytes(b"")
    listing.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{whole}\n#EXT-X-ENDLIST\n")
    for path in (torn, text, empty, listing, tmp_path / "missing.mp4"):
        with pytest.raises(VideoError, match=path.name):
            probe(path)
        with pytest.raises(VideoError, match=path.name):
            list(cut(path, tmp_path / "parts", 1.0))
    sound = tmp_path / "sound.mp4"
    with av.open(str(whole)) as source, av.open(str(sound), "w") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    with pytest.raises(VideoError, match=r"sound\.mp4: there is no video in it"):
        probe(sound)
