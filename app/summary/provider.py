"""The chat model behind LLM_MODEL, made by LangChain. LangChain is imported here alone, and only when a model is named.

Two seconds of imports: call `connect` in a thread.

What listens at LLM_BASE_URL is not trusted with more than a summary: its answers are bounded in bytes, come
uncompressed, and redirects are not followed, or it could send what cameras saw elsewhere.
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
from app.summary.answer import Answer

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable


class UnusableAnswer(SightlineError):
    """An answer that is not read to its end: a redirect, or more bytes than any summary has. The message says which."""


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


Form = Literal["json_schema", "json_object", "tool", "text"]
"""How a model is made to answer with the form of a summary. Servers of OpenAI's protocol know some of them."""

_FORMS: dict[str, tuple[Form, ...]] = {
    "openai": ("json_schema", "json_object", "tool", "text"),
    "anthropic": ("tool", "text"),
    "ollama": ("json_schema", "json_object", "tool", "text"),
}
_ENVELOPE_BYTES = 256 * 1024
_TOKEN_BYTES = 512
"""Of an answer, and for each token of LLM_MAX_OUTPUT_TOKENS: Ollama's come one by one, each in a JSON object."""


@dataclass(frozen=True, slots=True)
class Chat:
    """An open chat model."""

    forms: dict[Form, Runnable[Any, Any]]
    """The best first. Messages in, AIMessage out."""
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
        # Retries are ours: what the SDK repeats by itself is neither counted, nor seen by the breaker.
        options |= {"api_key": key, "max_retries": 0, "timeout": settings.llm_timeout_s}
        options["max_tokens"] = settings.llm_max_output_tokens
    if name == "openai":
        import openai

        # One of our own: LangChain's is shared by all that ever ran in the process, and cannot be closed.
        client = openai.DefaultAsyncHttpxClient(timeout=settings.llm_timeout_s)
        _harden(client, most)
        options |= {"http_async_client": client, "http_socket_options": ()}  # its own would shut proxies out
        close = client.aclose
    try:
        chat = init_chat_model(model, model_provider=name, **options)
    except ValueError as error:  # pydantic's ValidationError is one
        raise ConfigurationError(f"LLM_MODEL={settings.llm_model!r} cannot be used: {_first_line(error)}") from None
    if name == "anthropic":
        _harden(chat._async_client._client, most)  # its integration takes no client of ours
    return Chat({form: _bound(chat, name, form) for form in _FORMS[name]}, close)


def _bound(chat: Any, name: str, form: Form) -> Runnable[Any, Any]:
    """The model, asked for the form of a summary in this way.

    LangChain's `with_structured_output` binds the same, and parses the answer by a repair of broken JSON whose time
    grows with the square of the text: 100 kB of braces would hold the event loop for minutes. We read it ourselves.
    """
    schema = Answer.model_json_schema()
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
    """Makes an `AsyncClient` of httpx or httpx2 follow no redirect and read no more than `most` bytes an answer."""
    client.follow_redirects = False
    client.headers["accept-encoding"] = "identity"
    client.event_hooks = {**client.event_hooks, "response": [_guard(most)]}


def _guard(most: int) -> Callable[[Any], Awaitable[None]]:
    async def guard(response: Any) -> None:
        """Called with each response before its body is read."""
        if response.status_code // 100 == 3:
            raise UnusableAnswer(
                f"it answers {response.status_code}, a redirect, and redirects are not followed: "
                "set LLM_BASE_URL to where it answers"
            )
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise UnusableAnswer(f"its answer is compressed ({encoding[:20]}) though it was asked not to be")
        response.stream = _bounded(sys.modules[type(response).__module__.partition(".")[0]])(response.stream, most)

    return guard


@cache
def _bounded(library: Any) -> Any:
    """The class of a body that ends with an error after so many bytes, for httpx or httpx2."""

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
