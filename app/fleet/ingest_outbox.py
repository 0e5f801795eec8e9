"""The newest frames of every camera on their way to Redis: one thread writes them all, many in one round trip."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from dataclasses import dataclass

import redis

from app import metrics
from app.errors import ConfigurationError
from app.fleet.connection import is_barred, is_outage, refuse_cluster, require_fit, says
from app.fleet.keys import Keys
from app.fleet.lag import entry_id

log = logging.getLogger(__name__)

PIPELINE = 64
"""Frames in one round trip, about."""
WAITING = 4
"""Frames of a camera that wait at most: a hiccup of the machine costs none, and none gets old here."""
GONE_S = 60
"""How long Redis keeps the frames of a camera that was removed."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_frames = metrics.INGEST_FRAMES.labels
_SENT, _AWAY, _REFUSED, _SUPERSEDED = map(_frames, ("sent", "redis_away", "refused", "superseded"))


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One frame for Redis."""

    camera_id: str
    camera_type: str
    jpeg: bytes
    captured_at_ms: float
    """Epoch milliseconds."""


class Outbox:
    """Of each camera the newest `WAITING` frames wait here; the oldest gives way to a newer one, which is counted.

    What Redis did not take is given up: by the time that it answers again there are newer ones.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *, maxlen: int, register_s: float) -> None:
        """
        Args:
            client: the outbox's own.
            register_s: seconds after which a camera says again that it is there: Redis may have been emptied.
        """
        self._client = client
        self._keys = keys
        self._maxlen = maxlen
        self._register_s = register_s
        self._waiting: dict[str, deque[Outgoing]] = {}
        self._leaving: set[str] = set()
        self._registered: dict[str, float] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._random = random.Random()
        self._fit = False
        """Redis was asked who it is, since it was away last."""
        self._barred: set[str] = set()
        """Cameras whose streams the account may not touch."""
        self._outage = ""
        self.unfit = ""
        """Why this Redis will never do; empty as long as it may."""
        self.sent: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self._thread = threading.Thread(target=self._write, name="ingest-outbox", daemon=True)

    @property
    def says(self) -> str:
        """What Redis says instead of taking frames, one of `connection.WORDS`; empty: it took the last ones."""
        return self._outage or ("NOPERM" if self._barred else "")

    @property
    def up(self) -> bool:
        """Whether Redis took the last frames."""
        return not self.says

    def start(self) -> None:
        self._thread.start()

    def put(self, frame: Outgoing) -> None:
        """Never waits."""
        with self._changed:
            self._leaving.discard(frame.camera_id)  # it is back
            line = self._waiting.setdefault(frame.camera_id, deque())
            gives_way = len(line) >= WAITING
            if gives_way:
                line.popleft()
                self._dropped(frame.camera_id)
            line.append(frame)
            self._changed.notify()
        if gives_way:
            (_AWAY if self._outage else _SUPERSEDED).inc()

    def remove(self, camera_id: str) -> None:
        """The camera is no more: workers need not look for it, and Redis forgets its frames in a while."""
        with self._changed:
            self._leaving.add(camera_id)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Writes what waits, once, and ends the thread; whether it did in time."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _dropped(self, camera_id: str) -> None:
        self.dropped[camera_id] = self.dropped.get(camera_id, 0) + 1

    def _write(self) -> None:
        pause_s = _PAUSE_S
        while (work := self._next()) is not None:
            frames, leaving = work
            problem: Exception | None
            try:
                frames, problem = self._send(frames, leaving)
            except (redis.RedisError, ConfigurationError) as error:
                problem = error
            if problem is None:
                pause_s = _PAUSE_S
                if self._outage:
                    log.info("Redis takes frames again")
                self._outage = ""
                continue
            self._failed(problem)
            self._give_up(frames, leaving)
            if self._outage == "OOM":
                self._make_room()
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause_s * self._random.uniform(0.5, 1))
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        self._client.close()

    def _failed(self, problem: Exception) -> None:
        """Redis is away, refuses, or will never do: it is looked for anew, and asked again who it is."""
        if not self._outage:
            log.error("Redis takes no frames (REDIS_URL): %s; they are given up until it does", problem)
        self._outage = says(problem)
        self._fit = False
        self._registered.clear()
        self._client.connection_pool.disconnect()
        try:
            refuse_cluster(problem)
        except ConfigurationError as error:
            problem = error
        if isinstance(problem, ConfigurationError):
            self.unfit = str(problem)

    def _make_room(self) -> None:
        """Removes the entries that all workers are done with.

        Redis trims a stream when an entry is added, and a full Redis refuses that: it would stay full for ever,
        although everything was read. XTRIM is allowed.
        """
        removed = 0
        # Also those of which nothing was taken yet: this process may have been started after Redis was full.
        for camera_id in self.sent.keys() | self.dropped.keys():
            stream = self._keys.stream(camera_id)
            try:
                if (oldest := self._oldest_wanted(stream)) is not None:
                    removed += self._client.xtrim(stream, minid=oldest, approximate=False)
            except redis.RedisError as error:
                if is_outage(error):  # the next attempt says so
                    return
                log.debug("%s is not trimmed: %s", stream, error)
        if removed:
            log.info("Redis is full: %d frames that were analysed are removed from it", removed)

    def _oldest_wanted(self, stream: str) -> str | None:
        """The id from which a group of workers still wants a stream's entries; None where no group reads it."""
        wanted = []
        for group in self._client.xinfo_groups(stream):
            if group["pending"]:
                pending = self._client.xpending(stream, group["name"])["min"]
                if pending is not None:
                    wanted.append(entry_id(pending))
                    continue
            milliseconds, number = entry_id(group["last-delivered-id"])
            wanted.append((milliseconds, number + 1))
        return "{}-{}".format(*min(wanted)) if wanted else None

    def _next(self) -> tuple[list[Outgoing], set[str]] | None:
        """Waits for something to write; None once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._leaving)
            if not self._waiting and not self._leaving:
                return None
            if self._closed and self._outage:  # nobody waits for Redis at the end
                self._give_up([frame for line in self._waiting.values() for frame in line], set())
                self._waiting.clear()
                return None
            leaving, self._leaving = self._leaving, set()
            # Nothing of theirs may come after: it would put them on the list of cameras again.
            frames = [frame for camera_id in sorted(leaving) for frame in self._waiting.pop(camera_id, ())]
            while self._waiting and len(frames) < PIPELINE:
                # The camera that has waited longest; with its next frame it is the last in line.
                frames += self._waiting.pop(next(iter(self._waiting)))
            return frames, leaving

    def _give_up(self, frames: list[Outgoing], leaving: set[str]) -> None:
        _AWAY.inc(len(frames))
        for frame in frames:
            self._dropped(frame.camera_id)
        self._leaving |= leaving

    def _send(self, frames: list[Outgoing], leaving: set[str]) -> tuple[list[Outgoing], Exception | None]:
        """What Redis, by its state, did not take, and what it said.

        Raises:
            redis.RedisError: it does not answer.
            ConfigurationError: it will never do.
        """
        if not self._fit:
            require_fit(self._client)
            self._fit = True
        now = time.time()
        with self._client.pipeline(transaction=False) as pipe:
            for frame in frames:
                fields = {
                    "camera_id": frame.camera_id,
                    "camera_type": frame.camera_type,
                    "ingest_ts": f"{now * 1000:.3f}",
                    "captured_at_ms": f"{frame.captured_at_ms:.3f}",
                    "frame": frame.jpeg,
                }
                pipe.xadd(self._keys.stream(frame.camera_id), fields, maxlen=self._maxlen, approximate=True)  # type: ignore[arg-type]
            for camera_id in leaving:
                pipe.srem(self._keys.cameras, camera_id)
                pipe.expire(self._keys.stream(camera_id), GONE_S)
            for camera_id in {frame.camera_id: None for frame in frames if frame.camera_id not in leaving}:
                if now - self._registered.get(camera_id, 0.0) > self._register_s:
                    self._registered[camera_id] = now
                    pipe.sadd(self._keys.cameras, camera_id)
                    pipe.persist(self._keys.stream(camera_id))
            answers = pipe.execute(raise_on_error=False)
        lost: list[Outgoing] = []
        for frame, answer in zip(frames, answers, strict=False):
            if isinstance(answer, Exception) and is_outage(answer):
                lost.append(frame)
            else:
                self._answered(frame, answer)
        problem = next((answer for answer in answers if isinstance(answer, Exception) and is_outage(answer)), None)
        if problem is None:
            self._barred -= leaving
            for camera_id in leaving:
                for known in (self._registered, self.sent, self.dropped):
                    known.pop(camera_id, None)
        return lost, problem

    def _answered(self, frame: Outgoing, answer: object) -> None:
        if isinstance(answer, Exception):  # this command alone: a key of another type, or not ours to touch
            if is_barred(answer):
                self._barred.add(frame.camera_id)
            if self.dropped.get(frame.camera_id, 0) % 1000 == 0:
                log.error("Redis refuses a frame of %s: %s", frame.camera_id, answer)
            self._dropped(frame.camera_id)
            _REFUSED.inc()
        else:
            self._barred.discard(frame.camera_id)
            self.sent[frame.camera_id] = self.sent.get(frame.camera_id, 0) + 1
            _SENT.inc()
