"""The page on a phone and a desk, by keyboard and for a screen reader, in the dark and in the light."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.browser.conftest import Look
from tests.browser.sight import PATIENCE_S, Sight
from tests.conftest import Serve
from tests.support.service import Service

CONTROLS = "button, input, select, summary, a[href]"
PHONES = {"390x844": (390, 844), "360x740": (360, 740)}

OUTSIDE = f"""() => [...document.querySelectorAll({CONTROLS!r})]
    .filter((node) => node.checkVisibility())
    .map((node) => [node.id || node.textContent || node.outerHTML, node.getBoundingClientRect()])
    .filter(([, {{ left, right, height }}]) => left < 0 || right > innerWidth + 0.5 || height < 16)
    .map(([name, {{ left, right, height }}]) => [name, left, right, height])"""

CUT_OFF = """() => [...document.querySelectorAll("button, h1, h2, dt, dd, #status, #seen, .state, .hint, option")]
    .filter((node) => node.checkVisibility() && node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0)
    .filter((node) => getComputedStyle(node).overflowX !== "visible" || node.getBoundingClientRect().right > innerWidth)
    .map((node) => node.id || node.textContent)"""

# As axe's `scrollable-region-focusable`: what scrolls has the focus, or holds something that may have it.
UNREACHABLE = f"""() => [...document.querySelectorAll("body, body *")]
    .filter((node) => node.checkVisibility() && !node.matches("input, select"))
    .filter((node) => node.scrollHeight > node.clientHeight + 14 || node.scrollWidth > node.clientWidth + 14)
    .filter((node) => {{
        const {{ overflowX, overflowY }} = getComputedStyle(node);
        return [overflowX, overflowY].some((way) => way === "auto" || way === "scroll");
    }})
    .filter((node) => node.tabIndex < 0 && ![...node.querySelectorAll({CONTROLS!r})].some((inner) =>
        inner.checkVisibility() && !inner.disabled && inner.tabIndex >= 0))
    .map((node) => node.id || node.outerHTML.slice(0, 80))"""

FOCUS = """() => {
    const node = document.activeElement;
    const shown = node.closest(".button") ?? node;
    const { outlineStyle, outlineWidth } = getComputedStyle(shown);
    const { top, bottom, left, right } = shown.getBoundingClientRect();
    const inView = bottom > 0 && top < innerHeight && right > 0 && left < innerWidth;
    return [node.dataset.number ?? null, outlineStyle !== "none" && parseFloat(outlineWidth) >= 1.5, inView];
}"""

# WCAG 2.2, 1.4.3: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
FAINT = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).slice(0, 3).map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if ((numbers(colour)[3] ?? 1) === 1) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    return [...document.querySelectorAll("body *")]
        .filter((node) => node.checkVisibility() && !node.closest("#stage, dialog, noscript, .unseen, :disabled"))
        .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
        .map((node) => {
            const { color, fontSize, fontWeight } = getComputedStyle(node);
            const [a, b] = [light(color), light(ground(node))].sort((x, y) => y - x);
            const large = parseFloat(fontSize) >= (fontWeight >= 700 ? 18.66 : 24);
            return [node.textContent.trim().slice(0, 30), (a + 0.05) / (b + 0.05), large ? 3 : 4.5];
        })
        .filter(([, ratio, least]) => ratio < least);
}"""


def open_everything(sight: Sight) -> None:
    for name in ("access", "classes"):
        if sight.page.is_visible(f"#{name} summary"):
            sight.page.click(f"#{name} summary")


def assert_all_within(sight: Sight) -> None:
    assert sight.ask("document.documentElement.scrollWidth") <= sight.ask("innerWidth")
    assert sight.page.evaluate(OUTSIDE) == []
    assert sight.page.evaluate(CUT_OFF) == []


@pytest.mark.parametrize("size", PHONES)
def test_a_phone_in_portrait(service: Service, look: Look, size: str) -> None:
    width, height = PHONES[size]
    phone: dict[str, Any] = {"is_mobile": True, "has_touch": True, "device_scale_factor": 2}
    sight = look(service, viewport={"width": width, "height": height}, **phone)
    assert_all_within(sight)
    start = sight.page.locator("#camera").bounding_box()
    assert start is not None
    assert start["y"] + start["height"] < height  # without scrolling
    sight.screenshot(f"phone-{size}-start")
    sight.page.tap("#camera")
    sight.live(results=3)
    sight.until("sightline.overlay.model.parts.objects.length === 2")
    sight.screenshot(f"phone-{size}-live")
    open_everything(sight)
    assert_all_within(sight)
    sight.page.tap("#stop")
    sight.shows("#card", "The session has ended")
    # The card holds all of it: there is nothing to scroll in a box of half a hand's height.
    assert sight.ask("(({ scrollHeight, clientHeight }) => scrollHeight - clientHeight)(card)") <= 1
    assert_all_within(sight)
    sight.screenshot(f"phone-{size}-ended")


@pytest.mark.parametrize("width", [768, 1024, 1920])
def test_other_widths(service: Service, look: Look, width: int) -> None:
    sight = look(service, viewport={"width": width, "height": 800}).start("#sample")
    open_everything(sight)
    assert_all_within(sight)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_all_text_can_be_read(service: Service, look: Look, scheme: str) -> None:
    sight = look(service, color_scheme=scheme)
    assert sight.page.evaluate(FAINT) == []
    sight.start("#sample", results=3)
    open_everything(sight)
    sight.page.wait_for_timeout(400)
    assert sight.page.evaluate(FAINT) == []
    red, green, blue = (
        int(value) for value in sight.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")[:3]
    )
    assert (red + green + blue < 200) == (scheme == "dark")
    sight.screenshot(f"live-{scheme}")


def test_everything_by_keyboard(service: Service, look: Look) -> None:
    sight = look(service).start("#sample")
    sight.page.click("#access summary")
    wanted = sight.page.evaluate(f"""() => [...document.querySelectorAll({CONTROLS!r})]
        .filter((node) => node.checkVisibility() && !node.disabled && node.tabIndex >= 0)
        .map((node, index) => (node.dataset.number = String(index)))""")
    assert len(wanted) > 20
    reached = []
    sight.ask("document.activeElement.blur()")
    for _ in range(len(wanted) + 2):
        sight.page.keyboard.press("Tab")
        number, outlined, in_view = sight.page.evaluate(FOCUS)
        if number is None:
            continue
        assert outlined, f"no focus is to be seen on {number}"
        assert in_view, f"{number} is focused outside the view"
        reached.append(number)
    assert sorted(set(reached), key=int) == wanted
    # In the order in which they stand, from wherever it began.
    first = reached.index("0")
    assert (reached[first:] + reached[:first])[: len(wanted)] == wanted


def test_start_look_and_stop_without_a_mouse(service: Service, look: Look) -> None:
    sight = look(service)
    sight.page.keyboard.press("?")
    assert sight.page.is_visible("#shortcuts")
    sight.screenshot("shortcuts")
    sight.page.keyboard.press("Escape")
    assert not sight.page.is_visible("#shortcuts")
    sight.page.keyboard.press("s")
    sight.live(results=2)
    sight.page.keyboard.press("1")
    sight.until("seen.last.stages.detect.status === 'disabled'")
    sight.page.keyboard.press("1")
    sight.until("seen.last.stages.detect.status === 'ok'")
    sight.page.focus("#confidence")
    for _ in range(12):
        sight.page.keyboard.press("ArrowRight")
    sight.until("sightline.overlay.model.parts.objects.length === 0")  # 95%
    saved: list[str] = []
    sight.page.on("download", lambda download: saved.append(download.suggested_filename))
    for _ in range(5):
        sight.page.keyboard.down("p")  # a key that is held says so again and again
    sight.page.keyboard.up("p")
    deadline = time.monotonic() + PATIENCE_S
    while not saved and time.monotonic() < deadline:
        sight.page.wait_for_timeout(100)
    sight.page.wait_for_timeout(1000)
    assert len(saved) == 1
    sight.page.click("#access summary")
    sight.page.focus("#token")
    sight.page.keyboard.type("xs1")  # letters in a field are no shortcuts
    assert sight.ask("sightline.client.state") == "live"
    sight.ask("document.activeElement.blur()")
    sight.page.keyboard.press("x")
    sight.shows("#card", "The session has ended")


def test_every_control_has_a_name(service: Service, look: Look) -> None:
    sight = look(service).start("#sample", results=2)
    open_everything(sight)
    cdp = sight.page.context.new_cdp_session(sight.page)
    nodes = cdp.send("Accessibility.getFullAXTree")["nodes"]
    focusable = [
        node
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] != "RootWebArea"
        and any(found["name"] == "focusable" and found["value"]["value"] for found in node.get("properties", []))
    ]
    assert len(focusable) > 20
    assert [node["role"]["value"] for node in focusable if not node["name"]["value"].strip()] == []
    live = sight.ask("[...document.querySelectorAll('[role=status], [role=alert], [aria-live]')].map((it) => it.id)")
    assert {"status", "seen", "notices"} <= set(live)
    # Some screen readers ignore a region that appears together with its text, so the region exists before.
    # They do not announce the seconds.
    assert sight.ask("document.getElementById('notices').checkVisibility()")
    assert not sight.page.is_visible("#banner")
    assert sight.ask("document.querySelector('#notices #banner p [aria-hidden=true]') !== null")


LONG = "a very long name that somebody gave to a class, and then some more of it"
# Results as other models give them: many things, none, long names, names that are numbers, many texts.
CROWD = """(kind) => {
    const box = (index) => {
        const [x1, y1] = [(index % 20) * 30, Math.floor(index / 20) * 30];
        return { x1, y1, x2: x1 + 26, y2: y1 + 26 };
    };
    const things = (count, class_name) => Array.from({ length: count }, (_, index) => {
        return { class_id: 3, class_name, confidence: 0.94, track_id: index + 1, box: box(index) };
    });
    const texts = Array.from({ length: 60 }, (_, index) => {
        const { x1, y1, x2, y2 } = box(index);
        const polygon = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];
        return { text: `SIGN ${index} ${"W".repeat(index)}`, confidence: 1, polygon };
    });
    const kinds = {
        many: { objects: things(300, "3"), poses: [], texts: [] },
        long: { objects: things(3, LONG.repeat(5)), poses: [], texts },
        none: { objects: [], poses: [], texts: [], motion: null },
    };
    globalThis.crowd = kinds[kind];
}"""
CROWDED = f"""(() => {{
    globalThis.LONG = {LONG!r};
    const names = Array.from({{ length: 80 }}, (_, id) => id === 5 ? LONG.repeat(5) : `${{id}}`);
    globalThis.WebSocket = class extends WebSocket {{
        get onmessage() {{ return super.onmessage; }}
        set onmessage(listener) {{
            super.onmessage = listener && ((event) => {{
                const message = JSON.parse(event.data);
                if (message.type === "result") Object.assign(message, globalThis.crowd);
                if (message.type === "ready") message.models.detect.classes = names;
                listener({{ data: JSON.stringify(message) }});
            }});
        }}
    }};
}})()"""
SIZES = {"1280x900": (1280, 900), "390x844": (390, 844), "844x390": (844, 390)}


@pytest.fixture(scope="module")
def quick(serve: Serve) -> Service:
    """Summaries come in quick succession."""
    return serve(SUMMARY_MIN_INTERVAL_S="0.3", SUMMARY_MAX_INTERVAL_S="0.6")


@pytest.mark.parametrize("size", SIZES)
def test_e6_all_that_scrolls_is_reached_by_keyboard(quick: Service, look: Look, size: str) -> None:
    width, height = SIZES[size]
    sight = look(quick, viewport={"width": width, "height": height}, is_mobile=width < 1000)

    def holds(state: str) -> None:
        assert sight.page.evaluate(UNREACHABLE) == [], state
        assert sight.ask("document.documentElement.scrollWidth <= innerWidth"), state

    holds("start")
    sight.start("#sample", results=2)
    open_everything(sight)
    sight.ask("document.getElementById('stage-summary').click()")
    ol = "document.querySelector('#summaries ol')"
    sight.until(f"{ol}.scrollHeight > {ol}.clientHeight + 20", 60)
    holds("summaries")
    assert sight.ask(f"{ol}.ariaLabel")
    sight.page.focus("#summaries ol")
    assert sight.ask("document.activeElement.tagName") == "OL"
    sight.page.keyboard.press("End")
    sight.until(f"{ol}.scrollTop > 0")
    sight.ask("document.getElementById('help').click()")
    holds("shortcuts")
    sight.page.keyboard.press("Escape")
    sight.ask("document.getElementById('stop').click()")
    sight.shows("#card", "The session has ended")
    holds("ended")


def test_e6_any_model_fits_on_a_phone(service: Service, look: Look) -> None:
    """Numbers for names, names as long as a sentence, 300 objects, none: the page cuts nothing off."""
    sight = look(service, opening=False, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    sight.page.add_init_script(CROWDED)
    sight.open().start("#sample", results=2)
    open_everything(sight)
    chips = sight.page.locator("#classes .chip").all_inner_texts()
    assert chips[:4] == ["all", "class 0", "class 1", "class 2"]
    for kind, words in {"many": "300 × class 3", "long": "50 more texts", "none": "nothing recognised"}.items():
        sight.page.evaluate(CROWD, kind)
        sight.shows("#seen", words)
        sight.screenshot(f"crowd-{kind}")
        assert_all_within(sight)
        assert len(sight.text("#seen")) < 1500
    # A class without a name is chosen by its number.
    sight.page.locator("#classes .chip", has_text="class 16").tap()
    sight.until("seen.said.some(({ type, classes }) => type === 'settings' && classes?.join() === '16')")
    assert "class 16" in sight.text("#classes summary")


FOCUSED = "document.activeElement.id || document.activeElement.textContent"


def test_the_focus_is_never_lost(service: Service, look: Look) -> None:
    sight = look(service)
    assert sight.ask("document.activeElement === document.body")  # nothing is pressed upon anybody
    sight.page.locator("#card button").first.focus()
    sight.page.keyboard.press("Tab")
    sight.page.keyboard.press("Enter")  # "Try the sample"
    sight.live(results=2)
    assert sight.ask(FOCUSED) == "stop"
    sight.page.keyboard.press("Enter")
    sight.shows("#card", "The session has ended")
    assert sight.ask(FOCUSED) == "Start again"
    sight.page.keyboard.press("Enter")
    sight.live(results=2)
    assert sight.ask(FOCUSED) == "stop"
    # Who is somewhere else stays there.
    sight.page.focus("#confidence")
    sight.ask("document.getElementById('stop').click()")
    sight.shows("#card", "The session has ended")
    assert sight.ask(FOCUSED) == "confidence"
