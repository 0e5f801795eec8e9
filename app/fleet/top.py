"""`fleet top`: cameras and workers, live in the terminal."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import orjson
import redis
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.errors import SightlineError
from app.fleet.connection import NO_ANSWER, connect, refuse_cluster, require_fit, says
from app.fleet.top_overview import CameraState, Observer, Overview, ServiceState, WorkerState
from app.settings import Settings

_STALE_S = 5.0
"""A camera that sent nothing for so long is shown in red."""

Wait = Callable[[], bool]
"""For the next look; False: there will be none."""


class RedisAway(SightlineError):
    """There is nobody to ask."""


def run(
    settings: Settings,
    *,
    once: bool = False,
    as_json: bool = False,
    interval_s: float = 1.0,
    metrics: Sequence[str] = (),
) -> None:
    """Shows the fleet until Ctrl-C.

    Args:
        once: two looks, for the rates; the second is printed.
        as_json: a JSON object a look, one a line, instead of tables.
        interval_s: seconds between two looks.
        metrics: `host:port` of workers' metrics, which know what became of frames.

    Raises:
        RedisAway: Redis does not answer; live in a terminal, at the first look only.
        ConfigurationError: REDIS_URL is no address, or this Redis will not do.
    """
    console = Console()
    with connect(settings.redis) as client:
        observer = Observer(client, settings.redis, metrics)
        try:
            require_fit(client, first=True)
        except redis.RedisError as error:
            raise _away(error) from None
        overview = _look(observer)
        with _until_interrupted(interval_s) as wait:
            if once or as_json or not console.is_terminal:
                _print(observer, console, wait, once=once, as_json=as_json)
            else:
                _live(observer, console, overview, wait)


def _look(observer: Observer) -> Overview:
    try:
        return observer.look()
    except redis.RedisError as error:
        raise _away(error) from None


def _away(error: redis.RedisError) -> RedisAway:
    """
    Raises:
        ConfigurationError: this Redis is a node of a Cluster.
    """
    refuse_cluster(error)
    return RedisAway(f"REDIS_URL: {_said(error)}")


def _said(error: redis.RedisError) -> str:
    word = says(error)
    if word == NO_ANSWER:
        return f"Redis does not answer ({error}); is it running, and is this its address?"
    return f"Redis is there and refuses ({word}): {error}"


@contextmanager
def _until_interrupted(interval_s: float) -> Iterator[Wait]:
    """Ctrl-C between two looks, not in the middle of one: there it could be lost in a library's clean-up."""
    over = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: over.set())
    try:
        yield lambda: not over.wait(interval_s)
    finally:
        signal.signal(signal.SIGINT, before)


def _print(observer: Observer, console: Console, wait: Wait, *, once: bool, as_json: bool) -> None:
    while wait():
        overview = _look(observer)
        if as_json:
            sys.stdout.write(orjson.dumps(overview).decode() + "\n")
            sys.stdout.flush()
        else:
            console.print(render(overview, len(overview.cameras)))
        if once:
            return


def _live(observer: Observer, console: Console, overview: Overview, wait: Wait) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            # The workers' table, and titles and frames of both, take what is left.
            room = console.height - len(overview.workers) - len(overview.services) - 14
            live.update(render(overview, max(3, room)), refresh=True)
            if not wait():
                return
            try:
                overview = observer.look()
            except redis.RedisError as error:
                observer.reconnect()
                live.update(Text(_said(error), style="red"), refresh=True)


def render(overview: Overview, rows: int) -> Group:
    """Tables of the fleet, `rows` cameras at most: those that are furthest behind first."""
    here = sum(one.signed_on for one in overview.workers)
    parts: list[RenderableType] = [
        Text(_headline(overview)),
        *(Text(line, style="red") for line in _troubles(overview.workers)),
        _cameras(overview, rows) if overview.cameras else Text("`sightline fleet ingest` brings them in"),
        Text(_several(here, "worker") if here else "no worker is here; `sightline fleet work` starts one"),
    ]
    if overview.workers:
        parts.append(_workers(overview.workers))
    if overview.services:
        parts += [Text("processes, by their metrics"), _services(overview.services)]
    return Group(*parts)


def _headline(overview: Overview) -> str:
    def total(of: Callable[[CameraState], float | None]) -> str:
        return f"{sum(of(one) or 0 for one in overview.cameras):,.0f}"

    rates = f"{total(lambda one: one.fps_in)} frames a second in, {total(lambda one: one.fps_out)} out"
    lost = f"{total(lambda one: one.unread)} dropped unread, {overview.dead_letters:,} dead letters"
    return f"{_several(len(overview.cameras), 'camera')}: {rates}, lag {total(lambda one: one.lag)}, {lost}"


def _troubles(workers: Sequence[WorkerState]) -> list[str]:
    """A line for everything that workers cannot reach."""
    lines = []
    here = [one for one in workers if one.signed_on]
    for name in sorted({name for one in here for name in one.away}):
        those = [one.away[name] for one in here if name in one.away]
        lines.append(f"{name} is away: {len(those)} of {_several(len(here), 'worker')} cannot reach it ({those[0]})")
    return lines


def _cameras(overview: Overview, rows: int) -> Table:
    everyone = overview.cameras
    table = _table("camera", "in/s", "out/s", "lag", "pending", "held", "unread", "age")
    shown = sorted(everyone, key=lambda one: (-(one.lag or 0), -one.pending, one.camera_id))[:rows]
    for one in shown:
        table.add_row(
            Text(one.camera_id),
            _number(one.fps_in, 1),
            _number(one.fps_out, 1),
            _number(one.lag),
            *map(str, (one.pending, one.held, one.unread)),
            Text(f"{one.age_s:.1f} s", style="red" if one.age_s > _STALE_S else ""),
        )
    if len(shown) < len(everyone):
        table.caption = f"and {len(everyone) - len(shown)} more that are less behind"
    return table


def _workers(workers: list[WorkerState]) -> Table:
    table = _table("worker", "cameras", "pending", "idle", "state")
    for one in workers:
        idle = "–" if one.idle_s is None else f"{one.idle_s:.1f} s"
        state = Text("here") if one.signed_on else Text("gone", style="red")
        if one.away:
            state = Text(f"here, {' and '.join(sorted(one.away))} away", style="red")
        table.add_row(Text(one.name), str(one.cameras), str(one.pending), idle, state)
    return table


def _services(services: list[ServiceState]) -> Table:
    table = _table("process", "fps", "received", "processed", "failed", "dropped")
    for one in services:
        if one.problem is not None:
            table.add_row(Text(one.address), Text(one.problem, style="red"))
            continue
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(one.dropped.items())) or "0"
        counts = (f"{count:,}" for count in (one.received, one.processed, one.failed))
        table.add_row(Text(one.address), f"{one.fps:.1f}", *counts, Text(dropped))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first, overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
