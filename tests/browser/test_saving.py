"""The page saves a still, a recording and the results."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import Look
from tests.browser.sight import Sight
from tests.support import clip
from tests.support.live import validators
from tests.support.service import Service


@pytest.fixture
def sight(service: Service, look: Look) -> Sight:
    sight = look(service).start("#camera", results=3)
    sight.until(
        "sightline.overlay.model.parts.objects.length === 2 && sightline.overlay.model.parts.poses.length === 1"
    )
    return sight


def saved(sight: Sight, button: str, folder: Path) -> Path:
    with sight.page.expect_download() as waiting:
        sight.page.click(button)
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def on_an_outline(image: Image.Image) -> float:
    """Share of the sides of the person's box (its position is known) where the image is green, as the scene is nowhere.

    A recording stores colour at half the resolution, so that thin lines lose most of theirs.
    """
    pixels = np.asarray(image.convert("RGB")).astype(int)
    x1, y1, x2, y2 = 100, 40, 300, 440  # canned.PERSON on a 640x480 frame
    down = np.arange(y1 + 40, y2 - 40, 8)
    green = [pixels[y, x - 2 : x + 3] for y in down for x in (x1, x2)]
    return float(np.mean([((side[:, 1] - side[:, [0, 2]].max(axis=1)) > 30).any() for side in green]))


def test_a_still_has_frame_and_overlay(sight: Sight, tmp_path: Path) -> None:
    path = saved(sight, "#still", tmp_path)
    assert path.suffix == ".png"
    with Image.open(path) as still:
        assert (still.format, still.size) == ("PNG", (clip.WIDTH, clip.HEIGHT))
        assert on_an_outline(still) > 0.9
        # Beside the overlay it is the camera's frame: the sign's white background at the top right.
        assert np.asarray(still.convert("RGB"))[50:70, 560:580].mean() > 200


def test_e6_a_recording_shows_both_and_has_a_duration(sight: Sight, tmp_path: Path) -> None:
    sight.page.click("#record")
    sight.shows("#recording", "2 s")
    assert sight.page.get_attribute("#record", "aria-pressed") == "true"
    path = saved(sight, "#record", tmp_path)
    assert path.suffix == ".webm"
    with av.open(str(path)) as recording:
        assert recording.duration is not None
        assert 1.5e6 < recording.duration < 60e6  # microseconds: players show how long it is
        frames = [frame.to_image() for frame in recording.decode(video=0)]
    assert {frame.size for frame in frames} == {(clip.WIDTH, clip.HEIGHT)}
    assert len(frames) > 8
    assert np.mean([on_an_outline(frame) for frame in frames[2:]]) > 0.8
    assert np.abs(np.subtract(frames[2], frames[-1], dtype=int)).mean() > 1  # it moves
    assert sight.page.get_attribute("#record", "aria-pressed") == "false"


def test_stop_ends_a_recording_and_keeps_it(sight: Sight, tmp_path: Path) -> None:
    sight.page.click("#record")
    sight.shows("#recording", "1 s")
    path = saved(sight, "#stop", tmp_path)
    with av.open(str(path)) as recording:
        assert sum(1 for _ in recording.decode(video=0)) > 5


def test_the_results_are_lines_of_the_protocol(sight: Sight, service: Service, tmp_path: Path) -> None:
    sight.page.click("#stop")
    sight.shows("#card", "The session has ended")
    count = sight.ask("sightline.hud.results.total") or sight.ask("seen.last.frame_id")
    path = saved(sight, "#results", tmp_path)
    assert path.suffix == ".jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) >= min(count, 3)
    for line in lines:
        validators(service.url)["result"].validate(line)
    assert [line["seq"] for line in lines] == sorted({line["seq"] for line in lines})
    assert len({line["session_id"] for line in lines}) == 1
