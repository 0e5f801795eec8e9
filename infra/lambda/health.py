"""Whether the service itself answers: a machine that runs may still be loading its models."""

from __future__ import annotations

import urllib.error
import urllib.request

from machine import Machine

TIMEOUT_S = 2.0


def ready(machine: Machine, template: str) -> bool:
    """Whether the service on this machine can be used; without an address to ask, whether the machine runs."""
    if machine.state != "running" or not template:
        return machine.state == "running"
    address = machine.address(template)
    return address is not None and answers(address)


def answers(url: str) -> bool:
    """Whether a GET of this address gives 200 soon."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):  # refused, timed out, any other status, not HTTP at all
        return False
