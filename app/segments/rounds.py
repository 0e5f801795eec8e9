"""What no message tells: invocations that nobody answers, and what somebody who died left half done."""

from __future__ import annotations

import itertools
import logging
import threading
import time

from app.segments.answers import Answers
from app.segments.completion import Completions
from app.segments.pace import Pace
from app.segments.ports import Store
from app.segments.slots import Slots

log = logging.getLogger(__name__)


class Rounds:
    """Looks at the store, at the start and every few seconds. Any number of workers may do so."""

    def __init__(
        self, store: Store, slots: Slots, answers: Answers, completions: Completions, *, timeout_s: float, pace: Pace
    ) -> None:
        self._store = store
        self._slots = slots
        self._answers = answers
        self._completions = completions
        self._timeout_s = timeout_s
        self._owing: set[str] = set()
        self.rebuilt = threading.Event()
        """Set once the places of invocations that were open at the start are taken."""
        self._jobs_due = time.monotonic()
        # A trigger that somebody took just before he died can be taken over when its lease has run out.
        self._jobs_pauses_s = itertools.chain((1.1 * pace.lease_s,), itertools.repeat(pace.jobs_s))

    def turn(self) -> None:
        """One look."""
        self._invocations()
        self.rebuilt.set()
        if time.monotonic() >= self._jobs_due:
            self._jobs_due = time.monotonic() + next(self._jobs_pauses_s)
            for job_id in self._store.waiting_jobs():
                self._completions.check(job_id)

    def _invocations(self) -> None:
        held = self._slots.held()  # before the store is asked: what is invoked meanwhile is not looked at
        there = self._store.open_invocations()
        waiting = {one.id: one for one in there if one.state == "open"}
        # Not yet accepted: whoever calls holds a place of his own, however long the endpoint is too busy; who died
        # before leaves a message that comes again. Neither is a segment's failure.
        accepted = [one for one in waiting.values() if one.answer_uri is not None]
        self._slots.adopt(one.id for one in accepted)
        for invocation_id in held - waiting.keys():
            self._free_if_over(invocation_id)
        for one in accepted:
            if time.time() - one.called_at > self._timeout_s and self._answers.timed_out(one, self._timeout_s):
                log.warning("segment %s: invocation %s was never answered", one.segment, one.id)
        owing = {one.id for one in there if one.state != "open"}
        # Whoever finished it is about to see to it; one that is still here the next time has nobody.
        for invocation_id in owing & self._owing:
            self._answers.settle(invocation_id)
        self._owing = owing

    def _free_if_over(self, invocation_id: str) -> None:
        """Another worker may have got its answer. The list may be stale: the invocation itself never is."""
        now = self._store.invocation(invocation_id)
        if now is None or now.state != "open":
            self._slots.free(invocation_id)
