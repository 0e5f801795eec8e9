"""A model that loads and never answers: the service says so, and when it does answer."""

from __future__ import annotations

from pathlib import Path

import httpx

from app.settings import TritonSettings
from benchmarks import canned
from tests.support.service import require_environment, serving, wait_until


def test_c5_readiness_tells_of_a_model_that_never_answers(tmp_path: Path, jpeg: bytes) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    repository, flag = canned.write(tmp_path / "repository"), tmp_path / "broken"
    for code in repository.glob("*/1/model.py"):
        text = code.read_text()
        raising = f"        if os.path.exists({str(flag)!r}):\n            raise ValueError('wants four images')\n"
        code.write_text(text.replace("        responses = []\n", raising + "        responses = []\n"))
    flag.touch()
    with serving(tmp_path, {"TRITON_REPOSITORY": str(repository), "OCR": "off"}, ready=False) as service:
        told = wait_until(service, "/health/ready", 503).json()["inference"]
        assert told["state"] == "failing"
        assert any("wants four images" in words for words in told["failing"].values())
        flag.unlink()
        assert wait_until(service, "/health/ready").json()["inference"]["failing"] == {}
        answer = httpx.post(f"{service.url}/v1/frames", content=jpeg, timeout=30).json()
        assert answer["stages"]["detect"]["status"] == "ok"
