"""LLM_MODEL and its key: an error stops the start and names the variable."""

import pytest

from app.errors import ConfigurationError
from app.settings import LlmSettings
from app.summary.provider import check


def settings(**given):
    keys = {"llm_api_key": None, "openai_api_key": None, "anthropic_api_key": None, "llm_base_url": None}
    return LlmSettings(**{**keys, **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"llm_model": "gpt-5-mini"}, r"LLM_MODEL='gpt-5-mini': should be provider:model, such as openai:gpt-5-mini"),
        ({"llm_model": "openai:"}, r"LLM_MODEL='openai:': should be provider:model"),
        ({"llm_model": "closedai:x"}, r"the provider 'closedai' should be one of openai, anthropic, ollama"),
        ({"llm_model": "openai:x"}, r"LLM_MODEL='openai:x' wants a key: set LLM_API_KEY or OPENAI_API_KEY"),
    ],
)
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(ConfigurationError, match=said):
        check(settings(**given))


@pytest.mark.parametrize("name", ["anthropic", "ollama"])
def test_a_provider_that_is_an_extra_says_what_to_install(name, monkeypatch):
    found = pytest.importorskip("importlib.util").find_spec
    missing = f"langchain_{name}"
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == missing else found(wanted))
    with pytest.raises(ConfigurationError, match=rf"langchain-{name}, .*pip install 'sightline\[{name}\]'"):
        check(settings(llm_model=f"{name}:x", llm_api_key="k"))


@pytest.mark.parametrize(
    "given", [{"llm_api_key": "k"}, {"openai_api_key": "k"}, {"llm_base_url": "http://127.0.0.1:9/v1"}]
)
def test_a_key_or_a_server_of_ones_own_will_do(given):
    _, name, model = check(settings(llm_model="openai:org/model:7b", **given))
    assert (name, model) == ("openai", "org/model:7b")


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("LLM_MODEL", "")
    monkeypatch.setenv("LLM_API_KEY", "")
    read = LlmSettings()
    assert (read.llm_model, read.llm_api_key) == (None, None)


def test_keys_are_never_shown():
    assert "hush" not in repr(settings(llm_api_key="hush", openai_api_key="hush"))
