"""AWS with the manners that moto's has not: states in between, a launch time that each start renews, CloudWatch's limit
of figures an answer, bad days.

A real HTTP server in front of moto's. Whatever it does not touch is moto's answer.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.support.aws import Aws

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
_STATE = re.compile(rb"<instanceState>.*?</instanceState>", re.S)
_LAUNCHED = re.compile(rb"<launchTime>.*?</launchTime>", re.S)
Said = tuple[int, dict[str, str], bytes]
_MOST_FIGURES = 1440
_HOP = {"connection", "content-length", "host", "transfer-encoding", "date", "server"}


@dataclass(frozen=True)
class _Fault:
    code: str
    status: int
    """0: the connection is closed without an answer."""


class Ec2:
    """The front: what it shows of the one instance, what it refuses, and what it was asked."""

    def __init__(self, aws: Aws) -> None:
        self.aws = aws
        self.url = ""
        self._real = aws.client("ec2")
        self._lock = threading.Lock()
        self.renew()

    def renew(self) -> None:
        """A new instance, stopped, last started an hour ago; all good days."""
        self.asked: Counter[str] = Counter()
        """How often each operation came in, the refused ones too."""
        self._shown: str | None = None
        self._launched_at = time.time() - 3600
        self._faults: dict[str, deque[_Fault]] = {}
        self._then: dict[str, Callable[[], None]] = {}
        made = self._real.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)
        self.instance_id: str = made["Instances"][0]["InstanceId"]
        self._real.stop_instances(InstanceIds=[self.instance_id])

    @property
    def state(self) -> str:
        """The instance's state in moto: `running` or `stopped`."""
        found = self._real.describe_instances(InstanceIds=[self.instance_id])
        state: str = found["Reservations"][0]["Instances"][0]["State"]["Name"]
        return state

    @property
    def tags(self) -> dict[str, str]:
        """The instance's tags as they are kept."""
        wanted = [{"Name": "resource-id", "Values": [self.instance_id]}]
        return {tag["Key"]: tag["Value"] for tag in self._real.describe_tags(Filters=wanted)["Tags"]}

    def tag(self, key: str, value: str) -> None:
        self._real.create_tags(Resources=[self.instance_id], Tags=[{"Key": key, "Value": value}])

    def runs(self, seconds: float) -> None:
        """The machine runs, and was started so long ago."""
        self._real.start_instances(InstanceIds=[self.instance_id])
        self.launched(seconds)
        self.shows("running")

    def halts(self) -> None:
        """Stops the instance in moto, as if somebody had switched it off."""
        self._real.stop_instances(InstanceIds=[self.instance_id])
        self.shows(None)

    def shows(self, state: str | None) -> None:
        """Reports this state of the instance from now on; None: moto's own."""
        self._shown = state

    def launched(self, seconds_ago: float) -> None:
        """When the instance was last started."""
        self._launched_at = time.time() - seconds_ago

    def refuse(self, operation: str, code: str, status: int, *, times: int) -> None:
        """The next calls of this operation fail with this error."""
        self._faults.setdefault(operation, deque()).extend([_Fault(code, status)] * times)

    def hang_up(self, operation: str, *, times: int) -> None:
        """The next calls of this operation get no answer at all."""
        self.refuse(operation, "", 0, times=times)

    def after(self, operation: str, then: Callable[[], None]) -> None:
        """Runs a function once, after the next call of this operation and before the caller's next call."""
        self._then[operation] = then

    def answer(self, operation: str, sent: bytes, forward: Iterator[Said]) -> Said:
        """Status, headers and body of one call; status 0 for none."""
        with self._lock:
            self.asked[operation] += 1
            faults = self._faults.get(operation)
            if faults:
                return _error(operation, faults.popleft())
            if operation == "StartInstances" and self._shown in ("stopping", "shutting-down", "terminated"):
                return _error(operation, _Fault("IncorrectInstanceState", 400))
            if operation == "GetMetricStatistics" and _figures(json.loads(sent)) > _MOST_FIGURES:
                return _error(operation, _Fault("InvalidParameterCombinationException", 400))
            status, headers, body = next(forward)
            if operation == "StartInstances" and status == 200 and self._shown not in ("pending", "running"):
                self._shown, self._launched_at = "pending", time.time()
            elif operation == "StopInstances" and status == 200:
                self._shown = "stopping"
            elif operation == "DescribeInstances":
                body = self._retouch(body)
            self._then.pop(operation, lambda: None)()
            return status, headers, body

    def _retouch(self, body: bytes) -> bytes:
        launched = datetime.fromtimestamp(self._launched_at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        body = _LAUNCHED.sub(f"<launchTime>{launched}</launchTime>".encode(), body)
        if self._shown is None:
            return body
        state = f"<instanceState><code>{CODES[self._shown]}</code><name>{self._shown}</name></instanceState>"
        return _STATE.sub(state.encode(), body)


def _figures(asked: dict[str, Any]) -> int:
    """The number of data points that GetMetricStatistics would return, counted from the start's whole minute."""
    return math.ceil((asked["EndTime"] - asked["StartTime"] // 60 * 60) / asked["Period"])


def _error(operation: str, fault: _Fault) -> Said:
    """An error response: XML for EC2, JSON for CloudWatch."""
    if operation in ("GetMetricStatistics", "PutMetricData"):
        body = json.dumps({"__type": fault.code, "message": "the test says so"}).encode()
        return fault.status, {"Content-Type": "application/x-amz-json-1.0"}, body
    text = f"<Code>{fault.code}</Code><Message>the test says so</Message>"
    body = f"<Response><Errors><Error>{text}</Error></Errors><RequestID>0</RequestID></Response>".encode()
    return fault.status, {"Content-Type": "text/xml"}, body


@contextmanager
def fronted(aws: Aws) -> Iterator[Ec2]:
    """Serves EC2 on its own port until the block ends."""
    ec2 = Ec2(aws)

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            target = self.headers.get("X-Amz-Target", "")
            operation = target.rpartition(".")[2] or parse_qs(sent.decode()).get("Action", [""])[0]
            status, headers, body = ec2.answer(operation, sent, self._forward(sent))
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _forward(self, sent: bytes) -> Iterator[Said]:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            request = urllib.request.Request(aws.endpoint_url + self.path, sent, headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=30) as got:
                    answer = got.status, got.headers, got.read()
            except urllib.error.HTTPError as error:
                with error:
                    answer = error.code, error.headers, error.read()
            status, given, body = answer
            yield status, {name: value for name, value in given.items() if name.lower() not in _HOP}, body

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        ec2.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield ec2
        finally:
            server.shutdown()
            thread.join()
