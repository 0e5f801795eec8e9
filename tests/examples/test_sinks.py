"""The sink of `examples/sinks`, installed as a package and loaded from a folder, in a real service."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import ROOT
from tests.conftest import Serve
from tests.support.examples import install, run_its_tests
from tests.support.live import ready
from tests.support.service import wait_for_line

EXAMPLE = "sinks/print"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(EXAMPLE, tmp_path_factory.mktemp("example") / "site")


def test_its_own_tests_pass(installed: dict[str, str]) -> None:
    assert "1 passed" in run_its_tests(EXAMPLE, installed)


@pytest.mark.anyio
@pytest.mark.parametrize("loaded", ["package", "folder"])
async def test_it_prints_a_line_for_each_result_of_a_session(
    serve: Serve, installed: dict[str, str], jpeg: bytes, loaded: str
) -> None:
    found = installed if loaded == "package" else {"PLUGINS": str(ROOT / "examples" / EXAMPLE)}
    service = serve(RESULT_SINKS="print", **found)
    async with ready(service) as live:
        await live.frame(jpeg, 1)
        session = (await live.answer())["session_id"]
        await live.stop()
    wait_for_line(service.process, service.log_path, f"(?m)^{session}: 1 person, 1 dog$")
    samples = service.metrics()
    assert samples['sightline_sink_messages_total{entry="live",outcome="delivered",sink="print"}'] == 1


def test_a_folder_with_a_broken_sink_stops_the_start(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "mine.py").write_text("import nowhere\n")
    with pytest.raises(AssertionError, match=r"mine\.py' cannot be loaded: ModuleNotFoundError: No module named"):
        serve(RESULT_SINKS="mine", PLUGINS=str(tmp_path))
