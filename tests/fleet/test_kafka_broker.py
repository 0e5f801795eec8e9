"""The broker of the fleet's tests is Apache Kafka, and keeps its messages over a restart."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from tests.support import kafka as support
from tests.support.kafka import Broker, running_kafka
from tests.support.service import require_environment


def produce(broker: Broker, topic: str, *values: str) -> list[str]:
    """Writes with an idempotent producer; returns the errors of the messages that the broker did not take."""
    errors: list[str] = []
    settings = {"bootstrap.servers": broker.bootstrap, "enable.idempotence": broker.real, "compression.type": "lz4"}
    producer = Producer({**settings, "log_level": 0})
    for value in values:
        producer.produce(topic, value, "key", on_delivery=lambda error, _: errors.append(str(error)) if error else None)
    assert producer.flush(30) == 0
    return errors


def consume(broker: Broker, topic: str, count: int) -> list[str]:
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap, "group.id": "test", "auto.offset.reset": "earliest", "log_level": 0}
    )
    try:
        consumer.subscribe([topic])
        found: list[str] = []
        while len(found) < count:
            messages = consumer.consume(count - len(found), timeout=30)
            assert messages, f"{found} and no more in 30 s"
            found += [(message.value() or b"").decode() for message in messages if not message.error()]
        return found
    finally:
        consumer.close()


def test_the_broker_is_the_real_one(kafka: Broker) -> None:
    if not kafka.real:
        pytest.skip("librdkafka's mock cluster serves in every Kafka test: Java or Maven is missing")
    command = Path(f"/proc/{kafka.pid}/cmdline").read_bytes().decode()
    assert "kafka.Kafka" in command


def test_what_is_written_is_read_in_its_order(kafka: Broker) -> None:
    assert produce(kafka, "order", "one", "two", "three") == []
    assert consume(kafka, "order", 3) == ["one", "two", "three"]


def test_kcat_reads_it_too(kafka: Broker) -> None:
    require_environment(Path(shutil.which("kcat") or "/usr/bin/kcat"), "apt-get install kcat")
    assert produce(kafka, "kcat", "seen by another client") == []
    kcat = ["kcat", "-C", "-e", "-q", "-b", kafka.bootstrap, "-t", "kcat", "-f", "%k: %s\\n"]
    said = subprocess.run(kcat, capture_output=True, text=True, timeout=30, check=True)
    assert said.stdout == "key: seen by another client\n"


def test_data_and_address_survive_a_kill_and_all_is_gone_when_its_block_ends(tmp_path: Path) -> None:
    def failing() -> None:
        with running_kafka(tmp_path) as broker:
            address = broker.bootstrap
            assert produce(broker, "survives", "before") == []
            broker.stop(signal.SIGKILL)  # it skips here where the mock cluster serves
            assert not support.listens(address)
            broker.start()
            assert produce(broker, "survives", "after") == []
            assert broker.bootstrap == address
            assert consume(broker, "survives", 2) == ["before", "after"]
            (tmp_path / "found").write_text(f"{broker.pid} {address}")
            raise RuntimeError("a test failed")

    with pytest.raises(RuntimeError, match="a test failed"):
        failing()
    pid, address = (tmp_path / "found").read_text().split()
    assert not Path(f"/proc/{pid}").exists()
    assert not support.listens(address)


def test_without_java_the_mock_cluster_serves_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(support, "ROOT", tmp_path)  # no jars fetched yet
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with running_kafka(tmp_path / "broker") as broker:
        assert "mock cluster serves instead of Kafka: java is missing" in capfd.readouterr().err
        assert not broker.real
        assert produce(broker, "mock", "one") == []
        assert consume(broker, "mock", 1) == ["one"]
        with pytest.raises(pytest.skip.Exception, match="cannot be stopped"):
            broker.stop()


def test_without_java_ci_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "true")
    with (
        pytest.raises(pytest.fail.Exception, match="no real Kafka: java is missing"),
        running_kafka(tmp_path / "broker"),
    ):
        pass
