"""`segments --local FOLDER`: one process, no AWS, and for one of the tests the embedded Triton with the real models."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.segments.local import LocalDatabase
from app.settings import ROOT, OcrSettings, TritonSettings
from tests.segments.films import FPS, assert_lines, assert_whole, film, run, segments
from tests.support import clip
from tests.support.movie import movie, shown
from tests.support.service import require_environment, wait_for_line
from tests.support.worker import until

SECONDS = ["--seconds", "0.3"]


@pytest.fixture
def variables(canned_triton: str) -> dict[str, str]:
    return {"TRITON_URL": canned_triton}


def done(folder: Path) -> list[Path]:
    """The output files in a folder."""
    return sorted(path.relative_to(folder) for path in (folder / "jobs").rglob("*.*"))


def test_a_fresh_machine_draws_boxes_and_skeletons(tmp_path: Path) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    source = movie(tmp_path / "clip.mp4", seconds=2, fps=25)
    log, folder = tmp_path / "submit.log", tmp_path / "out"
    said = run(["submit", str(source), "--seconds", "1"], {"TRITON_URL": ""}, log, folder=folder)
    final = Path(said)
    assert final.parent.parent == folder / "jobs"
    assert done(folder) == [(final.parent / name).relative_to(folder) for name in ("final.jsonl", "final.mp4")]
    assert_whole(final, source)
    lines = assert_lines(final.with_suffix(".jsonl"), 50)
    assert [line for line in lines if "error" in line] == []
    assert all("person" in {found["class_name"] for found in line["objects"]} for line in lines)
    poses = [line["poses"][0]["keypoints"] for line in lines]
    assert all({"nose", "left_eye", "right_eye"} <= {point["name"] for point in pose} for pose in poses)
    # The nose is drawn where it was found: the picture differs there from what it was.
    for line, (_, before), (_, after) in list(zip(lines, shown(source), shown(final), strict=True))[::10]:
        nose = next(point for point in line["poses"][0]["keypoints"] if point["name"] == "nose")
        x, y = round(nose["x"]), round(nose["y"])
        around = (slice(max(0, y - 4), y + 5), slice(max(0, x - 4), x + 5))
        assert abs(before[around].astype(int) - after[around]).max() > 60


def test_text_is_read_from_the_first_frame_on_and_drawn_where_it_stands(
    variables: dict[str, str], tmp_path: Path
) -> None:
    """Reading takes longer than many frames, and its process seconds to start: a video waits for it."""
    require_environment(OcrSettings().ocr_python, "make ocr-env")
    pan = clip.Pan(step=(1, 0), count=60)
    source = clip.write_mp4(tmp_path / "clip.mp4", pan.pictures(), fps=FPS)
    said = run(
        ["submit", str(source), "--seconds", "10"],
        {**variables, "OCR": "on"},
        tmp_path / "log",
        folder=tmp_path / "out",
    )
    lines = assert_lines(Path(said).with_suffix(".jsonl"), 60)
    assert all([text["text"] for text in line["texts"]] == [clip.WORDS] for line in lines)
    assert lines[0]["stages"]["ocr"]["status"] == "ok"
    # Its age is measured in the video's time, not by the clock of a fast or slow machine.
    ages = [line["stages"]["ocr"]["age_ms"] or 0 for line in lines]
    assert max(ages) <= 60 / FPS * 1000
    (text,) = lines[0]["texts"]
    corners = np.array(text["polygon"])
    seen = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    assert np.abs(seen - pan.seen(0, clip.words_box())).max() < 8


def test_each_segment_has_its_bar_on_a_terminal(variables: dict[str, str], tmp_path: Path) -> None:
    # 30 frames each: what is drawn five times a second must be seen in the middle, on a full machine too.
    source = film(tmp_path / "clip.mp4", 18)
    folder = tmp_path / "out"
    text = on_a_terminal(["--local", str(folder), "submit", str(source), "--seconds", "1"], variables, tmp_path)
    assert re.search(r"0000\d ━+ +\d+ of 30 frames", text)
    assert "■" * 6 in text
    assert re.search(r"6 of 6 segments", text)
    assert text.splitlines()[-1].endswith("final.mp4")
    assert Path(text.splitlines()[-1]).exists()


def on_a_terminal(arguments: list[str], variables: Mapping[str, str], folder: Path) -> str:
    """What is to be seen on a terminal when it has ended, and was before; without colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OCR": "off", "STATE_DIR": str(folder / "state"), "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen(
        [sys.executable, "-m", "app", "segments", *arguments],
        env=environment | dict(variables),
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while True:
            said += os.read(ours, 65536)
    except OSError:  # the terminal's other end is closed
        pass
    finally:
        os.close(ours)
        if child.poll() is None and child.wait(60):
            child.kill()
    assert child.returncode == 0, said.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()).replace("\r", "")
    return text.rstrip("\n")


def test_ctrl_c_loses_nothing(variables: dict[str, str], tmp_path: Path) -> None:
    source = film(tmp_path / "clip.mp4", 30)
    folder, log = tmp_path / "out", tmp_path / "submit.log"
    with segments(["submit", str(source), *SECONDS], variables, log, folder=folder) as child:
        wait_for_line(child, log, "segment 0 is done")
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130, log.read_text()
    assert log.read_text().splitlines()[-1].endswith("is not done. Submit the video again to go on")
    assert done(folder)[-1].name != "final.mp4"
    before = len(list((folder / "jobs").rglob("*.mp4")))
    said = run(["submit", str(source), *SECONDS], variables, log, folder=folder)
    assert_whole(Path(said), source)
    assert before > 0
    assert "segment 0 is done; 1 of" in log.read_text()  # known from the start, and not done again


def test_a_film_that_is_done_needs_no_models(variables: dict[str, str], tmp_path: Path) -> None:
    source, folder, log = film(tmp_path / "clip.mp4", 2), tmp_path / "out", tmp_path / "submit.log"
    asked = ["submit", str(source), *SECONDS]
    first = run(asked, variables, log, folder=folder)
    written = Path(first).stat().st_mtime_ns
    nowhere = {"TRITON_PYTHON": "/nowhere/python"}
    assert run(asked, nowhere, log, folder=folder) == first
    assert Path(first).stat().st_mtime_ns == written
    assert "could not be analysed" not in log.read_text()
    database = LocalDatabase(folder / ".sightline.db")
    with database.transaction() as db:
        db.execute("UPDATE jobs SET reason = '3 of its frames could not be analysed'")
    database.close()
    assert run(asked, nowhere, log, folder=folder) == first
    assert "\nsightline: 3 of its frames could not be analysed\n" in log.read_text()
    said = run([*asked, "--again"], nowhere, log, folder=folder, code=2)
    assert said.startswith("sightline: TRITON_PYTHON='/nowhere/python'")
    assert run([*asked, "--again"], variables, log, folder=folder) == first.replace("/final", "-2/final")


def test_the_three_commands_share_a_folder(variables: dict[str, str], tmp_path: Path) -> None:
    source, folder = film(tmp_path / "clip.mp4", 3), tmp_path / "out"
    asked = ["submit", str(source), *SECONDS, "--mode", "results_only", "--no-wait"]
    results = Path(run(asked, variables, tmp_path / "submit.log", folder=folder))
    assert not results.exists()
    with (
        segments(["work"], variables, tmp_path / "work.log", folder=folder) as work,
        segments(["reassemble"], variables, tmp_path / "reassemble.log", folder=folder),
    ):
        url = wait_for_line(work, tmp_path / "work.log", r"(http://127\.0\.0\.1:\d+)/metrics")[1]
        until(results.exists)
        until(
            lambda: (
                'sightline_segments_total{backend="pipeline",outcome="completed"} 3.0'
                in httpx.get(f"{url}/metrics").text
            )
        )
        until(lambda: httpx.get(f"{url}/health").json()["state"] == "ok")
    assert_lines(results, 30)


@pytest.mark.parametrize(
    ("given", "said", "code"),
    [
        ({"INFERENCE_BACKEND": "sagemaker"}, "sightline: INFERENCE_BACKEND='sagemaker': with --local should be ", 2),
        ({"INFERENCE_BACKEND": "http"}, "sightline: INFERENCE_HTTP_URL is unset: ", 2),
    ],
)
def test_a_backend_that_does_not_go_with_a_folder(given: dict[str, str], said: str, code: int, tmp_path: Path) -> None:
    source = film(tmp_path / "clip.mp4", 1)
    line = run(["submit", str(source)], given, tmp_path / "log", folder=tmp_path / "out", code=code)
    assert line.startswith(said)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    source, place = film(tmp_path / "clip.mp4", 1), tmp_path / "file"
    place.write_text("not a folder")
    line = run(["submit", str(source)], {}, tmp_path / "log", folder=place, code=2)
    assert line == f"sightline: --local {place}: should be a folder to write to (File exists)"


def test_a_segment_that_no_model_can_see_fails_the_job_and_is_tried_again(canned_triton: str, tmp_path: Path) -> None:
    source, folder, log = film(tmp_path / "clip.mp4", 2), tmp_path / "out", tmp_path / "log"
    asked = ["submit", str(source), *SECONDS]
    blind = {"TRITON_URL": canned_triton, "MAX_PIXELS": "100", "SEGMENT_ATTEMPTS": "2"}
    line = run(asked, blind, log, folder=folder, code=1)
    assert re.match(r"sightline: job \S+ failed: segment \d: tried 2 times, the last time: .*MAX_PIXELS", line)
    assert line.endswith("Submit the video again to try what is missing, or with --again to start anew")
    assert_whole(Path(run(asked, {"TRITON_URL": canned_triton}, log, folder=folder)), source)
