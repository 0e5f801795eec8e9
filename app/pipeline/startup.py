"""Opens what every entry point needs: the inference server, its client, text reading and the pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from app.errors import ConfigurationError, ModelRejected
from app.files import writable_folder
from app.inference.embedded import EmbeddedTriton
from app.inference.triton import TritonClient
from app.pipeline.multimodal import Pipeline
from app.pipeline.registry import check, create
from app.pipeline.stage import StatusListener
from app.process import log_while_waiting
from app.settings import Settings, starting

log = logging.getLogger(__name__)

StatusCallback = Callable[[bool, str | None], None]
_TRIAL_S = 2.0
"""Seconds until a model that did not answer is tried again."""
_AGAIN_S = 0.5
"""Seconds until a server that was too busy to describe its models is asked again."""


@dataclass(frozen=True, slots=True)
class OpenPipeline:
    """An open pipeline, its client, and the embedded Triton."""

    pipeline: Pipeline
    client: TritonClient
    embedded: EmbeddedTriton | None
    """None where TRITON_URL names a server."""


def check_settings(settings: Settings) -> None:
    """Checks the settings that can be checked without Triton, so that a mistake shows before Triton has started.

    Raises:
        ConfigurationError: STATE_DIR, or a setting of a stage, cannot be used.
    """
    writable_folder(settings.server.state_dir, "STATE_DIR")
    check(settings)


class _Follower:
    """Loads and tries the models as soon as the server is connected, instead of with the next frame.

    Args:
        notify: called with whether models answer frames now, and with the reason where a model fails.
    """

    def __init__(self, notify: StatusCallback | None) -> None:
        self._notify = notify or (lambda up, reason: None)
        self._pipeline: Pipeline | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self, pipeline: Pipeline) -> None:
        """Begins to follow a pipeline, which has loaded its models once itself."""
        self._pipeline = pipeline
        pipeline.watch.changed = self._judged
        if pipeline.client.up and not pipeline.well:  # the server was too busy to describe its models, or a model fails
            self.changed(True)

    def changed(self, up: bool) -> None:
        """Follows a change of the connection: `up` is whether the server is connected now."""
        if self._pipeline is None:
            return
        if not up:
            self._notify(False, None)
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._describe(self._pipeline), name="describe-models")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _judged(self) -> None:
        """Notifies the service, because `ModelWatch` has found that a model fails, or answers again."""
        assert self._pipeline is not None
        reason = self._pipeline.watch.reason
        if reason is not None:
            log.error("not ready: %s", reason)
            self._notify(False, reason)
            self.changed(True)  # tries the model until it answers
        elif self._pipeline.described:
            log.info("every model answers again")
            self._notify(True, None)

    async def _describe(self, pipeline: Pipeline) -> None:
        """Runs until the models are described and all of them answer."""
        tried = False
        while pipeline.client.up:
            try:
                await pipeline.load()
                if pipeline.described and not (tried and pipeline.well):
                    await pipeline.try_models()
                    tried = True
            except ModelRejected as error:
                log.error("%s", error)
            if pipeline.well:
                self._notify(True, None)
                return
            await asyncio.sleep(_TRIAL_S if pipeline.described else _AGAIN_S)


@asynccontextmanager
async def open_pipeline(
    settings: Settings,
    *,
    used: Collection[str] | None = None,
    on_inference: StatusCallback | None = None,
    on_stage: StatusListener | None = None,
) -> AsyncIterator[OpenPipeline]:
    """Opens the pipeline on the Triton at TRITON_URL, or on an embedded one. Closes everything in reverse order.

    Args:
        used: names of the stages that will run; None: those of live streams. See `registry.create`.
        on_inference: called with False whenever the inference server is disconnected or a model fails (with the
            reason), and with True once it is connected again and all its models answer.
        on_stage: called when a part that a stage runs beside the inference server fails or works again.

    Raises:
        ConfigurationError: a setting is wrong, or a model cannot be read.
        SightlineError: the embedded Triton cannot be started.
    """
    check_settings(settings)
    folder = settings.server.state_dir
    async with AsyncExitStack() as stack:
        embedded = None
        url = settings.triton.triton_url
        if url is None:
            embedded = EmbeddedTriton(settings.triton, folder)
            stack.push_async_callback(embedded.stop)
            with log_while_waiting("the embedded Triton and its models"):
                url = await embedded.start()
        follower = _Follower(on_inference)
        client = TritonClient(url, settings.triton, on_change=follower.changed)
        stack.push_async_callback(client.close)
        with log_while_waiting(f"Triton at {url}"):
            await client.open()
        stages = create(settings, used)
        for stage in stages:
            stack.push_async_callback(stage.close)
            if on_stage is not None:
                stage.listen(on_stage)
            if stage.used:
                with log_while_waiting(f"what stage {stage.name} needs"), starting(f"stage {stage.name!r}"):
                    await asyncio.to_thread(stage.load)  # an import would delay the first frame
        pipeline = Pipeline(client, settings, stages)
        stack.push_async_callback(asyncio.to_thread, pipeline.close)
        try:
            with log_while_waiting("the models' descriptions and their first answers"):
                await pipeline.load()
                await pipeline.try_models()
        except ModelRejected as error:
            raise ConfigurationError(str(error)) from None
        stack.push_async_callback(follower.close)
        follower.follow(pipeline)
        if pipeline.watch.reason is not None:
            log.error("not ready: %s", pipeline.watch.reason)
        yield OpenPipeline(pipeline, client, embedded)
