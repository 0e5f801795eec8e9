"""`sightline segments …`: recorded video is cut into segments, analysed and joined again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.process import exit_on_sigterm
from app.segments.keys import Mode

cli = typer.Typer(
    name="segments",
    help="Recorded video: `submit` cuts it, `work` has its segments analysed, `reassemble` joins them.\n\n"
    "With `--local FOLDER` before the command no AWS is needed, and `submit` does all three.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@cli.callback()
def group(
    context: typer.Context,
    local: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A folder in place of AWS; it holds jobs and queues as well."),
    ] = None,
) -> None:
    context.obj = local


@cli.command()
def submit(
    context: typer.Context,
    video: Annotated[
        Path, typer.Argument(metavar="VIDEO", exists=True, dir_okay=False, readable=True, help="A video.")
    ],
    mode: Annotated[
        Mode,
        typer.Option(
            help="`annotate`: boxes and skeletons are drawn; `blur_faces`: faces are hidden; `results_only`: no video."
        ),
    ] = "annotate",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="A segment's minimum length; it ends at a key frame.")
    ] = 10.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the video is done.")] = True,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Analyse a video that is done or failed anew; for one that is stuck, repeat what is missing.",
        ),
    ] = False,
    allow_truncated: Annotated[
        bool,
        typer.Option(
            "--allow-truncated", help="Analyse what exists of a video whose file was cut off; else it is refused."
        ),
    ] = False,
) -> None:
    """Have a video analysed; prints where the new one is. Called again, it goes on where it was interrupted."""
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
    """Join videos whose segments are all done, until Ctrl-C or SIGTERM."""
    exit_on_sigterm()
    from app.segments.commands import reassemble as run

    run(context.obj)
