"""The language model's client against a real HTTP server that speaks OpenAI's chat protocol."""

import asyncio
import json
from time import monotonic

import pytest

from app.summary import NoAnswer, Spent, llm
from app.summary.answer import SummaryAnswer, parse_answer
from tests.summary.asking import Counted, ask, model, until
from tests.support import openai
from tests.support.openai import USAGE, answer, speaking

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(llm, "FIRST_S", 0.01)


async def refused(language_model, spent=None):
    with pytest.raises(NoAnswer) as caught:
        await ask(language_model, spent)
    return caught.value.reason


async def test_an_answer_and_what_is_sent_for_it():
    read, wrote = (Counted("sightline_llm_tokens_total", direction=way) for way in ("input", "output"))
    spent = Spent()
    with speaking() as fake:
        async with model(fake, llm_api_key="secret", llm_max_output_tokens=700) as language_model:
            words = await ask(language_model, spent)
    assert (words.title, words.confidence) == ("Two people at a gate", 0.8)
    (sent,) = fake.received
    assert sent.headers["authorization"] == "Bearer secret"
    assert sent.body["model"] == "test-model"
    assert [message["role"] for message in sent.body["messages"]] == ["system", "user"]
    assert sent.texts == ["the rules", "the question"]
    assert sent.body["max_completion_tokens"] == 700
    form = sent.body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    schema = form["json_schema"]["schema"]
    assert schema["required"] == ["title", "scene", "activities", "visible_text", "concerns", "confidence"]
    assert schema["additionalProperties"] is False
    assert (read.more, wrote.more) == USAGE
    assert spent.tokens == sum(USAGE)


@pytest.mark.parametrize(
    "behaviour", [openai.says("I see two people."), answer(confidence="high"), openai.page, openai.refuses]
)
async def test_what_does_not_fit_is_asked_for_once_more(behaviour):
    with speaking(behaviour, answer(title="The second")) as fake:
        async with model(fake) as language_model:
            assert (await ask(language_model)).title == "The second"
    again = fake.received[1].texts
    assert again[0].startswith("the rules")
    assert again[1] == "the question"
    assert again[2].startswith("Your last answer could not be used: ")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (openai.says("I see two people."), "unparsable"),
        (openai.says('{"title": "cut', finish="length"), "unparsable"),
        (openai.page, "unparsable"),
        (openai.refuses, "refused"),
        (openai.fails(401), "unauthorized"),
        (openai.fails(400), "rejected"),
        (openai.fails(500), "unavailable"),
        (openai.fails(429), "rate_limited"),
        (openai.cuts, "unavailable"),
    ],
)
async def test_no_summary_has_a_reason_and_a_counter(behaviour, reason):
    asked_twice = reason in ("unparsable", "refused")
    counted = Counted("sightline_llm_requests_total", outcome=reason)
    with speaking(behaviour) as fake:
        async with model(fake) as language_model:
            assert await refused(language_model) == reason
    # What is rejected is asked for in each of the four forms.
    assert counted.more == len(fake.received) == (4 if reason == "rejected" else 2 if asked_twice else 1)


async def test_a_reason_says_what_to_look_at():
    with speaking(openai.fails(401)) as fake:
        async with model(fake, llm_api_key="my secret") as language_model:
            with pytest.raises(NoAnswer, match=r"the server rejects the key, see LLM_API_KEY \(.*status 401\)"):
                await ask(language_model)
    with speaking(openai.hangs) as fake:
        async with model(fake, llm_timeout_s=0.1) as language_model:
            with pytest.raises(NoAnswer, match=r"no answer within LLM_TIMEOUT_S \(TimeoutError\)"):
                await ask(language_model)


@pytest.mark.parametrize("behaviour", [openai.hangs, openai.drips])
async def test_a_model_that_never_ends_is_given_up_after_its_time(behaviour):
    spent = Spent()
    with speaking(behaviour) as fake:
        async with model(fake, llm_timeout_s=2, llm_retries=3) as language_model:
            assert await refused(language_model, spent) == "timeout"
    assert len(fake.received) == 1  # not repeated: the model had its time
    assert spent.tokens > 2000  # it read the question, and may have written all that it was allowed to


async def test_nobody_listens():
    with speaking() as fake:
        pass
    async with model(fake) as language_model:
        assert await refused(language_model) == "unavailable"


async def test_what_failed_on_the_way_is_repeated():
    failed = Counted("sightline_llm_requests_total", outcome="unavailable")
    with speaking(openai.fails(500), openai.fails(503), answer()) as fake:
        async with model(fake, llm_retries=2) as language_model:
            assert (await ask(language_model)).confidence == 0.8
    assert failed.more == 2
    assert len(fake.received) == 3


async def test_a_server_that_asks_for_time_is_given_it():
    with speaking(openai.fails(429, retry_after="1"), answer()) as fake:
        async with model(fake, llm_retries=1) as language_model:
            begun = asyncio.get_running_loop().time()
            await ask(language_model)
            assert asyncio.get_running_loop().time() - begun >= 1.0


async def test_the_time_that_a_server_asks_for_holds_for_every_session_and_after_the_last_try():
    times = []

    def noted(behaviour):
        def behave(exchange):
            times.append(monotonic())
            behaviour(exchange)

        return behave

    with speaking(noted(openai.fails(429, retry_after="0.4")), noted(answer())) as fake:
        async with model(fake) as language_model:
            assert await refused(language_model) == "rate_limited"
            await asyncio.gather(ask(language_model), ask(language_model))
            assert language_model.breaker == "closed"
    assert min(times[1:]) - times[0] >= 0.4


async def test_an_answer_to_a_request_sent_before_does_not_cut_that_time_short():
    with speaking(openai.slow(0.4, answer()), openai.fails(429, retry_after="60")) as fake:
        async with model(fake) as language_model:
            opened = Counted("sightline_llm_breaker_open")
            before = asyncio.create_task(ask(language_model))
            await until(lambda: fake.received)
            assert await refused(language_model) == "rate_limited"
            assert (await before).confidence == 0.8
            assert (language_model.breaker, opened.more) == ("open", 1)


async def test_what_one_session_saw_and_the_model_refuses_silences_no_other():
    with speaking(openai.refuses) as fake:
        async with model(fake, llm_breaker_failures=1) as language_model:
            assert await refused(language_model) == "refused"
            assert language_model.breaker == "closed"


async def test_a_server_that_asks_for_more_time_than_anybody_waits_is_left_alone():
    with speaking(openai.fails(429, retry_after="60"), answer()) as fake:
        async with model(fake, llm_retries=5) as language_model:
            assert await refused(language_model) == "rate_limited"
            assert language_model.breaker == "open"
            assert await refused(language_model) == "breaker_open"
    assert len(fake.received) == 1


async def test_the_breaker_opens_tries_once_and_closes():
    with speaking(*[openai.fails(500)] * 3, openai.fails(500), answer()) as fake:
        async with model(fake, llm_breaker_failures=3, llm_breaker_s=1.5) as language_model:
            opened = Counted("sightline_llm_breaker_open")
            for _ in range(3):
                await refused(language_model)
            assert (language_model.breaker, opened.more) == ("open", 1)
            assert await refused(language_model) == "breaker_open"
            assert len(fake.received) == 3
            await until(lambda: language_model.breaker == "half-open")
            assert await refused(language_model) == "unavailable"  # the one that tries fails
            assert language_model.breaker == "open"
            await until(lambda: language_model.breaker == "half-open")
            await ask(language_model)
            assert (language_model.breaker, opened.more) == ("closed", 0)


@pytest.mark.parametrize("behaviour", [openai.page, openai.refuses, openai.says("no summary")])
async def test_an_answer_that_does_not_fit_does_not_hold_up_the_next_try(behaviour):
    with speaking(openai.fails(500), behaviour, answer()) as fake:
        async with model(fake, llm_breaker_failures=1, llm_breaker_s=0.1) as language_model:
            await refused(language_model)
            await asyncio.sleep(0.1)
            assert (await ask(language_model)).confidence == 0.8
            assert language_model.breaker == "closed"


async def test_a_key_that_the_server_quotes_is_not_logged(caplog):
    def quotes(exchange):
        exchange.json({"error": {"message": f"bad key {exchange.received.headers['authorization']}"}}, 401)

    with speaking(quotes) as fake:
        async with model(fake, llm_api_key="sk-hush-hush", llm_breaker_failures=1) as language_model:
            with pytest.raises(NoAnswer, match="bad key Bearer …") as caught:
                await ask(language_model)
    assert "see LLM_API_KEY" in caplog.text
    assert "hush" not in caplog.text + str(caught.value)


async def test_of_many_only_one_tries_a_model_that_was_left_alone():
    with speaking(openai.fails(500), openai.slow(0.2, answer())) as fake:
        async with model(fake, llm_breaker_failures=1, llm_breaker_s=0.1) as language_model:
            await refused(language_model)
            await asyncio.sleep(0.1)
            told = await asyncio.gather(*(ask(language_model) for _ in range(6)), return_exceptions=True)
    assert len(fake.received) == 2
    assert sum(isinstance(reply, NoAnswer) and reply.reason == "breaker_open" for reply in told) >= 3


async def test_no_more_than_allowed_are_in_flight():
    with speaking(openai.slow(0.3, answer())) as fake:
        async with model(fake, llm_max_in_flight=3) as language_model:
            await asyncio.gather(*(ask(language_model) for _ in range(10)))
    assert fake.most_in_flight == 3
    assert len(fake.received) == 10


async def test_a_session_that_spent_its_tokens_gets_none_and_others_do():
    with speaking() as fake:
        async with model(fake, llm_session_tokens=1100, llm_max_output_tokens=400) as language_model:
            spent = Spent()
            await ask(language_model, spent)
            assert await refused(language_model, spent) == "budget"
            await ask(language_model, Spent())
            assert spent.tokens == sum(USAGE)
            assert language_model.breaker == "closed"
    assert len(fake.received) == 2


async def test_a_server_that_says_it_took_nothing_is_not_believed():
    def nothing(exchange):
        message = {"role": "assistant", "content": json.dumps(openai.ANSWER), "refusal": None}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "usage": usage}
        exchange.json({**head, "choices": [openai.choice("stop", message=message)]})

    spent = Spent()
    with speaking(nothing) as fake:
        async with model(fake) as language_model:
            await ask(language_model, spent)
    assert spent.tokens > len(json.dumps(fake.received[0].body["messages"])) / 4


async def test_the_hours_tokens_hold_over_all_sessions():
    with speaking() as fake:
        async with model(fake, llm_max_output_tokens=400, llm_hour_tokens=3000) as language_model:
            told = await asyncio.gather(*(ask(language_model, Spent()) for _ in range(9)), return_exceptions=True)
    assert {str(answer) for answer in told if isinstance(answer, NoAnswer)} == {"LLM_HOUR_TOKENS is reached"}
    assert 0 < len(fake.received) * sum(USAGE) <= 3000


async def test_giving_up_in_the_middle_leaves_nothing_behind():
    before = asyncio.all_tasks()
    with speaking(openai.hangs) as fake:
        async with model(fake) as language_model:
            asking = asyncio.create_task(ask(language_model))
            await until(lambda: fake.received)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert language_model.breaker == "closed"
            fake.script = [answer()]
            assert (await ask(language_model)).confidence == 0.8  # the slot is free again
        assert asyncio.all_tasks() == before


async def test_nothing_is_reported_to_langsmith(monkeypatch):
    """LangSmith's variables may be set on the machine for another program."""
    with speaking() as langsmith, speaking() as fake:
        for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
            monkeypatch.setenv(name, "true")
        monkeypatch.setenv("LANGSMITH_ENDPOINT", f"http://127.0.0.1:{langsmith.port}")
        monkeypatch.setenv("LANGSMITH_API_KEY", "lsv2_test")
        monkeypatch.setenv("LANGSMITH_GATEWAY", f"http://127.0.0.1:{langsmith.port}")
        from langchain_core.callbacks.manager import CallbackManager
        from langsmith.utils import get_env_var

        get_env_var.cache_clear()
        try:
            async with model(fake) as language_model:
                await ask(language_model)
            traced = [type(handler).__name__ for handler in CallbackManager.configure().handlers]
        finally:
            monkeypatch.undo()
            get_env_var.cache_clear()
        assert "LangChainTracer" in traced  # outside our requests the variables do work: the test can fail
        assert len(fake.received) == 1
        assert langsmith.received == []


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_the_server_of_the_tests_speaks_the_protocol_as_langchains_client_does(method, streaming):
    """Both ways to request structured output, whole and streamed: the fake server must act like a provider."""
    from langchain_openai import ChatOpenAI
    from openai import DefaultAsyncHttpxClient

    with speaking() as fake:
        async with DefaultAsyncHttpxClient() as http:
            chat = ChatOpenAI(
                model="m",
                base_url=fake.url,
                api_key="k",
                streaming=streaming,
                stream_usage=True,
                http_async_client=http,
            )
            form = chat.with_structured_output(
                SummaryAnswer.model_json_schema(), method=method, strict=True, include_raw=True
            )
            told = await form.ainvoke("hello")
    assert parse_answer(told["raw"]).title == "Two people at a gate"
    if not streaming:  # streamed with a schema, the client puts them elsewhere
        assert (told["raw"].usage_metadata["input_tokens"], told["raw"].usage_metadata["output_tokens"]) == USAGE
    assert bool(fake.received[0].body.get("stream")) is streaming
