"""Removes a developer's own settings, keys and proxies, so that they do not change the tests."""

import os

import pytest

_OTHERS = ("LLM_", "SUMMARY_", "OPENAI_", "ANTHROPIC_", "LANGSMITH_", "LANGCHAIN_")


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(_OTHERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
