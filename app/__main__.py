"""The command line: `sightline` or `python -m app`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.ending import heed_early
from app.errors import ConfigurationError, SightlineError
from app.fleet.cli import cli as fleet
from app.loadtest.cli import load
from app.segments.cli import cli as segments

cli = typer.Typer(
    name="sightline",
    help="Live video in, structured sight out.\n\nStart with `sightline serve`, then open the page that it names.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
cli.add_typer(fleet)
cli.add_typer(segments)


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST; 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT; 8000). 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve (WORKERS; 1).")] = None,
) -> None:
    """Run the service: the live WebSocket, the HTTP routes and the page.

    Without `TRITON_URL` it starts a Triton Inference Server of its own on the CPU. Every setting is an
    environment variable; the README has them all.
    """
    for name, value in (("HOST", host), ("PORT", port), ("WORKERS", workers)):
        if value is not None:
            os.environ[name] = str(value)
    heed_early()
    from app.serving import run

    run()


@cli.command()
def triton() -> None:
    """Run the embedded Triton alone, until Ctrl-C; prints its addresses. Other services use it by TRITON_URL."""
    from app.embedded import run

    run()


@cli.command()
def send(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A video file, a folder, a picture, a URL (rtsp://…, http://…), or a camera number.",
        ),
    ],
    url: Annotated[
        str, typer.Option(help="The service; http://127.0.0.1:8000 unless given.", show_default=False)
    ] = "http://127.0.0.1:8000",
    token: Annotated[str | None, typer.Option(envvar="SIGHTLINE_TOKEN", help="Where the service asks for one.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An annotated .mp4, or results as .jsonl; default: stdout.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Frames a second; default: as fast as they are answered, with --realtime the source's own."
        ),
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="The newest frame wins, as in the browser; default: every frame counts.")
    ] = False,
    confidence: Annotated[float | None, typer.Option(min=0, max=1, help="Least score of a detection.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    rotation: Annotated[
        int | None,
        typer.Option(help="Turn pictures by 0, 90, 180 or 270 degrees clockwise; default: as the file asks."),
    ] = None,
    transport: Annotated[
        str | None, typer.Option(help="Of rtsp://: auto, tcp, udp, udp_multicast or http; default: auto.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An FFmpeg option of the source; again for more.")
    ] = None,
) -> None:
    """Stream a video to a service; print a JSON line a result, or write an annotated film."""
    from app.sending import Request
    from app.sending import send as run
    from app.settings import service_token
    from app.sources.options import from_pairs

    run(
        Request(
            source,
            url,
            token=service_token(token),
            output=output,
            fps=fps,
            realtime=realtime,
            confidence=confidence,
            limit=limit,
            transport=transport,
            options=from_pairs(option or []),
            rotation=rotation,
        )
    )


cli.command()(load)


@cli.command()
def schema() -> None:
    """Print the live protocol's JSON Schema."""
    import orjson

    from app.protocol.messages import schema as build

    sys.stdout.write(orjson.dumps(build(), option=orjson.OPT_INDENT_2).decode() + "\n")


def main() -> None:
    """Runs the command; what people can mend is said in one line, without a traceback."""
    try:
        cli()
    except ConfigurationError as error:
        sys.stderr.write(f"sightline: {error}\n")
        sys.exit(2)
    except SightlineError as error:
        sys.stderr.write(f"sightline: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
