"""`/ping` and `/invocations`: the real pipeline on a real Triton, videos in moto's S3 and in a folder."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from app.segments.video import probe
from app.settings import Settings
from tests.segments.test_analyze import counters
from tests.segments.test_truncated import cut_off, fast
from tests.support.aws import REGION, Aws
from tests.support.invocations import answering
from tests.support.movie import movie, packets, shown
from tests.support.seeing import squares

FRAMES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files may be read and written."""
    path = tmp_path_factory.mktemp("films")
    movie(path / "a film.mp4", seconds=FRAMES / 25, width=640, height=480)
    (path / "text.mp4").write_text("not a film")
    return path


@pytest.fixture(scope="module")
def url(canned_triton: str, aws: Aws, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws.environment.items():
            patch.setenv(name, value)
        settings = Settings(
            ocr="off",
            triton_url=canned_triton,
            segment_folder=folder,
            state_dir=tmp_path_factory.mktemp("state"),
            inference_max_in_flight=2,
        )
        with answering(settings) as address:
            yield address


def ask(url: str, source: str, target: str, mode: str = "annotate", **headers: str) -> httpx.Response:
    body = {"s3_input_uri": source, "s3_output_uri": target, "mode": mode}
    return httpx.post(f"{url}/invocations", json=body, headers=headers, timeout=60)


def file(path: Path) -> str:
    return "file://" + quote(str(path))


def test_ping(url: str) -> None:
    answer = httpx.get(f"{url}/ping")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_film_out_of_s3_is_analysed_back_into_it(url: str, aws: Aws, folder: Path, tmp_path: Path) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="films-in")
    s3.create_bucket(Bucket="films-out")
    assert REGION == "us-east-1", "elsewhere buckets want to be told where they are"
    s3.upload_file(str(folder / "a film.mp4"), "films-in", "segments/j/00000.annotate.mp4")
    before = counters()
    answer = ask(url, "s3://films-in/segments/j/00000.annotate.mp4", "s3://films-out/jobs/j/segments/00000.mp4")
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["status"], said["frames"], said["failed"], said["undecodable"]) == ("completed", FRAMES, 0, 0)
    assert said["results_uri"] == "s3://films-out/jobs/j/segments/00000.jsonl"
    assert {word: counters()[word] - before[word] for word in before} == {
        "received": FRAMES,
        "processed": FRAMES,
        "failed": 0,
    }
    s3.download_file("films-out", "jobs/j/segments/00000.mp4", str(tmp_path / "seen.mp4"))
    lines = s3.get_object(Bucket="films-out", Key="jobs/j/segments/00000.jsonl")["Body"].read().splitlines()
    assert len(lines) == probe(tmp_path / "seen.mp4").frames == FRAMES
    assert packets(tmp_path / "seen.mp4")["audio"] == packets(folder / "a film.mp4")["audio"]
    for line in map(json.loads, lines):
        assert [found["class_name"] for found in line["objects"]] == ["person", "dog"]
        assert len(line["poses"]) == 1
    originals = shown(folder / "a film.mp4")
    for (_, picture), (_, original) in zip(shown(tmp_path / "seen.mp4"), originals, strict=True):
        # The canned person's box: x 100 to 300, y 40 to 440; the frame of it is drawn over whatever is there.
        edge = np.abs(picture[100:400, 99:102].astype(int) - original[100:400, 99:102]).max(axis=(1, 2))
        assert (edge > 20).mean() > 0.9
        assert np.abs(picture[460:, 320:].astype(int) - original[460:, 320:]).mean() < 6


def test_files_of_the_folder_and_modes(url: str, folder: Path) -> None:
    answer = ask(url, file(folder / "a film.mp4"), file(folder / "lines.mp4"), "results_only")
    assert answer.status_code == 200, answer.text
    assert answer.json()["s3_output_uri"] is None
    assert answer.json()["results_uri"] == file(folder / "lines.jsonl")
    assert not (folder / "lines.mp4").exists()
    assert len((folder / "lines.jsonl").read_bytes().splitlines()) == FRAMES
    answer = ask(url, file(folder / "a film.mp4"), file(folder / "blurred.mp4"), "blur_faces")
    assert answer.status_code == 200, answer.text
    assert probe(folder / "blurred.mp4").frames == FRAMES


def test_c14_a_truncated_film_is_refused_unless_that_is_allowed(url: str, folder: Path, tmp_path: Path) -> None:
    film = cut_off(fast(tmp_path, seconds=3))
    film.rename(folder / film.name)
    body = {"s3_input_uri": file(folder / film.name), "s3_output_uri": file(folder / "cut-seen.mp4")}
    status, code, message = problem(httpx.post(f"{url}/invocations", json=body, timeout=60))
    assert (status, code) == (422, "truncated_film")
    assert "film-cut.mp4 is truncated: it ends after 1." in message
    assert "allow_truncated" in message
    assert not (folder / "cut-seen.mp4").exists()
    answer = httpx.post(f"{url}/invocations", json={**body, "allow_truncated": True}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["truncated"].startswith("film-cut.mp4 is truncated")
    assert 30 < answer.json()["frames"] < 60
    assert ask(url, file(folder / "a film.mp4"), file(folder / "whole.mp4")).json()["truncated"] is None


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


@pytest.mark.parametrize(
    "name", ["映画" * 40 + ".mp4", "a" * 300 + ".mp4", "a\0b.mp4"], ids=["wide", "long", "with a zero"]
)
def test_any_name_of_an_object_will_do(url: str, aws: Aws, folder: Path, name: str) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="films-named")
    s3.upload_file(str(folder / "text.mp4"), "films-named", name)
    answer = ask(url, f"s3://films-named/{name}", file(folder / "named.mp4"))
    assert problem(answer)[:2] == (422, "unreadable_film"), answer.text  # it was fetched, and looked at


def test_what_cannot_be_done_is_said_in_our_words(url: str, folder: Path, tmp_path: Path) -> None:
    film, target = file(folder / "a film.mp4"), file(folder / "never.mp4")
    status, code, message = problem(ask(url, file(folder / "text.mp4"), target))
    assert (status, code) == (422, "unreadable_film")
    assert message.startswith("text.mp4: no video that can be read")
    assert problem(ask(url, file(folder / "missing.mp4"), target))[:2] == (404, "object_missing")
    assert problem(ask(url, "s3://no-such-bucket/a.mp4", target))[:2] == (404, "object_missing")
    assert problem(ask(url, film, file(tmp_path / "outside.mp4")))[:2] == (403, "address_refused")
    assert problem(ask(url, film, file(folder / ".." / "outside.mp4")))[:2] == (403, "address_refused")
    assert problem(ask(url, "http://127.0.0.1/a.mp4", target))[:2] == (403, "address_refused")
    assert problem(ask(url, film, target, "make_tea"))[:2] == (422, "invalid_value")
    assert problem(ask(url, film, file(folder / "a.txt")))[:2] == (422, "invalid_value")
    for body in (b"", b"{", b"[]", b'{"s3_input_uri": 3}', b'"' + b"x" * 60_000):
        answer = httpx.post(f"{url}/invocations", content=body)
        assert problem(answer)[:2] == (422, "invalid_value"), body[:20]
    assert problem(httpx.post(f"{url}/invocations", content=b'"' + b"x" * 100_000))[:2] == (413, "too_large")
    assert not (folder / "never.mp4").exists()
    assert not (folder / "never.jsonl").exists()


def test_pages_of_elsewhere_may_not_ask(url: str, folder: Path) -> None:
    host = url.removeprefix("http://")
    body = json.dumps({"s3_input_uri": file(folder / "a film.mp4"), "s3_output_uri": file(folder / "stolen.mp4")})
    for origin in ("https://evil.example", "null", f"http://evil.example?{host}"):
        headers = {"origin": origin, "content-type": "text/plain"}
        answer = httpx.post(f"{url}/invocations", content=body, headers=headers, timeout=60)
        assert problem(answer)[:2] == (403, "origin")
    assert not (folder / "stolen.mp4").exists()
    answer = httpx.post(f"{url}/invocations", content=b"{}", headers={"origin": url})
    assert problem(answer)[:2] == (422, "invalid_value"), "its own page may"


def test_a_client_that_goes_away_is_worked_for_no_longer(url: str, folder: Path) -> None:
    squares(folder / "long.mp4", 1500)
    before = counters()
    body = {"s3_input_uri": file(folder / "long.mp4"), "s3_output_uri": file(folder / "long-seen.mp4")}
    content = json.dumps(body).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /invocations HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
        client.sendall(head.encode() + content)
        deadline = time.monotonic() + 30
        while counters()["processed"] == before["processed"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    deadline = time.monotonic() + 30
    while True:
        now = counters()
        received, processed, failed = (now[word] - before[word] for word in ("received", "processed", "failed"))
        if received == processed + failed and failed:
            break
        assert time.monotonic() < deadline, (received, processed, failed)
        time.sleep(0.05)
    assert received < 1500
    assert not (folder / "long-seen.mp4").exists()


def test_more_films_than_may_be_are_refused_for_now(url: str, folder: Path) -> None:
    squares(folder / "longer.mp4", 400)
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(4) as threads:
        body = {"s3_input_uri": file(folder / "longer.mp4"), "s3_output_uri": file(folder / "l.mp4")}
        asked = [threads.submit(client.post, f"{url}/invocations", json=body) for _ in range(4)]
        answers = [request.result() for request in asked]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert problem(refused)[1] == "busy"
    assert refused.headers["retry-after"] == "5"


def test_tokens_are_asked_for_where_there_are_some(canned_triton: str, folder: Path, tmp_path: Path) -> None:
    settings = Settings(
        ocr="off", triton_url=canned_triton, segment_folder=folder, state_dir=tmp_path, auth_tokens=("secret",)
    )
    with answering(settings) as url:
        film, target = file(folder / "a film.mp4"), file(folder / "token.mp4")
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            assert problem(ask(url, film, target, "results_only", **headers))[:2] == (401, "unauthorized")
        answer = ask(url, film, target, "results_only", Authorization="Bearer secret")
        assert answer.status_code == 200, answer.text
        assert httpx.get(f"{url}/ping").status_code == 200


def test_without_an_inference_server_nothing_is_begun(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        settings = Settings(ocr="off", triton_url=nobody, segment_folder=folder, state_dir=tmp_path)
        with answering(settings) as url:
            assert httpx.get(f"{url}/ping").status_code == 503
            answer = ask(url, file(folder / "a film.mp4"), file(folder / "away.mp4"))
            assert problem(answer)[:2] == (503, "inference_unavailable")
            assert answer.headers["retry-after"] == "5"
