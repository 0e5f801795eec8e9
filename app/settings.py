"""Settings: one frozen section a room, read once from the environment (or `.env`) and handed down.

Nothing below a door reads the environment. Every variable stands in the README's table; a test
holds the two together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent

Commas = Annotated[tuple[str, ...], NoDecode]
"""A list written as `a,b,c` in the environment."""


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Section(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, env_file=".env", extra="ignore", case_sensitive=False)


S = TypeVar("S", bound=Section)
_WEB_ADDRESS = re.compile(r"https?://[^\s/;,'\"?#@]+(/[^\s;,'\"]*)?")


class ServerSettings(Section):
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs AUTH_TOKENS")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="processes that serve; each has its own client")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`json` for machines, `console` for people; `auto` asks whether stderr is a terminal"
    )
    drain_timeout_s: float = Field(10.0, gt=0, le=600, description="seconds a stopping service waits for open sessions")
    state_dir: Path = Field(ROOT / ".state", description="folder for logs and whatever outlives a process")


class AccessSettings(Section):
    auth_tokens: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="tokens that open the service, comma-separated; empty: none is asked for (loopback only)"
    )
    allow_anonymous: bool = Field(False, description="`true` lets the service listen off loopback without tokens")
    allowed_origins: Commas = Field(
        (), description="web origins that may connect, comma-separated; empty: the service's own; `*`: any"
    )
    max_sessions_per_token: int = Field(64, ge=1, description="sessions open or waiting at once with one token")
    max_sessions_per_address: int = Field(64, ge=1, description="sessions open or waiting at once from one address")

    @field_validator("auth_tokens", "allowed_origins", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return _split(value)


class LiveSettings(Section):
    max_sessions: int = Field(64, ge=1, le=10_000, description="sessions served at once, in each worker")
    max_waiting: int = Field(
        128, ge=0, le=100_000, description="sessions kept in the waiting room when all slots are taken"
    )
    max_connections: int = Field(
        2048, ge=1, le=100_000, description="sockets open at once, those that said nothing yet among them"
    )
    credits: int = Field(2, ge=1, le=64, description="frames a client may have in flight")
    max_frame_bytes: int = Field(2 * 1024 * 1024, ge=1024, description="largest frame, bytes")
    max_pixels: int = Field(
        4096 * 4096, ge=1, description="largest frame, pixels, read from its header before decoding"
    )
    max_messages_per_s: float = Field(240.0, gt=0, description="messages a second that a session may send on average")
    max_age_ms: float = Field(2000.0, gt=0, description="a realtime frame that waited longer is dropped unanalysed")
    init_timeout_s: float = Field(10.0, gt=0, description="seconds a new socket has for its first message")
    send_timeout_s: float = Field(5.0, gt=0, description="seconds a reader may stall before `bye: slow_reader`")
    ping_interval_s: float = Field(15.0, gt=0, description="seconds between two `ping`")
    idle_timeout_s: float = Field(120.0, gt=0, description="seconds without a frame before `bye: idle`")
    max_pause_s: float = Field(600.0, gt=0, description="seconds a paused session keeps its slot")
    max_session_s: float = Field(8 * 3600.0, gt=0, description="seconds after which any session ends")


class TritonSettings(Section):
    triton_url: str | None = Field(
        None, description="`host:port` of a Triton's gRPC; unset: a Triton of its own on the CPU (the embedded one)"
    )
    triton_max_in_flight: int = Field(8, ge=1, le=1024, description="requests in flight over all sessions (the gate)")
    triton_deadline_s: float = Field(5.0, gt=0, le=600, description="seconds a request may take")
    triton_shm: Literal["auto", "off", "on"] = Field(
        "auto", description="tensors through shared memory: `auto` tries it, `on` refuses to start without, `off` never"
    )
    triton_detect_model: str = Field("yolo", min_length=1, description="name of the detection model")
    triton_pose_model: str = Field("yolo_pose", min_length=1, description="name of the pose model")
    triton_ensemble: str = Field("vision", description="name of the ensemble over both; unused where it is not served")
    triton_repository: Path = Field(ROOT / "triton" / "cpu_repository", description="models of the embedded Triton")
    triton_python: Path = Field(
        ROOT / ".venv-triton" / "bin" / "python", description="interpreter of the embedded Triton's environment"
    )
    triton_start_timeout_s: float = Field(120.0, gt=0, description="seconds the embedded Triton has to become ready")
    triton_labels: Path | None = Field(
        None, description="class names, one a line, for a detection model that brings none"
    )

    @field_validator("triton_url")
    @classmethod
    def _host_port(cls, value: str | None) -> str | None:
        if value is None or value == "":
            return None
        host, colon, port = value.removeprefix("grpc://").rpartition(":")
        if not (colon and host and port.isdigit()):
            raise ValueError("host:port of Triton's gRPC endpoint, for example 127.0.0.1:8001")
        return f"{host}:{port}"


class PipelineSettings(Section):
    confidence: float = Field(0.35, ge=0, le=1, description="least score of a detection, unless a client says")
    iou: float = Field(0.45, ge=0, le=1, description="NMS: boxes that overlap more are one, unless a client says")
    max_detections: int = Field(300, ge=1, le=3000, description="most detections a frame")
    motion_method: Literal["dis", "farneback"] = Field("dis", description="dense flow: `dis` (fast) or `farneback`")
    decode_threads: int = Field(0, ge=0, le=256, description="threads that decode; 0: one a core, two at least")


class OcrSettings(Section):
    ocr: Literal["auto", "on", "off"] = Field(
        "auto", description="text reading: `auto` when its environment is installed, `on` refuses to start without"
    )
    ocr_python: Path = Field(ROOT / ".venv-ocr" / "bin" / "python", description="interpreter of OCR's environment")
    ocr_models: Path | None = Field(
        None, description="folder with `det.onnx` and `rec.onnx` (PaddleOCR); unset: PP-OCRv6 small"
    )
    ocr_min_interval_s: float = Field(1.0, ge=0, description="least seconds between two runs for one stream")
    ocr_change_threshold: float = Field(
        0.02, ge=0, le=1, description="share of the picture that must have changed since the last run"
    )
    ocr_min_confidence: float = Field(0.6, ge=0, le=1, description="least score of a text")
    ocr_timeout_s: float = Field(20.0, gt=0, description="seconds after which a run is killed")
    ocr_max_runs: int = Field(500, ge=1, description="runs after which the process is replaced")
    ocr_max_rss_mb: int = Field(1500, ge=100, description="resident memory past which the process is replaced")


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
        if not value:
            return None
        if not _WEB_ADDRESS.fullmatch(value):
            raise ValueError("a web address, for example https://sight.example")
        return value.rstrip("/")


class Settings:
    """All sections. Each room is handed its own.

    Raises:
        ConfigurationError: one line a wrong variable: its name, the value seen, what would be right.
    """

    def __init__(self, **overrides: object) -> None:
        problems: list[str] = []

        def read(section: type[S]) -> S:
            given = {name: value for name, value in overrides.items() if name in section.model_fields}
            try:
                return section(**given)
            except ValidationError as error:
                problems.extend(_explain(error))
                return section.model_construct()

        self.server = read(ServerSettings)
        self.access = read(AccessSettings)
        self.live = read(LiveSettings)
        self.triton = read(TritonSettings)
        self.pipeline = read(PipelineSettings)
        self.ocr = read(OcrSettings)
        self.web = read(WebSettings)
        if problems:
            raise ConfigurationError("\n".join(problems))


SECTIONS: tuple[type[Section], ...] = (
    ServerSettings,
    AccessSettings,
    LiveSettings,
    TritonSettings,
    PipelineSettings,
    OcrSettings,
    WebSettings,
)


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors():
        name = str(detail["loc"][0]).upper() if detail["loc"] else "settings"
        seen = "a secret" if name == "AUTH_TOKENS" else repr(detail["input"])
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable")[0]
        lines.append(f"{name}={seen}: should be {message}")
    return lines
