"""The newest frames of every camera on their way to Redis: one thread writes them, many in one round trip."""

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
from app.fleet.connection import check_server, error_word, is_forbidden, is_outage, refuse_cluster
from app.fleet.streams import Keys, parse_entry_id
from app.limits import backoff_s

log = logging.getLogger(__name__)

PIPELINE = 64
"""Approximate number of frames in one round trip."""
WAITING = 4
"""Most frames of one camera that wait: enough that a short stall of the machine loses none, few enough that none is
old.
"""
GONE_S = 60
"""Seconds for which Redis keeps the frames of a camera that was removed."""
_PAUSES_S = (0.2, 5.0)
_frames = metrics.INGEST_FRAMES.labels
_SENT, _AWAY, _REFUSED, _SUPERSEDED = map(_frames, ("sent", "redis_away", "refused", "superseded"))


@dataclass(frozen=True, slots=True)
class OutgoingFrame:
    """One frame for Redis."""

    camera_id: str
    camera_type: str
    jpeg: bytes
    captured_at_ms: float
    """Epoch milliseconds."""


class Outbox:
    """A drop-oldest queue for each camera, `WAITING` frames long; dropped frames are counted.

    Frames that Redis does not take are dropped as well, because newer ones exist by the time it answers again.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *, maxlen: int, register_s: float) -> None:
        """
        Args:
            client: used only by the outbox, which closes it.
            maxlen: frames that Redis keeps of each camera.
            register_s: seconds after which a camera is registered again, because Redis may have been emptied.
        """
        self._client = client
        self._keys = keys
        self._maxlen = maxlen
        self._register_s = register_s
        self._waiting: dict[str, deque[OutgoingFrame]] = {}
        self._leaving: set[str] = set()
        self._registered: dict[str, float] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._random = random.Random()
        self._checked = False
        """Whether the server was checked since it was last unreachable."""
        self._forbidden: set[str] = set()
        """Cameras whose streams the account may not access."""
        self._outage = ""
        self.unfit = ""
        """Why this Redis cannot be used at all; empty as long as it can."""
        self.sent: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self._thread = threading.Thread(target=self._write, name="ingest-outbox", daemon=True)

    @property
    def redis_error(self) -> str:
        """The error word (`connection.ERROR_WORDS`) of the last write; empty: Redis took the frames."""
        return self._outage or ("NOPERM" if self._forbidden else "")

    @property
    def up(self) -> bool:
        """Whether Redis took the last frames."""
        return not self.redis_error

    def start(self) -> None:
        self._thread.start()

    def put(self, frame: OutgoingFrame) -> None:
        """Queues the frame; never waits."""
        with self._changed:
            self._leaving.discard(frame.camera_id)  # a removed camera has come back
            queue = self._waiting.setdefault(frame.camera_id, deque())
            full = len(queue) >= WAITING
            if full:
                queue.popleft()
                self._count_dropped(frame.camera_id)
            queue.append(frame)
            self._changed.notify()
        if full:
            (_AWAY if self._outage else _SUPERSEDED).inc()

    def remove(self, camera_id: str) -> None:
        """Removes the camera from the list that workers read; Redis deletes its frames after `GONE_S`."""
        with self._changed:
            self._leaving.add(camera_id)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Tries once to write the waiting frames, and ends the thread; returns whether it ended in time."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _count_dropped(self, camera_id: str) -> None:
        self.dropped[camera_id] = self.dropped.get(camera_id, 0) + 1

    def _write(self) -> None:
        failures = 0
        while (work := self._next()) is not None:
            frames, leaving = work
            problem: Exception | None
            try:
                frames, problem = self._send(frames, leaving)
            except (redis.RedisError, ConfigurationError) as error:
                problem = error
            if problem is None:
                failures = 0
                if self._outage:
                    log.info("Redis takes frames again")
                self._outage = ""
                continue
            self._failed(problem)
            self._drop(frames, leaving)
            if self._outage == "OOM":
                self._make_room()
            failures += 1
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed, backoff_s(failures, *_PAUSES_S) * self._random.uniform(0.5, 1)
                )
        self._client.close()

    def _failed(self, problem: Exception) -> None:
        """Handles a failed write, so that the next one reconnects and checks the server again."""
        if not self._outage:
            log.error("Redis takes no frames (REDIS_URL): %s; frames are dropped until it does", problem)
        self._outage = error_word(problem)
        self._checked = False
        self._registered.clear()
        self._client.connection_pool.disconnect()
        try:
            refuse_cluster(problem)
        except ConfigurationError as error:
            problem = error
        if isinstance(problem, ConfigurationError):
            self.unfit = str(problem)

    def _make_room(self) -> None:
        """Removes the entries that all groups of workers have acknowledged.

        Redis trims a stream when an entry is added, and a full Redis refuses to add one: it would stay full for ever,
        although everything was read. A full Redis allows XTRIM.
        """
        removed = 0
        # Cameras without a sent frame are included, because this process may have started after Redis was full.
        for camera_id in self.sent.keys() | self.dropped.keys():
            stream = self._keys.stream(camera_id)
            try:
                if (oldest := self._oldest_wanted(stream)) is not None:
                    removed += self._client.xtrim(stream, minid=oldest, approximate=False)
            except redis.RedisError as error:
                if is_outage(error):  # the next write reports it
                    return
                log.debug("%s is not trimmed: %s", stream, error)
        if removed:
            log.info("Redis is full: %d frames that were analysed are removed from it", removed)

    def _oldest_wanted(self, stream: str) -> str | None:
        """The id of the oldest entry that a group of workers still needs; None if no group reads the stream."""
        wanted = []
        for group in self._client.xinfo_groups(stream):
            if group["pending"]:
                pending = self._client.xpending(stream, group["name"])["min"]
                if pending is not None:
                    wanted.append(parse_entry_id(pending))
                    continue
            milliseconds, number = parse_entry_id(group["last-delivered-id"])
            wanted.append((milliseconds, number + 1))
        return "{}-{}".format(*min(wanted)) if wanted else None

    def _next(self) -> tuple[list[OutgoingFrame], set[str]] | None:
        """Waits for frames to write or cameras to remove; None once the outbox is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._leaving)
            if not self._waiting and not self._leaving:
                return None
            if self._closed and self._outage:  # the shutdown does not wait for Redis
                self._drop([frame for queue in self._waiting.values() for frame in queue], set())
                self._waiting.clear()
                return None
            leaving, self._leaving = self._leaving, set()
            # A removed camera's frames are written before its removal: later, they would register the camera again.
            frames = [frame for camera_id in sorted(leaving) for frame in self._waiting.pop(camera_id, ())]
            while self._waiting and len(frames) < PIPELINE:
                # The camera that has waited longest comes first; its next frame puts it at the end of the order.
                frames += self._waiting.pop(next(iter(self._waiting)))
            return frames, leaving

    def _drop(self, frames: list[OutgoingFrame], leaving: set[str]) -> None:
        _AWAY.inc(len(frames))
        for frame in frames:
            self._count_dropped(frame.camera_id)
        self._leaving |= leaving

    def _send(self, frames: list[OutgoingFrame], leaving: set[str]) -> tuple[list[OutgoingFrame], Exception | None]:
        """Writes the frames and removes the leaving cameras.

        Returns:
            The frames that Redis could not take because of its own state, and the error that says so.

        Raises:
            redis.RedisError: Redis does not answer.
            ConfigurationError: this Redis cannot be used.
        """
        if not self._checked:
            check_server(self._client)
            self._checked = True
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
        lost: list[OutgoingFrame] = []
        for frame, answer in zip(frames, answers, strict=False):
            if isinstance(answer, Exception) and is_outage(answer):
                lost.append(frame)
            else:
                self._answered(frame, answer)
        problem = next((answer for answer in answers if isinstance(answer, Exception) and is_outage(answer)), None)
        if problem is None:
            self._forbidden -= leaving
            for camera_id in leaving:
                for known in (self._registered, self.sent, self.dropped):
                    known.pop(camera_id, None)
        return lost, problem

    def _answered(self, frame: OutgoingFrame, answer: object) -> None:
        if isinstance(answer, Exception):  # only this command failed: the key has another type, or access is forbidden
            if is_forbidden(answer):
                self._forbidden.add(frame.camera_id)
            if self.dropped.get(frame.camera_id, 0) % 1000 == 0:
                log.error("Redis refuses a frame of %s: %s", frame.camera_id, answer)
            self._count_dropped(frame.camera_id)
            _REFUSED.inc()
        else:
            self._forbidden.discard(frame.camera_id)
            self.sent[frame.camera_id] = self.sent.get(frame.camera_id, 0) + 1
            _SENT.inc()
