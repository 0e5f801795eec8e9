"""The worker of recorded film: two loops and a look around, each in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from app.errors import SightlineError
from app.limits import backoff_s
from app.segments.answers import Answers
from app.segments.attempts import Attempts
from app.segments.completion import Completions
from app.segments.events_loop import EventsLoop
from app.segments.inference_loop import InferenceLoop
from app.segments.invoking import Invoking
from app.segments.pace import Pace
from app.segments.ports import WorkerResources
from app.segments.pulse import Pulse, worst
from app.segments.rounds import Rounds
from app.segments.slots import Slots
from app.settings import SegmentSettings

log = logging.getLogger(__name__)

_PAUSE_S = 1.0
_MOST_PAUSE_S = 30.0


class Worker:
    """Works on segments until it is stopped. Killed at any moment, it loses nothing: the next one goes on."""

    def __init__(self, parts: WorkerResources, settings: SegmentSettings, pace: Pace | None = None) -> None:
        pace = pace or Pace()
        backend, store = parts.backend, parts.store
        self._backend = backend
        self._rounds_s = pace.rounds_s
        self._stopping = threading.Event()
        self._broken: str | None = None
        self._pulses = {name: Pulse() for name in ("inference", "events", "rounds")}
        self.slots = Slots(settings.inference_max_in_flight, backend.name)
        self.completions = Completions(store, parts.reassembly, pace)
        attempts = Attempts(store, settings.segment_attempts, backend.name)
        answers = Answers(
            store,
            parts.segments,
            self.slots,
            self.completions,
            attempts,
            input_bucket=parts.input_bucket,
            backend=backend.name,
            pace=pace,
        )
        invoking = Invoking(
            backend,
            store,
            parts.objects,
            self.slots,
            self.completions,
            attempts,
            queue_name=parts.segments.name,
            buckets=(parts.input_bucket, parts.output_bucket),
            pace=pace,
            stopping=self._stopping,
        )
        self._inference = InferenceLoop(
            parts.segments,
            invoking,
            self.slots,
            visibility_s=settings.segment_visibility_s,
            pace=pace,
            stopping=self._stopping,
            pulse=self._pulses["inference"],
        )
        self._events = EventsLoop(
            parts.events,
            parts.objects,
            store,
            answers,
            output_bucket=parts.output_bucket,
            pace=pace,
            pulse=self._pulses["events"],
        )
        timeout_s = settings.sagemaker_invoke_timeout_seconds
        self._rounds = Rounds(store, self.slots, answers, self.completions, timeout_s=timeout_s, pace=pace)

    def stop(self) -> None:
        """Asks it to end; from any thread, or a signal."""
        self._stopping.set()

    def report(self) -> dict[str, Any]:
        """What /health says."""
        loops = {name: pulse.report() for name, pulse in self._pulses.items()}
        state = "silent" if self._broken else worst(loops)
        return {"state": state, "backend": self._backend.name, "in_flight": self.slots.in_flight, "loops": loops}

    def run(self, drain_s: float = 10.0) -> None:
        """Works until `stop`, then ends what is in hand, or gives it back after so long.

        Raises:
            SightlineError: a loop ended that should not.
        """
        threads = [
            self._thread("rounds", self._rounds.turn, self._rounds_s),
            self._thread("events", self._events.turn, 0.0),
            self._thread("inference", self._infer, 0.0),
        ]
        for thread in threads:
            thread.start()
        self._stopping.wait()
        for thread in threads:
            thread.join()
        self._inference.drain(drain_s)
        self._backend.close()
        if self._broken is not None:
            raise SightlineError(self._broken)

    def _infer(self) -> None:
        # Before that nobody knows how many places are free.
        if self._rounds.rebuilt.wait(_PAUSE_S):
            self._inference.turn()

    def _thread(self, name: str, turn: Callable[[], None], pause_s: float) -> threading.Thread:
        return threading.Thread(target=self._loop, args=(name, turn, pause_s), name=name, daemon=True)

    def _loop(self, name: str, turn: Callable[[], None], pause_s: float) -> None:
        try:
            self._turns(name, turn, pause_s)
        except BaseException as error:
            self._broken = f"the {name} loop ended: {type(error).__name__}: {error}"
            raise
        finally:
            self._stopping.set()

    def _turns(self, name: str, turn: Callable[[], None], pause_s: float) -> None:
        pulse, trouble = self._pulses[name], 0
        while not self._stopping.is_set():
            try:
                turn()
            except Exception:  # AWS is away, or says no: the loop must outlive it
                log.exception("the %s loop pauses", name)
                pulse.failed()
                trouble += 1
            else:
                trouble = 0
            pulse.turned()
            self._stopping.wait(backoff_s(trouble, _PAUSE_S, _MOST_PAUSE_S) or pause_s)
