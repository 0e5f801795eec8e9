"""A server at LLM_BASE_URL that answers without end, compressed, by redirects, or does not know the form asked for."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.settings import LlmSettings
from app.summary import LanguageModel, NoAnswer, Spent, Summarizer, llm
from app.summary.answer import ITEMS
from tests.summary.asking import ask, model, settings
from tests.summary.seeing import observation, seen
from tests.support.openai import ANSWER, Exchange, speaking

pytestmark = pytest.mark.anyio
MAKERS = pytest.mark.parametrize("maker", ["openai", "anthropic", "ollama"])


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(llm, "FIRST_S", 0.01)


class Listener:
    """A server that answers every POST by one function; `requests` are the paths that it was asked for."""

    def __init__(self, behave: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.requests: list[str] = []
        self.written = 0
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                listener.requests.append(self.path)
                with suppress(BrokenPipeError, ConnectionResetError):
                    behave(self)

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def listening(behave: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Listener]:
    listener = Listener(behave)
    threading.Thread(target=listener.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield listener
    finally:
        listener.server.shutdown()
        listener.server.server_close()


async def refused(maker: str, url: str) -> NoAnswer:
    pytest.importorskip(f"langchain_{maker}", reason=f"langchain-{maker} is missing: the extra {maker}")
    base = f"{url}/v1" if maker == "openai" else url
    given = {"llm_model": f"{maker}:test-model", "llm_base_url": base, "llm_api_key": "secret", "llm_retries": 0}
    language_model = LanguageModel(LlmSettings(_env_file=None, llm_max_output_tokens=100, **given))
    await language_model.open()
    try:
        with pytest.raises(NoAnswer) as caught:
            await ask(language_model)
    finally:
        await language_model.close()
    return caught.value


@MAKERS
async def test_a7_an_answer_without_end_is_cut_off(maker: str):
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        kind = "application/x-ndjson" if maker == "ollama" else "application/json"
        handler.send_header("content-type", kind)
        handler.end_headers()
        line = json.dumps({"message": {"role": "assistant", "content": "x" * 4000}, "done": False}).encode() + b"\n"
        for _ in range(20_000):  # 80 MB
            handler.wfile.write(line if maker == "ollama" else b" " * 4096)
            listener.written += 4096

    with listening(endless) as listener:
        error = await refused(maker, listener.url)
    assert error.reason == "rejected"
    assert "more than 313,344 bytes" in str(error)
    assert len(listener.requests) == 1
    assert listener.written < 20_000_000  # what the kernel's buffers took besides


@MAKERS
async def test_a7_a_redirect_is_not_followed(maker: str):
    with listening(lambda handler: handler.send_error(500)) as elsewhere:

        def redirects(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(307)
            handler.send_header("location", f"{elsewhere.url}{handler.path}")
            handler.send_header("content-length", "0")
            handler.end_headers()

        with listening(redirects) as listener:
            error = await refused(maker, listener.url)
    assert (error.reason, elsewhere.requests, len(listener.requests)) == ("rejected", [], 1)
    assert "redirects are not followed: set LLM_BASE_URL to the address that it redirects to" in str(error)


@MAKERS
async def test_a7_a_compressed_answer_is_not_unpacked(maker: str):
    bomb = gzip.compress(b" " * 50_000_000)

    def packed(handler: BaseHTTPRequestHandler) -> None:
        assert handler.headers["accept-encoding"] == "identity"
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-encoding", "gzip")
        handler.send_header("content-length", str(len(bomb)))
        handler.end_headers()
        handler.wfile.write(bomb)

    with listening(packed) as listener:
        error = await refused(maker, listener.url)
    assert (error.reason, len(listener.requests)) == ("rejected", 1)
    assert "compressed (gzip)" in str(error)


@MAKERS
async def test_a7_an_error_without_end_is_cut_off(maker: str):
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(500)
        handler.send_header("content-type", "application/json")
        handler.end_headers()
        for _ in range(20_000):
            handler.wfile.write(b" " * 4096)
            listener.written += 4096

    with listening(endless) as listener:
        error = await refused(maker, listener.url)
    assert error.reason == "rejected"
    assert listener.written < 20_000_000


def form_of(exchange: Exchange) -> str:
    body = exchange.received.body
    if "tools" in body:
        return "tool"
    return {"json_schema": "json_schema", "json_object": "json_object"}.get(
        body.get("response_format", {}).get("type"), "text"
    )


def knows(*forms: str, status: int = 400, words: str = "'response_format.type' must be one of: text"):
    """A server that knows these forms and refuses a request for another."""

    def behave(exchange: Exchange) -> None:
        if form_of(exchange) in forms:
            exchange.completion(json.dumps(ANSWER))
        else:
            exchange.json({"error": {"message": words, "type": "invalid_request_error"}}, status)

    return behave


@pytest.mark.parametrize("status", [400, 422, 500, 501])
@pytest.mark.parametrize(("form", "tries"), [("json_schema", 1), ("json_object", 2), ("tool", 3), ("text", 4)])
async def test_d9_a_server_is_asked_in_a_form_that_it_knows(form: str, tries: int, status: int):
    with speaking(knows(form, status=status)) as fake:
        async with model(fake, llm_breaker_failures=2) as language_model:
            assert (await ask(language_model)).title == ANSWER["title"]
            assert (len(fake.received), language_model.form, language_model.breaker) == (tries, form, "closed")
            await ask(language_model)  # it is remembered
            assert len(fake.received) == tries + 1
    if form in ("json_object", "text"):  # nothing else tells the model what is wanted
        assert '"visible_text"' in fake.received[-1].texts[0]


@pytest.mark.parametrize(
    "words",
    [
        f"```json\n{json.dumps(ANSWER)}\n```",
        f"<think>The form is {{title, scene}}.</think>\n\n{json.dumps(ANSWER)}",
        f"Here you are: {json.dumps(ANSWER)} Anything else?",
    ],
)
async def test_d9_json_is_found_in_the_text_of_a_server_that_ignores_the_form(words: str):
    with speaking(lambda exchange: exchange.completion(words)) as fake:
        async with model(fake) as language_model:
            assert (await ask(language_model)).title == ANSWER["title"]
    assert len(fake.received) == 1


async def test_d9_a_server_that_answers_in_prose_until_it_is_shown_the_schema():
    def behave(exchange: Exchange) -> None:
        shown = '"visible_text"' in exchange.received.texts[0]
        exchange.completion(json.dumps(ANSWER) if shown else "Two people wait at a gate.")

    with speaking(behave) as fake:
        async with model(fake) as language_model:
            assert (await ask(language_model)).title == ANSWER["title"]
            assert language_model.form == "json_object"
    assert len(fake.received) == 2


async def test_d9_a_form_that_has_worked_stays_though_one_answer_is_bad():
    said = iter([json.dumps(ANSWER), "I see two people.", json.dumps(ANSWER), json.dumps(ANSWER)])
    with speaking(lambda exchange: exchange.completion(next(said))) as fake:
        async with model(fake) as language_model:
            for _ in range(3):
                await ask(language_model)
            assert language_model.form == "json_schema"
    assert len(fake.received) == 4


async def test_d9_an_endless_text_of_braces_is_looked_through_for_a_moment_only():
    with speaking(lambda exchange: exchange.completion("{" * 100_000)) as fake:
        async with model(fake) as language_model:
            with pytest.raises(NoAnswer) as caught:
                await ask(language_model)
    assert caught.value.reason == "unparsable"


async def test_d9_more_items_than_are_kept_are_cut():
    many = json.dumps({**ANSWER, "activities": [f"activity {n}" for n in range(50)]})
    with speaking(lambda exchange: exchange.completion(many)) as fake:
        async with model(fake) as language_model:
            assert len((await ask(language_model)).activities) == ITEMS


@pytest.mark.parametrize("proxy", ["ftp://127.0.0.1:9", "socks9://127.0.0.1:9"])
async def test_d9_a_proxy_that_the_client_does_not_know_costs_the_model_and_not_the_service(monkeypatch, proxy: str):
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("ALL_PROXY", proxy)
    summarizer = Summarizer(LlmSettings(llm_model="openai:x", llm_base_url="http://127.0.0.1:9/v1", _env_file=None))
    summarizer.check()
    await summarizer.open()
    try:
        health = summarizer.health()
        assert (health["state"], health["model"], health["form"]) == ("degraded", "openai:x", None)
        assert "proxy" in health["error"].lower()
        shown = [observation(objects=(seen("dog", 1, frames=20),))]
        async with summarizer.slot() as slot:
            summary, failed = await summarizer.summarize(shown, "", Spent(), slot=slot)
        assert (summary.source, summary.title, failed) == ("digest", "One dog", False)
    finally:
        await summarizer.close()


@contextmanager
def socks() -> Iterator[tuple[str, list[int]]]:
    """A SOCKS5 proxy without passwords (RFC 1928): its address, and the ports that it was asked for."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[int] = []

    def pump(a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.recv(262)
            client.sendall(b"\x05\x00")
            request = client.recv(262)
            port = int.from_bytes(request[-2:])
            asked.append(port)
            with socket.create_connection(("127.0.0.1", port)) as server:
                client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01" + request[-2:])
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"socks5://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.close()


async def test_d9_a_model_behind_a_socks_proxy_answers(monkeypatch):
    with speaking() as fake, socks() as (proxy, asked):
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("ALL_PROXY", proxy)
        language_model = LanguageModel(settings(fake))
        await language_model.open()
        try:
            assert (await ask(language_model)).title == ANSWER["title"]
        finally:
            await language_model.close()
    assert asked == [fake.port]
