"""The page draws at the display's rate, whatever the service's rate is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import canned
from tests.browser.conftest import Look
from tests.conftest import Serve
from tests.support.service import Service, running_triton

COUNT = """() => new Promise((done) => {
    const { hud } = sightline;
    const began = performance.now();
    const [draws, results] = [hud.drawn.total, hud.results.total];
    let [last, longest, callbacks] = [began, 0, 0];
    const tick = (now) => {
        callbacks += 1;
        longest = Math.max(longest, now - last);
        last = now;
        const gone = (performance.now() - began) / 1000;
        if (gone < 5) requestAnimationFrame(tick);
        else done([(hud.drawn.total - draws) / gone, (hud.results.total - results) / gone, callbacks / gone, longest]);
    };
    requestAnimationFrame(tick);
})"""


@pytest.fixture(scope="module")
def slow(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two results a second: its models take half a second a frame, one frame at a time."""
    folder = tmp_path_factory.mktemp("slow")
    with running_triton(canned.write(folder / "repository", delay_s=0.5), folder / "state") as url:
        yield serve(TRITON_URL=url)


@pytest.mark.parametrize("source", ["camera", "sample"])
def test_a_slow_service_does_not_slow_the_picture(
    slow: Service, look: Look, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    sight = look(slow).start(f"#{source}", results=2)
    # Machines are shared and draw in software: a second look where something else was busy during the first.
    for _ in range(2):
        drawn, results, callbacks, longest = sight.page.evaluate(COUNT)
        with capsys.disabled():
            print(
                f"\n{source}: {drawn:.1f} frames a second drawn, {callbacks:.1f} frame callbacks, "
                f"{results:.1f} results a second, longest pause {longest:.0f} ms"
            )
        if drawn >= 30:
            break
    assert 1 <= results <= 3
    assert drawn >= 5 * results
    assert drawn >= 20  # a page that waited for results would draw two a second
    assert sight.ask("sightline.overlay.model.parts.objects.length") == 2  # a result stays until the next comes
