"""`sightline fleet …`: the commands of a fleet of cameras, from Redis Streams to Kafka."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from app.process import exit_on_sigterm

cli = typer.Typer(
    name="fleet",
    help="Many cameras: `ingest` writes frames to Redis, `work` analyses them and writes to Kafka, `top` watches.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@cli.command()
def work(
    processes: Annotated[
        int | None, typer.Option(help="Worker processes on this machine (FLEET_PROCESSES; 1).", show_default=False)
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="`async`: batches; `sync`: one frame a request (FLEET_MODE; async).", show_default=False),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics and /health (METRICS_PORT; 8002).", show_default=False)
    ] = None,
) -> None:
    """Analyse the cameras' frames, until Ctrl-C or SIGTERM.

    Any number of workers on any number of machines share the cameras; each camera belongs to one worker at a time.
    Without `TRITON_URL` the command starts its own Triton Inference Server on the CPU.
    """
    given = (("FLEET_PROCESSES", processes), ("FLEET_MODE", mode), ("METRICS_PORT", metrics_port))
    os.environ.update({name: str(value) for name, value in given if value is not None})
    exit_on_sigterm()
    from app.fleet.supervisor import run

    run()


@cli.command()
def ingest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCES]...",
            help="Files, folders, URLs (rtsp://…), cameras (/dev/video0, 0), each also as NAME=SOURCE; YAML files with "
            "a list of them; `redis`, which is the default: the hash `fleet:sources`.",
        ),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Recordings start over at their end.")] = False,
) -> None:
    """Write frames of cameras and recordings to Redis, until Ctrl-C or SIGTERM."""
    exit_on_sigterm()
    from app.fleet.ingest.service import run
    from app.settings import Settings

    run(Settings(), sources or [], loop=loop)


@cli.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each update, one a line.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two updates.")] = 1.0,
    metrics: Annotated[
        list[str] | None, typer.Option(help="`host:port` of a worker's metrics; may be given several times.")
    ] = None,
) -> None:
    """Watch cameras, lag, rates and workers, live in the terminal; Ctrl-C ends it."""
    from app.fleet.monitor import run
    from app.settings import Settings

    run(Settings(), once=once, as_json=as_json, interval_s=interval, metrics=metrics or [])
