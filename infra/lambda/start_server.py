"""`start-server`: the page calls it to start the machine and to read its state.

`POST` starts the machine, `GET` reads its state. The body of the answer is `{"state": "starting" | "running" |
"stopping" | "stopped" | "terminated" | "unknown", "eta_s": seconds or null, "url": the service's address or null,
"message": a sentence or null}`.

A start may have to wait: the machine is being switched off, or hangs and will be switched off, or AWS has no capacity.
The function then records the request in a tag, and the next call that can makes the start, even a `GET`, because a page
posts once and then only reads the state.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import cold_starts
import health
import machine
import web
from botocore.exceptions import BotoCoreError, ClientError
from machine import Machine
from variables import Start

log = logging.getLogger("sightline")
log.setLevel(logging.INFO)

OVERDUE_S = 900.0


@dataclass(frozen=True)
class Answer:
    """The HTTP status and the fields of the body."""

    state: str
    eta_s: int | None = None
    url: str | None = None
    message: str | None = None
    status: int = 200
    retry_after_s: int | None = None


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answers a call of the function URL. Raises errors that only the owner can fix, so that an alarm reports them."""
    settings = Start.read()
    request = web.Request.of(event)

    def say(status: int, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        return web.answer(request, settings.origins, status, body, **headers)

    if not request.origin_allowed(settings.origins):
        log.warning("refused a page of %s", request.origin)
        return say(403, {"message": f"Pages of {request.origin} may not start this service."})
    if request.method == "OPTIONS":
        return say(204, {})
    if request.method not in web.METHODS:
        return say(405, {"message": "POST starts the service, GET asks how far it is."}, allow="GET, POST")
    if not request.token_valid(settings.tokens):
        log.warning("refused a call with %s token", "a wrong" if request.token else "no")
        return say(401, {"message": "A valid start token is needed to start this service."}, www_authenticate="Bearer")
    reply = serve(settings, machine.client("ec2"), start=request.method == "POST")
    log.info("%s: %s %s", request.method, reply.status, reply)
    body = {"state": reply.state, "eta_s": reply.eta_s, "url": reply.url, "message": reply.message}
    return say(reply.status, body, **({} if reply.retry_after_s is None else {"retry_after": str(reply.retry_after_s)}))


def serve(settings: Start, ec2: Any, *, start: bool) -> Answer:
    """Starts the machine if a start is requested and possible; returns the machine's state."""
    try:
        found = machine.look(ec2, settings.instance_id)
        if found.state == "stopped" and (start or found.wanted(time.time())):
            return _start(settings, ec2, found)
        reply = _describe(settings, found, waits=start or found.wanted(time.time()))
        # A running machine whose service does not answer may be starting. Or it hangs, and `stop-idle` may stop it
        # while the page waits.
        if start and (found.state == "stopping" or (found.state == "running" and reply.state == "starting")):
            machine.wish(ec2, found)
        return reply
    except (ClientError, BotoCoreError) as error:
        if machine.code(error) == "InvalidInstanceID.NotFound":
            log.error("%s", error)
            return Answer("terminated", message="The machine behind this service does not exist any more.", status=410)
        if not machine.busy(error):
            raise
        log.warning("%s", error)
        return Answer("unknown", message="Amazon is busy; this is tried again.", status=503, retry_after_s=5)


def _start(settings: Start, ec2: Any, found: Machine) -> Answer:
    """Requests the start from EC2. Several calls may do so at once: starting a machine that starts has no effect."""
    try:
        ec2.start_instances(InstanceIds=[found.id])
    except (ClientError, BotoCoreError) as error:
        if machine.code(error) == "IncorrectInstanceState":  # another call has started or stopped it meanwhile
            found = machine.look(ec2, settings.instance_id)
            if found.state in ("stopping", "stopped"):
                machine.wish(ec2, found)
            return _describe(settings, found, waits=True)
        if machine.full(error) or machine.busy(error):
            with contextlib.suppress(ClientError, BotoCoreError):  # the start's own error says more
                machine.wish(ec2, found)
        if machine.full(error):
            log.warning("%s", error)
            text = "Amazon has no such machine free just now; this is tried again until there is one."
            return Answer("stopped", message=text, status=503, retry_after_s=30)
        raise
    log.info("asked for a start of %s", found.id)
    eta = cold_starts.left_s(found.tags.get(machine.COLD_STARTS, ""))
    return Answer("starting", eta_s=eta, url=found.address(settings.service_url))


def _describe(settings: Start, found: Machine, *, waits: bool) -> Answer:
    """The machine's state, without changing it. `waits`: a requested start is recorded, or is about to be."""
    history = found.tags.get(machine.COLD_STARTS, "")
    url = found.address(settings.service_url)
    if found.gone:
        return Answer("terminated", message="The machine behind this service was deleted.", status=410)
    if found.state == "stopping":
        text = "A machine must be off before it can start: the start waits its turn."
        return Answer("stopping", url=url, message=text if waits else "It is being switched off.")
    if found.state == "stopped":
        return Answer("stopped", cold_starts.left_s(history), url, "The machine is off. POST starts it.")
    up_for = found.up_for(time.time())
    if health.ready(found, settings.health_url):
        return Answer("running", eta_s=0, url=url)
    overdue = "This takes longer than it should; the service's owner may have to look." if up_for > OVERDUE_S else None
    return Answer("starting", cold_starts.left_s(history, up_for), url, overdue)
