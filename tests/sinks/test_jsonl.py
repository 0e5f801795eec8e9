"""The sink `jsonl`: whole lines, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from prometheus_client import REGISTRY

from app.errors import ConfigurationError
from app.settings import ROOT, Settings
from app.sinks import open_sinks
from tests.sinks.sending import message, opened, until


def numbers(path: Path) -> list[int]:
    return [orjson.loads(line)["n"] for line in path.read_bytes().splitlines()]


def test_every_message_is_a_line_behind_those_that_were_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    for begin in (0, 500):
        with opened(result_sinks="jsonl", jsonl_path=path) as (_, sender):
            sender.send(*map(message, range(begin, begin + 500)))
            sender.wait(500)
        assert set(sender.of("jsonl")) == {"delivered"}
    assert numbers(path) == [*range(1000)]


def test_files_that_are_full_are_kept_up_to_a_number_and_deleted_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    before = REGISTRY.get_sample_value("sightline_sink_deleted_lines_total") or 0.0
    with opened(result_sinks="jsonl", jsonl_path=path, jsonl_max_bytes=1024, jsonl_files=3) as (_, sender):
        for number in range(1000):
            sender.send(message(number))
            sender.wait(number + 1)
    files = [path, *(path.with_name(f"results.jsonl.{number}") for number in (1, 2))]
    assert sorted(each.name for each in tmp_path.iterdir()) == [".results.jsonl.lock", *(each.name for each in files)]
    assert all(each.stat().st_size <= 1024 for each in files)
    kept = [number for each in reversed(files) for number in numbers(each)]
    assert kept == [*range(1000 - len(kept), 1000)]
    assert REGISTRY.get_sample_value("sightline_sink_deleted_lines_total") == before + 1000 - len(kept)


def test_a_line_that_a_killed_process_left_incomplete_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"n":0}\n{"n":1}\n' + b'{"n":"' + b"x" * 200_000)
    with opened(result_sinks="jsonl", jsonl_path=path) as (_, sender):
        sender.send(message(2))
        sender.wait(1)
    assert numbers(path) == [0, 1, 2]


def test_a_file_that_logrotate_renamed_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with opened(result_sinks="jsonl", jsonl_path=path) as (_, sender):
        sender.send(message(0))
        sender.wait(1)
        path.rename(tmp_path / "old.jsonl")
        sender.send(message(1))
        sender.wait(2)
    assert (numbers(tmp_path / "old.jsonl"), numbers(path)) == ([0], [1])


def test_a_full_disk_leaves_whole_lines_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sinks.sink.PAUSES_S", (0.01, 0.05))
    path = tmp_path / "results.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then `write` says EFBIG, as it says ENOSPC elsewhere
    try:
        with opened(result_sinks="jsonl", jsonl_path=path) as (sinks, sender):
            sender.send(message(0))
            sender.wait(1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (12, hard))
            try:
                sender.send(message(1))
                until(lambda: "File too large" in sinks.errors().get("jsonl", ""))
                assert numbers(path) == [0]
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            sender.wait(2)
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert numbers(path) == [0, 1]


WRITER = """
import sys, pathlib
from tests.sinks.sending import message, opened
begin, path = int(sys.argv[1]), pathlib.Path(sys.argv[2])
with opened(result_sinks="jsonl", jsonl_path=path, jsonl_max_bytes=20_000, jsonl_files=100) as (_, sender):
    for number in range(begin, begin + 3000):
        sender.send(message(number))
        if number % 50 == 49:
            sender.wait(number - begin + 1)
            print(number, flush=True)
"""


def test_several_processes_write_one_file_and_a_killed_one_loses_nothing_that_was_delivered(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    begins = (0, 10_000, 20_000)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(begin), str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for begin in begins
    ]
    assert processes[0].stdout is not None
    told = [int(processes[0].stdout.readline()) for _ in range(10)]
    os.kill(processes[0].pid, signal.SIGKILL)
    told += map(int, processes[0].communicate(timeout=60)[0].split())
    for process in processes[1:]:
        process.communicate(timeout=60)
        assert process.returncode == 0
    found = [number for each in tmp_path.glob("results.jsonl*") for number in numbers(each)]
    assert len(found) == len(set(found))
    assert set(found) >= {*range(told[-1] + 1), *range(10_000, 13_000), *range(20_000, 23_000)}
    assert len([*tmp_path.glob("results.jsonl.*")]) > 1


@pytest.mark.parametrize("path", [".", "file/below.jsonl"])
def test_a_path_that_cannot_be_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="JSONL_PATH="):
        open_sinks(Settings(result_sinks="jsonl", jsonl_path=tmp_path / path), "service")


def test_a_folder_that_is_removed_is_said_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sinks.sink.PAUSES_S", (0.01, 0.05))
    path = tmp_path / "gone" / "results.jsonl"
    with opened(result_sinks="jsonl", jsonl_path=path) as (sinks, sender):
        path.parent.rmdir()
        sender.send(message(0))
        until(lambda: "No such file" in sinks.errors().get("jsonl", ""))
        path.parent.mkdir()
        sender.wait(1)
        time.sleep(0.05)
    assert numbers(path) == [0]
