"""The page in a browser: the test reads it, and watches its console and its requests."""

from __future__ import annotations

import base64
import io
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page

from app.settings import ROOT
from tests.support import clip

SCREENSHOTS = ROOT / ".state" / "screenshots"
PATIENCE_S = 20.0
SOCKET_FAILED = r"WebSocket connection to .* failed|Failed to load resource: .*/ws/inference"
"""Chromium writes this on the console when a WebSocket cannot be opened."""

WATCH = """() => {
    globalThis.seen = { last: null, said: [] };
    sightline.client.on("result", ({ result }) => { seen.last = result; });
    for (const type of ["state", "starting", "queued", "ready", "settings", "summary", "notice", "refused", "bye"])
        sightline.client.on(type, (detail) => seen.said.push({ ...detail, type }));
}"""

MOMENT = """() => new Promise((done) => requestAnimationFrame(() => {
    // The overlay's own callback was requested before this callback, so that both see the same moment.
    const { width, height, parts: { objects, poses, texts } } = sightline.overlay.model;
    const copy = Object.assign(document.createElement("canvas"), { width, height });
    copy.getContext("2d").drawImage(document.querySelector("#view > *"), 0, 0);
    const drawn = document.getElementById("overlay").toDataURL("image/png");
    done({ objects, poses, texts, shown: copy.toDataURL("image/png"), drawn });
}))"""


@dataclass
class Sight:
    """One page. `check` fails on errors and requests that the test did not expect."""

    page: Page
    origin: str
    expected: list[str] = field(default_factory=list)
    """Patterns of console messages that a test provokes."""
    permitted: set[str] = field(default_factory=set)
    """Origins beside its own that the page may talk to."""
    said: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.said.append(f"page error: {error}"))
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.on("websocket", lambda socket: self.asked.add(socket.url))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.said.append(f"{message.type}: {message.text} ({message.location['url']})")

    def check(self) -> None:
        unexpected = [line for line in self.said if not any(re.search(pattern, line) for pattern in self.expected)]
        assert unexpected == [], unexpected
        hosts = {urlsplit(url).netloc for url in self.asked if not url.startswith(("blob:", "data:"))}
        assert hosts - {urlsplit(origin).netloc for origin in (self.origin, *self.permitted)} == set()

    # --- what a person does ---

    def open(self) -> Sight:
        self.page.goto(self.origin)
        self.until("'loaded' in document.body.dataset")
        self.page.evaluate(WATCH)
        return self

    def start(self, button: str = "#sample", *, results: int = 1) -> Sight:
        """Presses a source's button and waits for results."""
        self.page.click(button)
        return self.live(results=results)

    def live(self, *, results: int = 1) -> Sight:
        """Waits until the session is live, then for this many results."""
        self.until("sightline.client.state === 'live'")
        count = self.ask("sightline.hud.results.total")
        self.until(f"sightline.hud.results.total >= {count + results} || sightline.hud.results.total < {count}")
        return self

    # --- what is there ---

    def ask(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def until(self, expression: str, patience_s: float = PATIENCE_S) -> Any:
        """Waits until an expression is true, and returns its value. (The page's policy forbids polling inside it.)"""
        deadline = time.monotonic() + patience_s
        while not (value := self.page.evaluate(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}\n{self._state()}"
            self.page.wait_for_timeout(50)
        return value

    def _state(self) -> str:
        state = self.ask(
            "globalThis.sightline && [sightline.client.state, globalThis.seen?.said.slice(-5), globalThis.seen?.last]"
        )
        return f"{self.text('body')[:1000]}\n{state}\n{self.said}"

    def press(self, name: str) -> None:
        """Presses the button of this name."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def text(self, selector: str) -> str:
        """The visible text of an element, on one line."""
        return " ".join(self.page.inner_text(selector).split())

    def shows(self, selector: str, words: str) -> str:
        """Waits until an element shows these words; returns its whole text."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in (text := self.text(selector)):
            assert time.monotonic() < deadline, f"{words!r} is not in {text!r}\n{self._state()}"
            self.page.wait_for_timeout(50)
        return text

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one type that the client has sent so far."""
        return [event for event in self.ask("seen.said") if event["type"] == kind]

    def moment(self) -> Moment:
        got = self.page.evaluate(MOMENT)
        shown, drawn = _pixels(got.pop("shown")), _pixels(got.pop("drawn"))
        return Moment(**got, shown=shown, drawn=drawn)

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@dataclass
class Moment:
    """The overlay at one moment, and the frame below it."""

    objects: list[dict[str, Any]]
    poses: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    shown: NDArray[np.uint8]
    """RGBA [height, width, 4], the source's own pixels."""
    drawn: NDArray[np.uint8]
    """RGBA of the overlay's canvas."""

    def box(self, name: str) -> NDArray[np.float64]:
        """x1, y1, x2, y2 of the only object of this class, in pixels of the frame."""
        (found,) = (found["box"] for found in self.objects if found["class_name"] == name)
        return np.array([found[key] for key in ("x1", "y1", "x2", "y2")])

    def corner(self) -> NDArray[np.float64]:
        """Upper left corner of the shown frame in `clip.scene`, found by searching for the frame's centre."""
        middle = np.ascontiguousarray(self.shown[120:400, 100:460, :3])
        match = cv2.matchTemplate(clip.scene(), middle, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(match)
        assert best > 0.95
        return np.array([x - 100.0, y - 120.0])

    def truth(self, place: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates of the scene (x, y, x, y, ...) as coordinates of the shown frame, clipped to it."""
        moved = place.reshape(-1, 2) - self.corner()
        return np.clip(moved, 0, self.shown.shape[1::-1]).ravel()

    def outlined(self, name: str, colour: tuple[int, int, int]) -> float:
        """Share of the box's outline along which the overlay has this colour, within two CSS pixels.

        Lines of other things may cross it, labels may hide some of it. What is old is faded, and its line's dark edge
        shines through: the colour counts relative to its brightest part.
        """
        # The rectangle of the frame under the canvas, by `object-fit: contain`.
        size, room = np.array(self.shown.shape[1::-1]), np.array(self.drawn.shape[1::-1])
        scale = (room / size).min()
        x1, y1, x2, y2 = self.box(name) * scale + np.tile((room - size * scale) / 2, 2)
        steps = np.linspace(0.06, 0.94, 40)
        across, down = x1 + (x2 - x1) * steps, y1 + (y2 - y1) * steps
        points = [*((x, y) for x in across for y in (y1, y2)), *((x, y) for y in down for x in (x1, x2))]
        drawn = self.drawn[..., :3].astype(float)
        bright = drawn.max(axis=2, keepdims=True)
        tint = drawn * (max(colour) / np.maximum(bright, 1))
        near = (self.drawn[..., 3] > 60) & (bright[..., 0] > 90) & (np.abs(tint - colour).max(axis=2) < 45)
        height, width = near.shape
        reach = 2
        hits = [
            near[max(0, round(y) - reach) : round(y) + reach + 1, max(0, round(x) - reach) : round(x) + reach + 1].any()
            for x, y in points
            if reach < x < width - reach and reach < y < height - reach
        ]
        assert len(hits) > 60
        return float(np.mean(hits))


def _pixels(url: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))
