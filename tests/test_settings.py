"""Settings: what they are read from, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.main import require_tokens
from app.settings import SECTIONS, Settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables nor a `.env` of the one who runs the tests."""
    for section in SECTIONS:
        for name in section.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("PORT", "http", "a valid integer"),
        ("PORT", "70000", "less than or equal to 65535"),
        ("WORKERS", "-1", "greater than or equal to 1"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("DRAIN_TIMEOUT_S", "0", "greater than 0"),
        ("ALLOW_ANONYMOUS", "perhaps", "a valid boolean"),
        ("MAX_SESSIONS_PER_TOKEN", "0", "greater than or equal to 1"),
        ("MAX_SESSIONS", "0", "greater than or equal to 1"),
        ("CREDITS", "65", "less than or equal to 64"),
        ("MAX_FRAME_BYTES", "10", "greater than or equal to 1024"),
        ("MAX_AGE_MS", "soon", "a valid number"),
        ("MAX_AGE_MS", "nan", "greater than 0"),
        ("TRITON_URL", "localhost", "host:port of Triton's gRPC endpoint, for example 127.0.0.1:8001"),
        ("TRITON_URL", "http://localhost", "host:port of Triton's gRPC endpoint, for example 127.0.0.1:8001"),
        ("TRITON_URL", "127.0.0.1:99999", "ports are 1 to 65535"),
        ("TRITON_URL", "127.0.0.1:0", "ports are 1 to 65535"),
        ("TRITON_SHM", "maybe", "'auto', 'off' or 'on'"),
        ("TRITON_DETECT_MODEL", "", "at least 1 character"),
        ("CONFIDENCE", "1.5", "less than or equal to 1"),
        ("MOTION_METHOD", "lucas-kanade", "'dis' or 'farneback'"),
        ("OCR", "maybe", "'auto', 'on' or 'off'"),
        ("OCR_MIN_INTERVAL_S", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str, right: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as error:
        Settings()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{name}='{value}': should be ")
    assert right in line


def test_everything_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "MAX_SESSIONS", "IOU", "OCR"):
        monkeypatch.setenv(name, "wrong")
    with pytest.raises(ConfigurationError) as error:
        Settings()
    assert [line.partition("=")[0] for line in str(error.value).splitlines()] == ["PORT", "MAX_SESSIONS", "IOU", "OCR"]


def test_lists_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_TOKENS", " one, two,,three ,")
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://a.example,https://b.example")
    access = Settings().access
    assert [token.get_secret_value() for token in access.auth_tokens] == ["one", "two", "three"]
    assert access.allowed_origins == ("https://a.example", "https://b.example")


def test_tokens_are_never_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_TOKENS", "hush")
    assert "hush" not in repr(Settings().access)


def test_a_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=1234\nCREDITS=5\n# a comment\nUNKNOWN=1\n")
    monkeypatch.setenv("CREDITS", "7")
    settings = Settings()
    assert (settings.server.port, settings.live.credits) == (1234, 7)


@pytest.mark.parametrize(
    ("given", "address"), [("127.0.0.1:8001", "127.0.0.1:8001"), ("grpc://triton:8001", "triton:8001"), ("", None)]
)
def test_the_address_of_triton(monkeypatch: pytest.MonkeyPatch, given: str, address: str | None) -> None:
    monkeypatch.setenv("TRITON_URL", given)
    assert Settings().triton.triton_url == address


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_on_loopback_nobody_needs_a_token(host: str) -> None:
    require_tokens(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "", "localhost.example.org"])
def test_off_loopback_it_is_tokens_or_a_word(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"AUTH_TOKENS=.* or ALLOW_ANONYMOUS=true .* or HOST="):
        require_tokens(Settings(host=host))
    require_tokens(Settings(host=host, allow_anonymous=True))
    require_tokens(Settings(host=host, auth_tokens="secret"))


def test_every_setting_has_a_default_and_a_name_of_its_own() -> None:
    names = [name for section in SECTIONS for name in section.model_fields]
    assert len(names) == len(set(names))
    assert all(not field.is_required() for section in SECTIONS for field in section.model_fields.values())
