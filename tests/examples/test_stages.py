"""Stages from outside: the one in `examples/stages`, and files in PLUGINS that fail, block, or cannot be loaded."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.client import connect
from app.protocol.messages import Ready, Result
from app.settings import ROOT
from tests.conftest import photograph
from tests.support import clip
from tests.support.examples import install, run_its_tests
from tests.support.service import Service, process, serving

EXAMPLE = "stages/average_colour"
STAGE = """
import time
from app.pipeline.stage import OK, Part, PipelineStage

class Mine(PipelineStage):
    name = "mine"
    title = "Mine"
    description = "A stage for a test."
    part = Part("mine", list)
    runs = {runs!r}

    def write(self, state, batch):
        {body}
        return [len(state.parts["objects"])]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(EXAMPLE, tmp_path_factory.mktemp("example") / "site")


def seen(service: Service, frames: int = 1) -> tuple[Ready, list[Result]]:
    """A session's `ready`, and the results of the same photograph, one after the other."""

    async def run() -> tuple[Ready, list[Result]]:
        async with connect(service.url, mode="lossless") as session:

            async def shown():
                for _ in range(frames):
                    yield photograph()

            return session.ready, [result async for result in session.stream(shown())]

    return asyncio.run(run())


def counted(service: Service, name: str) -> float:
    lines = [line for line in httpx.get(f"{service.url}/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def with_stage(folder: Path, url: str, body: str = "pass", runs: str = "anywhere") -> dict[str, str]:
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "mine.py").write_text(STAGE.format(body=body, runs=runs))
    return {"TRITON_URL": url, "OCR": "off", "PLUGINS": str(plugins)}


def test_its_own_tests_pass(installed: dict[str, str]) -> None:
    assert "1 passed" in run_its_tests(EXAMPLE, installed)


def test_an_installed_stage_reaches_the_wire_the_schema_and_the_descriptions(
    canned_triton: str, installed: dict[str, str], tmp_path: Path
) -> None:
    with serving(tmp_path, {"TRITON_URL": canned_triton, "OCR": "off", **installed}) as service:
        ready, (result,) = seen(service)
        schema = httpx.get(f"{service.url}/schema.json").json()
    (described,) = [stage for stage in ready.stages if stage.name == "average_colour"]
    assert (described.title, described.field) == ("Colours", "colours")
    assert [(shape.kind, shape.colour) for shape in described.shapes] == [("box", "{rgb}")]
    assert ready.settings.stages["average_colour"] is True
    assert result.frame.stages["average_colour"].status == "ok"
    assert schema["server"]["result"]["properties"]["colours"]["items"] == {"$ref": "#/$defs/ObjectColour"}
    assert "rgb" in schema["$defs"]["ObjectColour"]["properties"]
    image = clip.decode(photograph())
    assert len(result.frame.colours) == len(result.frame.objects) > 0
    for colour, found in zip(result.frame.colours, result.frame.objects, strict=True):
        box = found.box
        crop = image[int(box.y1) : int(box.y2) + 1, int(box.x1) : int(box.x2) + 1]
        assert np.abs(np.array(colour["rgb"]) - crop.mean(axis=(0, 1))).max() < 3


def test_a_stage_can_be_switched_off_by_a_client(canned_triton: str, tmp_path: Path) -> None:
    with serving(tmp_path, with_stage(tmp_path, canned_triton)) as service:

        async def run() -> Result:
            async with connect(service.url, stages={"mine": False}) as session:

                async def shown():
                    yield photograph()

                (result,) = [result async for result in session.stream(shown())]
                return result

        result = asyncio.run(run())
    assert (result.frame.stages["mine"].status, result.frame.mine) == ("disabled", [])


def test_a_stage_that_raises_costs_its_own_part_and_is_counted(canned_triton: str, tmp_path: Path) -> None:
    with serving(tmp_path, with_stage(tmp_path, canned_triton, 'raise RuntimeError("no idea")')) as service:
        _, results = seen(service, 3)
        assert counted(service, 'sightline_stage_errors_total{stage="mine"}') == 3
    for result in results:
        outcome = result.frame.stages["mine"]
        assert (outcome.status, outcome.reason) == ("error", "RuntimeError: no idea")
        assert (result.frame.mine, result.frame.stages["detect"].status) == ([], "ok")
        assert result.frame.objects


@pytest.mark.parametrize("runs", ["anywhere", "loop"])
def test_a_stage_that_blocks_is_moved_to_a_thread(canned_triton: str, tmp_path: Path, runs: str) -> None:
    with serving(tmp_path, with_stage(tmp_path, canned_triton, "time.sleep(0.05)", runs)) as service:
        _, results = seen(service, 8)
        assert counted(service, 'sightline_stage_moved_total{stage="mine"}') == 1
        assert "stage mine took more than 20 ms for a frame 3 times" in service.log_path.read_text()
    assert [result.frame.mine for result in results] == [[len(results[0].frame.objects)]] * 8


def test_a_stage_that_hangs_costs_its_own_part_alone(canned_triton: str, tmp_path: Path) -> None:
    with serving(tmp_path, with_stage(tmp_path, canned_triton, "time.sleep(3)", "thread")) as service:
        _, results = seen(service, 4)
        assert counted(service, 'sightline_stage_frames_without_total{reason="late",stage="mine"}') >= 1
        assert counted(service, 'sightline_stage_frames_without_total{reason="busy",stage="mine"}') >= 1
    outcomes = [(result.frame.stages["mine"].status, result.frame.stages["mine"].reason) for result in results]
    assert outcomes[0] == ("error", "it took more than 1 s")
    assert ("skipped", "busy") in outcomes
    assert all(result.frame.objects for result in results)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        (STAGE.format(body="pass", runs="loop").replace('name = "mine"', 'name = "pose"'), "'pose' is taken"),
        (STAGE.format(body="pass", runs="loop").replace('Part("mine"', 'Part("objects"'), "'objects'"),
        (STAGE.format(body="pass", runs="loop").replace("    runs =", '    needs = ("depth",)\n    runs ='), "depth"),
    ],
)
def test_a_stage_that_cannot_be_loaded_stops_the_start(tmp_path: Path, text: str, said: str) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "mine.py").write_text(text)
    settings = {"PLUGINS": str(plugins), "STATE_DIR": str(tmp_path / "state"), "PORT": "0"}
    with process(["serve"], settings, tmp_path / "log") as child:
        assert child.wait(60) == 2
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("sightline: ")]
    assert said in line


def test_the_tutorial_does_what_it_says(canned_triton: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "stages.md").read_text()
    files = dict(re.findall(r"```python\n# my_stages/(\w+\.py)\n(.*?)```", text, re.S))
    assert set(files) == {"brightness.py", "centres.py", "darkness.py"}
    plugins = tmp_path / "my_stages"
    plugins.mkdir()
    for name, code in files.items():
        (plugins / name).write_text(code)
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "PLUGINS": str(plugins)}
    wrong = {**settings, "DARKNESS_BELOW": "999", "STATE_DIR": str(tmp_path / "state"), "PORT": "0"}
    with process(["serve"], wrong, tmp_path / "log") as child:
        assert child.wait(60) == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last == "sightline: DARKNESS_BELOW='999': should be less than or equal to 255"
    with serving(tmp_path, settings) as service:
        assert f"plug-in Brightness in '{plugins}/brightness.py' adds brightness" in service.log
        sample = (ROOT / "app" / "web" / "sample.jpg").read_bytes()
        answer = httpx.post(f"{service.url}/v1/frames", files={"file": sample}, timeout=30).json()
        _, (result,) = seen(service)
    said = re.search(r'The answer has `"brightness": ([\d.]+)`', text)
    assert said is not None
    assert answer["brightness"] == float(said[1])
    assert answer["stages"]["brightness"]["status"] == "ok"
    assert answer["dark"] is False
    (point,) = result.frame.centres[0]["points"]
    box = result.frame.objects[0].box
    assert (point["x"], point["y"]) == ((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2)
