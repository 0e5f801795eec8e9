"""The command line, assembled from each package's `cli.py`: `sightline` or `python -m app`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from app.errors import ConfigurationError, SightlineError
from app.fleet.cli import cli as fleet
from app.inference.cli import triton
from app.loadtest.cli import load
from app.process import exit_on_sigterm
from app.segments.cli import cli as segments
from app.send.cli import send

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
    workers: Annotated[int | None, typer.Option(help="Worker processes (WORKERS; 1).")] = None,
) -> None:
    """Run the service: the live WebSocket, the HTTP routes and the page.

    Without `TRITON_URL` it starts a Triton Inference Server of its own on the CPU. Every setting is an
    environment variable; the README lists them all.
    """
    for name, value in (("HOST", host), ("PORT", port), ("WORKERS", workers)):
        if value is not None:
            os.environ[name] = str(value)
    exit_on_sigterm()
    from app.server import run

    run()


cli.command()(triton)
cli.command()(send)
cli.command()(load)


@cli.command()
def schema() -> None:
    """Print the live protocol's JSON Schema, with the stages of plug-ins."""
    import orjson

    from app.pipeline.registry import load as load_plugins
    from app.protocol.messages import schema as build
    from app.settings import Settings

    load_plugins(Settings())

    sys.stdout.write(orjson.dumps(build(), option=orjson.OPT_INDENT_2).decode() + "\n")


def main() -> None:
    """Runs the command. An error that the user can fix is one line on stderr, without a traceback."""
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
