"""Opens what every door needs: the inference server, its client, text reading and the pipeline over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from app.errors import ConfigurationError, ModelRejected
from app.inference.local import LocalTriton
from app.inference.triton import TritonClient
from app.pipeline import tracks
from app.pipeline.multimodal import Pipeline
from app.pipeline.ocr import Ocr
from app.settings import FleetSettings, OcrSettings, Settings


@dataclass(frozen=True, slots=True)
class Opened:
    pipeline: Pipeline
    client: TritonClient
    embedded: LocalTriton | None
    """None where TRITON_URL names a server."""


@asynccontextmanager
async def opened(
    settings: Settings,
    ocr_settings: OcrSettings,
    *,
    faces: FleetSettings | None = None,
    tracking: bool = True,
    on_inference: Callable[[bool], None] | None = None,
    on_ocr: Callable[[bool, str | None], None] | None = None,
) -> AsyncIterator[Opened]:
    """The pipeline on the Triton at TRITON_URL, or on an embedded one; closed the other way round.

    Args:
        faces: where faces are to be embedded; see `Pipeline`.
        tracking: whether boxes will be tracked.
        on_inference: called with True or False whenever the inference server comes or goes.
        on_ocr: called with whether text can be read, and why not.

    Raises:
        ConfigurationError: a setting is wrong, or a model cannot be read.
        SightlineError: the embedded Triton cannot be started.
    """
    folder = settings.server.state_dir
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        embedded = None
        url = settings.triton.triton_url
        if url is None:
            embedded = LocalTriton(settings.triton, folder)
            stack.push_async_callback(embedded.stop)
            url = await embedded.start()
        client = TritonClient(url, settings.triton, on_change=on_inference)
        stack.push_async_callback(client.close)
        await client.open()
        ocr = Ocr(ocr_settings, state_dir=folder, on_change=on_ocr)
        stack.push_async_callback(ocr.close)
        if ocr_settings.ocr == "on" and not ocr.available:
            raise ConfigurationError(f"OCR='on': {ocr.reason}")
        if tracking:
            await asyncio.to_thread(tracks.load)  # a second of imports: here, not under the first frame
        pipeline = Pipeline(client, ocr, settings.pipeline, settings.triton, settings.live, faces)
        stack.push_async_callback(asyncio.to_thread, pipeline.close)
        try:
            await pipeline.load()
        except ModelRejected as error:
            raise ConfigurationError(str(error)) from None
        yield Opened(pipeline, client, embedded)
