"""Settings of summaries: the backlog of observations, and the language model that summarizes them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from app.settings.section import ROOT, Section, fixed, web_address


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
