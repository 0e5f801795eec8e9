"""A recorded video on the way of `/invocations` against the bare pipeline on the same frames.

The video is a panned photograph, 640x480, H.264 with B-frames, with sound. Both sides have as many batches in flight
and all cores, which Triton shares. Each variant runs twice: on the models of a fresh installation (MediaPipe, on the
CPU), where the models take most of the time, and on canned ones, where only the work around the models is left.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
from rich.console import Console

from app.settings import TritonSettings
from benchmarks import canned, harness, photographs, segments_run, turns
from benchmarks.turns import Figures, Ratio

MODELS = {"real": "MediaPipe", "canned": "canned models"}
WAYS = {
    "pipeline": "the pipeline alone, JPEG in",
    "results_only": "video in, results out",
    "annotate": "video in, drawn video out",
    "blur_faces": "video in, faces blurred",
}
VARIANTS = {f"{models}-{way}": f"{words}: {title}" for models, words in MODELS.items() for way, title in WAYS.items()}
RATIOS = (
    *(
        Ratio(
            f"{words}: {WAYS[way]}, over the pipeline alone",
            "rate",
            f"{models}-{way}",
            f"{models}-pipeline",
            at_least=0.8 if (models, way) == ("real", "annotate") else None,
        )
        for models, words in MODELS.items()
        for way in ("results_only", "annotate", "blur_faces")
    ),
    *(
        Ratio(
            f"… {words}, by CPU: the pipeline over the drawn video",
            "all_us",
            f"{models}-pipeline",
            f"{models}-annotate",
        )
        for models, words in MODELS.items()
    ),
)
FPS = 25


@dataclass(frozen=True, slots=True)
class Plan:
    frames: int = 150
    """Frames of the video for the real models; the video for the canned ones is four times as long."""
    turns: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


def write_video(path: Path, frames: int) -> Path:
    """Writes the video: frames that pan there and back, and a hum."""
    picture = photographs.picture("astronaut")
    width, height, most = photographs.WIDTH, photographs.HEIGHT, photographs.STEP * photographs.FRAMES
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound: Any = out.add_stream("aac", rate=44100)
        sound.layout = "mono"
        for number in range(frames):
            at = most - abs(photographs.STEP * number % (2 * most) - most)
            window = np.ascontiguousarray(picture[at : at + height, at : at + width])
            frame = av.VideoFrame.from_ndarray(window, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(video.encode(frame))
            out.mux(sound.encode(_hum(number)))
        for stream in (video, sound):
            out.mux(stream.encode(None))
    return path


def _hum(number: int) -> Any:
    count = 44100 // FPS
    at = (number * count + np.arange(count)) / 44100
    wave = (0.2 * np.sin(500 * at)).astype(np.float32)
    frame: Any = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 44100, number * count, Fraction(1, 44100)
    return frame


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

    Raises:
        BenchmarkError: a process failed.
    """
    everywhere = frozenset(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        urls: dict[str, str] = {}
        servers: dict[str, list[int]] = {}
        videos = {
            "real": write_video(folder / "real.mp4", plan.frames),
            "canned": write_video(folder / "canned.mp4", 4 * plan.frames),
        }
        for models in {variant.partition("-")[0] for variant in plan.variants}:
            real = models == "real"
            repository = TritonSettings().triton_repository if real else canned.write(folder / "repository")
            urls[models], servers[models] = stack.enter_context(harness.triton(repository, folder / models, everywhere))

        def measure_turn(variant: str) -> Figures:
            models, _, way = variant.partition("-")
            arguments = ["benchmarks.segments_run", "--way", way, "--triton", urls[models]]
            before = _busy_s(servers[models])
            figures = harness.answer([*arguments, "--video", str(videos[models])], everywhere, timeout_s=300)
            seen = figures["frames"] + segments_run.WARM_UP
            figures["triton_us"] = (_busy_s(servers[models]) - before) / seen * 1e6
            return {**figures, "all_us": figures["cpu_us"] + figures["triton_us"]}

        found = turns.run("segments", plan, measure_turn, RATIOS, say, shown="rate")
    return {**found, "plan": asdict(plan)}


def _busy_s(pids: Sequence[int]) -> float:
    """Processor time of these processes so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids if psutil.pid_exists(pid)]
    return sum(process_times.user + process_times.system for process_times in times)


def show(results: Mapping[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {"rate": "frames/s", "cpu_us": "CPU µs a frame", "triton_us": "Triton's", "busy": "cores busy"}
    turns.show(results, "segments", VARIANTS, columns, console, "cores busy: without Triton")


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
