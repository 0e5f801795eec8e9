"""Settings: frozen sections, one for each part, read once from the environment (or `.env`) and passed on.

Only commands read the environment. The README's table lists every variable; a test holds the two together. First come
the base class of the sections and the files of secrets, then the sections with every setting, then `Settings`.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.addresses import read_host, read_origin
from app.errors import ConfigurationError, SightlineError, shortened

# --- how a section is read ---

ROOT = Path(__file__).resolve().parent.parent
"""The folder that contains `app/`: the repository, if the program runs from one."""

Commas = Annotated[tuple[str, ...], NoDecode]
"""A list written as `a,b,c` in the environment."""

_FIXED = "fixed"
_WEB_ADDRESS = re.compile(r"https?://[^\s/;,'\"?#@]+(/[^\s;,'\"]*)?")
_MOST_SECRET_BYTES = 64 * 1024
"""Most bytes of a file that holds a secret; a larger file is something else."""


class Section(BaseSettings):
    """The settings of one part, frozen, read from the environment or `.env`; secrets also from the files named there.

    Raises:
        ConfigurationError: a file that should hold a secret cannot be used.
    """

    model_config = SettingsConfigDict(frozen=True, env_file=".env", extra="ignore", case_sensitive=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, highest precedence first: arguments, files of secrets, the environment, `.env`."""
        files = _SecretFiles(settings_cls, env_settings, dotenv_settings)
        return init_settings, files, _Settable(settings_cls, env_settings), _Settable(settings_cls, dotenv_settings)


def fixed(default: Any = PydanticUndefined, **options: Any) -> Any:
    """A field that no variable sets, because it follows from other settings, or because no deployment needs another.

    Code may still pass another value, and tests do. A variable of its name is ignored, and a warning says so.
    """
    return Field(default, json_schema_extra={_FIXED: True}, **options)


def is_fixed(field: FieldInfo) -> bool:
    """Whether the field was made by `fixed`, so that no variable sets it."""
    return isinstance(field.json_schema_extra, dict) and _FIXED in field.json_schema_extra


class _Settable(PydanticBaseSettingsSource):
    """The values of a source of variables, without those of `fixed` fields."""

    def __init__(self, section: type[BaseSettings], source: PydanticBaseSettingsSource) -> None:
        super().__init__(section)
        self._source = source

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        return {
            name: value for name, value in self._source().items() if name not in fields or not is_fixed(fields[name])
        }


def variables() -> dict[str, str]:
    """The variables of the environment and of `.env`, names in upper case; the environment wins."""
    found = DotEnvSettingsSource(Section).env_vars
    return {name.upper(): value for name, value in {**found, **os.environ}.items() if value}


class _SecretFiles(PydanticBaseSettingsSource):
    """`NAME_FILE` names a file with the value of `NAME`, as Docker and Kubernetes provide secrets."""

    def __init__(self, section: type[BaseSettings], *variables: PydanticBaseSettingsSource) -> None:
        super().__init__(section)
        self._set: dict[str, str] = {}
        for source in reversed(variables):  # the environment wins over `.env`
            assert isinstance(source, EnvSettingsSource | DotEnvSettingsSource)
            self._set |= {name.lower(): value for name, value in source.env_vars.items() if value}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The secret of one setting, from its file; None if no file is named."""
        path = self._set.get(f"{field_name}_file") if is_secret(field) else None
        if path is None:
            return None, field_name, False
        name = field_name.upper()
        if field_name in self._set:
            raise ConfigurationError(f"{name} and {name}_FILE={path!r} are both set: should be one of them")
        return read_secret(name, path), field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        problems = []
        for name, field in self.settings_cls.model_fields.items():
            try:
                value, _, _ = self.get_field_value(field, name)
            except ConfigurationError as error:
                problems.append(str(error))
            else:
                found |= {} if value is None else {name: value}
        if problems:
            raise ConfigurationError("\n".join(problems))
        return found


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting holds a secret: its value is never written out, and may come from a file."""

    def holds(annotation: Any) -> bool:
        return annotation is SecretStr or any(map(holds, get_args(annotation)))

    return holds(field.annotation)


def secret_given(name: str, environment: Mapping[str, str]) -> str | None:
    """The secret of a variable that is no setting, from `NAME` or the file that `NAME_FILE` names; None without either.

    Raises:
        ConfigurationError: both are set, or the file cannot be used.
    """
    value, path = environment.get(name) or None, environment.get(f"{name}_FILE")
    if path and value:
        raise ConfigurationError(f"{name} and {name}_FILE={path!r} are both set: should be one of them")
    return read_secret(name, path) if path else value


def service_token(given: str | None) -> str | None:
    """A client command's token: `given` by its option, else SIGHTLINE_TOKEN, else the file SIGHTLINE_TOKEN_FILE names.

    Raises:
        ConfigurationError: both variables are set, or the file cannot be used.
    """
    variable = secret_given("SIGHTLINE_TOKEN", os.environ)
    return given or variable


def read_secret(name: str, path: str) -> str:
    """The secret in a file, without the line ends after it.

    Raises:
        ConfigurationError: there is no such file, or it cannot be read, is empty, too large or no text.
    """
    wanted = f"should be a readable file that holds the value of {name} and nothing else"
    try:
        # O_NONBLOCK, because opening a named pipe without a writer would block the start forever.
        with open(path, "rb", opener=lambda at, flags: os.open(at, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigurationError(f"{name}_FILE={path!r}: no regular file; {wanted}")
            content = file.read(_MOST_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{name}_FILE={path!r}: {why}; {wanted}") from None
    if len(content) > _MOST_SECRET_BYTES:
        raise ConfigurationError(f"{name}_FILE={path!r}: more than {_MOST_SECRET_BYTES} bytes; {wanted}")
    try:
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name}_FILE={path!r}: no UTF-8 text; {wanted}") from None
    if not text.strip() or "\0" in text:
        raise ConfigurationError(f"{name}_FILE={path!r}: {'no text' if text.strip() else 'empty'}; {wanted}")
    return text


def split(value: object) -> object:
    """Splits a string at commas and line ends into a tuple; returns any other value unchanged.

    Line ends count, because a file of secrets may have one a line.
    """
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in re.split(r"[,\r\n]", value) if part.strip())


def web_address(value: str | None, example: str) -> str | None:
    """The address without slashes at its end; None if `value` is None or empty.

    Raises:
        ValueError: `value` is no http(s) address.
    """
    if not value:
        return None
    if not _WEB_ADDRESS.fullmatch(value):
        raise ValueError(f"a web address, for example {example}")
    return value.rstrip("/")


# --- the service, access to it, live sessions, the page ---


class ServerSettings(Section):
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs AUTH_TOKENS")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="worker processes; each has its own inference client")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`json`, `console` (plain text), or `auto`: `console` if stderr is a terminal, else `json`"
    )
    drain_timeout_s: float = Field(10.0, gt=0, le=600, description="seconds a stopping service waits for open sessions")
    forwarded_allow_ips: Commas = Field(
        ("127.0.0.1", "::1"),
        description="proxies whose X-Forwarded-For is trusted, addresses or networks, comma-separated",
    )
    plugins: Path | None = Field(
        None, description="folder whose `.py` files add stages, sinks and backends of recorded video; unset: none"
    )
    state_dir: Path = Field(ROOT / ".state", description="folder for logs and for data that outlives a process")

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
        (), description="accepted tokens, comma-separated; empty: only clients on this machine are served"
    )
    allow_anonymous: bool = Field(
        False, description="`true` serves clients without a token, also from other machines and through a proxy"
    )
    allowed_hosts: Commas = Field(
        (),
        description="names that the service answers to beside loopback's and SERVICE_URL's, comma-separated: `host`, "
        "`host:port`, `*.host` (what is below it), `*` (any); unset: any if AUTH_TOKENS is set, else no other",
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
        """Rejects a value without a token, such as `,`: it must not open the service to clients without one."""
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
    max_waiting: int = Field(128, ge=0, le=100_000, description="sessions that may wait for a slot when all are taken")
    max_connections: int = Field(
        2048,
        ge=1,
        le=100_000,
        description="TCP connections open at once, in each worker, counted from accept on",
    )
    max_connections_per_address: int = Field(
        512,
        ge=1,
        le=100_000,
        description="TCP connections open at once from one address, in each worker; by a trusted proxy, its client's",
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
        15.0,
        gt=0,
        description="seconds between two `ping`; a client silent for three times as long is disconnected",
    )
    idle_timeout_s: float = Field(120.0, gt=0, description="seconds without a frame before `bye: idle`")
    max_pause_s: float = Field(600.0, gt=0, description="seconds of pause, in all, that a session keeps its slot")
    max_session_s: float = Field(8 * 3600.0, gt=0, description="seconds after which any session ends")


class WebSettings(Section):
    service_url: str | None = Field(
        None, description="address of the service for the page, `https://host`; unset: the page's own origin"
    )
    start_server_url: str | None = Field(
        None, description="address that the page calls to start a stopped service; unset: the page cannot start it"
    )

    @field_validator("service_url", "start_server_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        return web_address(value, "https://sight.example")


# --- Triton, the pipeline, text reading ---


class TritonSettings(Section):
    triton_url: str | None = Field(
        None, description="`host:port` of a Triton's gRPC; unset: a Triton of its own on the CPU (the embedded one)"
    )
    triton_max_in_flight: int = Field(8, ge=1, le=1024, description="requests in flight over all sessions")
    triton_deadline_s: float = Field(
        5.0, gt=0, le=600, description="seconds a request may take; one for recorded video may take 60"
    )
    triton_shm: Literal["auto", "off", "on"] = Field(
        "auto", description="tensors through shared memory: `auto` tries it, `on` refuses to start without, `off` never"
    )
    triton_detect_model: str = Field("yolo", min_length=1, description="name of the detection model")
    triton_pose_model: str = Field("yolo_pose", min_length=1, description="name of the pose model")
    triton_segment_model: str = Field("yolo_segment", min_length=1, description="name of the segmentation model")
    triton_obb_model: str = Field("yolo_obb", min_length=1, description="name of the model for oriented boxes")
    triton_classify_model: str = Field("yolo_classify", min_length=1, description="name of the classification model")
    triton_ensemble: str = Field("vision", description="name of the ensemble of both; unused if not served")
    triton_repository: Path = Field(ROOT / "triton" / "cpu_repository", description="models of the embedded Triton")
    triton_python: Path = Field(
        ROOT / ".venv-triton" / "bin" / "python", description="interpreter of the embedded Triton's environment"
    )
    triton_start_timeout_s: float = Field(120.0, gt=0, description="seconds the embedded Triton has to become ready")
    triton_labels: Path | None = Field(
        None, description="class names, one a line, for a detection model whose metadata has none"
    )

    @field_validator("triton_url")
    @classmethod
    def _host_port(cls, value: str | None) -> str | None:
        if value is None or value == "":
            return None
        host, colon, port = value.removeprefix("grpc://").rpartition(":")
        known = colon and host and port.isascii() and port.isdigit()
        if not known or not 1 <= int(port) <= 65535:
            raise ValueError("host:port of Triton's gRPC endpoint, for example 127.0.0.1:8001; ports are 1 to 65535")
        return f"{host}:{port}"


class PipelineSettings(Section):
    confidence: float = Field(0.35, ge=0, le=1, description="least score of a detection; a client may choose another")
    iou: float = Field(
        0.45,
        ge=0,
        le=1,
        description="NMS: of boxes that overlap more, the best is kept; a client may choose another",
    )
    max_detections: int = fixed(300, ge=1, le=3000, description="most detections a frame")
    classify_crops: Commas = Field(
        (),
        description="classes of detected objects that are classified one by one, comma-separated, `person,dog`; unset: "
        "whole frames are classified",
    )
    classify_most_crops: int = fixed(32, ge=1, le=300, description="most objects of a frame that are classified")
    motion_method: Literal["dis", "farneback"] = Field("dis", description="dense flow: `dis` (fast) or `farneback`")
    decode: Literal["exact", "fast"] = Field(
        "exact",
        description="`exact`: the same pixels as OpenCV; `fast`: the codec's approximations, up to 37 levels off",
    )
    decode_budget_ms: float = Field(
        2000.0,
        ge=1,
        le=600_000,
        description="CPU milliseconds that a frame's preparation may take; beyond it `error: too_expensive`",
    )
    exif_orientation: Literal["auto", "on", "off"] = Field(
        "auto",
        description="turn JPEGs as their EXIF says: `auto` only those of POST /v1/frames, `on` live and in fleets too",
    )
    decode_threads: int = fixed(0, ge=0, le=256, description="threads that decode; 0: one a core, two at least")

    @field_validator("classify_crops", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return split(value)


class OcrSettings(Section):
    ocr: Literal["auto", "on", "off"] = Field(
        "auto", description="text reading: `auto` when its environment is installed, `on` refuses to start without"
    )
    ocr_python: Path = Field(ROOT / ".venv-ocr" / "bin" / "python", description="interpreter of OCR's environment")
    ocr_models: Path | None = Field(
        None, description="folder with `det.onnx` and `rec.onnx` (PaddleOCR); unset: PP-OCRv6 small"
    )
    ocr_min_interval_s: float = Field(1.0, ge=0, description="least seconds between two runs for one stream")
    ocr_change_threshold: float = fixed(
        0.02, ge=0, le=1, description="share of the image that must have changed since the last run"
    )
    # Measured on 804 lines of rendered text (sizes, fonts, orientations, noise, blur): at 0.6, 647 are read exactly; at
    # 0.8, 646. Of texts that are not there, 134 pass at 0.6, 95 at 0.7 and 58 at 0.8.
    ocr_min_confidence: float = Field(0.8, ge=0, le=1, description="least score of a text")
    ocr_timeout_s: float = Field(20.0, gt=0, description="seconds after which a run is killed")
    ocr_max_runs: int = fixed(500, ge=1, description="runs after which the process is replaced")
    ocr_max_rss_mb: int = Field(1500, ge=100, description="resident memory past which the process is replaced")


# --- summaries: the backlog of observations, and the language model that summarizes them ---


class SummarySettings(Section):
    summary_min_interval_s: float = Field(
        5.0, gt=0, le=3600, description="least seconds between two summaries of a session"
    )
    summary_max_interval_s: float = Field(
        60.0, gt=0, le=86400, description="most seconds between two summaries while there are observations"
    )
    summary_ram_items: int = Field(256, ge=1, description="observations of a session kept in memory; more go to disk")
    summary_ram_bytes: int = fixed(
        default_factory=lambda found: 4096 * found.get("summary_ram_items", 256),
        ge=1024,
        description="bytes of observations of a session kept in memory: 4 KiB for each of SUMMARY_RAM_ITEMS",
    )
    summary_disk_items: int = fixed(10_000, ge=0, description="observations of a session kept on disk; 0: none")
    summary_disk_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="bytes of observations kept on disk (STATE_DIR) by all sessions together; 0: none",
    )
    summary_keep: int = fixed(
        20, ge=1, le=1000, description="last summaries of a session that `GET /v1/sessions/{id}/summaries` returns"
    )
    summary_orphan_hours: float = Field(
        24.0,
        gt=0,
        description="hours after which observations and last summaries of ended sessions are deleted from disk",
    )
    summary_prompts: Path = Field(
        ROOT / "app" / "summary" / "prompts", description="folder of prompts, one NAME.md each; clients choose a name"
    )
    summary_prompt: str = Field("default", min_length=1, description="prompt of sessions that name none")
    summary_finish_s: float = fixed(
        3.0,
        gt=0,
        le=60,
        description="seconds that the last summary of a session may take; after that it is a digest",
    )


class LlmSettings(Section):
    model_config = SettingsConfigDict(hide_input_in_errors=True)  # the keys

    llm_model: str | None = Field(
        None, description="`provider:model` for LangChain, such as `openai:gpt-5-mini`; unset: digests without a model"
    )
    llm_base_url: str | None = Field(
        None, description="address of an OpenAI-compatible server, `http://host/v1`; unset: the provider's own"
    )
    llm_api_key: SecretStr | None = Field(
        None, description="key of the provider, or of the server at LLM_BASE_URL; unset: one of the next two"
    )
    openai_api_key: SecretStr | None = Field(
        None, description="key for `openai:` where LLM_API_KEY and LLM_BASE_URL are unset"
    )
    anthropic_api_key: SecretStr | None = Field(
        None, description="key for `anthropic:` where LLM_API_KEY and LLM_BASE_URL are unset"
    )
    llm_max_in_flight: int = Field(
        4,
        ge=1,
        le=256,
        description="requests to the model at once over all sessions; WORKERS share it evenly, one each at least",
    )
    llm_timeout_s: float = Field(20.0, gt=0, le=600, description="seconds a request to the model may take")
    llm_retries: int = fixed(
        2,
        ge=0,
        le=10,
        description="times a request is repeated after 429 or a server error; each worker keeps Retry-After for itself",
    )
    llm_max_output_tokens: int = Field(
        2000, ge=50, le=32_768, description="most tokens of an answer, including those of reasoning"
    )
    llm_session_tokens: int = Field(
        200_000, ge=0, description="tokens a session may use, after which it gets digests; 0: no bound"
    )
    llm_hour_tokens: int = Field(
        2_000_000,
        ge=0,
        description="tokens all sessions may use in an hour, counted anew after a restart; WORKERS share it evenly; "
        "0: no bound",
    )
    llm_breaker_failures: int = fixed(
        5, ge=1, description="failures in a row, in one worker, that open its circuit breaker"
    )
    llm_breaker_s: float = fixed(
        60.0, gt=0, description="seconds that the circuit breaker stays open; then one request probes the model"
    )

    @field_validator("llm_model", mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("llm_api_key", "openai_api_key", "anthropic_api_key", mode="before")
    @classmethod
    def _key(cls, value: object) -> object:
        """Strips the key, because a file ends with a newline; rejects characters that no HTTP header may carry."""
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not isinstance(text, str):
            return value
        text = text.strip()
        if not (text.isascii() and text.isprintable()):
            raise ValueError("printable ASCII: something else is in it, perhaps an ellipsis, or a second line")
        return text or None

    @field_validator("llm_base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return web_address(value, "http://127.0.0.1:11434/v1")

    def part(self, workers: int) -> LlmSettings:
        """The settings of one of `workers` processes: the bounds that hold over all sessions are divided by it.

        Rounded down, so that together they keep the bound; but never to 0, which would mean no bound.
        """
        return self.model_copy(
            update={
                "llm_max_in_flight": max(1, self.llm_max_in_flight // workers),
                "llm_hour_tokens": self.llm_hour_tokens and max(1, self.llm_hour_tokens // workers),
            }
        )


# --- AWS, and the metric that lets an idle machine be stopped ---

_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}")


class AwsSettings(Section):
    aws_region: str | None = Field(None, description="region; unset: as the AWS SDK finds it")
    aws_endpoint_url: str | None = Field(
        None, description="address of a stand-in for AWS, such as moto's server; unset: AWS itself"
    )

    @field_validator("aws_region")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        return value or None  # Docker Compose passes an unset variable on as an empty one

    @field_validator("aws_endpoint_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return web_address(value, "http://127.0.0.1:5000")


class ActivitySettings(Section):
    activity_metric: Literal["off", "cloudwatch"] = Field(
        "off", description="where the number of sessions is published, for the function that stops an idle machine"
    )
    activity_interval_s: float = fixed(
        60.0,
        ge=1,
        le=120,
        description="seconds between two figures; far below the minutes of idling that stop a machine",
    )
    activity_namespace: str = Field("Sightline", min_length=1, description="CloudWatch namespace of the figure")
    activity_instance_id: str | None = Field(
        None, description="EC2 instance the figure is for; unset: this machine, by its metadata service"
    )

    @field_validator("activity_instance_id")
    @classmethod
    def _instance(cls, value: str | None) -> str | None:
        if value and not _INSTANCE.fullmatch(value):
            raise ValueError("an EC2 instance, for example i-0123456789abcdef0")
        return value or None


# --- the camera fleet: Redis Streams in, micro-batches, Kafka out ---


class RedisSettings(Section):
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379"),
        description="Redis that carries the frames, may hold a password; by Sentinel "
        "`redis+sentinel://user:password@host:26379,host:26379/service/0`; no Redis Cluster",
    )
    fleet_stream_prefix: str = Field(
        "frames:",
        min_length=1,
        description="a camera's stream is this and its id; another prefix is another fleet, whose keys end in it",
    )
    fleet_group: str = Field("inference-workers", min_length=1, description="consumer group of the workers")


class KafkaSettings(Section):
    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", min_length=1, description="Kafka brokers, `host:port`, comma-separated"
    )
    kafka_topic: str = Field("vision.detections", min_length=1, description="topic of the results, key: camera id")
    kafka_failure_policy: Literal["hold", "ack"] = Field(
        "hold", description="while Kafka is away: `hold` waits and reads no frames, `ack` drops frames and counts them"
    )
    kafka_options: SecretStr = Field(
        SecretStr("{}"),
        description='further librdkafka options as JSON, `{"security.protocol": "SASL_SSL"}`; may hold a password',
    )


class FleetSettings(Section):
    fleet_mode: Literal["async", "sync"] = Field(
        "async", description="`async`: batches to Triton; `sync`: one frame a request, for models on the CPU"
    )
    fleet_processes: int = Field(1, ge=1, le=64, description="worker processes that `fleet work` starts")
    fleet_profile: Literal["latency", "throughput"] = Field(
        "latency",
        description="`latency`: batches of 4 within 20 ms, towards 16 within 5 ms as lag grows; `throughput`: 16 and 5",
    )
    batch_size: int | None = Field(
        None, ge=1, le=64, description="most frames in a batch, whatever the lag; unset: as FLEET_PROFILE says"
    )
    batch_timeout_ms: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="longest wait of a batch's first frame for others; unset: as FLEET_PROFILE says",
    )
    fleet_stages: Commas = Field(
        (),
        description="stages that run on cameras' frames, comma-separated, by the names in the table of stages; unset: "
        "those marked there",
    )
    fleet_batches_in_flight: int = fixed(4, ge=1, le=64, description="batches of a worker process at work at once")
    frame_staleness_ms: float = Field(
        2000.0,
        gt=0,
        description="age at which frames are skipped and counted; from a quarter of it on, newer frames go first; "
        "the age of claimed frames counts from their claim",
    )
    fleet_shards: int = fixed(32, ge=1, le=32, description="most shards that a worker's cameras are spread over")
    fleet_threads: int = fixed(8, ge=1, le=64, description="frames that a `sync` worker analyses at once")
    fleet_discover_s: float = Field(
        2.0,
        gt=0,
        description="seconds between two refreshes of cameras and workers; a worker silent for three loses its cameras",
    )
    fleet_reclaim_idle_ms: int = Field(
        60_000,
        ge=100,
        description="milliseconds until frames that another consumer read and never acknowledged are claimed",
    )
    fleet_reclaim_s: float = fixed(
        default_factory=lambda found: found.get("fleet_reclaim_idle_ms", 60_000) / 2000,
        gt=0,
        description="seconds between two checks for frames left pending: half of FLEET_RECLAIM_IDLE_MS",
    )
    fleet_max_deliveries: int = Field(3, ge=2, description="deliveries after which a frame goes to `frames:dead`")
    metrics_port: int = Field(
        8002, ge=0, le=65535, description="port of /metrics and /health of a fleet or segments process; 0: a free one"
    )
    fleet_face_model: str = fixed("arcface", min_length=1, description="Triton model of face embeddings")
    max_sub_batch: int = Field(
        16, ge=1, le=256, description="most crops, of faces or of objects to classify, in one request"
    )

    @field_validator("fleet_stages", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return split(value)


class IngestSettings(Section):
    ingest_fps: float = Field(30.0, gt=0, le=240, description="frames a second taken from a camera at most")
    ingest_busy_fps: float = fixed(15.0, gt=0, le=240, description="frames a second once the camera's stream lags")
    ingest_min_fps: float = fixed(1.0, gt=0, le=240, description="least frames a second while the lag grows")
    ingest_maxlen: int = Field(100, ge=1, description="frames of a camera that Redis keeps (MAXLEN ~)")
    ingest_jpeg_quality: int = fixed(80, ge=1, le=100, description="JPEG quality of ingested frames")
    ingest_refresh_s: float = fixed(5.0, gt=0, description="seconds between two reads of the list of sources")
    ingest_reconnect_max_s: float = fixed(30.0, gt=0, description="longest pause before a lost camera is opened again")


# --- where results go beside the client that asked for them ---


class SinkSettings(Section):
    result_sinks: Commas = Field(
        (),
        description="where results go, comma-separated: `kafka`, `jsonl`, `webhook`, a plug-in's name; unset: `kafka` "
        "for the fleet, no further place for live sessions and recorded video",
    )
    sink_failure_policy: Literal["hold", "drop"] = Field(
        "hold",
        description="while a sink other than Kafka is away: `hold` waits and reads no frames, `drop` gives results up "
        "after five attempts and counts them; live sessions never wait",
    )
    jsonl_path: Path | None = Field(None, description="file of the sink `jsonl`")
    jsonl_max_bytes: int = Field(
        100 * 1024 * 1024, ge=1024, description="bytes after which JSONL_PATH is renamed to `NAME.1` and begun anew"
    )
    jsonl_files: int = Field(5, ge=2, le=1000, description="files of JSONL_PATH that are kept; older ones are deleted")
    webhook_url: SecretStr | None = Field(
        None, description="address that the sink `webhook` posts to; may hold a password or a key"
    )
    webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="secrets that sign what is posted, `whsec_` + base64 of 24 to 64 bytes, comma-separated while one "
        "replaces another; unset: not signed",
    )
    webhook_timeout_s: float = Field(10.0, gt=0, le=300, description="seconds that a request of the webhook may take")

    @field_validator("result_sinks", "webhook_secret", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return split(value)

    @field_validator("jsonl_path", "webhook_url", mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        return value or None  # Docker Compose passes an unset variable on as an empty one

    @field_validator("webhook_url")
    @classmethod
    def _address(cls, value: SecretStr | None) -> SecretStr | None:
        parts = urlsplit(value.get_secret_value()) if value else None
        if parts is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("a web address, for example https://sight.example/results")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            webhook_key(secret.get_secret_value())
        return value


def webhook_key(secret: str) -> bytes:
    """The key of a secret `whsec_` + base64, the form of Standard Webhooks.

    Raises:
        ValueError: it has not this form, or not 24 to 64 bytes.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not (secret.startswith("whsec_") and 24 <= len(key) <= 64):
        raise ValueError("`whsec_` and the base64 of 24 to 64 bytes, several of them comma-separated")
    return key


# --- recorded video: buckets, queues, tables, and the backend that analyses segments ---


class SegmentSettings(Section):
    input_bucket_name: str | None = Field(None, description="bucket of the segments to be analysed")
    output_bucket_name: str | None = Field(None, description="bucket of analysed segments and `final.mp4`")
    jobs_table_name: str | None = Field(None, description="DynamoDB table of jobs")
    invocations_table_name: str | None = Field(None, description="DynamoDB table of SageMaker invocations")
    segment_completions_table_name: str | None = Field(None, description="DynamoDB table of segments that are done")
    reassembly_triggered_table_name: str | None = Field(
        None, description="DynamoDB table that lets a job be put together once"
    )
    video_worker_queue_url: str | None = Field(None, description="SQS queue of segments that were uploaded")
    segment_output_queue_url: str | None = Field(None, description="SQS queue of new objects in the output bucket")
    reassembly_queue_url: str | None = Field(None, description="SQS queue of jobs whose segments are all done")
    inference_backend: str = Field(
        "stub",
        min_length=1,
        description="analyses segments: `stub` returns them unchanged; `http`: INFERENCE_HTTP_URL; `sagemaker`; "
        "`pipeline`: in the worker itself; or a plug-in's name",
    )
    inference_http_url: str | None = Field(None, description="service that answers `/invocations`, for `http`")
    inference_max_in_flight: int = Field(5, ge=1, le=20, description="segments at the backend at once")
    sagemaker_endpoint_name: str | None = Field(None, description="asynchronous endpoint, for `sagemaker`")
    sagemaker_region: str | None = Field(None, description="region of SAGEMAKER_ENDPOINT_NAME; unset: AWS_REGION")
    sagemaker_invoke_timeout_seconds: int = Field(
        1200, ge=1, le=3600, description="seconds after which an invocation without an answer is given up and repeated"
    )
    segment_attempts: int = Field(3, ge=1, le=20, description="times a segment is tried before its job fails")
    segment_visibility_s: int = Field(
        120, ge=2, le=43_200, description="seconds a segment's message stays hidden; prolonged while it is worked on"
    )
    segment_folder: Path | None = Field(
        None, description="folder that `/invocations` may read and write by file: addresses; unset: none"
    )

    @field_validator("inference_http_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return web_address(value, "http://10.0.1.5:8080")


# --- all sections ---

S = TypeVar("S", bound=Section)


class Settings:
    """All sections. Each part of the service gets its own section.

    Raises:
        ConfigurationError: one line for each wrong variable: its name, the value seen, and a right value.
    """

    def __init__(self, **overrides: object) -> None:
        problems: list[str] = []

        def read(section: type[S]) -> S:
            given = {name: value for name, value in overrides.items() if name in section.model_fields}
            try:
                return section(**given)
            except ConfigurationError as error:
                problems.append(str(error))
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
        self.summary = read(SummarySettings)
        self.llm = read(LlmSettings)
        self.aws = read(AwsSettings)
        self.activity = read(ActivitySettings)
        self.redis = read(RedisSettings)
        self.kafka = read(KafkaSettings)
        self.fleet = read(FleetSettings)
        self.ingest = read(IngestSettings)
        self.sinks = read(SinkSettings)
        self.segments = read(SegmentSettings)
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
    SummarySettings,
    LlmSettings,
    AwsSettings,
    ActivitySettings,
    RedisSettings,
    KafkaSettings,
    FleetSettings,
    IngestSettings,
    SinkSettings,
    SegmentSettings,
)


VARIABLES: dict[str, FieldInfo] = {
    name.upper(): field for section in SECTIONS for name, field in section.model_fields.items() if not is_fixed(field)
}
"""Every setting, by its variable."""

SECRETS = tuple(name for name, field in VARIABLES.items() if is_secret(field))
"""Settings whose values are never logged. Each may come from the file that `NAME_FILE` names."""


_REMOVED = {
    "LLM_SESSION_COST": "LLM_SESSION_TOKENS bounds what a session may use",
    "LLM_HOUR_COST": "LLM_HOUR_TOKENS bounds what all sessions may use in an hour",
    "LLM_INPUT_PRICE": "the model's use is bounded in tokens",
    "LLM_OUTPUT_PRICE": "the model's use is bounded in tokens",
}
"""Variables of earlier versions that were removed, and what replaces them."""


def ignored_variables() -> list[str]:
    """A sentence for each variable that is set and was a setting in an earlier version."""
    seen = variables()
    fixed = {
        name.upper(): field.description
        if field.default_factory
        else f"it is always {field.default} ({field.description})"
        for section in SECTIONS
        for name, field in section.model_fields.items()
        if is_fixed(field)
    }
    return [
        f"{name}={seen[name]!r} is ignored, because it is no setting any more: {why}"
        for name, why in {**fixed, **_REMOVED}.items()
        if name in seen
    ]


@contextmanager
def starting(part: str) -> Iterator[None]:
    """Makes whatever a part raises while it starts a ConfigurationError that names the part, or its wrong settings.

    For parts that others wrote, which may read settings of their own: subclasses of `Section`.
    """
    try:
        yield
    except SightlineError:
        raise
    except ValidationError as error:
        raise ConfigurationError("\n".join(_explain(error))) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {shortened(str(error))}"
        raise ConfigurationError(f"{part} cannot be started: {reason}") from error


def _explain(error: ValidationError) -> list[str]:
    """A line for each wrong variable of a section: its name, the value seen, and what would be right."""
    lines = []
    for detail in error.errors():
        if detail["type"] == "default_factory_not_called":  # its default follows from a wrong value
            continue
        name = str(detail["loc"][0]).upper() if detail["loc"] else "settings"
        seen = "a secret" if name in SECRETS else repr(detail["input"])
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable")[0]
        lines.append(f"{name}={seen}: should be {message}")
    return lines
