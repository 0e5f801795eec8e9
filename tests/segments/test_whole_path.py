"""The whole path on AWS: the deployed template, the three commands as processes, and the service's /invocations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.segments.keys import split_s3
from tests.conftest import Serve
from tests.segments.films import assert_lines, assert_whole, film, run, segments
from tests.support.aws import Aws
from tests.support.movie import shown
from tests.support.segments import Estate
from tests.support.service import Service, wait_for_line
from tests.support.stack import deploy


@pytest.fixture(scope="module")
def stack(aws: Aws) -> Estate:
    return deploy(aws)[0]


@pytest.fixture(scope="module", params=["http", "pipeline"])
def backend(request: pytest.FixtureRequest) -> str:
    """Whether the worker calls the service, or analyses by itself."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def service(serve: Serve, aws: Aws) -> Service:
    """The service, a process of its own."""
    return serve(**aws.environment)


@pytest.fixture(scope="module")
def variables(stack: Estate, service: Service, canned_triton: str, backend: str) -> dict[str, str]:
    needs = {"http": {"INFERENCE_HTTP_URL": service.url}, "pipeline": {"TRITON_URL": canned_triton}}
    return stack.environment | {"INFERENCE_BACKEND": backend, **needs[backend]}


@pytest.fixture(scope="module")
def at_work(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker and a reassembly, each in a process of its own."""
    folder = tmp_path_factory.mktemp("work")
    with (
        segments(["work"], variables, folder / "work.log") as work,
        segments(["reassemble"], variables, folder / "reassemble.log") as reassemble,
    ):
        wait_for_line(work, folder / "work.log", "metrics on http://")
        wait_for_line(reassemble, folder / "reassemble.log", "metrics on http://")
        yield
        work.terminate()  # both at once: each waits for its last request for a message
        reassemble.terminate()


def fetched(stack: Estate, address: str, path: Path) -> Path:
    bucket, key = split_s3(address)
    stack.aws.client("s3").download_file(bucket, key, str(path))
    return path


@pytest.mark.usefixtures("at_work")
def test_a_film_goes_in_and_comes_back_analysed(
    stack: Estate, backend: str, variables: dict[str, str], tmp_path: Path
) -> None:
    source = film(tmp_path / f"My film {backend}.mp4", 5)
    log = tmp_path / "submit.log"
    address = run(["submit", str(source), "--seconds", "0.3"], variables, log)
    assert address.startswith(f"s3://{stack.settings.output_bucket_name}/jobs/My-film-{backend}-")
    assert "5 of 5 segments" in log.read_text()
    final = fetched(stack, address, tmp_path / "final.mp4")
    assert_whole(final, source)
    results = fetched(stack, address.removesuffix(".mp4") + ".jsonl", tmp_path / "final.jsonl")
    lines = assert_lines(results, 50)
    assert {found["class_name"] for line in lines for found in line["objects"]} == {"person", "dog"}
    # Something was drawn on every frame.
    changed = [abs(a.astype(int) - b).max() for (_, a), (_, b) in zip(shown(source), shown(final), strict=True)]
    assert min(changed) > 100
    # Called again, there is nothing to be done.
    again = run(["submit", str(source), "--seconds", "0.3"], variables, log)
    assert again == address
    assert "uploaded" not in log.read_text()


@pytest.mark.usefixtures("at_work")
def test_results_only(stack: Estate, backend: str, variables: dict[str, str], tmp_path: Path) -> None:
    source = film(tmp_path / f"{backend}.mp4", 2)
    asked = ["submit", str(source), "--seconds", "0.3", "--mode", "results_only"]
    address = run(asked, variables, tmp_path / "submit.log")
    assert address.endswith("/final.jsonl")
    assert_lines(fetched(stack, address, tmp_path / "final.jsonl"), 20)


def test_a_variable_that_is_missing_is_named(stack: Estate, tmp_path: Path) -> None:
    variables = stack.environment | {"INPUT_BUCKET_NAME": ""}
    source = film(tmp_path / "a.mp4", 1)
    said = run(["submit", str(source)], variables, tmp_path / "submit.log", code=2)
    assert said.startswith("sightline: INPUT_BUCKET_NAME is unset")
    assert "infra/segments.yaml" in said


def test_aws_that_does_not_answer_is_said_in_one_line(stack: Estate, tmp_path: Path) -> None:
    variables = stack.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    said = run(["submit", str(film(tmp_path / "a.mp4", 1))], variables, tmp_path / "submit.log", code=1)
    assert said.startswith("sightline: AWS: ")
    assert said.endswith("Submit the video again to go on")
