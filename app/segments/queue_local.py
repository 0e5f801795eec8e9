"""A queue in the local database: hidden while somebody works on a message, back when he does not end."""

from __future__ import annotations

import threading
import time
import uuid

from app.segments.local_database import LocalDatabase
from app.segments.ports import Message, MessageGone

_ONCE_S = 300.0
"""As a FIFO queue of SQS: for so long a word is sent once."""
_LOOK_S = 0.2
"""Other processes' messages are found so soon; those of this process at once."""


class LocalQueue:
    """See `Queue`.

    Args:
        visibility_s: how long a received message stays hidden.
    """

    def __init__(self, database: LocalDatabase, name: str, *, visibility_s: float) -> None:
        self.name = name
        self._database = database
        self._visibility_s = visibility_s
        self._sent = threading.Condition()

    def receive(self, wait_s: float) -> Message | None:
        deadline = time.monotonic() + wait_s
        while True:
            message = self._take()
            left = deadline - time.monotonic()
            if message is not None or left <= 0:
                return message
            with self._sent:
                self._sent.wait(min(_LOOK_S, left))

    def _take(self) -> Message | None:
        now = time.time()
        with self._database.change() as changes:
            found = changes.execute(
                "SELECT id, body, deliveries FROM messages WHERE queue = ? AND visible_at <= ? ORDER BY rowid LIMIT 1",
                (self.name, now),
            ).fetchone()
            if found is None:
                return None
            message = Message(found[0], found[1], uuid.uuid4().hex, found[2] + 1)
            changes.execute(
                "UPDATE messages SET receipt = ?, deliveries = ?, visible_at = ? WHERE queue = ? AND id = ?",
                (message.receipt, message.deliveries, now + self._visibility_s, self.name, message.id),
            )
        return message

    def delete(self, message: Message) -> None:
        self._change("DELETE FROM messages WHERE queue = ? AND id = ? AND receipt = ?", message)

    def extend(self, message: Message, seconds: float) -> None:
        self._hide(message, seconds)

    def release(self, message: Message, delay_s: float = 0.0) -> None:
        self._hide(message, delay_s)
        self._wake()

    def _hide(self, message: Message, seconds: float) -> None:
        # One that is visible again may be anybody's: as SQS, nothing is done for its last receiver.
        self._change(
            "UPDATE messages SET visible_at = ? WHERE queue = ? AND id = ? AND receipt = ? AND visible_at > ?",
            message,
            before=(time.time() + seconds,),
            after=(time.time(),),
        )

    def _change(
        self, statement: str, message: Message, *, before: tuple[float, ...] = (), after: tuple[float, ...] = ()
    ) -> None:
        with self._database.change() as changes:
            done = changes.execute(statement, (*before, self.name, message.id, message.receipt, *after))
        if not done.rowcount:
            raise MessageGone(f"message {message.id}: deleted, or visible again")

    def send(self, body: str, *, once: str | None = None, delay_s: float = 0.0) -> None:
        now = time.time()
        with self._database.change() as changes:
            if once is not None:
                changes.execute("DELETE FROM sent_once WHERE sent_at < ?", (now - _ONCE_S,))
                fresh = changes.execute("INSERT OR IGNORE INTO sent_once VALUES (?, ?, ?)", (self.name, once, now))
                if not fresh.rowcount:
                    return
            row = (self.name, uuid.uuid4().hex, body, now + delay_s if delay_s else 0.0)
            changes.execute("INSERT INTO messages VALUES (?, ?, ?, '', 0, ?)", row)
        self._wake()

    def _wake(self) -> None:
        with self._sent:
            self._sent.notify_all()
