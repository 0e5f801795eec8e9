"""How much all sessions of the process hold, on the gauges."""

from __future__ import annotations

from app import metrics

_gauges = (
    metrics.SUMMARY_BACKLOG_ITEMS.labels("ram"),
    metrics.SUMMARY_BACKLOG_BYTES.labels("ram"),
    metrics.SUMMARY_BACKLOG_ITEMS.labels("disk"),
    metrics.SUMMARY_BACKLOG_BYTES.labels("disk"),
)


class Levels:
    """One session's part of them; only differences are written."""

    def __init__(self) -> None:
        self._shown = (0, 0, 0, 0)

    def show(self, ram_items: int, ram_bytes: int, disk_items: int, disk_bytes: int) -> None:
        now = (ram_items, ram_bytes, disk_items, disk_bytes)
        for gauge, old, new in zip(_gauges, self._shown, now, strict=True):
            if new != old:
                gauge.inc(new - old)
        self._shown = now

    def clear(self) -> None:
        """The session is over."""
        self.show(0, 0, 0, 0)
