"""A stand-in for AWS: moto's server in a process of its own, spoken to by boto3 over real HTTP."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

START_S = 60.0
REGION = "us-east-1"
_LISTENING = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")


@dataclass(frozen=True)
class Aws:
    """A running moto server: its address, and clients of it."""

    endpoint_url: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point any AWS SDK here. The keys open nothing anywhere."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_SESSION_TOKEN": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            # Neither the developer's profile nor a real machine's role may answer for it.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str) -> Any:
        """A boto3 client of this service: `sqs`, `s3`, `ec2`, … One a service: making one takes a while."""
        return _client(self.endpoint_url, service)

    def reset(self) -> None:
        """Forgets everything that was made in it."""
        request = urllib.request.Request(f"{self.endpoint_url}/moto-api/reset", method="POST")
        urllib.request.urlopen(request, timeout=30).close()


@functools.cache
def _client(endpoint_url: str, service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


@contextmanager
def running_aws(folder: Path) -> Iterator[Aws]:
    """moto's server on a free loopback port, ended with the block."""
    log_path = folder / "aws.log"
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield Aws(_address(child, log_path))
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _address(child: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline = time.monotonic() + START_S
    while True:
        text = log_path.read_text(errors="replace")
        if found := _LISTENING.search(text):
            return found[1]
        assert child.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
