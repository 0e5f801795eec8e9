"""Opens what every door needs: the inference server, its client, text reading and the pipeline over them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from app.errors import ConfigurationError, ModelRejected
from app.folders import writable
from app.inference.local import LocalTriton
from app.inference.triton import TritonClient
from app.pipeline import tracks
from app.pipeline.multimodal import Pipeline
from app.pipeline.ocr import Ocr
from app.pipeline.vision import read_labels
from app.settings import FleetSettings, OcrSettings, Settings

log = logging.getLogger(__name__)

_AGAIN_S = 0.5
"""Before a server that was too busy to describe its models is asked again."""


@dataclass(frozen=True, slots=True)
class Opened:
    pipeline: Pipeline
    client: TritonClient
    embedded: LocalTriton | None
    """None where TRITON_URL names a server."""


def check(settings: Settings) -> None:
    """Looks over what can be seen before anything is started: nobody should wait for Triton to be told of it.

    Raises:
        ConfigurationError: STATE_DIR or TRITON_LABELS cannot be used.
    """
    writable(settings.server.state_dir, "STATE_DIR")
    try:
        read_labels(settings.triton.triton_labels)
    except ModelRejected as error:
        raise ConfigurationError(str(error)) from None


class _Follower:
    """Has the models described as soon as the server comes, not only with the next frame.

    Args:
        tell: called with True or False: whether frames are answered by models now.
    """

    def __init__(self, tell: Callable[[bool], None] | None) -> None:
        self._tell = tell or (lambda _: None)
        self._pipeline: Pipeline | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self, pipeline: Pipeline) -> None:
        """From now on; what came before, the pipeline has loaded itself."""
        self._pipeline = pipeline
        if pipeline.client.up and not pipeline.described:  # it was too busy to say what it serves
            self.changed(True)

    def changed(self, up: bool) -> None:
        """The server came, or went."""
        if self._pipeline is None:
            return
        if not up:
            self._tell(False)
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._describe(self._pipeline), name="describe-models")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _describe(self, pipeline: Pipeline) -> None:
        while pipeline.client.up:
            try:
                await pipeline.load()
            except ModelRejected as error:
                log.error("%s", error)
            if pipeline.described:
                self._tell(True)
                return
            await asyncio.sleep(_AGAIN_S)


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
        on_inference: called with False whenever the inference server goes, with True when it is back and its models
            are known.
        on_ocr: called with whether text can be read, and why not.

    Raises:
        ConfigurationError: a setting is wrong, or a model cannot be read.
        SightlineError: the embedded Triton cannot be started.
    """
    check(settings)
    folder = settings.server.state_dir
    async with AsyncExitStack() as stack:
        embedded = None
        url = settings.triton.triton_url
        if url is None:
            embedded = LocalTriton(settings.triton, folder)
            stack.push_async_callback(embedded.stop)
            url = await embedded.start()
        follower = _Follower(on_inference)
        client = TritonClient(url, settings.triton, on_change=follower.changed)
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
        stack.push_async_callback(follower.close)
        follower.follow(pipeline)
        yield Opened(pipeline, client, embedded)
