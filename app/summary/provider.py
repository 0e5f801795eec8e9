"""The chat model behind LLM_MODEL, made by LangChain. LangChain is imported here alone, and only when a model is named.

Two seconds of imports: call `connect` in a thread.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from app.errors import ConfigurationError
from app.settings import LlmSettings
from app.summary.answer import Answer

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable


@dataclass(frozen=True, slots=True)
class Provider:
    """What we know of a provider."""

    package: str
    extra: str | None
    """Of this project; None: installed always."""
    key: str | None
    """Variable of its key; None: it wants none."""
    address: str
    """Its own. Given always, so that no variable of LangChain or of an SDK sends what cameras saw elsewhere."""


PROVIDERS = {
    "openai": Provider("langchain_openai", None, "OPENAI_API_KEY", "https://api.openai.com/v1"),
    "anthropic": Provider("langchain_anthropic", "anthropic", "ANTHROPIC_API_KEY", "https://api.anthropic.com"),
    "ollama": Provider("langchain_ollama", "ollama", None, "http://127.0.0.1:11434"),
}


@dataclass(frozen=True, slots=True)
class Chat:
    """An open chat model."""

    structured: Runnable[Any, Any]
    """Messages in; `{raw: AIMessage, parsed: dict | None, parsing_error}` out."""
    close: Callable[[], Awaitable[None]]


def check(settings: LlmSettings) -> tuple[Provider, str, str]:
    """Provider, its name, and the model's name.

    Raises:
        ConfigurationError: LLM_MODEL is no `provider:model`, its package is missing, there is no key, or a bound of
            cost has no prices.
    """
    wanted = settings.llm_model or ""
    name, colon, model = wanted.partition(":")
    known = ", ".join(PROVIDERS)
    if not colon or not model.strip():
        raise ConfigurationError(
            f"LLM_MODEL={wanted!r}: should be provider:model, such as openai:gpt-5-mini; providers: {known}"
        )
    if name not in PROVIDERS:
        raise ConfigurationError(
            f"LLM_MODEL={wanted!r}: the provider {name!r} should be one of {known}; "
            "a server that speaks OpenAI's protocol is openai with LLM_BASE_URL"
        )
    provider = PROVIDERS[name]
    if importlib.util.find_spec(provider.package) is None:
        raise ConfigurationError(
            f"LLM_MODEL={wanted!r} wants the package {provider.package.replace('_', '-')}, which is not installed: "
            f"pip install 'sightline[{provider.extra}]'"
        )
    if provider.key and settings.llm_base_url is None and _key(settings, name) is None:
        raise ConfigurationError(
            f"LLM_MODEL={wanted!r} wants a key: set LLM_API_KEY or {provider.key}, "
            "or LLM_BASE_URL for a server of your own that asks for none"
        )
    bound = settings.llm_session_cost or settings.llm_hour_cost
    if bound and not (settings.llm_input_price or settings.llm_output_price):
        variable = "LLM_SESSION_COST" if settings.llm_session_cost else "LLM_HOUR_COST"
        raise ConfigurationError(
            f"{variable}={bound:g} bounds nothing while a token costs nothing: set LLM_INPUT_PRICE and LLM_OUTPUT_PRICE"
        )
    return provider, name, model


def _key(settings: LlmSettings, name: str) -> SecretStr | None:
    own = {"openai": settings.openai_api_key, "anthropic": settings.anthropic_api_key}
    if settings.llm_api_key is not None:
        return settings.llm_api_key
    # A key of the provider's goes to the provider alone, never to another server.
    return own.get(name) if settings.llm_base_url is None else None


def connect(settings: LlmSettings) -> Chat:
    """Imports what LLM_MODEL wants and makes the model. Nothing is sent yet.

    Raises:
        ConfigurationError: as `check`, or the integration does not take the settings.
    """
    provider, name, model = check(settings)
    from langchain.chat_models import init_chat_model

    key = _key(settings, name) or SecretStr("none-given")
    options: dict[str, Any] = {"base_url": settings.llm_base_url or provider.address}
    how: dict[str, Any] = {}
    close = _nothing_to_close
    if name == "ollama":
        options |= {
            "num_predict": settings.llm_max_output_tokens,
            "client_kwargs": {"timeout": settings.llm_timeout_s},
        }
    else:
        # Retries are ours: what the SDK repeats by itself is neither counted, nor seen by the breaker.
        options |= {"api_key": key, "max_retries": 0, "timeout": settings.llm_timeout_s}
        options["max_tokens"] = settings.llm_max_output_tokens
    if name == "openai":
        import openai

        # One of our own: LangChain's is shared by all that ever ran in the process, and cannot be closed.
        client = openai.DefaultAsyncHttpxClient(timeout=settings.llm_timeout_s)
        options["http_async_client"] = client
        how, close = {"method": "json_schema", "strict": True}, client.aclose
    try:
        chat = init_chat_model(model, model_provider=name, **options)
    except (ImportError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise ConfigurationError(f"LLM_MODEL={settings.llm_model!r} cannot be used: {_first_line(error)}") from None
    # The schema as a dict: with the class, the SDK parses by itself, and an answer that does not fit loses its usage.
    schema = Answer.model_json_schema()
    return Chat(chat.with_structured_output(schema, include_raw=True, **how), close)


async def _nothing_to_close() -> None:
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
