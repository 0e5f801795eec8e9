"""`create_app`: the application with its routes; its lifespan opens Triton, the pipeline and the live entry point."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError

from app import __version__, metrics
from app.activity import ActivityPublisher
from app.auth import Auth, AuthMiddleware, require_tokens
from app.connections import ConnectionLimitMiddleware
from app.errors import SightlineError
from app.live import page, routes, stats
from app.live.session import LiveEntryPoint
from app.pipeline.multimodal import Pipeline
from app.pipeline.startup import open_pipeline
from app.process import freeze_gc, log_while_waiting, tune
from app.segments.http import SegmentService
from app.segments.http import router as segments_router
from app.segments.video import processor
from app.settings import Settings
from app.sinks import Sinks, open_sinks
from app.summary import Summaries

log = logging.getLogger(__name__)

_SINKS_SHARE = 0.3
"""Part of DRAIN_TIMEOUT_S that the sinks get after the last session has ended."""
_POLL_S = 0.1
"""Seconds between two checks, during the start, of whether the service was asked to stop."""


class StartFailed(Exception):
    """The start failed; the reason is in the log already."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Makes the application. Settings come from the environment unless given.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = settings or Settings()
    require_tokens(settings)
    # Without FastAPI's own pages, which load scripts from other hosts.
    app = FastAPI(title="Sightline", version=__version__, lifespan=_lifespan, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.auth = Auth(settings)
    app.add_middleware(AuthMiddleware, auth=app.state.auth)
    app.add_middleware(ConnectionLimitMiddleware)  # the last one added is the outermost
    app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, routes.invalid_query)
    app.include_router(segments_router)
    app.include_router(page.router)
    app.mount("/web", page.WebFiles(settings.web), name="web")
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    tune()
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        try:
            opening = asyncio.ensure_future(_open(app, settings, stack))
            await _unless_stopped(opening, getattr(app.state, "stopping", lambda: False))
        except SightlineError as error:
            log.critical("%s", error)
            raise StartFailed from None
        freeze_gc()
        yield


async def _unless_stopped(opening: asyncio.Future[None], stopping: Callable[[], bool]) -> None:
    """Waits until everything is open. Abandons the start on a stop, because an embedded Triton may take minutes.

    Raises:
        StartFailed: `stopping` returned True first.
    """
    try:
        while not opening.done():
            await asyncio.wait({opening}, timeout=_POLL_S)
            if stopping() and not opening.done():
                log.info("stopped while starting")
                raise StartFailed
        await opening
    finally:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)


async def _open(app: FastAPI, settings: Settings, stack: AsyncExitStack) -> None:
    """Opens everything in order; the stack closes it in reverse."""
    live: LiveEntryPoint | None = None

    def inference_changed(up: bool, why: str | None) -> None:
        if live is not None:
            live.inference_changed(up, why)

    def stage_changed(name: str, available: bool, reason: str | None) -> None:
        if live is not None:
            live.stage_changed(name, available, reason)

    # Settings are checked first, so that a wrong one is reported before Triton starts.
    server = settings.server
    summaries = Summaries(
        settings.summary,
        settings.llm,
        server.state_dir,
        workers=server.workers,
        drain_timeout_s=server.drain_timeout_s,
    )
    summaries.check()
    sinks = open_sinks(settings, "service")
    service = await stack.enter_async_context(
        open_pipeline(settings, on_inference=inference_changed, on_stage=stage_changed)
    )
    pipeline, client, embedded = service.pipeline, service.client, service.embedded
    if sinks:
        sinks.start()
        stack.push_async_callback(asyncio.to_thread, sinks.close, _SINKS_SHARE * server.drain_timeout_s)
    stack.push_async_callback(summaries.close)
    with log_while_waiting("the summaries' backlog on disk"):
        await summaries.open()
    _log_ready(pipeline, getattr(app.state, "address", ""))
    live = LiveEntryPoint(
        pipeline,
        summaries,
        settings.live,
        settings.access,
        settings.pipeline,
        app.state.auth,
        inference_deadline_s=settings.triton.triton_deadline_s,
        feed=sinks.feed("live", lossy=True) if sinks else None,
    )
    app.state.live = live
    app.state.segments = SegmentService(
        pipeline,
        settings.segments,
        settings.aws,
        pipeline_settings=settings.pipeline,
        limits=settings.live,
        feed=sinks.feed("segments") if sinks else None,
    )
    activity = ActivityPublisher(settings.activity, settings.aws, lambda: live.open_now)
    publishing = asyncio.create_task(activity.run(), name="activity")
    stack.callback(publishing.cancel)
    updating = asyncio.create_task(_update_metrics(), name="metrics")
    stack.callback(updating.cancel)
    stack.callback(metrics.flush_buffers)

    def inference_health() -> dict[str, Any]:
        return {
            "state": "unavailable" if not client.up else "failing" if pipeline.watch.failing else "ok",
            "failing": pipeline.watch.failing,
            "url": client.url,
            "shared_memory": client.shared_memory,
            "embedded": None
            if embedded is None
            else {
                "pid": embedded.pid,
                "restarts": embedded.restarts,
                "restarts_by": embedded.restarts_by,
            },
        }

    app.state.inference_health = inference_health
    app.state.sinks_health = lambda: _sinks_health(sinks)


def _sinks_health(sinks: Sinks) -> dict[str, Any]:
    """For each sink `state`, ok or unavailable, and `reason`. The service is ready without them."""
    errors = sinks.errors()
    return {
        sink.name: {"state": "unavailable" if sink.name in errors else "ok", "reason": errors.get(sink.name)}
        for sink in sinks
    }


async def _update_metrics() -> None:
    """Updates, once a second, the rates of results and the histograms whose observations are buffered."""
    while True:
        await asyncio.sleep(1.0)
        stats.RATE.publish()
        routes.RATE.publish()
        processor.RATE.publish()
        metrics.flush_buffers()


def _log_ready(pipeline: Pipeline, address: str) -> None:
    models = []
    for stage in pipeline.stages:
        if stage.model_type is not None:
            model = pipeline.models[stage.name]
            models.append(f"{stage.title.lower()}: {getattr(model, 'name', model) or stage.absent}")
    log.info("ready: %s%s", f"open {address} – " if address else "", ", ".join(models))
