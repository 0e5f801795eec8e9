"""`sightline load`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.errors import ConfigurationError
from app.settings import service_token


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="The service, http://host:port.")] = "http://127.0.0.1:8000",
    sessions: Annotated[int, typer.Option(min=1, help="Sessions at once.")] = 8,
    fps: Annotated[float, typer.Option(min=0.01, help="Frames per second of each session.")] = 15.0,
    duration: Annotated[float, typer.Option(min=1, help="Seconds that are measured.")] = 30.0,
    ramp: Annotated[float, typer.Option(min=0, help="Seconds over which the sessions begin.")] = 2.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds after the ramp that are not measured.")] = 2.0,
    source: Annotated[
        str, typer.Option(help="What is sent: `clip`, the built-in one; a video; an image; a folder of images.")
    ] = "clip",
    churn: Annotated[
        float, typer.Option(min=0, help="Mean seconds of a session before another replaces it; 0: no end.")
    ] = 0,
    bare: Annotated[float, typer.Option(min=0, max=1, help="Share of the sessions that send no header.")] = 0,
    slow_readers: Annotated[
        int, typer.Option(min=0, help="Sessions among them that read one message per second; counted apart.")
    ] = 0,
    slo: Annotated[
        list[str] | None, typer.Option(help="An objective, such as p95_age_ms=150 or dropped=0.05; repeatable.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes of this tool that share the sessions.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    token: Annotated[
        str | None, typer.Option(envvar="SIGHTLINE_TOKEN", help="A token of the service, if it requires one.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here, with the ages over time.")] = None,
) -> None:
    """Put a load on a service and check objectives: many sessions, each frame sent when it is due.

    Ages count from when a frame was due. Exits with 1 if an objective is missed, or if the service's counts of frames
    differ from those of the clients.
    """
    from app.loadtest.metrics import parse_objective
    from app.loadtest.plan import LoadPlan
    from app.loadtest.runner import run_load

    if slow_readers > sessions:
        raise ConfigurationError(f"--slow-readers {slow_readers}: should be at most --sessions, {sessions}")
    token = service_token(token)
    plan = LoadPlan(sessions, fps, duration, ramp, warm_up, churn, bare, slow_readers, seed)
    objectives = [parse_objective(text) for text in slo or ()]
    sys.exit(
        run_load(
            url,
            plan,
            source=source,
            objectives=objectives,
            token=token,
            processes=processes,
            json=json,
            report=report,
        )
    )
