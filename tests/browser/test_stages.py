"""Stages from outside the project: the page shows them as they declare it, without knowing any of them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.settings import ROOT
from tests.browser.conftest import Look
from tests.browser.sight import Sight
from tests.conftest import Serve
from tests.pipeline.test_model_stages import BLUE, RED, frame, url
from tests.support.service import Service, serving

__all__ = ["url"]
EXAMPLE = ROOT / "examples" / "stages" / "average_colour"
PLUGIN = '''
"""Stages with every kind of shape, computed from the objects that were found."""

from __future__ import annotations

from dataclasses import dataclass

from app.pipeline.stage import Batch, Box, FrameState, Part, PipelineStage, Shape
from app.protocol.stages import Figure

LABEL = "{class_name} {confidence} {track_id}"


@dataclass
class Cut:
    class_id: int
    class_name: str
    confidence: float
    box: Box
    polygons: list[list[list[float]]]
    track_id: int | None


@dataclass
class Tilted:
    class_id: int
    class_name: str
    confidence: float
    box: Box
    corners: list[list[float]]
    track_id: int | None


@dataclass
class Score:
    class_id: int
    class_name: str
    confidence: float


@dataclass
class Kind:
    box: Box | None
    track_id: int | None
    top: list[Score]


@dataclass
class Dot:
    name: str
    x: float
    y: float
    confidence: float


@dataclass
class Wind:
    dx: float
    dy: float
    strength: float
    way: list[list[float]]
    dots: list[Dot]


class CutStage(PipelineStage):
    name, title, description = "cutting", "Outlines", "What lies within an outline."
    part = Part("cuts", list[Cut], shapes=(Shape("mask", "polygons", label=LABEL),))
    needs = ("detect", "track")

    def write(self, state: FrameState, batch: Batch) -> list[Cut]:
        return [
            Cut(80, "cut", found.confidence, found.box, [diamond(found.box)], found.track_id)
            for found in state.parts.get("objects", [])
        ]


class TiltedStage(PipelineStage):
    name, title, description = "tilting", "Tilted boxes", ""
    part = Part("tilted", list[Tilted], shapes=(Shape("polygon", "corners", label=LABEL, colour="#ff00ff"),))
    needs = ("detect", "track")

    def write(self, state: FrameState, batch: Batch) -> list[Tilted]:
        return [
            Tilted(found.class_id, "tilted", found.confidence, found.box, diamond(found.box), found.track_id)
            for found in state.parts.get("objects", [])
        ]


class KindStage(PipelineStage):
    name, title, description = "sorting", "Kinds", "What kind of image it is."
    part = Part(
        "kinds",
        list[Kind],
        shapes=(Shape("label", label="{top.0.class_name} {top.0.confidence}"),),
        figures=(Figure("figures", "{top.0.class_name}"), Figure("status", "{count} of them")),
    )

    def write(self, state: FrameState, batch: Batch) -> list[Kind]:
        return [Kind(None, None, [Score(7, name, 0.5), Score(8, "else", 0.25)]) for name in ("indoors", "daylight")]


class WindStage(PipelineStage):
    name, title, description = "wind", "Wind", ""
    part = Part(
        "wind",
        Wind | None,
        empty=lambda: None,
        shapes=(Shape("arrow", colour="#00ffff"), Shape("polyline", "way", colour="#0000ff"), Shape("points", "dots")),
        figures=(Figure("sentence", "wind from the {dx:direction}", where="strength", least=3),),
    )

    def write(self, state: FrameState, batch: Batch) -> Wind:
        return Wind(0.0, 40.0, 4.0, [[20.0, 460.0], [620.0, 460.0]], [Dot("end", 600.0, 420.0, 0.9)])


def diamond(box: Box) -> list[list[float]]:
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    return [[x, box.y1], [box.x2, y], [x, box.y2], [box.x1, y]]
'''


@pytest.fixture
def plugged(serve: Serve, tmp_path: Path) -> Service:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "shapes.py").write_text(PLUGIN)
    return serve(PLUGINS=str(folder))


def colour_at(sight: Sight, x: float, y: float, reach: int = 3) -> list[list[int]]:
    """The colours of the overlay around a point of the shown frame, RGBA."""
    moment = sight.moment()
    drawn, size = moment.drawn, np.array(moment.shown.shape[1::-1])
    room = np.array(drawn.shape[1::-1])
    scale = (room / size).min()
    left, top = np.round((room - size * scale) / 2 + np.array((x, y)) * scale).astype(int)
    patch = drawn[top - reach : top + reach + 1, left - reach : left + reach + 1]
    return [list(map(int, pixel)) for pixel in patch.reshape(-1, 4)]


def has(colours: list[list[int]], red: int, green: int, blue: int) -> bool:
    """Whether one has this colour. On a busy machine results are old and faded: a line's edge shines through."""
    for *colour, alpha in colours:
        tint = np.array(colour) * (max(red, green, blue) / max(*colour, 1))
        if alpha > 60 and max(colour) > 70 and np.abs(tint - (red, green, blue)).max() < 45:
            return True
    return False


def test_the_example_of_a_plugin_is_shown_drawn_switched_and_saved(serve: Serve, look: Look, tmp_path: Path) -> None:
    sight = look(serve(PLUGINS=str(EXAMPLE)))
    # Before there is a session, it has its switch already, after those of the project's own stages.
    titles = [text.split("\n")[0] for text in sight.page.locator("#stages li").all_inner_texts()]
    assert titles[:2] == ["Objects", "Poses"]
    assert titles[-3:] == ["Colours", "Summaries", "Motion vectors"]
    label = sight.page.locator("label:has(#stage-average_colour)")
    assert label.get_attribute("title") == "The average colour of each object."
    sight.start("#sample", results=3)
    sight.until("sightline.overlay.model.parts.colours.length === 2")
    assert sight.text("#stages li:has(#stage-average_colour) .state") == "ok"
    sight.screenshot("plugin")
    for found in sight.ask("sightline.overlay.model.parts.colours"):
        assert found["hex"] == "#{:02x}{:02x}{:02x}".format(*found["rgb"])
        box = found["box"]
        assert has(colour_at(sight, box["x1"], (box["y1"] + box["y2"]) / 2), *found["rgb"])
    assert re.search(r"hex: “#[0-9a-f]{6}”, “#[0-9a-f]{6}”", sight.shows("#seen", "hex"))
    label.click()
    sight.until("seen.last.stages.average_colour.status === 'disabled'")
    sight.until("sightline.overlay.model.parts.colours.length === 0")
    assert sight.ask("seen.last.colours") == []
    sight.page.click("#stop")
    with sight.page.expect_download() as waiting:
        sight.page.click("#results")
    waiting.value.save_as(tmp_path / "results.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {len(line["colours"]) for line in lines} == {0, 2}


def test_every_kind_of_shape_is_drawn_as_its_stage_says(plugged: Service, look: Look) -> None:
    sight = look(plugged).start("#sample", results=3)
    model = "sightline.overlay.model.parts"
    sight.until(f"{model}.cuts.length === 2 && {model}.tilted.length === 2 && {model}.kinds.length === 2")
    sight.screenshot("shapes")
    person = next(found for found in sight.ask(f"{model}.tilted") if found["confidence"] > 0.85)
    (top, right, *_), box = person["corners"], person["box"]
    assert top[0] == pytest.approx((box["x1"] + box["x2"]) / 2)
    side = (top[0] + right[0]) / 2, (top[1] + right[1]) / 2
    assert has(colour_at(sight, *side), 255, 0, 255)  # the polygon lies over the mask's own outline
    inside = colour_at(sight, (box["x1"] + box["x2"]) / 2 + 25, (box["y1"] + box["y2"]) / 2 + 25, 1)
    assert all(20 < colour[3] < 200 for colour in inside)  # the mask
    assert has(colour_at(sight, 300, 460), 0, 0, 255)
    assert has(colour_at(sight, 600, 420), 255, 255, 255)
    assert has(colour_at(sight, 320, 300), 0, 255, 255)  # downwards from the middle
    corner = sight.moment().drawn[: int(sight.moment().drawn.shape[0] * 0.12), :160]
    assert (corner[..., 3] > 60).mean() > 0.2  # the labels of the whole image
    assert sight.text("#figure-sorting") == "indoors"
    assert sight.text("#stages li:has(#stage-sorting) .state") == "ok, 2 of them"
    seen = sight.shows("#seen", "wind from the right")
    for words in ("1 person", "2 × cut", "1 indoors"):
        assert words in seen
    sight.page.keyboard.press("?")
    keys = sight.text("#shortcuts dl")
    assert "1 objects on or off" in keys
    assert "outlines on or off" in keys
    assert "v motion vectors on or off" in keys


def test_what_the_stages_of_other_models_find_is_shown(url: str, look: Look, tmp_path: Path) -> None:
    """Masks, oriented boxes, the class of the frame, and poses of cards, by tiny models on a real Triton."""
    Image.open(io.BytesIO(frame())).save(tmp_path / "cards.png")
    with serving(tmp_path, {"TRITON_URL": url, "OCR": "off"}) as service:
        sight = look(service)
        sight.page.set_input_files("#file", tmp_path / "cards.png")
        sight.live(results=4)
        parts = "sightline.overlay.model.parts"
        names = ("segments", "oriented", "classifications", "poses")
        for name in names:
            sight.until(f"{parts}.{name}.length")
        sight.screenshot("model-stages")
        segments, oriented, classes, poses = (sight.ask(f"{parts}.{name}") for name in names)
        inks = []
        for found, (x1, y1, x2, y2) in zip(segments, (RED, BLUE), strict=True):
            ring = np.array(found["polygons"][0])
            assert [*ring.min(axis=0), *ring.max(axis=0)] == pytest.approx([x1, y1, x2, y2], abs=4)
            inks += colour_at(sight, x1 + 12, y2 - 10, 1)
        assert all(20 < alpha < 200 for *_, alpha in inks)  # half transparent
        assert np.mean(oriented[0]["corners"], axis=0) == pytest.approx((160, 120), abs=2)
        assert len(oriented[0]["corners"]) == 4
        assert [point["name"] for point in poses[0]["keypoints"]] == ["a", "b", "c", "d", "middle"]
        # The line from a to the middle, in the colour of the card's class, the first one.
        assert poses[0]["class_id"] == 0
        assert has(colour_at(sight, 205, 80), 85, 246, 152)
        assert classes[0]["box"] is None
        sight.shows("#seen", classes[0]["top"][0]["class_name"])
        corner = sight.moment().drawn[:60, :160]
        assert (corner[..., 3] > 60).mean() > 0.1  # its label
        assert "Model for segmentation tiny yolo_segment" in sight.text("#session")
        sight.page.click("#stop")
        sight.shows("#card", "The session has ended")


def test_a_hundred_objects_with_masks_cost_what_drawing_them_costs(service: Service, look: Look) -> None:
    """Beside the canvas's own work little is left: a frame at 30 a second has 33 ms."""
    sight = look(service)
    took = sight.page.evaluate(HUNDRED)
    print({name: round(ms, 2) for name, ms in took.items()})
    assert took["boxes"] < 3 * took["bareBoxes"] + 5
    assert took["masks"] < 3 * took["bareMasks"] + 5


HUNDRED = """async () => {
    const { Tracks } = await import("/web/tracks.js");
    const { paint } = await import("/web/drawing.js");
    const { interpreted } = await import("/web/stages.js");
    const label = "{class_name} {confidence} {track_id}";
    const described = [
        { name: "a", title: "", description: "", field: "things", shapes: [{ kind: "box", at: "box", label }] },
        { name: "b", title: "", description: "", field: "cuts", shapes: [{ kind: "mask", at: "polygons" }] },
    ];
    const canvas = Object.assign(document.createElement("canvas"), { width: 1280, height: 960 });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const thing = (k, frame) => {
        const [x, y] = [(k % 10) * 60 + (frame % 5), Math.floor(k / 10) * 45];
        const box = { x1: x, y1: y, x2: x + 50, y2: y + 40 };
        const at = (angle) => [x + 25 + 24 * Math.cos(angle), y + 20 + 19 * Math.sin(angle)];
        const polygons = [[...Array(60).keys()].map((j) => at(j / 9.55))];
        return { class_id: k % 7, class_name: "thing", confidence: 0.9, track_id: k, box, polygons };
    };
    const things = [...Array(5).keys()].map((frame) => [...Array(100).keys()].map((k) => thing(k, frame)));
    // What is drawn on the canvas, and nothing else.
    const bare = (masks) => (frame) => {
        context.font = "600 26px system-ui, sans-serif";
        for (const { box, polygons } of things[frame % 5]) {
            context.strokeStyle = "#39d";
            if (masks) {
                context.beginPath();
                for (const [x, y] of polygons[0]) context.lineTo(2 * x, 2 * y);
                context.closePath();
                context.fillStyle = "rgb(0 90 200 / 0.35)";
                context.fill();
                for (const width of [8, 3]) Object.assign(context, { lineWidth: width }).stroke();
            }
            context.beginPath();
            context.roundRect(2 * box.x1, 2 * box.y1, 100, 80, 6);
            for (const width of [9, 4]) Object.assign(context, { lineWidth: width }).stroke();
            context.fillStyle = "#10151c";
            context.beginPath();
            context.roundRect(2 * box.x1, 2 * box.y1, 160, 40, 8);
            context.fill();
            context.fillStyle = "#39d";
            context.fillRect(2 * box.x1, 2 * box.y1, 6, 30);
            context.fillText("thing 90% #12", 2 * box.x1, 2 * box.y1, 150);
        }
    };
    const page = (masks) => {
        const tracks = new Tracks();
        tracks.stages = interpreted(described, {});
        return (frame) => {
            const [now, found] = [frame * 33, things[frame % 5]];
            const image = { width: 640, height: 480 };
            const result = { image, things: found, cuts: masks ? found : [], stages: {} };
            if (frame % 3 === 0) tracks.observe(result, now, now);
            paint(context, tracks.at(now + 90, image), { x: 0, y: 0, scale: 2, unit: 2 });
        };
    };
    const ways = { boxes: page(false), bareBoxes: bare(false), masks: page(true), bareMasks: bare(true) };
    const took = Object.fromEntries(Object.keys(ways).map((name) => [name, []]));
    for (let frame = 0; frame < 60; frame += 1) {
        for (const [name, draw] of Object.entries(ways)) {
            const began = performance.now();
            context.clearRect(0, 0, 1280, 960);
            draw(frame);
            context.getImageData(0, 0, 1, 1); // waits until it is drawn
            took[name].push(performance.now() - began);
        }
    }
    return Object.fromEntries(Object.entries(took).map(([name, all]) => [name, all.sort((a, b) => a - b)[12]]));
}"""
