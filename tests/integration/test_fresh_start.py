"""`sightline serve` as a newcomer starts it: no settings but a port and a folder of its own."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import httpx
import psutil

from app.settings import ROOT, OcrSettings, TritonSettings
from tests.support import clip
from tests.support.service import require_environment, serving


def test_an_empty_folder_is_all_it_takes_and_nothing_stays(tmp_path: Path) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    require_environment(OcrSettings().ocr_python, "make ocr-env")
    with serving(tmp_path, {}) as service:
        health = httpx.get(f"{service.url}/health/ready").json()
        assert {name: part["state"] for name, part in health.items() if isinstance(part, dict)} == {
            "inference": "ok",
            "ocr": "ok",
            "summaries": "ok",
            "disk": "ok",
        }
        page = httpx.get(f"{service.url}/")
        assert page.headers["content-type"].startswith("text/html")
        named = re.findall(r'(?:src|href)="(/web/[^"]+)"', page.text)
        assert {Path(path).suffix for path in named} >= {".js", ".css"}
        for path in (*named, "/web/sample.jpg"):
            file = httpx.get(service.url + path)
            assert file.status_code == 200
            assert file.content == (ROOT / "app" / path[1:]).read_bytes()
        # One picture, so that every part of it has run.
        answer = httpx.post(f"{service.url}/v1/frames", content=clip.Pan().jpegs()[0], timeout=60).json()
        assert sorted(detection["class_name"] for detection in answer["objects"]) == ["face", "person"]
        assert [text["text"] for text in answer["texts"]] == [clip.WORDS]
        family = psutil.Process(service.process.pid).children(recursive=True)
        assert any("tritonserver" in child.name() for child in family)
        for child in family:  # a child that outlives the service must not keep its port
            listening = [
                connection.laddr.port for connection in child.net_connections("tcp") if connection.status == "LISTEN"
            ]
            assert service.port not in listening
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) in (0, -signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
        assert "Traceback" not in service.log
        own = re.compile(rf"sightline.*[-_]{service.process.pid}[-_]")  # others may be at work on this machine
        assert [path.name for path in Path("/dev/shm").iterdir() if own.match(path.name)] == []
