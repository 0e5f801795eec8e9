"""The clients of the other makers, behind their extras, against servers that speak their protocols."""

import pytest

from app.settings import LlmSettings
from app.summary import LanguageModel, NoAnswer, Spent, llm
from tests.summary.asking import ask
from tests.support.makers import made_by
from tests.support.openai import USAGE

pytestmark = pytest.mark.anyio
MAKERS = pytest.mark.parametrize("name", ["anthropic", "ollama"])


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(llm, "FIRST_S", 0.01)


async def asked(maker, spent=None, **more):
    pytest.importorskip(f"langchain_{maker.name}", reason=f"langchain-{maker.name} is missing: the extra {maker.name}")
    given = {"llm_model": f"{maker.name}:test-model", "llm_base_url": maker.url, "llm_api_key": "secret", **more}
    language_model = LanguageModel(LlmSettings(_env_file=None, **given))
    await language_model.open()
    try:
        return await ask(language_model, spent)
    finally:
        await language_model.close()


@MAKERS
async def test_an_answer_its_form_its_bounds_and_its_tokens(name):
    spent = Spent()
    with made_by(name) as maker:
        words = await asked(maker, spent, llm_max_output_tokens=700)
    assert (words.title, words.confidence, words.visible_text) == ("Two people at a gate", 0.8, ("GATE 7",))
    assert spent.tokens == sum(USAGE)
    (sent,) = maker.received
    assert sent.body["model"] == "test-model"
    assert "the question" in str(sent.body["messages"])
    assert "the rules" in str(sent.body)
    assert "visible_text" in str(sent.body.get("tools") or sent.body.get("format") or sent.body.get("output_config"))
    if name == "anthropic":
        assert sent.headers.get("x-api-key", sent.headers.get("authorization")) in ("secret", "Bearer secret")
        assert sent.body["max_tokens"] == 700
    else:
        assert sent.body["options"]["num_predict"] == 700


@MAKERS
@pytest.mark.parametrize(("status", "reason"), [(401, "unauthorized"), (429, "rate_limited"), (500, "unavailable")])
async def test_a_failure_is_told_apart_and_repeated_by_us_alone(name, status, reason):
    with made_by(name) as maker:
        maker.status = status
        with pytest.raises(NoAnswer) as caught:
            await asked(maker, llm_retries=1)
    assert caught.value.reason == reason
    assert len(maker.received) == (1 if status == 401 else 2)
