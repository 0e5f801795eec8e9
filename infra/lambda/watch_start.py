"""`watch-start`: once EC2 reports that the machine runs, waits until the service answers and records the duration.

`start-server` cannot measure it, because a page connects as soon as the service is up and calls `start-server` no more.
If the service never answers, this function ends with an error, so that an alarm reports it.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import cold_starts
import health
import machine
from machine import Machine
from variables import Watch

log = logging.getLogger("sightline")
log.setLevel(logging.INFO)

POLL_S = 2.0
LOOK_EVERY = 10
"""Polls of the service between two reads of the machine's state."""
SPARE_S = 5.0


class NeverAnswered(Exception):
    """The machine runs, but the service did not answer in time."""


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Takes EC2's event `EC2 Instance State-change Notification`, state `running`.

    Raises:
        NeverAnswered: the service did not answer before the function's timeout.
    """
    settings = Watch.read()
    ec2 = machine.client("ec2")
    found = machine.look(ec2, settings.instance_id)
    while found.state in ("pending", "running"):
        for _ in range(LOOK_EVERY):
            if health.ready(found, settings.health_url):
                return _note(ec2, found)
            if context.get_remaining_time_in_millis() / 1000 < SPARE_S + POLL_S + health.TIMEOUT_S:
                raise NeverAnswered(
                    f"{found.id} was started {found.up_for(time.time()):.0f} s ago, and {settings.health_url or 'it'} "
                    "does not answer: look at `systemctl status inference-compose` on it"
                )
            time.sleep(POLL_S)
        found = machine.look(ec2, settings.instance_id)  # its address may be new, or it may have been stopped
    log.info("%s is %s: nothing to wait for", found.id, found.state)
    return {"noted": False, "state": found.state}


def _note(ec2: Any, found: Machine) -> dict[str, Any]:
    took_s = found.up_for(time.time())
    found = machine.look(ec2, found.id)  # its tags may have changed since
    history = cold_starts.add(found.tags.get(machine.COLD_STARTS, ""), found.launched_at, took_s)
    machine.remember(ec2, found, machine.COLD_STARTS, history)
    log.info("%s was up after %.0f s; starts so far: %s", found.id, took_s, history)
    return {"noted": True, "took_s": round(took_s)}
