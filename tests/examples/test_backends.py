"""The backend of `examples/backends`, installed as a package and loaded from a folder, on real recorded video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.settings import ROOT
from tests.segments.films import FPS, assert_lines, assert_whole, run
from tests.support.examples import install, run_its_tests
from tests.support.movie import movie, shown

EXAMPLE = "backends/side_by_side"
CHOSEN = {"INFERENCE_BACKEND": "side_by_side"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(EXAMPLE, tmp_path_factory.mktemp("example") / "site")


def submit(source: Path, folder: Path, variables: dict[str, str], *options: str, code: int = 0) -> str:
    arguments = ["submit", str(source), "--seconds", "0.4", *options]
    return run(arguments, variables, folder / "log", folder=folder / "out", code=code)


def test_its_own_tests_pass(installed: dict[str, str]) -> None:
    assert "2 passed" in run_its_tests(EXAMPLE, installed)


@pytest.mark.parametrize("loaded", ["package", "folder"])
def test_halves_of_a_film_are_analysed_apart(
    canned_triton: str, installed: dict[str, str], tmp_path: Path, loaded: str
) -> None:
    source = movie(tmp_path / "stereo.mp4", seconds=24 / FPS, fps=FPS, width=640, height=240, key_every=12)
    found = installed if loaded == "package" else {"PLUGINS": str(ROOT / "examples" / EXAMPLE)}
    final = Path(submit(source, tmp_path, {"TRITON_URL": canned_triton, **CHOSEN, **found}))
    assert_whole(final, source)
    lines = assert_lines(final.with_suffix(".jsonl"), 24)
    for line in lines:
        assert line["image"] == {"width": 640, "height": 240}
        for part in ("objects", "poses"):
            count = len(line[part]) // 2
            assert count
            halves = line[part][:count], line[part][count:]
            assert moved(halves[0], 320) == places(halves[1])  # the canned models find the same in every image
        assert max(found["box"]["x2"] for found in line["objects"][: len(line["objects"]) // 2]) <= 320
        assert line["stages"]["detect"]["status"] == line["stages"]["pose"]["status"] == "ok"
        assert line["stages"]["motion"]["status"] == "disabled"
    tracks = {found["track_id"]: found["box"]["x1"] >= 320 for found in lines[11]["objects"]}
    assert len(tracks) == len(lines[11]["objects"])
    assert all(track % 2 == right for track, right in tracks.items())
    before, after = next(iter(shown(source)))[1], next(iter(shown(final)))[1]
    drawn = abs(before.astype(int) - after).max(axis=2) > 60
    assert drawn[:, :310].any()
    assert drawn[:, 330:].any()


def places(found: list[dict[str, Any]]) -> list[list[float]]:
    return [[round(float(value), 1) for value in each["box"].values()] for each in found]


def moved(found: list[dict[str, Any]], dx: float) -> list[list[float]]:
    return [[round(x1 + dx, 1), y1, round(x2 + dx, 1), y2] for x1, y1, x2, y2 in places(found)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import nowhere",
            "plug-in '{path}' cannot be loaded: ModuleNotFoundError: No module named 'nowhere' ({path}:1)",
        ),
        (
            "from app.segments.ports import Backend\nclass Mine(Backend):\n    name = 'mine'\n",
            "plug-in Mine in '{path}': should define invoke, ready",
        ),
        (
            "from app.segments.backends.stub import StubBackend\nclass Mine(StubBackend):\n    name = 'stub'\n",
            "plug-in Mine in '{path}': the name 'stub' is taken by the service itself",
        ),
        (
            "from app.segments.backends.stub import StubBackend\nclass Mine(StubBackend):\n    name = 'mine'\n",
            "INFERENCE_BACKEND='side_by_side': should be one of stub, http, sagemaker, pipeline, mine; others are ",
        ),
        (
            "from app.segments.backends.stub import StubBackend\nclass Mine(StubBackend):\n    name = 'side_by_side'\n"
            "    def __init__(self, context):\n        raise OSError('no camera')\n",
            "backend 'side_by_side' cannot be started: OSError: no camera",
        ),
    ],
)
def test_a_backend_that_cannot_be_loaded_stops_the_start(tmp_path: Path, text: str, said: str) -> None:
    source = movie(tmp_path / "a.mp4", seconds=0.4)
    path = tmp_path / "plugins" / "mine.py"
    path.parent.mkdir()
    path.write_text(text)
    line = submit(source, tmp_path, {**CHOSEN, "PLUGINS": str(path.parent)}, code=2)
    assert line.startswith(f"sightline: {said.format(path=path)}")
