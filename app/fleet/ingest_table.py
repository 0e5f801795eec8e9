"""What ingest is doing, live in the terminal; nothing where nobody looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from app.fleet.ingest_camera import Camera
from app.fleet.ingest_outbox import Outbox

_COLOURS = {"running": "green", "connecting": "cyan", "retrying": "red", "ended": "dim"}


@contextmanager
def shown_live(cameras: Mapping[str, Camera], outbox: Outbox) -> Iterator[None]:
    """A table that is written twice a second while the block runs; log lines go above it."""
    console = Console()
    if not console.is_terminal:
        yield
        return
    logger = logging.getLogger()
    before = logger.handlers[:]
    logger.handlers[:] = [RichHandler(console=console, show_path=False, markup=False)]
    table = IngestTable(cameras, outbox)
    try:
        with Live(get_renderable=table.render, console=console, refresh_per_second=2):
            yield
    finally:
        logger.handlers[:] = before


class IngestTable:
    """A row a camera; rates are those since the last row was made."""

    def __init__(self, cameras: Mapping[str, Camera], outbox: Outbox) -> None:
        self._cameras = cameras
        self._outbox = outbox
        self._before: dict[str, tuple[float, int, float]] = {}
        """Of a camera: when, frames sent by then, frames a second lately."""

    def render(self) -> Table:
        states = [camera.state for camera in self._cameras.values()]
        title = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no sources yet"
        table = Table(
            title=f"{title}{'' if self._outbox.up else f' – Redis takes no frames: {self._outbox.says}'}",
            title_justify="left",
        )
        for column in ("camera", "source", "state"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        for column in ("fps", "wanted", "lag", "sent", "dropped"):
            table.add_column(column, justify="right")
        for name, camera in sorted(self._cameras.items()):
            table.add_row(
                Text(name),
                Text(camera.problem or camera.source.shown),
                Text(camera.state, style=_COLOURS[camera.state]),
                f"{self._rate(name):.1f}",
                f"{camera.sampler.fps:.1f}",
                "–" if camera.lag is None else str(camera.lag),
                str(self._outbox.sent.get(name, 0)),
                str(self._outbox.dropped.get(name, 0)),
            )
        return table

    def _rate(self, name: str) -> float:
        now, sent = time.monotonic(), self._outbox.sent.get(name, 0)
        then, before, rate = self._before.get(name, (now, sent, 0.0))
        if now - then >= 1 or name not in self._before:
            rate = (sent - before) / (now - then) if now > then else 0.0
            self._before[name] = (now, sent, rate)
        return rate
