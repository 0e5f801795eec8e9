"""Settings: their sources, and the errors of wrong values."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.auth import require_tokens
from app.errors import ConfigurationError
from app.settings import SECRETS, SECTIONS, VARIABLES, Section, Settings, ignored_variables, secret_given


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Removes the variables and the `.env` of the person who runs the tests."""
    for section in SECTIONS:
        for name in section.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
            monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
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
        ("IDLE_TIMEOUT_S", "soon", "a valid number"),
        ("IDLE_TIMEOUT_S", "nan", "greater than 0"),
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


@pytest.mark.parametrize("name", ["FLEET_RECLAIM_IDLE_MS", "SUMMARY_RAM_ITEMS"])
def test_what_follows_from_a_wrong_value_is_not_named_beside_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "wrong")
    with pytest.raises(ConfigurationError) as error:
        Settings()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{name}='wrong': should be ")


def test_lists_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_TOKENS", " one, two,,three ,")
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://a.example,https://b.example")
    access = Settings().access
    assert [token.get_secret_value() for token in access.auth_tokens] == ["one", "two", "three"]
    assert access.allowed_origins == ("https://a.example", "https://b.example")


def test_tokens_are_never_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_TOKENS", "hush")
    assert "hush" not in repr(Settings().access)


# --- every setting by its variable ---

OTHERS = {
    "HOST": "0.0.0.0",
    "PORT": "8001",
    "WORKERS": "2",
    "LOG_LEVEL": "debug",
    "LOG_FORMAT": "console",
    "DRAIN_TIMEOUT_S": "10.5",
    "FORWARDED_ALLOW_IPS": "10.0.0.0/8",
    "STATE_DIR": "/srv/state_dir",
    "PLUGINS": "/srv/plugins",
    "AUTH_TOKENS": "secret",
    "ALLOW_ANONYMOUS": "true",
    "ALLOWED_HOSTS": "sight.example",
    "ALLOWED_ORIGINS": "https://shop.example",
    "MAX_SESSIONS_PER_TOKEN": "65",
    "MAX_SESSIONS_PER_ADDRESS": "65",
    "MAX_SESSIONS": "65",
    "MAX_WAITING": "129",
    "MAX_CONNECTIONS": "2049",
    "MAX_CONNECTIONS_PER_ADDRESS": "513",
    "CREDITS": "3",
    "MAX_FRAME_BYTES": "2097153",
    "MAX_PIXELS": "16777217",
    "MAX_MESSAGES_PER_S": "240.5",
    "INIT_TIMEOUT_S": "10.5",
    "SEND_TIMEOUT_S": "5.5",
    "PING_INTERVAL_S": "15.5",
    "IDLE_TIMEOUT_S": "120.5",
    "MAX_PAUSE_S": "600.5",
    "MAX_SESSION_S": "28800.5",
    "TRITON_URL": "10.0.0.5:8001",
    "TRITON_MAX_IN_FLIGHT": "9",
    "TRITON_DEADLINE_S": "5.5",
    "TRITON_SHM": "off",
    "TRITON_DETECT_MODEL": "triton-detect-model",
    "TRITON_POSE_MODEL": "triton-pose-model",
    "TRITON_SEGMENT_MODEL": "triton-segment-model",
    "TRITON_OBB_MODEL": "triton-obb-model",
    "TRITON_CLASSIFY_MODEL": "triton-classify-model",
    "TRITON_ENSEMBLE": "triton-ensemble",
    "TRITON_REPOSITORY": "/srv/triton_repository",
    "TRITON_PYTHON": "/srv/triton_python",
    "TRITON_START_TIMEOUT_S": "120.5",
    "TRITON_LABELS": "/srv/triton_labels",
    "CONFIDENCE": "0.5",
    "IOU": "0.6",
    "CLASSIFY_CROPS": "person,dog",
    "MOTION_METHOD": "farneback",
    "DECODE": "fast",
    "DECODE_BUDGET_MS": "2000.5",
    "EXIF_ORIENTATION": "on",
    "OCR": "on",
    "OCR_PYTHON": "/srv/ocr_python",
    "OCR_MODELS": "/srv/ocr_models",
    "OCR_MIN_INTERVAL_S": "1.5",
    "OCR_MIN_CONFIDENCE": "0.5",
    "OCR_TIMEOUT_S": "20.5",
    "OCR_MAX_RSS_MB": "1501",
    "SERVICE_URL": "https://sight.example",
    "START_SERVER_URL": "https://start.example",
    "SUMMARY_MIN_INTERVAL_S": "5.5",
    "SUMMARY_MAX_INTERVAL_S": "60.5",
    "SUMMARY_RAM_ITEMS": "257",
    "SUMMARY_DISK_BYTES": "67108865",
    "SUMMARY_ORPHAN_HOURS": "24.5",
    "SUMMARY_PROMPTS": "/srv/summary_prompts",
    "SUMMARY_PROMPT": "summary-prompt",
    "LLM_MODEL": "openai:gpt-5-mini",
    "LLM_BASE_URL": "http://10.0.0.5/v1",
    "LLM_API_KEY": "a-key",
    "OPENAI_API_KEY": "a-key",
    "ANTHROPIC_API_KEY": "a-key",
    "LLM_MAX_IN_FLIGHT": "5",
    "LLM_TIMEOUT_S": "20.5",
    "LLM_MAX_OUTPUT_TOKENS": "2001",
    "LLM_SESSION_TOKENS": "200001",
    "LLM_HOUR_TOKENS": "2000001",
    "AWS_REGION": "eu-central-1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:5000",
    "ACTIVITY_METRIC": "cloudwatch",
    "ACTIVITY_NAMESPACE": "activity-namespace",
    "ACTIVITY_INSTANCE_ID": "i-0123456789abcdef0",
    "REDIS_URL": "redis://10.0.0.5",
    "FLEET_STREAM_PREFIX": "shop:",
    "FLEET_GROUP": "fleet-group",
    "KAFKA_BOOTSTRAP_SERVERS": "kafka-bootstrap-servers",
    "KAFKA_TOPIC": "kafka-topic",
    "KAFKA_FAILURE_POLICY": "ack",
    "KAFKA_OPTIONS": '{"acks": "1"}',
    "FLEET_MODE": "sync",
    "FLEET_PROCESSES": "2",
    "FLEET_PROFILE": "throughput",
    "BATCH_SIZE": "2",
    "BATCH_TIMEOUT_MS": "0.5",
    "FLEET_STAGES": "detect",
    "FRAME_STALENESS_MS": "2000.5",
    "FLEET_DISCOVER_S": "2.5",
    "FLEET_RECLAIM_IDLE_MS": "60001",
    "FLEET_MAX_DELIVERIES": "4",
    "METRICS_PORT": "8003",
    "MAX_SUB_BATCH": "17",
    "INGEST_FPS": "30.5",
    "INGEST_MAXLEN": "101",
    "RESULT_SINKS": "jsonl",
    "SINK_FAILURE_POLICY": "drop",
    "JSONL_PATH": "/srv/results.jsonl",
    "JSONL_MAX_BYTES": "1048576",
    "JSONL_FILES": "6",
    "WEBHOOK_URL": "https://shop.example/sight?key=1",
    "WEBHOOK_SECRET": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "WEBHOOK_TIMEOUT_S": "11.5",
    "INPUT_BUCKET_NAME": "input-bucket-name",
    "OUTPUT_BUCKET_NAME": "output-bucket-name",
    "JOBS_TABLE_NAME": "jobs-table-name",
    "INVOCATIONS_TABLE_NAME": "invocations-table-name",
    "SEGMENT_COMPLETIONS_TABLE_NAME": "segment-completions-table-name",
    "REASSEMBLY_TRIGGERED_TABLE_NAME": "reassembly-triggered-table-name",
    "VIDEO_WORKER_QUEUE_URL": "video-worker-queue-url",
    "SEGMENT_OUTPUT_QUEUE_URL": "segment-output-queue-url",
    "REASSEMBLY_QUEUE_URL": "reassembly-queue-url",
    "INFERENCE_BACKEND": "http",
    "INFERENCE_HTTP_URL": "http://10.0.0.5:8080",
    "INFERENCE_MAX_IN_FLIGHT": "6",
    "SAGEMAKER_ENDPOINT_NAME": "sagemaker-endpoint-name",
    "SAGEMAKER_REGION": "sagemaker-region",
    "SAGEMAKER_INVOKE_TIMEOUT_SECONDS": "1201",
    "SEGMENT_ATTEMPTS": "4",
    "SEGMENT_VISIBILITY_S": "121",
    "SEGMENT_FOLDER": "/srv/segment_folder",
}
"""Of every variable a valid value that is not its default."""


def test_every_variable_is_tried() -> None:
    assert OTHERS.keys() == VARIABLES.keys()


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_a_variable_sets_its_field_and_no_other(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    def fields() -> dict[str, object]:
        settings = Settings()
        sections = [section for section in vars(settings).values() if isinstance(section, Section)]
        return {field: getattr(section, field) for section in sections for field in type(section).model_fields}

    before = fields()
    monkeypatch.setenv(name, value)
    changed = {field for field, now in fields().items() if now != before[field]}
    assert changed - {"fleet_reclaim_s", "summary_ram_bytes"} == {name.lower()}


# --- what is no setting any more ---

VENDORS = {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AWS_REGION", "AWS_ENDPOINT_URL", "FORWARDED_ALLOW_IPS"}
"""Variables that others named: OpenAI, Anthropic, Amazon, uvicorn."""


ADDED = {
    "PLUGINS",
    "TRITON_SEGMENT_MODEL",
    "TRITON_OBB_MODEL",
    "TRITON_CLASSIFY_MODEL",
    "CLASSIFY_CROPS",
    "RESULT_SINKS",
    "SINK_FAILURE_POLICY",
    "JSONL_PATH",
    "JSONL_MAX_BYTES",
    "JSONL_FILES",
    "WEBHOOK_URL",
    "WEBHOOK_SECRET",
    "WEBHOOK_TIMEOUT_S",
}
"""Settings of what the service can be extended by: plug-ins, further stages and sinks. The others are what it has
without them."""


def test_there_are_not_more_settings_than_a_person_can_read() -> None:
    assert len(VARIABLES.keys() - VENDORS - ADDED) <= 110
    assert len(ADDED) <= 15


def test_a_value_that_is_fixed_is_taken_from_code_and_from_no_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Settings().ingest.ingest_refresh_s == 5
    monkeypatch.setenv("INGEST_REFRESH_S", "nonsense")
    (tmp_path / ".env").write_text("LLM_RETRIES=9\n")
    assert Settings().ingest.ingest_refresh_s == 5
    assert Settings().llm.llm_retries == 2
    assert Settings(ingest_refresh_s=0.2).ingest.ingest_refresh_s == 0.2


def described(section: str, field: str) -> str | None:
    return type(getattr(Settings(), section)).model_fields[field].description


def test_a_variable_that_was_a_setting_is_named_once_with_what_is_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ignored_variables() == []
    monkeypatch.setenv("INGEST_REFRESH_S", "7")
    monkeypatch.setenv("LLM_HOUR_COST", "5")
    monkeypatch.setenv("SUMMARY_RAM_BYTES", "5")  # it follows from another setting, so no number is right for all
    (tmp_path / ".env").write_text("LLM_RETRIES=9\nPORT=8001\n")
    assert sorted(ignored_variables()) == [
        "INGEST_REFRESH_S='7' is ignored, because it is no setting any more: "
        f"it is always 5.0 ({described('ingest', 'ingest_refresh_s')})",
        "LLM_HOUR_COST='5' is ignored, because it is no setting any more: "
        "LLM_HOUR_TOKENS bounds what all sessions may use in an hour",
        "LLM_RETRIES='9' is ignored, because it is no setting any more: "
        f"it is always 2 ({described('llm', 'llm_retries')})",
        "SUMMARY_RAM_BYTES='5' is ignored, because it is no setting any more: "
        "bytes of observations of a session kept in memory: 4 KiB for each of SUMMARY_RAM_ITEMS",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "section", "name", "follows"),
    [
        ("FLEET_RECLAIM_IDLE_MS", "800", "fleet", "fleet_reclaim_s", 0.4),
        ("SUMMARY_RAM_ITEMS", "10", "summary", "summary_ram_bytes", 40_960),
    ],
)
def test_a_fixed_value_follows_from_the_setting_it_belongs_to(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, section: str, name: str, follows: float
) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(getattr(Settings(), section), name) == follows


# --- secrets from files ---


def held(section: object, name: str) -> object:
    value = getattr(section, name)
    return [secret.get_secret_value() for secret in value] if isinstance(value, tuple) else value.get_secret_value()


@pytest.mark.parametrize(
    ("name", "section", "content", "value"),
    [
        ("AUTH_TOKENS", "access", b"one, two\n", ["one", "two"]),
        ("AUTH_TOKENS", "access", b"one\r\ntwo\n\n", ["one", "two"]),
        ("AUTH_TOKENS", "access", "\ufeffzweites-Gehéimnis".encode(), ["zweites-Gehéimnis"]),
        ("LLM_API_KEY", "llm", b"sk-1\n", "sk-1"),
        ("OPENAI_API_KEY", "llm", b"sk-2", "sk-2"),
        ("ANTHROPIC_API_KEY", "llm", b"sk-3\r\n", "sk-3"),
        ("REDIS_URL", "redis", b"redis://:p%40ss@redis:6379/1\n", "redis://:p%40ss@redis:6379/1"),
        ("KAFKA_OPTIONS", "kafka", b'{\n "sasl.password": "x"\n}\n', '{\n "sasl.password": "x"\n}'),
    ],
)
def test_b5_a_secret_comes_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, section: str, content: bytes, value: object
) -> None:
    (tmp_path / "secret").write_bytes(content)
    (tmp_path / "link").symlink_to("secret")  # as Kubernetes mounts them
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "link"))
    assert held(getattr(Settings(), section), name.lower()) == value
    monkeypatch.setenv(name, "")  # as compose passes on what is unset
    assert held(getattr(Settings(), section), name.lower()) == value


def test_b5_every_secret_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"AUTH_TOKENS", "LLM_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "REDIS_URL", "KAFKA_OPTIONS"}
    assert known <= set(SECRETS)
    for name in SECRETS:
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError) as error:
        Settings()
    assert {line.partition("_FILE=")[0] for line in str(error.value).splitlines()} == set(SECRETS)
    monkeypatch.setenv("PORT_FILE", str(tmp_path / "missing"))  # no secret
    (tmp_path / ".env").write_text(f"AUTH_TOKENS_FILE={tmp_path}/here\n")
    (tmp_path / "here").write_text("hush")
    for name in SECRETS:
        monkeypatch.delenv(f"{name}_FILE")
    assert held(Settings().access, "auth_tokens") == ["hush"]
    assert "hush" not in repr(Settings().access)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"x" * 70_000, "more than 65536 bytes"),
        (b"\xff\xfe", "no UTF-8 text"),
        (b"a\0b", "no text"),
    ],
)
def test_b5_a_file_that_holds_no_secret_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("REDIS_URL_FILE", str(path))
    with pytest.raises(ConfigurationError) as error:
        Settings()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"REDIS_URL_FILE='{path}': {why}")
    assert "REDIS_URL and nothing else" in line


def test_b5_what_is_no_file_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        monkeypatch.setenv("AUTH_TOKENS_FILE", str(path))
        with pytest.raises(ConfigurationError, match=rf"AUTH_TOKENS_FILE='{path}': (no regular file|Is a directory)"):
            Settings()


def test_b5_a_secret_that_is_set_twice_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush-file")
    monkeypatch.setenv("AUTH_TOKENS_FILE", str(tmp_path / "secret"))
    for given in ("environment", ".env"):
        if given == "environment":
            monkeypatch.setenv("AUTH_TOKENS", "hush-variable")
        else:
            monkeypatch.delenv("AUTH_TOKENS")
            (tmp_path / ".env").write_text("AUTH_TOKENS=hush-variable\n")
        with pytest.raises(ConfigurationError, match=r"AUTH_TOKENS and AUTH_TOKENS_FILE=.* are both set") as error:
            Settings()
        assert "hush" not in str(error.value).replace(str(tmp_path), "")


def test_b5_a_wrong_secret_is_not_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush…")
    monkeypatch.setenv("LLM_API_KEY_FILE", str(tmp_path / "secret"))
    with pytest.raises(ConfigurationError, match="LLM_API_KEY=a secret: should be printable ASCII") as error:
        Settings()
    assert "hush" not in str(error.value)


def test_b5_the_token_for_a_service_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open-sesame\n")
    path = str(tmp_path / "token")
    assert secret_given("SIGHTLINE_TOKEN", {"SIGHTLINE_TOKEN_FILE": path}) == "open-sesame"
    assert secret_given("SIGHTLINE_TOKEN", {"SIGHTLINE_TOKEN": "open-barley"}) == "open-barley"
    assert secret_given("SIGHTLINE_TOKEN", {}) is None
    with pytest.raises(ConfigurationError, match="are both set"):
        secret_given("SIGHTLINE_TOKEN", {"SIGHTLINE_TOKEN": "open-barley", "SIGHTLINE_TOKEN_FILE": path})


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


def test_b5_tokens_without_a_token_do_not_open_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_TOKENS", " , ,")
    with pytest.raises(ConfigurationError, match="AUTH_TOKENS=a secret: should be tokens, comma-separated"):
        Settings()
