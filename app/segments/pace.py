"""How long a worker waits for what. Seconds."""

from __future__ import annotations

from dataclasses import dataclass

from app.limits import backoff_s


@dataclass(frozen=True, slots=True)
class Pace:
    poll_s: float = 5.0
    """A request for a message is held so long; a worker that stops waits for it."""
    again_s: float = 5.0
    """A segment that failed is tried again after so long; at SageMaker after twice as long each time."""
    away_s: float = 30.0
    """A backend that was away or busy is asked again after so long at most, at first sooner."""
    early_s: float = 2.0
    """An answer that came before its invocation could be found is looked at again after so long."""
    rounds_s: float = 5.0
    """Between two looks for what no message tells."""
    jobs_s: float = 60.0
    """Between two looks at jobs that wait for their segments."""
    lease_s: float = 15.0
    """Who took a job's trigger and has not sent it for so long is dead: the next one sends it."""

    def strange_s(self, deliveries: int) -> float:
        """A message that is not understood comes again after so long, up to five minutes.

        Its queue hands it to the dead-letter queue; one that has none keeps it for as long as it keeps messages.
        """
        return backoff_s(max(1, deliveries), self.again_s, 300.0)
