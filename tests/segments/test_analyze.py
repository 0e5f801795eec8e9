"""A video through the pipeline: every frame in its order, with its own result, at its own time."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from prometheus_client import REGISTRY

from app.errors import InferenceError, InferenceTimeout, InferenceUnavailable
from app.inference.client import TensorSpec
from app.inference.fake import FakeClient
from app.segments.keys import MODES, Mode
from app.segments.video import VideoError, concat, cut, probe
from app.segments.video.processor import DEADLINE_S, VideoReport, analyze_video, stream_settings
from tests.support.clip import Pixels
from tests.support.movie import heard, movie, packets, shown
from tests.support.seeing import SIDE, Sight, pipeline_of, place, square, squares

Lines = list[dict[str, Any]]


def analyzed(
    video: Path,
    folder: Path,
    mode: Mode = "annotate",
    *,
    client: FakeClient | None = None,
    name: str = "out",
    **options: Any,
) -> tuple[VideoReport, Path, Lines]:
    async def run() -> VideoReport:
        async with pipeline_of(client or Sight(), folder / "state") as (pipeline, settings):
            wish = stream_settings(settings.pipeline, mode)
            target, results = folder / f"{name}.mp4", folder / f"{name}.jsonl"
            return await analyze_video(video, target, results, mode, pipeline, wish, **options)

    report = asyncio.run(run())
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_bytes().splitlines()]
    return report, folder / f"{name}.mp4", lines


def counters() -> dict[str, float]:
    """The entry point's counters of frames: received, processed, and failed for any reason."""
    found = {"received": 0.0, "processed": 0.0, "failed": 0.0}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            for word in found:
                if sample.name == f"sightline_frames_{word}_total" and sample.labels["entry"] == "segments":
                    found[word] += sample.value
    return found


def since(before: dict[str, float]) -> tuple[float, float, float]:
    return tuple(after - before[word] for word, after in counters().items())  # type: ignore[return-value]


def sides(line: dict[str, Any]) -> list[float]:
    (one,) = line["objects"]
    return [one["box"][side] for side in ("x1", "y1", "x2", "y2")]


def is_boxed(frame: Pixels, number: int) -> bool:
    """Whether the frame around the square of frame `number` is drawn where it belongs, in a colour."""
    x, y = place(number)
    edge = frame[y + 20 : y + SIDE - 20, x - 3 : x + 3].astype(int)
    colourful = edge.max(axis=2) - edge.min(axis=2) > 60
    return bool(colourful.any(axis=1).all())


def test_every_frame_has_its_own_result_in_the_lines_and_in_the_video(tmp_path: Path) -> None:
    before, client = counters(), Sight(together=2)
    told: list[int] = []
    report, video, lines = analyzed(squares(tmp_path / "in.mp4", 50), tmp_path, client=client, on_frames=told.append)
    assert (report.frames, report.failed, report.undecodable, sum(told)) == (50, 0, 0, 50)
    assert since(before) == (50, 50, 0)
    assert client.most > 1, "nothing overlapped"
    assert [line["frame_id"] for line in lines] == list(range(50))
    assert [line["pts_s"] for line in lines] == pytest.approx(np.arange(50) / 25)
    for number, (line, (at, frame)) in enumerate(zip(lines, shown(video), strict=True)):
        x, y = place(number)
        assert sides(line) == pytest.approx([x, y, x + SIDE, y + SIDE], abs=2.0), number
        assert line["stages"]["detect"]["status"] == line["stages"]["pose"]["status"] == "ok"
        assert at == pytest.approx(number / 25)
        assert is_boxed(frame, number), number
        away = np.abs(frame[-30:, -30:].astype(int) - 60)
        assert away.max() < 12, "what is not drawn on stays as it was"


def test_tracks_and_motion_run_along_the_video(tmp_path: Path) -> None:
    _, _, lines = analyzed(squares(tmp_path / "in.mp4", 40), tmp_path, "results_only")
    assert {line["objects"][0]["track_id"] for line in lines[2:]} == {1}
    assert lines[0]["stages"]["motion"] == {"status": "skipped", "reason": "first_frame", "age_ms": None}
    assert all(line["stages"]["motion"]["status"] == "ok" for line in lines[1:])
    assert {line["stages"]["ocr"]["status"] for line in lines} == {"disabled"}
    # Each frame is compared with the frame before it, in whatever order the batches come back: everything moves by 3
    # and 2 pixels. With a batch in the wrong place it would be 12 and more.
    for line in lines[1:]:
        assert 0 < line["motion"]["camera"]["dx"] < 7, line["frame_id"]
        assert 0 < line["motion"]["camera"]["dy"] < 6, line["frame_id"]


def test_the_sound_is_copied_and_the_length_stays(tmp_path: Path) -> None:
    video = movie(tmp_path / "in.mp4", seconds=2)
    _, out, _ = analyzed(video, tmp_path)
    assert packets(out)["audio"] == packets(video)["audio"]
    assert (probe(out).frames, probe(out).audio) == (50, True)
    assert probe(out).duration_s == pytest.approx(2.0, abs=0.001)


@pytest.mark.parametrize("sound_s", [None, 0.5, 3.0])
def test_sound_that_is_missing_or_shorter_or_longer(tmp_path: Path, sound_s: float | None) -> None:
    video = movie(tmp_path / "in.mp4", seconds=1, sound_s=sound_s)
    _, out, _ = analyzed(video, tmp_path)
    assert packets(out).get("audio") == packets(video).get("audio")
    assert probe(out).frames == 25


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = np.cumsum([0, *np.random.default_rng(4).choice([16, 33, 40, 120, 400], 39)]).tolist()
    video = squares(tmp_path / "in.mp4", 40, times_ms=times)
    _, out, lines = analyzed(video, tmp_path)
    assert [at * 1000 for at, _ in shown(out)] == pytest.approx(times, abs=0.1)
    assert [line["pts_s"] * 1000 for line in lines] == pytest.approx(times, abs=0.1)


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_c9_a_video_that_lies_on_its_side_or_mirrored_is_analysed_and_written_upright(
    tmp_path: Path, rotation: int, hflip: bool
) -> None:
    video = squares(tmp_path / "in.mp4", 12, rotation=rotation, hflip=hflip)
    _, out, lines = analyzed(video, tmp_path)
    assert (probe(out).width, probe(out).height) == (probe(video).width, probe(video).height) == (320, 240)
    for number, (line, (_, frame)) in enumerate(zip(lines, shown(out), strict=True)):
        x, y = place(number)
        assert line["image"] == {"width": 320, "height": 240}
        assert sides(line) == pytest.approx([x, y, x + SIDE, y + SIDE], abs=2.0)
        assert is_boxed(frame, number)


def test_c15_odd_sizes_stay_and_so_do_their_coordinates(tmp_path: Path) -> None:
    video = squares(tmp_path / "in.mp4", 8, width=321, height=241, pix_fmt="yuv444p")
    _, out, lines = analyzed(video, tmp_path)
    assert lines[0]["image"] == {"width": 321, "height": 241}
    frames = [frame for _, frame in shown(out)]
    assert frames[0].shape == (241, 321, 3)
    assert all(is_boxed(frame, number) for number, frame in enumerate(frames))


def test_parts_analysed_one_by_one_make_the_whole_video(tmp_path: Path) -> None:
    video = movie(tmp_path / "in.mp4", seconds=4.2)
    parts, lines = [], []
    for index, part in enumerate(cut(video, tmp_path / "parts", 1.0)):
        report, out, found = analyzed(part, tmp_path, name=f"seen{index}")
        assert (report.first_frame, report.start_s) == (25 * index, float(index))
        parts.append(out)
        lines += found
    concat(parts, tmp_path / "final.mp4")
    assert len(parts) == 5
    assert [line["frame_id"] for line in lines] == list(range(105))
    assert [line["pts_s"] for line in lines] == pytest.approx(np.arange(105) / 25)
    before, after = probe(video), probe(tmp_path / "final.mp4")
    assert (after.frames, after.width, after.height, after.audio) == (105, 320, 240, True)
    assert after.duration_s == pytest.approx(before.duration_s, abs=0.001)
    assert [at for at, _ in shown(tmp_path / "final.mp4")] == pytest.approx(np.arange(105) / 25)
    (starts, tone), (begins, copied) = heard(video), heard(tmp_path / "final.mp4")
    assert begins == starts
    assert np.array_equal(tone, copied)


def later(source: Path, target: Path, seconds: int) -> Path:
    """Writes a video's frames, later by `seconds`, as a transport stream, which may be appended to another one."""
    with av.open(str(source)) as video, av.open(str(target), "w", format="mpegts") as out:
        stream = out.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                moved = round(seconds / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + moved, packet.dts + moved, stream
                out.mux(packet)
    return target


@pytest.mark.parametrize("seconds", [0.5, 10.0])
def test_a_video_that_changes_its_size_is_put_together_in_its_first(tmp_path: Path, seconds: float) -> None:
    large = movie(tmp_path / "large.ts", seconds=1, sound_s=None)
    small = movie(tmp_path / "small.ts", seconds=1, sound_s=None, width=160, height=120)
    video = tmp_path / "in.ts"
    video.write_bytes(large.read_bytes() + later(small, tmp_path / "later.ts", 1).read_bytes())
    parts, lines = [], []
    for index, part in enumerate(cut(video, tmp_path / "parts", seconds)):
        _, out, found = analyzed(part, tmp_path, name=f"seen{index}")
        parts.append(out)
        lines += found
    concat(parts, tmp_path / "final.mp4")
    frames = [frame for _, frame in shown(tmp_path / "final.mp4")]
    assert {frame.shape for frame in frames} == {(240, 320, 3)}
    assert len(frames) == len(lines) == 50
    assert [line["image"]["width"] for line in (lines[0], lines[-1])] == [320, 160]


def test_results_only_writes_no_video(tmp_path: Path) -> None:
    _, out, lines = analyzed(movie(tmp_path / "in.mp4", seconds=1), tmp_path, "results_only")
    assert len(lines) == 25
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.jsonl"]


def test_frames_on_which_a_model_fails_are_told_and_written_as_they_are(tmp_path: Path) -> None:
    before = counters()
    client = Sight(fails=lambda number: 20 <= number < 24)
    report, out, lines = analyzed(squares(tmp_path / "in.mp4", 44), tmp_path, client=client)
    assert (report.frames, report.failed) == (44, 4)
    assert since(before) == (44, 40, 4)
    error = {"code": "inference", "message": "detect: the model fell over"}
    for number, (line, (_, frame)) in enumerate(zip(lines, shown(out), strict=True)):
        if 20 <= number < 24:
            assert line == {"frame_id": number, "pts_s": number / 25, "error": error}
            assert not is_boxed(frame, number)
        else:
            assert is_boxed(frame, number), number


def test_a_video_on_which_the_model_always_fails_is_an_error(tmp_path: Path) -> None:
    before = counters()
    video = squares(tmp_path / "in.mp4", 10)
    with pytest.raises(InferenceError, match="not one of 10 frames could be analysed; the last: detect"):
        analyzed(video, tmp_path, client=Sight(fails=lambda number: True))
    assert since(before) == (10, 0, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_server_that_goes_away_is_no_result_and_leaves_nothing(tmp_path: Path) -> None:
    class Leaving(Sight):
        def _look(self, images: Any) -> Any:
            self.up = self.seen < 12
            return super()._look(images)

    before = counters()
    video = movie(tmp_path / "in.mp4", seconds=4)
    with pytest.raises(InferenceUnavailable):
        analyzed(video, tmp_path, client=Leaving())
    received, processed, failed = since(before)
    assert received == processed + failed
    assert failed > 0
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


class Slow(Sight):
    """Answers the calls with these numbers too late."""

    def __init__(self, *late: int) -> None:
        super().__init__()
        self._late = late
        self.calls_had: list[float | None] = []

    async def infer(self, model: Any, buffer: Any, *, stream: str, deadline_s: float | None = None) -> Any:
        self.calls_had.append(deadline_s)
        if len(self.calls_had) in self._late:
            raise InferenceTimeout("no answer")
        return await super().infer(model, buffer, stream=stream)


def test_a_request_that_takes_too_long_is_repeated(tmp_path: Path) -> None:
    client = Slow(1, 4)
    report, _, lines = analyzed(squares(tmp_path / "in.mp4", 20), tmp_path, client=client)
    assert (report.frames, report.failed) == (20, 0)
    assert all(line["objects"] for line in lines)
    assert set(client.calls_had) == {DEADLINE_S}


def test_a_server_that_is_always_too_slow_is_no_result(tmp_path: Path) -> None:
    video = squares(tmp_path / "in.mp4", 20)
    with pytest.raises(InferenceUnavailable, match="too slow"):
        analyzed(video, tmp_path, client=Slow(*range(1, 100)))
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_video_that_is_given_up_leaves_nothing_and_is_accounted_for(tmp_path: Path) -> None:
    before = counters()
    video = movie(tmp_path / "in.mp4", seconds=20)

    async def run() -> None:
        started = asyncio.Event()
        async with pipeline_of(Sight(), tmp_path / "state") as (pipeline, settings):
            wish = stream_settings(settings.pipeline, "annotate")
            paths = tmp_path / "out.mp4", tmp_path / "out.jsonl"
            work = asyncio.create_task(
                analyze_video(video, *paths, "annotate", pipeline, wish, on_frames=lambda _: started.set())
            )
            await started.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    asyncio.run(run())
    received, processed, failed = since(before)
    assert received == processed + failed
    assert 0 < processed < 500
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_damaged_piece_costs_no_more_than_itself(tmp_path: Path) -> None:
    video = movie(tmp_path / "in.mp4", seconds=3, sound_s=None)
    with video.open("r+b") as file:
        file.seek(video.stat().st_size // 2)
        file.write(bytes(200))
    report, out, lines = analyzed(video, tmp_path)
    assert 60 <= report.frames <= 75
    assert len(lines) == len(shown(out)) == report.frames


class Half(Sight):
    """Serves only some of the models; its detector has these classes."""

    def __init__(self, *names: str, classes: tuple[str, ...] = ("person", "dog")) -> None:
        super().__init__()
        said = {"class_names": json.dumps(classes)}
        self._models = {n: (dataclasses.replace(self._models[n][0], parameters=said), self._look) for n in names}


def unreadable() -> Half:
    """Serves a detector whose output layout is unknown, and no pose model."""
    client = Half("yolo")
    (spec, look) = client._models["yolo"]
    odd = TensorSpec("odd", "FP32", (-1, 7, 3, 2))
    client._models["yolo"] = (dataclasses.replace(spec, outputs=(odd,)), look)
    return client


def test_faces_are_not_said_to_be_hidden_where_nobody_looks_for_them(tmp_path: Path) -> None:
    before, video = counters(), squares(tmp_path / "in.mp4", 6)
    with pytest.raises(InferenceError, match="serves neither poses nor a class `face`: faces cannot be hidden"):
        analyzed(video, tmp_path, "blur_faces", client=Half("yolo"))
    assert since(before) == (0, 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("client", [Half("yolo", classes=("dog", "Face")), Half("yolo_pose")], ids=["face", "pose"])
def test_one_model_that_knows_faces_will_do(tmp_path: Path, client: Half) -> None:
    report, _, lines = analyzed(squares(tmp_path / "in.mp4", 6), tmp_path, "blur_faces", client=client)
    assert (report.frames, report.failed) == (6, 0)
    assert {line["stages"][name]["status"] for line in lines for name in ("detect", "pose")} == {"ok", "disabled"}


def test_to_be_drawn_on_one_model_will_do(tmp_path: Path) -> None:
    report, _, _ = analyzed(squares(tmp_path / "in.mp4", 6), tmp_path, client=Half("yolo"))
    assert (report.frames, report.failed) == (6, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("client", "words"), [(Half(), "serves no model"), (unreadable(), r"serves no model .*: .*odd")]
)
def test_without_a_model_there_is_no_video(tmp_path: Path, client: Half, words: str, mode: Mode) -> None:
    video = squares(tmp_path / "in.mp4", 6)
    with pytest.raises(InferenceUnavailable, match=words):
        analyzed(video, tmp_path, mode, client=client)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_model_that_goes_on_the_way_fails_its_frames(tmp_path: Path) -> None:
    class Losing(Half):
        """Comes back without its detector."""

        def _look(self, images: Any) -> Any:
            if self.seen >= 8 and self.generation == 1:
                self._models, self.generation = {"yolo_pose": self._models["yolo_pose"]}, 2
            return super()._look(images)

    client = Losing("yolo", "yolo_pose", classes=("person", "face"))
    report, _, lines = analyzed(squares(tmp_path / "in.mp4", 60), tmp_path, "blur_faces", client=client)
    assert 0 < report.failed < report.frames == 60
    assert lines[-1]["error"] == {"code": "inference", "message": "detect: not_served"}


def test_what_is_no_video_or_too_large_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4: no video that can be read"):
        analyzed(text, tmp_path)
    video = squares(tmp_path / "in.mp4", 3)
    with pytest.raises(VideoError, match=r"in\.mp4: its frames are 320x240; at most 70,000 pixels .* MAX_PIXELS"):
        analyzed(video, tmp_path, max_pixels=70_000)
    assert square(0).shape == (240, 320, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "text.mp4"]
