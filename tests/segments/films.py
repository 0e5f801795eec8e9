"""What must be true of a video after its analysis, and commands of `segments` as processes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.segments.video import probe
from tests.support.movie import movie, packets
from tests.support.service import process

FRAMES_A_SEGMENT = 10
FPS = 25


def film(path: Path, segments: int) -> Path:
    """Writes a video with audio that `--seconds 0.3` cuts into this many segments of ten frames."""
    seconds = segments * FRAMES_A_SEGMENT / FPS
    return movie(path, seconds=seconds, fps=FPS, width=160, height=120, key_every=FRAMES_A_SEGMENT)


def assert_whole(final: Path, source: Path) -> None:
    """Asserts that a video has all frames of its source, and every packet of its audio where it was."""
    before, after = probe(source), probe(final)
    assert after.frames == before.frames
    assert abs(after.duration_s - before.duration_s) <= 1 / before.fps
    assert (after.width, after.height, after.audio) == (before.width, before.height, True)
    assert packets(final)["audio"] == packets(source)["audio"]


def assert_lines(results: Path, frames: int) -> list[dict[str, Any]]:
    """Asserts that there is one line per frame, in order; returns the lines."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["frame_id"] for line in lines] == list(range(frames))
    assert all(abs(line["pts_s"] - number / FPS) < 1e-3 for number, line in enumerate(lines))
    return lines


@contextmanager
def segments(
    arguments: list[str], settings: Mapping[str, str], log: Path, *, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m app segments …`."""
    local = [] if folder is None else ["--local", str(folder)]
    given = {"METRICS_PORT": "0", "OCR": "off", "STATE_DIR": str(log.parent / "state"), **settings}
    with process(["segments", *local, *arguments], given, log) as child:
        yield child


def run(
    arguments: list[str], settings: Mapping[str, str], log: Path, *, folder: Path | None = None, code: int = 0
) -> str:
    """Runs a command to its end; returns the last line of its output."""
    with segments(arguments, settings, log, folder=folder) as child:
        assert child.wait(90) == code, log.read_text()
    return log.read_text().splitlines()[-1]
