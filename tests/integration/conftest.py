"""The service as it comes: its own embedded Triton with the checked-in models, and text reading."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.settings import OcrSettings, TritonSettings
from tests.support.service import Service, require_environment, serving


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on real models."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    require_environment(OcrSettings().ocr_python, "make ocr-env")
    with serving(tmp_path_factory.mktemp("real"), {"OCR": "on"}) as service:
        yield service
