"""Keys of the language model: copied from pages, read from files."""

import pytest
from pydantic import SecretStr, ValidationError

from app.errors import ConfigurationError
from app.settings import LlmSettings, Settings

KEYS = ("llm_api_key", "openai_api_key", "anthropic_api_key")


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("key", ["sk-hush…x", "sk-hushé", "sk-hush\nmore", "sk-hush\x00", "sk-hush\u00a0x"])
def test_a_key_that_no_request_can_carry_is_named_and_not_shown(monkeypatch, name, key):
    if "\x00" in key:  # no environment holds it
        with pytest.raises(ConfigurationError) as caught:
            Settings(**{name: key})
    else:
        monkeypatch.setenv(name.upper(), key)
        with pytest.raises(ConfigurationError) as caught:
            Settings()
    assert str(caught.value).startswith(f"{name.upper()}=a secret: should be printable ASCII")
    assert "hush" not in str(caught.value)
    with pytest.raises(ValidationError) as caught:
        LlmSettings(**{name: SecretStr(key)})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", KEYS)
def test_what_is_around_a_key_is_no_part_of_it(monkeypatch, name):
    monkeypatch.setenv(name.upper(), " sk-hush\r\n")
    assert getattr(Settings().llm, name).get_secret_value() == "sk-hush"
    monkeypatch.setenv(name.upper(), " \n")
    assert getattr(Settings().llm, name) is None
    assert getattr(LlmSettings(**{name: SecretStr("sk-hush\n")}), name).get_secret_value() == "sk-hush"
