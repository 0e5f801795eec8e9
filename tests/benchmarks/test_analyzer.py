"""The call of perf_analyzer and the reading of its output, with a stand-in that prints its arguments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import analyzer
from benchmarks.analyzer import Analyzer
from benchmarks.harness import BenchmarkError

EVERYWHERE = frozenset(os.sched_getaffinity(0))
WRITES = """#!/bin/sh
echo "$@" >"$(dirname "$0")/told"
while [ "$1" != -f ]; do shift; done
printf 'Concurrency,Inferences/Second,p50 latency\\n8,123.5,900\\n' >"$2"
"""


def program(folder: Path, text: str) -> Analyzer:
    path = folder / "perf_analyzer"
    path.write_text(text)
    path.chmod(0o755)
    return Analyzer(path, None, "perf_analyzer 0")


def test_the_rate_is_read_out_of_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyzer, "KEPT", tmp_path / "bench" / "kept")
    found = analyzer.rate(program(tmp_path, WRITES), "127.0.0.1:8001", "vision", (4, 2), 1.5, EVERYWHERE)
    assert found == 123.5
    told = (tmp_path / "told").read_text()
    options = "-m vision", "-u 127.0.0.1:8001", "-b 4", "--concurrency-range 2", "--measurement-interval 500"
    for option in options:
        assert f"{option} " in told
    assert "--shared-memory system" in told
    assert not list((tmp_path / "bench").glob("*.csv"))


def test_one_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyzer, "KEPT", tmp_path / "bench" / "kept")
    broken = program(tmp_path, "#!/bin/sh\necho no such model >&2\nexit 3\n")
    with pytest.raises(BenchmarkError, match="ended with 3:\nno such model"):
        analyzer.rate(broken, "127.0.0.1:8001", "vision", (1, 8), 0.3, EVERYWHERE)


def test_the_first_that_runs_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_ANALYZER", str(program(tmp_path, "#!/bin/sh\necho Perf Analyzer Version 2.48.0\n").path))
    monkeypatch.setattr(analyzer, "_libraries", lambda: None)
    found, told = analyzer.find(fetch=False)
    assert found is not None
    assert told == found.version == "perf_analyzer 2.48.0"
