"""The options of `sightline send`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def send(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A video file, an image, a folder of them, a URL (rtsp://…, http://…), or a camera number.",
        ),
    ],
    url: Annotated[
        str, typer.Option(help="The service; http://127.0.0.1:8000 unless given.", show_default=False)
    ] = "http://127.0.0.1:8000",
    token: Annotated[
        str | None, typer.Option(envvar="SIGHTLINE_TOKEN", help="A token of the service, if it requires one.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An annotated .mp4, or results as .jsonl; default: stdout.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Frames per second; default: as fast as they are answered, with --realtime the source's own."
        ),
    ] = None,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime", help="The newest frame replaces older ones, as in the browser; default: every frame is sent."
        ),
    ] = False,
    confidence: Annotated[float | None, typer.Option(min=0, max=1, help="Minimum confidence of a detection.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    rotation: Annotated[
        int | None,
        typer.Option(help="Rotate frames by 0, 90, 180 or 270 degrees clockwise; default: as the file says."),
    ] = None,
    transport: Annotated[
        str | None, typer.Option(help="Transport of rtsp://: auto, tcp, udp, udp_multicast or http; default: auto.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An FFmpeg option of the source; repeatable.")
    ] = None,
) -> None:
    """Stream a video to a service; print one JSON line per result, or write an annotated video."""
    from app.send.stream import SendOptions, stream
    from app.settings import service_token
    from app.sources.options import from_pairs

    stream(
        SendOptions(
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
