"""Opens what a worker needs: the inference server, its client, the pipeline."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from app.errors import ConfigurationError, ModelRejected
from app.inference.local import LocalTriton
from app.inference.triton import TritonClient
from app.pipeline import tracks
from app.pipeline.multimodal import Pipeline
from app.pipeline.ocr import Ocr
from app.settings import OcrSettings, Settings


def ocr_settings(settings: Settings) -> OcrSettings:
    """Text reading only where FLEET_STAGES asks for it."""
    if "ocr" in settings.fleet.fleet_stages:
        return settings.ocr
    return settings.ocr.model_copy(update={"ocr": "off"})


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Pipeline]:
    """The pipeline on the Triton at TRITON_URL, or on an embedded one.

    Raises:
        ConfigurationError: a setting is wrong, or a model cannot be read.
        SightlineError: the embedded Triton cannot be started.
    """
    folder = settings.server.state_dir
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        url = settings.triton.triton_url
        if url is None:
            embedded = LocalTriton(settings.triton, folder)
            stack.push_async_callback(embedded.stop)
            url = await embedded.start()
        client = TritonClient(url, settings.triton)
        stack.push_async_callback(client.close)
        await client.open()
        ocr = Ocr(ocr_settings(settings), state_dir=folder)
        stack.push_async_callback(ocr.close)
        if settings.ocr.ocr == "on" and "ocr" in settings.fleet.fleet_stages and not ocr.available:
            raise ConfigurationError(f"OCR='on': {ocr.reason}")
        if "track" in settings.fleet.fleet_stages:
            await asyncio.to_thread(tracks.load)  # a second of imports: here, not under the first frame
        faces = settings.fleet if "face" in settings.fleet.fleet_stages else None
        pipeline = Pipeline(client, ocr, settings.pipeline, settings.triton, settings.live, faces)
        stack.push_async_callback(asyncio.to_thread, pipeline.close)
        try:
            await pipeline.load()
        except ModelRejected as error:
            raise ConfigurationError(str(error)) from None
        yield pipeline


@contextmanager
def shared_triton(settings: Settings) -> Iterator[None]:
    """An embedded Triton for all worker processes, told to them by TRITON_URL; none where that is set.

    Supervised from a thread of its own: the one that calls waits for the processes.

    Raises:
        SightlineError: it cannot be started.
    """
    if settings.triton.triton_url is not None:
        yield
        return
    settings.server.state_dir.mkdir(parents=True, exist_ok=True)
    triton = LocalTriton(settings.triton, settings.server.state_dir)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="triton", daemon=True)
    thread.start()
    try:
        os.environ["TRITON_URL"] = asyncio.run_coroutine_threadsafe(triton.start(), loop).result()
        yield
    finally:
        os.environ.pop("TRITON_URL", None)
        asyncio.run_coroutine_threadsafe(triton.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
