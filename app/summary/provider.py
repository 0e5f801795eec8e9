"""The chat model behind LLM_MODEL, made by LangChain, which is imported only here and only if a model is configured.

`connect` takes two seconds for imports, so call it in a thread.

The server at LLM_BASE_URL is not trusted: its answers are bounded in bytes and must be uncompressed, and its redirects
are not followed, because a redirect could send what cameras showed to another server.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import SecretStr

from app.errors import ConfigurationError, SightlineError
from app.settings import LlmSettings
from app.summary.answer import SummaryAnswer

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable


class UnusableAnswer(SightlineError):
    """A response that is rejected before its end: a redirect, a compressed one, or one longer than any summary."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of models that LangChain supports."""

    package: str
    """The integration's module."""
    extra: str | None
    """The extra of this project that installs it; None if it is always installed."""
    key: str | None
    """Environment variable of its key; None if it needs none."""
    address: str
    """Its own URL. Always passed on, so that no variable of LangChain or an SDK redirects what cameras showed."""


PROVIDERS = {
    "openai": Provider("langchain_openai", None, "OPENAI_API_KEY", "https://api.openai.com/v1"),
    "anthropic": Provider("langchain_anthropic", "anthropic", "ANTHROPIC_API_KEY", "https://api.anthropic.com"),
    "ollama": Provider("langchain_ollama", "ollama", None, "http://127.0.0.1:11434"),
}


Form = Literal["json_schema", "json_object", "tool", "text"]
"""How a model is made to answer in the form of a summary. Servers of OpenAI's protocol support some of these."""

_FORMS: dict[str, tuple[Form, ...]] = {
    "openai": ("json_schema", "json_object", "tool", "text"),
    "anthropic": ("tool", "text"),
    "ollama": ("json_schema", "json_object", "tool", "text"),
}
_ENVELOPE_BYTES = 256 * 1024
_TOKEN_BYTES = 512
"""Most bytes of a response, and more for each token of LLM_MAX_OUTPUT_TOKENS: Ollama wraps each in a JSON object."""


@dataclass(frozen=True, slots=True)
class ChatModel:
    """An open chat model."""

    forms: dict[Form, Runnable[Any, Any]]
    """By form, the most reliable first: a runnable that takes `Messages` and returns an AIMessage of LangChain."""
    close: Callable[[], Awaitable[None]]
    """Closes its connections."""


def check(settings: LlmSettings) -> tuple[Provider, str, str]:
    """Checks the settings.

    Returns:
        The provider, its name, and the model's name.

    Raises:
        ConfigurationError: LLM_MODEL is not `provider:model`, its package is missing, or there is no key.
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
    return provider, name, model


def _key(settings: LlmSettings, name: str) -> SecretStr | None:
    own = {"openai": settings.openai_api_key, "anthropic": settings.anthropic_api_key}
    if settings.llm_api_key is not None:
        return settings.llm_api_key
    # The provider's own key is sent to the provider only, never to another server.
    return own.get(name) if settings.llm_base_url is None else None


def connect(settings: LlmSettings) -> ChatModel:
    """Imports the integration of LLM_MODEL and makes the model. Sends nothing.

    Raises:
        ConfigurationError: as `check`, or the integration rejects the settings.
    """
    provider, name, model = check(settings)
    from langchain.chat_models import init_chat_model

    key = _key(settings, name) or SecretStr("none-given")
    options: dict[str, Any] = {"base_url": settings.llm_base_url or provider.address}
    most = _ENVELOPE_BYTES + _TOKEN_BYTES * settings.llm_max_output_tokens
    close = _nothing_to_close
    if name == "ollama":
        options |= {
            "num_predict": settings.llm_max_output_tokens,
            "client_kwargs": {"timeout": settings.llm_timeout_s},
            "async_client_kwargs": {
                "follow_redirects": False,
                "event_hooks": {"response": [_guard(most)]},
                "headers": {"accept-encoding": "identity"},
            },
        }
    else:
        # `llm` retries, because retries of the SDK are neither counted nor known to the circuit breaker.
        options |= {"api_key": key, "max_retries": 0, "timeout": settings.llm_timeout_s}
        options["max_tokens"] = settings.llm_max_output_tokens
    if name == "openai":
        import openai

        # LangChain's own client is shared by the whole process and cannot be closed.
        client = openai.DefaultAsyncHttpxClient(timeout=settings.llm_timeout_s)
        _harden(client, most)
        options |= {
            "http_async_client": client,
            "http_socket_options": (),
        }  # LangChain's own options would ignore proxies
        close = client.aclose
    try:
        chat = init_chat_model(model, model_provider=name, **options)
    except ValueError as error:  # pydantic's ValidationError is one
        raise ConfigurationError(f"LLM_MODEL={settings.llm_model!r} cannot be used: {_first_line(error)}") from None
    if name == "anthropic":
        _harden(chat._async_client._client, most)  # its integration accepts no client
    return ChatModel({form: _bound(chat, name, form) for form in _FORMS[name]}, close)


def _bound(chat: Any, name: str, form: Form) -> Runnable[Any, Any]:
    """The model, made to answer in this form.

    LangChain's `with_structured_output` binds the same, but parses the answer by repairing broken JSON in quadratic
    time, so that 100 kB of braces would block the event loop for minutes. `answer.parse_answer` parses it instead.
    """
    schema = SummaryAnswer.model_json_schema()
    tool = {"type": "function", "function": {"name": "answer", "description": schema["description"]}}
    tool["function"]["parameters"] = schema  # type: ignore[index]
    bound: Runnable[Any, Any] = chat
    if form == "tool":
        bound = chat.bind_tools([tool], tool_choice="answer")
    elif form == "json_schema" and name == "openai":
        wanted = {"name": "answer", "strict": True, "schema": schema}
        bound = chat.bind(response_format={"type": "json_schema", "json_schema": wanted})
    elif form == "json_object" and name == "openai":
        bound = chat.bind(response_format={"type": "json_object"})
    elif name == "ollama" and form != "text":
        bound = chat.bind(format=schema if form == "json_schema" else "json")
    return bound


def _harden(client: Any, most: int) -> None:
    """Makes an `AsyncClient` of httpx or httpx2 follow no redirects and read at most `most` bytes of a response."""
    client.follow_redirects = False
    client.headers["accept-encoding"] = "identity"
    client.event_hooks = {**client.event_hooks, "response": [_guard(most)]}


def _guard(most: int) -> Callable[[Any], Awaitable[None]]:
    async def guard(response: Any) -> None:
        """The client calls this with each response before its body is read."""
        if response.status_code // 100 == 3:
            raise UnusableAnswer(
                f"it answers {response.status_code}, a redirect, and redirects are not followed: "
                "set LLM_BASE_URL to the address that it redirects to"
            )
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise UnusableAnswer(f"its answer is compressed ({encoding[:20]}) though it was asked not to be")
        response.stream = _bounded(sys.modules[type(response).__module__.partition(".")[0]])(response.stream, most)

    return guard


@cache
def _bounded(library: Any) -> Any:
    """A class of response body, for httpx or httpx2, that raises after so many bytes."""

    class Bounded(library.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any, most: int) -> None:
            self._stream, self._most = stream, most

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = self._most
            async for chunk in self._stream:
                left -= len(chunk)
                if left < 0:
                    raise UnusableAnswer(
                        f"its answer has more than {self._most:,} bytes, more than LLM_MAX_OUTPUT_TOKENS can take"
                    )
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Bounded


async def _nothing_to_close() -> None:
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
