"""Settings: frozen sections, one for each part, read once from the environment (or `.env`) and passed on.

Only commands read the environment. The README's table lists every variable; a test holds the two together.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from app.errors import ConfigurationError
from app.settings.section import ROOT, Section, is_fixed, is_secret, secret_given, service_token, variables
from app.settings.sections import (
    AccessSettings,
    ActivitySettings,
    AwsSettings,
    FleetSettings,
    IngestSettings,
    KafkaSettings,
    LiveSettings,
    LlmSettings,
    OcrSettings,
    PipelineSettings,
    RedisSettings,
    SegmentSettings,
    ServerSettings,
    SummarySettings,
    TritonSettings,
    WebSettings,
)

__all__ = [
    "ROOT",
    "SECRETS",
    "SECTIONS",
    "VARIABLES",
    "AccessSettings",
    "ActivitySettings",
    "AwsSettings",
    "FleetSettings",
    "IngestSettings",
    "KafkaSettings",
    "LiveSettings",
    "LlmSettings",
    "OcrSettings",
    "PipelineSettings",
    "RedisSettings",
    "Section",
    "SegmentSettings",
    "ServerSettings",
    "Settings",
    "SummarySettings",
    "TritonSettings",
    "WebSettings",
    "ignored_variables",
    "secret_given",
    "service_token",
]

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


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors():
        if detail["type"] == "default_factory_not_called":  # its default follows from a wrong value
            continue
        name = str(detail["loc"][0]).upper() if detail["loc"] else "settings"
        seen = "a secret" if name in SECRETS else repr(detail["input"])
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable")[0]
        lines.append(f"{name}={seen}: should be {message}")
    return lines
