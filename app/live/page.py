"""The web page: its files, its configuration, and the headers that restrict what it may load."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Scope

from app.protocol.messages import stage_descriptions
from app.settings import ROOT, WebSettings

router = APIRouter()
_WEB = ROOT / "app" / "web"
_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


@router.get("/")
async def page(request: Request) -> Response:
    """The page itself."""
    headers = security_headers(request.headers.get("host"), request.app.state.settings.web)
    return FileResponse(_WEB / "index.html", headers=headers)


@router.get("/config.json")
async def config(request: Request) -> Response:
    """The address of the service (null: the page's own), that of the instance starter (null: there is none), and the
    stages that this service has, as `ready` describes them: the page offers them before there is a session."""
    web: WebSettings = request.app.state.settings.web
    return JSONResponse(
        {
            "service_url": web.service_url,
            "start_server_url": web.start_server_url,
            "stages": [asdict(stage) for stage in stage_descriptions()],
        },
        headers={"Cache-Control": "no-cache"},
    )


class WebFiles(StaticFiles):
    """The page's modules. Each response has the headers, because a web worker obeys the headers of its own file."""

    def __init__(self, web: WebSettings) -> None:
        super().__init__(directory=_WEB)
        self._web = web

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(security_headers(Headers(scope=scope).get("host"), self._web))
        return response


def security_headers(host: str | None, web: WebSettings) -> dict[str, str]:
    """Headers of the page and its files: no foreign files, no inline scripts, no frames around the page.

    Args:
        host: this service's address as the browser sent it, for browsers in which `'self'` covers no web sockets.
        web: names the other addresses to which the page may connect.
    """
    policy: Mapping[str, Any] = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "media-src": "'self' blob:",
        "worker-src": "'self'",
        "connect-src": " ".join(["'self'", *_connectable(host, web)]),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Permissions-Policy": "camera=(self), display-capture=(self), microphone=(), geolocation=()",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _connectable(host: str | None, web: WebSettings) -> list[str]:
    sources = [f"ws://{host}", f"wss://{host}"] if host and _HOST.fullmatch(host) else []
    if web.service_url is not None:
        address = urlsplit(web.service_url)
        secure = "s" if address.scheme == "https" else ""
        sources += [f"http{secure}://{address.netloc}", f"ws{secure}://{address.netloc}"]
    if web.start_server_url is not None:
        address = urlsplit(web.start_server_url)
        sources.append(f"{address.scheme}://{address.netloc}")
    return sources
