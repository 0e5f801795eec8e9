"""The service itself, who may use it, its live sessions and its page."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from app.addresses import read_host, read_origin
from app.settings.section import ROOT, Commas, Section, fixed, split, web_address


class ServerSettings(Section):
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs AUTH_TOKENS")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="processes that serve; each has its own client")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`json` for machines, `console` for people; `auto` asks whether stderr is a terminal"
    )
    drain_timeout_s: float = Field(10.0, gt=0, le=600, description="seconds a stopping service waits for open sessions")
    forwarded_allow_ips: Commas = Field(
        ("127.0.0.1", "::1"),
        description="proxies whose X-Forwarded-For is believed, addresses or networks, comma-separated",
    )
    state_dir: Path = Field(ROOT / ".state", description="folder for logs and whatever outlives a process")

    @field_validator("forwarded_allow_ips", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return split(value)

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise ValueError("addresses or networks, for example 127.0.0.1,10.0.0.0/8") from None
        return value


class AccessSettings(Section):
    auth_tokens: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="tokens that open the service, comma-separated; empty: this machine alone is served"
    )
    allow_anonymous: bool = Field(
        False, description="`true` serves everybody without a token, off loopback and behind a proxy"
    )
    allowed_hosts: Commas = Field(
        (),
        description="names that the service answers to beside loopback's and SERVICE_URL's, comma-separated: `host`, "
        "`host:port`, `*.host` (what is below it), `*` (any); unset: any where tokens are asked for, else no other",
    )
    allowed_origins: Commas = Field(
        (),
        description="web origins whose pages may use the service beside its own page, comma-separated; `*`: any",
    )
    max_sessions_per_token: int = Field(64, ge=1, description="sessions open or waiting at once with one token")
    max_sessions_per_address: int = Field(64, ge=1, description="sessions open or waiting at once from one address")

    @field_validator("auth_tokens", "allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return split(value)

    @field_validator("auth_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: object) -> object:
        """Whoever sets it wants tokens: `,` must not open the service."""
        if isinstance(value, str) and value.strip() and not split(value):
            raise ValueError("tokens, comma-separated: there is none in it")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if host != "*" and read_host(host.removeprefix("*.")) is None:
                raise ValueError(
                    "names or addresses of hosts, for example sight.example,*.lan.example,10.0.0.5,[fd00::5], or * for "
                    f"any, with a port or without; not {host!r}"
                )
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple(origin.removesuffix("/") for origin in value)
        for origin in value:
            if origin not in ("*", "null") and read_origin(origin) is None:
                raise ValueError(
                    f"web origins, for example https://shop.example,http://localhost:3000, or * for any; not {origin!r}"
                )
        return value


class LiveSettings(Section):
    max_sessions: int = Field(64, ge=1, le=10_000, description="sessions served at once, in each worker")
    max_waiting: int = Field(
        128, ge=0, le=100_000, description="sessions kept in the waiting room when all slots are taken"
    )
    max_connections: int = Field(
        2048,
        ge=1,
        le=100_000,
        description="TCP connections open at once, in each worker, from the moment they are made",
    )
    max_connections_per_address: int = Field(
        512,
        ge=1,
        le=100_000,
        description="the same of one address; behind a proxy, of those for whom it says that it comes",
    )
    credits: int = Field(2, ge=1, le=64, description="frames a client may have in flight")
    max_frame_bytes: int = Field(2 * 1024 * 1024, ge=1024, description="largest frame, bytes")
    max_pixels: int = Field(
        4096 * 4096, ge=1, description="largest frame, pixels, read from its header before decoding"
    )
    max_messages_per_s: float = Field(240.0, gt=0, description="messages a second that a session may send on average")
    max_age_ms: float = fixed(2000.0, gt=0, description="a realtime frame that waited longer is dropped unanalysed")
    init_timeout_s: float = Field(
        10.0, gt=0, description="seconds a connection has for a request, its body, and a socket's first message"
    )
    send_timeout_s: float = Field(5.0, gt=0, description="seconds a reader may stall before `bye: slow_reader`")
    ping_interval_s: float = Field(
        15.0, gt=0, description="seconds between two `ping`; a client that is silent for three times as long is let go"
    )
    idle_timeout_s: float = Field(120.0, gt=0, description="seconds without a frame before `bye: idle`")
    max_pause_s: float = Field(600.0, gt=0, description="seconds of pause, in all, that a session keeps its slot")
    max_session_s: float = Field(8 * 3600.0, gt=0, description="seconds after which any session ends")


class WebSettings(Section):
    service_url: str | None = Field(
        None, description="where the page finds the service, `https://host`; unset: where the page came from"
    )
    start_server_url: str | None = Field(
        None, description="what the page calls to start a service that is switched off; unset: nothing does"
    )

    @field_validator("service_url", "start_server_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        return web_address(value, "https://sight.example")
