"""Checks whether the service itself answers, because a running machine may still be loading its models."""

from __future__ import annotations

import urllib.error
import urllib.request

from machine import Machine

TIMEOUT_S = 2.0


def ready(machine: Machine, template: str) -> bool:
    """Whether the service on this machine is ready; if `template` is empty, whether the machine runs."""
    if machine.state != "running" or not template:
        return machine.state == "running"
    address = machine.address(template)
    return address is not None and answers(address)


def answers(url: str) -> bool:
    """Whether a GET of this URL returns 200 within `TIMEOUT_S`."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):  # refused, timed out, any other status, not HTTP at all
        return False
