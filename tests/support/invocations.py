"""The routes of recorded video in this process: on the real pipeline, over a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI

from app.auth import Auth, AuthMiddleware
from app.pipeline.startup import open_pipeline
from app.segments.http import SegmentService, router
from app.settings import Settings

START_S = 60.0


@contextmanager
def answering(settings: Settings) -> Iterator[str]:
    """Serves `/ping` and `/invocations` on a free loopback port; yields its address."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_pipeline(settings) as opened:
            app.state.segments = SegmentService(
                opened.pipeline,
                settings.segments,
                settings.aws,
                pipeline_settings=settings.pipeline,
                limits=settings.live,
            )
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(AuthMiddleware, auth=Auth(settings))
    app.include_router(router)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, name="invocations")
    thread.start()
    try:
        deadline = time.monotonic() + START_S
        while not server.started:
            assert thread.is_alive(), "it ended before it was ready"
            assert time.monotonic() < deadline, "it was not ready in time"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
