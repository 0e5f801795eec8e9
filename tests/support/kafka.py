"""A real Apache Kafka broker (KRaft, one node) on free loopback ports, from the jars that tests/kafka/pom.xml names.

`make test` fetches the jars; so does the first test that wants them: `python -m tests.support.kafka`. Without Java or
Maven librdkafka's own mock cluster serves, and `Broker.real` is False; where `CI` is set that is a failure.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from app.settings import ROOT

POM = ROOT / "tests" / "kafka" / "pom.xml"
START_S = 90.0
STOP_S = 20.0
# One core and small tests: no second compiler, no parallel collector, little memory.
_JAVA = ("-Xms96m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN")


class JarsMissing(Exception):
    """Java or Maven is not there, or Maven could not fetch the jars."""


def jars() -> Path:
    """The folder of the broker's jars; fetched by Maven once for each version of the pom.

    Raises:
        JarsMissing: with the reason.
    """
    folder = ROOT / ".state" / "tests" / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise JarsMissing(f"{program} is missing (Debian's package maven brings both)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as aside:
        fetch = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
        options = ["-DincludeScope=runtime", f"-DoutputDirectory={aside}/jars"]
        done = subprocess.run([*fetch, *options], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise JarsMissing(f"Maven could not fetch the jars of {POM}:\n{(done.stdout + done.stderr)[-2000:]}")
        if not folder.is_dir():  # another run may have been faster
            Path(aside, "jars").rename(folder)
    return folder


@dataclass
class Broker:
    """A broker that can be stopped and started again on the same port with the same data."""

    bootstrap: str
    """`host:port`."""
    folder: Path
    real: bool = True
    """False: librdkafka's mock cluster, which lives in this process."""
    _command: list[str] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "kafka.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it answers for its metadata."""
        self._only_real()
        assert self._process is None, "the broker is running"
        with (self.folder / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_S
        admin: AdminClient | None = None
        while True:
            assert self._process.poll() is None, f"Kafka ended with {self._process.returncode}:\n{self.log[-4000:]}"
            assert time.monotonic() < deadline, f"Kafka was not ready in {START_S:g} s:\n{self.log[-4000:]}"
            if listens(self.bootstrap):
                admin = admin or AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
                try:
                    admin.list_topics(timeout=2)
                    return
                except KafkaException:
                    continue
            time.sleep(0.1)

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Ends it, cleanly unless `how` is SIGKILL. Does nothing when it is stopped."""
        self._only_real()
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _only_real(self) -> None:
        if not self.real:
            pytest.skip("librdkafka's mock cluster cannot be stopped and started: Java or Maven is missing")


@contextmanager
def running_kafka(folder: Path) -> Iterator[Broker]:
    """A broker whose data, settings and log are in `folder`; ended when the block ends.

    Topics are made when first written to, with one partition.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        classpath = str(jars() / "*")
    except JarsMissing as error:
        if os.environ.get("CI"):
            pytest.fail(f"no real Kafka: {error}")
        sys.stderr.write(f"librdkafka's mock cluster serves instead of Kafka: {error}\n")
        yield from _mock(folder)
        return
    port, controller = free_ports(2)
    settings = folder / "server.properties"
    settings.write_text("".join(f"{key}={value}\n" for key, value in _properties(folder, port, controller).items()))
    java = ["java", *_JAVA, f"-Djava.io.tmpdir={folder}", "-cp", classpath]
    cluster = (
        "A" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
    )  # one that begins with "-" is refused
    formatting = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings)]
    done = subprocess.run(formatting, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 0, f"Kafka's storage could not be formatted:\n{done.stdout}{done.stderr}"
    broker = Broker(f"127.0.0.1:{port}", folder, _command=[*java, "kafka.Kafka", str(settings)])
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def _properties(folder: Path, port: int, controller: int) -> Mapping[str, object]:
    """One node that is broker and controller; every replica count that defaults to 3 is 1."""
    return {
        "node.id": 1,
        "process.roles": "broker,controller",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "log.dirs": folder / "data",
        "num.partitions": 1,
        "num.network.threads": 2,
        "num.io.threads": 2,
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # A node that was killed may not come back before its old session is over: 9 s unless told otherwise.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        "log.segment.bytes": 16 * 1024 * 1024,
        "log.cleaner.dedupe.buffer.size": 2 * 1024 * 1024,
    }


def _mock(folder: Path) -> Iterator[Broker]:
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    (node,) = owner.list_topics(timeout=10).brokers.values()
    (folder / "kafka.log").touch()
    yield Broker(f"{node.host}:{node.port}", folder, real=False)
    owner.flush(1)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, all different.

    Below Linux's range for outgoing connections: a stopped server must find its port free when it starts again.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


def listens(address: str) -> bool:
    """Whether somebody takes connections at `host:port`."""
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


if __name__ == "__main__":
    try:
        sys.stdout.write(f"Kafka's jars: {jars()}\n")
    except JarsMissing as missing:
        sys.stderr.write(f"Kafka's jars: {missing}\n")
        sys.exit(1 if os.environ.get("CI") else 0)
