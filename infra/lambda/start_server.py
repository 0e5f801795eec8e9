"""`start-server`: the page calls it to have the machine started, and to ask how far it is.

`POST` starts, `GET` asks. The answer is `{"state": "starting" | "running" | "stopping" | "stopped",
"eta_s": seconds or null, "url": where the service will be or null, "message": a sentence or null}`.
A start that has to wait (the machine is being switched off, or hangs and will be, or AWS has none free) is noted in a
tag, and made by the next call that can, a `GET` too: a page posts once and then only asks.
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
    """HTTP's status and what the body says."""

    state: str
    eta_s: int | None = None
    url: str | None = None
    message: str | None = None
    status: int = 200
    retry_after_s: int | None = None


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answers one call of the function URL. What only the owner can mend is raised, so that an alarm sees it."""
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
    told = serve(settings, machine.client("ec2"), start=request.method == "POST")
    log.info("%s: %s %s", request.method, told.status, told)
    body = {"state": told.state, "eta_s": told.eta_s, "url": told.url, "message": told.message}
    return say(told.status, body, **({} if told.retry_after_s is None else {"retry_after": str(told.retry_after_s)}))


def serve(settings: Start, ec2: Any, *, start: bool) -> Answer:
    """Starts the machine where that is wanted and possible, and tells how it stands."""
    try:
        found = machine.look(ec2, settings.instance_id)
        if found.state == "stopped" and (start or found.wanted(time.time())):
            return _start(settings, ec2, found)
        told = _tell(settings, found, waits=start or found.wanted(time.time()))
        # One that runs and does not answer may be starting; or it hangs, and is switched off while the page waits.
        if start and (found.state == "stopping" or (found.state == "running" and told.state == "starting")):
            machine.wish(ec2, found)
        return told
    except (ClientError, BotoCoreError) as error:
        if machine.code(error) == "InvalidInstanceID.NotFound":
            log.error("%s", error)
            return Answer("terminated", message="The machine behind this service does not exist any more.", status=410)
        if not machine.busy(error):
            raise
        log.warning("%s", error)
        return Answer("unknown", message="Amazon is busy; this is tried again.", status=503, retry_after_s=5)


def _start(settings: Start, ec2: Any, found: Machine) -> Answer:
    """Asks EC2 for the start. Several may do so at once: to start what starts already changes nothing."""
    try:
        ec2.start_instances(InstanceIds=[found.id])
    except (ClientError, BotoCoreError) as error:
        if machine.code(error) == "IncorrectInstanceState":  # somebody was quicker, one way or the other
            found = machine.look(ec2, settings.instance_id)
            if found.state in ("stopping", "stopped"):
                machine.wish(ec2, found)
            return _tell(settings, found, waits=True)
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


def _tell(settings: Start, found: Machine, *, waits: bool) -> Answer:
    """How it stands, with nothing done about it. `waits`: a start is noted, or is about to be."""
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
