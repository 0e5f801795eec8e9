"""The overlay when answers are late: it fades, boxes stop where they were last seen, texts move with the camera."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from playwright.sync_api import WebSocketRoute

from tests.browser.conftest import Look
from tests.support.service import Service

LATE_MS = 1000
# Results come a second after they came.
DELAY = f"""(() => {{
    globalThis.WebSocket = class extends WebSocket {{
        get onmessage() {{ return super.onmessage; }}
        set onmessage(listener) {{
            super.onmessage = listener && ((event) => {{
                const result = event.data.startsWith('{{"type":"result"');
                setTimeout(() => this.onmessage && listener(event), result ? {LATE_MS} : 0);
            }});
        }}
    }};
}})()"""
# Every drawn frame for a while: how much of its colour the thing has that has most of it.
RECORD = """(ms) => new Promise((done) => {
    const rows = [];
    const began = performance.now();
    const look = () => {
        const { objects, poses, texts } = sightline.overlay.model.parts;
        const alphas = [...objects, ...poses, ...texts].map(({ alpha }) => alpha);
        if (alphas.length) rows.push(Math.max(...alphas));
        if (performance.now() - began < ms) requestAnimationFrame(look);
        else done(rows);
    };
    requestAnimationFrame(look);
})"""


def test_e1_results_a_second_late_are_drawn_in_no_full_colour(service: Service, look: Look) -> None:
    sight = look(service).start("#sample", results=3)
    sight.until("sightline.overlay.model.parts.objects.some(({ alpha }) => alpha === 1)")  # what is fresh is
    sight.page.click("#stop")
    late = look(service, opening=False)
    late.page.add_init_script(DELAY)
    late.open().start("#sample", results=3)
    assert late.ask("sightline.hud.ages.quantile(0.5)") > LATE_MS
    rows = late.page.evaluate(RECORD, 2000)
    late.screenshot("late")
    assert max(rows) < 0.5  # of every drawn frame, however few they are on a busy machine
    drawn = late.moment().drawn[..., 3]
    assert 60 < drawn.max() < 255  # also where lines and labels lie over each other


SPEED = np.array([0.03, -0.01])
"""Speed of the whole image, pixels per millisecond."""
SIGN = np.array([[100, 300], [180, 300], [180, 320], [100, 320]], float)
MIDDLES = """() => {
    // Beyond 300 ms it stands still: a busy machine's answers may be older.
    const now = Math.min(performance.timeOrigin + performance.now(), seen.last.captured_at_ms + 300);
    return sightline.overlay.model.parts.texts.map(({ polygon, alpha }) => [
        now, alpha, polygon.reduce((sum, [x]) => sum + x, 0) / 4, polygon.reduce((sum, [, y]) => sum + y, 0) / 4,
    ]);
}"""


def test_e2_texts_go_with_the_camera(service: Service, look: Look) -> None:
    """A text that is read every two seconds while the camera pans; the test changes the service's results."""
    started: float = 0
    read_at: float = 0
    told_at: float = 0
    before: float = 0

    def pan(message: dict[str, Any]) -> None:
        """Adds camera motion as if the whole image moved at `SPEED`."""
        nonlocal started, read_at, told_at, before
        at = message["captured_at_ms"]
        started = started or at
        if at - read_at > 2000:
            read_at, told_at = at, time.monotonic()
        dx, dy = SPEED * (at - (before or at))
        before = at
        camera = {"dx": dx, "dy": dy, "rotation_deg": 0, "zoom": 1}
        message["motion"] = {"score": 0, "direction_deg": None, "moving_fraction": 0, "camera": camera, "grid": None}
        polygon = (SIGN + SPEED * (read_at - started)).tolist()
        message["texts"] = [{"text": "GATE 7", "confidence": 0.9, "polygon": polygon}]
        message["stages"]["ocr"] = {
            "status": "stale",
            "reason": "throttled",
            "age_ms": 1000 * (time.monotonic() - told_at),
        }

    def between(socket: WebSocketRoute) -> None:
        def answer(message: str | bytes) -> None:
            answer = json.loads(message)
            if answer["type"] == "result":
                pan(answer)
            socket.send(json.dumps(answer))

        socket.connect_to_server().on_message(answer)

    sight = look(service, opening=False)
    sight.page.route_web_socket("**/ws/inference", between)
    sight.open()
    sight.page.select_option("#size", "640")
    sight.start("#sample", results=3)
    sight.until("sightline.overlay.model.parts.texts.length")
    sight.page.wait_for_timeout(2500)  # read anew since
    off, alphas = [], []
    for _ in range(20):
        sight.page.wait_for_timeout(100)
        for now, alpha, x, y in sight.page.evaluate(MIDDLES):
            off.append(float(np.hypot(*(SIGN.mean(axis=0) + SPEED * (now - started) - (x, y)))))
            alphas.append(alpha)
    sight.screenshot("text")
    assert len(off) > 15
    assert max(alphas) - min(alphas) > 0.1  # the longer ago it was read
    # It went by at 32 pixels a second, up to 63 since it was read.
    assert np.median(off) < 6, off
