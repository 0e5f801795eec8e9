"""`sightline segments …`: recorded film, cut into segments, analysed, and put together again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.process import exit_on_sigterm
from app.segments.keys import Mode

cli = typer.Typer(
    name="segments",
    help="Recorded film: `submit` cuts it, `work` has its segments analysed, `reassemble` puts them together.\n\n"
    "With `--local FOLDER` before the command no AWS is needed, and `submit` does all three.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@cli.callback()
def group(
    context: typer.Context,
    local: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A folder in place of AWS; jobs and queues are kept in it, too."),
    ] = None,
) -> None:
    context.obj = local


@cli.command()
def submit(
    context: typer.Context,
    video: Annotated[Path, typer.Argument(metavar="VIDEO", exists=True, dir_okay=False, readable=True, help="A film.")],
    mode: Annotated[
        Mode,
        typer.Option(
            help="`annotate`: boxes and skeletons are drawn; `blur_faces`: faces are hidden; `results_only`: no film."
        ),
    ] = "annotate",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="A segment's least length; it ends at a key frame.")
    ] = 10.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Whether to wait until the film is done.")] = True,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Where it is done or has failed: all of it anew; where it is stuck: what is missing."
        ),
    ] = False,
    allow_truncated: Annotated[
        bool,
        typer.Option(
            "--allow-truncated", help="Take what is there of a film whose file was cut off; else it is refused."
        ),
    ] = False,
) -> None:
    """Have a film analysed; prints where the new one is. Called again, it goes on where it was interrupted."""
    from app.segments.commands import submit as run
    from app.segments.submit import Submission

    run(context.obj, Submission(video, mode, seconds, again, allow_truncated), wait=wait)


@cli.command()
def work(context: typer.Context) -> None:
    """Have segments analysed by INFERENCE_BACKEND as they are uploaded, until Ctrl-C or SIGTERM."""
    exit_on_sigterm()
    from app.segments.commands import work as run

    run(context.obj)


@cli.command()
def reassemble(context: typer.Context) -> None:
    """Put films together whose segments are all done, until Ctrl-C or SIGTERM."""
    exit_on_sigterm()
    from app.segments.commands import reassemble as run

    run(context.obj)
