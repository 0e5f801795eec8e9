"""Which models answer: each is tried once after it was loaded, and watched as frames come. Pure."""

from __future__ import annotations

from collections.abc import Callable

from app.inference.liveness import DEADLINES


class ModelWatch:
    """A model fails from a trial that it did not answer, or once it has answered nothing but errors for two deadlines.

    Args:
        deadline_s: TRITON_DEADLINE_S.
        changed: called whenever a model fails or answers again.
    """

    def __init__(self, deadline_s: float, changed: Callable[[], None] | None = None) -> None:
        self._limit_s = DEADLINES * deadline_s
        self.changed = changed or (lambda: None)
        self._since: dict[str, float] = {}
        self.failing: dict[str, str] = {}
        """By model, what it said, or that it said nothing."""

    @property
    def reason(self) -> str | None:
        """All that fail, in words."""
        return "; ".join(dict.fromkeys(self.failing.values())) or None

    def answered(self, model: str) -> None:
        """It answered a request."""
        self._since.pop(model, None)
        if self.failing.pop(model, None) is not None:
            self.changed()

    def failed(self, model: str, reason: str, now: float, *, trial: bool = False) -> None:
        """It refused a request, or let it wait for too long. `now`: monotonic seconds."""
        since = self._since.setdefault(model, now)
        if model not in self.failing and (trial or now - since >= self._limit_s):
            self.failing[model] = reason
            self.changed()

    def forget(self) -> None:
        """The server came anew, maybe with other models."""
        self._since.clear()
        self.failing.clear()
