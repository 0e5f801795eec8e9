"""Reads frames from Redis Streams: one consumer of the workers' group, over the streams of this worker's cameras.

Reading takes two steps: the consumer reads entries without taking them, and then takes some of them. The second step is
one script: Redis checks that this worker still holds the camera, moves the group on, and makes the entries pending. So
a camera that lags can be read from its newest entries, and the entries that are skipped are counted.

`Consumer` and `Reclaimer` block; `ConsumerThread` runs them and feeds the event loop.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from app import metrics
from app.errors import ConfigurationError
from app.fleet.connection import Outage, check_server, connect, execute_all, refuse_cluster
from app.fleet.in_flight import InFlight, MetricsBuffer
from app.fleet.leases import GONE, LOST, Leases, Selection
from app.fleet.membership import Membership, ReadSchedule, lease_ms, split_shards
from app.fleet.streams import CameraFrame, Keys, StreamInspector, parse_entry
from app.settings import FleetSettings, RedisSettings

log = logging.getLogger(__name__)

_WAIT_MS = 100
"""Longest wait for a frame of any stream, once a whole round of streams has brought none."""
_ROOM_WAIT_S = 0.1
"""Longest wait until a frame may be read; then the consumer refreshes its membership without reading."""
_IDLE_S = 0.02
_TRANSFER_S = 0.1
"""Seconds between two transfers of cameras to and from other workers."""
LAG_SHARE = 0.25
"""Share of FRAME_STALENESS_MS. A camera lags if its next frame has waited in Redis for longer. A worker limits its
frames in flight so that each is analysed within the same share.
"""
_FRESH_SHARE = 0.5
"""Share of FRAME_STALENESS_MS up to which frames of a camera that lags are read along with newer ones."""
_NO_TIME_MS = 1e12
"""Ids below this number (September 2001) were chosen by the writer of the entry, and are not times."""
_FORGET_MS = 3_600_000
"""Milliseconds after which the record of a camera that no longer exists is removed."""
DEAD_MAXLEN = 1000
_MOST_CLAIMED = 100
_BEGINNING = "-"


def consumer_name() -> str:
    """A name that is unique among all workers and among all starts of a worker."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class HeldStream:
    """A stream that this worker holds."""

    epoch: int
    last: str = ""
    """The group's last-delivered id; empty: not known yet."""
    ready: bool = False
    """Whether all entries that earlier workers left pending were delivered, so that new entries may follow."""
    lagging: bool = False
    """Whether the stream is read from its newest entries."""


class Consumer:
    """Reads the streams of this worker's cameras. Frames that `read` returns stay in `in_flight` until acknowledged.

    Args:
        on_streams: called with the held streams whenever they change.
        away: the services besides Redis that the worker cannot reach, with the reason; published for `fleet top`.
    """

    def __init__(
        self,
        name: str,
        settings: RedisSettings,
        fleet: FleetSettings,
        in_flight: InFlight,
        counts: MetricsBuffer,
        *,
        on_streams: Callable[[frozenset[str]], None] | None = None,
        away: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.name = name
        keys = Keys.of(settings)
        self._prefix, self._group = keys.prefix, keys.group
        self._fleet = fleet
        self._in_flight = in_flight
        self._counts = counts
        self._on_streams = on_streams
        self._client = connect(settings)
        self.membership = Membership(self._client, name, keys, fleet, away)
        self._leases = Leases(self._client, name, keys, lease_ms(fleet))
        self._reclaimer = Reclaimer(
            self._client, self._leases, keys, fleet, in_flight, counts, epoch_of=lambda stream: self._held[stream].epoch
        )
        self._inspector = StreamInspector(keys)
        self._outage = Outage("frames")
        self._checked = False
        """Whether the server was checked since it was last unreachable."""
        self._held: dict[str, HeldStream] = {}
        self._leaving: set[str] = set()
        """Held streams that go to another worker as soon as none of their frames is in flight."""
        self._logged: frozenset[str] | None = None
        """The streams of the last log line."""
        self._reported: frozenset[str] = frozenset()
        """The streams of the last call of `on_streams`."""
        self._schedule = ReadSchedule(())
        self._empty_reads = 0
        """Streams read in a row that had no new entry."""
        self.next_refresh = 0.0
        """Monotonic time of the next refresh of cameras and workers."""
        self._next_reclaim = self._next_transfer = 0.0
        self.lag = 0
        """Frames that waited in Redis at the last refresh."""

    @property
    def redis_error(self) -> str:
        """The last error word (`connection.ERROR_WORDS`), also if it concerns one stream; empty: Redis answers."""
        return self._outage.word or ("NOPERM" if self.membership.forbidden else "")

    @property
    def epochs(self) -> dict[str, int]:
        """The epoch of each stream that this worker holds."""
        return {stream: held.epoch for stream, held in self._held.items()}

    def check(self) -> None:
        """Checks the server. An unreachable server is no error: `read` waits for it.

        Raises:
            ConfigurationError: this Redis cannot be used.
        """
        try:
            check_server(self._client, first=True)
            self._checked = True
        except redis.RedisError as error:
            refuse_cluster(error)
            self._outage.failed(error)

    def read(self, room: int) -> list[CameraFrame]:
        """Reads up to `room` new frames, each camera's in order; waits a moment for the first.

        With a `room` of 0 it only keeps the membership and the leases alive. While Redis is unreachable or refuses, it
        waits a moment and returns nothing.

        Raises:
            ConfigurationError: this Redis cannot be used, which `check` could not detect while Redis was unreachable.
        """
        if self._outage.paused:
            time.sleep(_IDLE_S)
            return []
        try:
            if not self._checked:
                check_server(self._client)
                self._checked = True
            frames = self._next(room)
        except redis.ResponseError as error:
            self._refused(error)
            return []
        except redis.RedisError as error:
            self._unreachable(error)
            return []
        self._outage.recovered()
        if frames:
            self._in_flight.add(frame.origin for frame in frames)
            self._counts.received(len(frames))
        return frames

    def _next(self, room: int) -> list[CameraFrame]:
        now = time.monotonic()
        if now >= self.next_refresh:
            self._refresh(now)
        if now >= self._next_transfer:
            self._transfer()
            self._next_transfer = now + _TRANSFER_S
        if now >= self._next_reclaim:
            self._reclaimer.check(self._readable(), self.membership.workers)
            self._next_reclaim = now + self._fleet.fleet_reclaim_s
        if not room:
            return []
        if self._reclaimer.busy:
            frames = self._reclaimer.claim(room)
            self._update_ready()
            return frames
        if not len(self._schedule):
            time.sleep(_IDLE_S)
            return []
        return self._read_streams(room)

    # --- which streams this worker holds ---

    def _refresh(self, now: float) -> None:
        changed = self.membership.refresh()
        readable = sorted(self._readable())
        statuses = self._inspector.read(self._client, [stream.removeprefix(self._prefix) for stream in readable])
        self.lag = sum(status.lag or 0 for status in statuses.values())
        metrics.FLEET_LAG.set(self.lag)
        self.next_refresh = now + self._fleet.fleet_discover_s
        trimmed = [self._prefix + camera for camera, status in statuses.items() if status.unread and status.lag == 0]
        for _, count in self._leases.positions(trimmed).values():
            self._counts.dropped_unread("trimmed", count)
        if self.membership.leads:
            self._leases.forget(self.membership.known, self.membership.now_ms - _FORGET_MS)
        self._lose({stream for stream, _ in self._leases.keep(self.epochs.items())})
        if changed:
            self._next_transfer = 0.0

    def _transfer(self) -> None:
        """Releases streams that belong to other workers, once none of their frames is in flight, and takes streams that
        other workers have released.
        """
        assigned = self.membership.streams
        self._leaving = self._held.keys() - assigned
        in_flight = self._in_flight.count_by_stream()
        done = {stream for stream in self._leaving if stream not in in_flight}
        self._leases.release((stream, self._held[stream].epoch) for stream in done)
        self._forget(done)
        # A lost stream's frames in flight are not published by this worker, but its entries may still be pending.
        unplaced = {stream for stream, held in self._held.items() if not held.last}
        missing = sorted((assigned - self._held.keys()) | (unplaced - self._leaving))
        if missing:
            self._acquire([stream for stream in missing if stream not in in_flight])
        self._update_ready()
        self._report_streams()

    def _acquire(self, streams: Collection[str]) -> None:
        """Takes the streams that no worker holds, or that this worker holds already."""
        epochs = self._leases.acquire(streams)
        for stream, epoch in epochs.items():
            self._held[stream] = HeldStream(epoch)
        self._forget(self._held.keys() & (set(streams) - epochs.keys()))
        self._place(list(epochs))

    def _place(self, streams: Sequence[str]) -> None:
        """Reads the group's position in each stream, and schedules the entries left pending for delivery first."""
        for stream, (last, unread) in self._leases.positions(streams).items():
            self._held[stream].last = last
            self._counts.dropped_unread("trimmed", unread)
        placed = [stream for stream in streams if self._held[stream].last]
        if len(placed) < len(streams):
            self.membership.forget_groups()
            self.next_refresh = 0.0
        if not placed:
            return
        execute_all(self._client, [("XGROUP", "CREATECONSUMER", stream, self._group, self.name) for stream in placed])
        pipe = self._client.pipeline(transaction=False)
        for stream in placed:
            pipe.xpending(stream, self._group)
        self._reclaimer.take_over(
            stream for stream, pending in zip(placed, pipe.execute(), strict=True) if pending["pending"]
        )

    def _update_ready(self) -> None:
        """Marks streams as ready once all entries left pending in them are delivered."""
        unready = [stream for stream, held in self._held.items() if held.last and not held.ready]
        if unready:
            unfinished = self._reclaimer.unfinished()
            for stream in unready:
                self._held[stream].ready = stream not in unfinished
            self._reschedule()

    def _forget(self, streams: set[str]) -> None:
        """Removes streams that this worker no longer holds."""
        if streams:
            for stream in streams:
                del self._held[stream]
            self._leaving -= streams
            self._reclaimer.forget(streams)
            self._reschedule()

    def _readable(self) -> set[str]:
        return {stream for stream, held in self._held.items() if held.ready and stream not in self._leaving}

    def _reschedule(self) -> None:
        self._schedule = ReadSchedule(split_shards(self._readable(), self._fleet.fleet_shards))
        self._empty_reads = 0

    def _report_streams(self) -> None:
        """Logs and reports the held streams if they have changed."""
        staying, held = frozenset(self._held.keys() - self._leaving), frozenset(self._held)
        if staying != self._logged:
            self._logged = staying
            self._reschedule()
            metrics.FLEET_CAMERAS.set(len(staying))
            workers = len(self.membership.workers)
            log.info("%s reads %d cameras; workers signed on: %d", self.name, len(staying), workers)
        if held != self._reported:
            self._reported = held
            if self._on_streams is not None:
                self._on_streams(held)

    def _lose(self, streams: set[str]) -> None:
        """Removes streams that other workers have taken, because this one stood still for longer than its lease."""
        if streams:
            log.warning("other workers have taken %d cameras, because this one was silent for too long", len(streams))
            self._forget(streams)
            self._report_streams()

    # --- reading frames ---

    def _read_streams(self, room: int) -> list[CameraFrame]:
        if self._empty_reads >= len(self._schedule):
            # A whole round brought nothing: wait for the first frame of any stream.
            streams, count = tuple(self._readable()), 1
            found = self._peek(streams, count, wait_ms=_WAIT_MS)
            late = set()
        else:
            streams, count = self._schedule.next(room)
            late = {stream for stream in streams if self._held[stream].lagging}
            found = self._peek([stream for stream in streams if stream not in late], count)
        late |= {stream for stream, frames in found.items() if self._is_late(frames[0], LAG_SHARE)}
        selections = [self._select_all(frames) for stream, frames in found.items() if stream not in late]
        selected = {stream: frames for stream, frames in found.items() if stream not in late}
        for stream, frames, selection in self._select_newest(sorted(late), count):
            selections.append(selection)
            selected[stream] = frames
        selections = selections[:room]  # a read of all streams may return more than `room` frames
        self._empty_reads = 0 if selections else self._empty_reads + len(streams)
        return self._take(selections, selected)

    def _peek(self, streams: Sequence[str], count: int, *, wait_ms: int = 0) -> dict[str, list[CameraFrame]]:
        """The next frames of each stream, `count` at most, without taking them."""
        if not streams:
            return {}
        places: dict[Any, Any] = {stream: self._held[stream].last for stream in streams}
        answer = self._client.xread(places, count=count, block=wait_ms or None)
        arrived = time.perf_counter()
        return {
            stream.decode(): [self._frame(stream.decode(), entry, fields, arrived) for entry, fields in entries]
            for stream, entries in cast("list[Any]", answer or [])
        }

    def _frame(self, stream: str, entry: bytes, fields: dict[bytes, bytes], arrived: float) -> CameraFrame:
        return parse_entry(self._prefix, stream, entry, fields, arrived=arrived, epoch=self._held[stream].epoch)

    def _select_all(self, frames: Sequence[CameraFrame]) -> Selection:
        """Selects all frames that a read of a stream has shown."""
        origin = frames[0].origin
        entries = [frame.origin.entry for frame in frames]
        return Selection(origin.stream, origin.epoch, self._held[origin.stream].last, entries[-1], entries)

    def _select_newest(self, streams: Sequence[str], count: int) -> list[tuple[str, list[CameraFrame], Selection]]:
        """Selects the newest frames of streams that lag; the selection skips the frames before them."""
        if not streams:
            return []
        try:
            *answers, waiting = self._peek_newest(streams, count, atomic=True)
        except redis.exceptions.OutOfMemoryError:  # a full Redis refuses transactions, but takes no new frames either
            *answers, waiting = self._peek_newest(streams, count, atomic=False)
        arrived = time.perf_counter()
        found = []
        for stream, entries, beyond in zip(streams, answers, waiting, strict=True):
            held = self._held[stream]
            frames = [self._frame(stream, entry, fields, arrived) for entry, fields in reversed(entries)]
            held.lagging = beyond > len(frames)
            if frames:
                following = frames[-1].origin.entry
                fresh = [frame for frame in frames if not self._is_late(frame, _FRESH_SHARE)] or frames[-1:]
                frames = [frame for frame in fresh if not self._is_stale(frame)]
                entries = [frame.origin.entry for frame in frames]
                found.append((stream, frames, Selection(stream, held.epoch, held.last, following, entries, beyond)))
        return found

    def _peek_newest(self, streams: Sequence[str], count: int, *, atomic: bool) -> list[Any]:
        """Each stream's newest entries, newest first; then a list of how many entries each has after its position."""
        pipe = self._client.pipeline(transaction=atomic)
        for stream in streams:
            pipe.xrevrange(stream, "+", f"({self._held[stream].last}", count=count)
        self._leases.waiting(pipe, [(stream, self._held[stream].last) for stream in streams])
        return pipe.execute()

    def _take(self, selections: Sequence[Selection], seen: dict[str, list[CameraFrame]]) -> list[CameraFrame]:
        """Takes the selected frames of the streams that this worker still holds."""
        if not selections:
            return []
        frames: list[CameraFrame] = []
        lost: set[str] = set()
        for selection, answer in zip(selections, self._leases.take(selections), strict=True):
            if answer == LOST:
                lost.add(selection.stream)
            elif answer < 0:  # the group is gone, or another consumer has moved it
                if answer == GONE:
                    log.warning("Redis has lost the group of %s; it is created anew", selection.stream)
                self._unplace([selection.stream])
            else:
                self._held[selection.stream].last = selection.following
                frames += seen[selection.stream]
                if answer:
                    metrics.FLEET_SKIPPED.inc(answer)
                    self._counts.dropped_unread("stale", answer)
        self._lose(lost)
        return frames

    def _is_late(self, frame: CameraFrame, share: float) -> bool:
        """Whether newer frames of its camera should be read instead: the frame has waited in Redis for this share of
        FRAME_STALENESS_MS, or would be stale by the time that it is analysed.
        """
        staleness_ms, added_ms = self._fleet.frame_staleness_ms, float(frame.origin.entry.partition("-")[0])
        age_ms = time.time() * 1000 - frame.origin.captured_at_ms
        # The wait is measured by Redis' clock alone, because the camera's may be ahead. If the id is not a time, the
        # frame's age takes its place.
        waited_ms = self.membership.now_ms - added_ms if added_ms > _NO_TIME_MS else age_ms
        soon_ms = 2000 * self._in_flight.latency_s
        return waited_ms > share * staleness_ms or age_ms + soon_ms > staleness_ms

    def _is_stale(self, frame: CameraFrame) -> bool:
        return time.time() * 1000 - frame.origin.captured_at_ms > self._fleet.frame_staleness_ms

    # --- outages and the end ---

    def _unreachable(self, error: Exception) -> None:
        """Handles an outage. The last command may have been executed or not, so every position, and every pending entry
        that is not in flight, is read again; and the address may mean another server by then.
        """
        self._checked = False
        self._outage.failed(error)
        self._client.connection_pool.disconnect()
        self._unplace(self._held)

    def _unplace(self, streams: Iterable[str]) -> None:
        """Stops reading streams until their leases and positions are read again."""
        affected = set(streams)
        self._reclaimer.forget(affected)
        for stream in affected:
            self._held[stream].last, self._held[stream].ready = "", False
        self.membership.forget_groups()
        self._reschedule()
        self.next_refresh = self._next_transfer = 0.0

    def _refused(self, error: redis.ResponseError) -> None:
        """Handles an error of a command: its group is gone after a restart without persistence, its stream was deleted
        or replaced, or Redis refuses because of its own state.
        """
        text = str(error)
        if any(word in text for word in ("NOGROUP", "UNBLOCKED", "no such key", "WRONGTYPE")):
            log.warning("Redis has lost streams or groups; they are looked up anew: %s", text)
            self._unplace(self._held)
            return
        refuse_cluster(error)
        self._unreachable(error)  # READONLY, OOM and the like: the consumer waits, and logs each once

    def sign_off(self) -> None:
        """Stops reading: other workers get the cameras as soon as none of their frames is in flight here."""
        try:
            self.membership.leave()
        except redis.RedisError as error:
            log.warning("Redis is away while signing off; the name %s expires by itself: %s", self.name, error)

    def leave(self) -> None:
        """Ends the consumer after `sign_off`; deletes it from streams in which it left nothing pending."""
        try:
            for stream in self._held:
                pending = self._client.xpending_range(stream, self._group, "-", "+", 1, consumername=self.name)
                if not pending:
                    self._client.xgroup_delconsumer(stream, self._group, self.name)
            self._leases.release(self.epochs.items())
            self._leases.end()
        except redis.RedisError as error:
            log.warning("Redis is away at the end; it keeps the empty consumer %s for a while: %s", self.name, error)
        finally:
            self._client.close()


class ConsumerThread:
    """Reads until it is stopped, as many frames as `in_flight` allows.

    Args:
        least: frames that `in_flight` must allow before it reads, because many small reads cost more than one.
        deliver: called from this thread with the frames.
        on_failure: called from this thread when it ends with an error.
    """

    def __init__(
        self,
        consumer: Consumer,
        in_flight: InFlight,
        *,
        least: int,
        deliver: Callable[[list[CameraFrame]], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._consumer = consumer
        self._in_flight = in_flight
        self._least = least
        self._deliver = deliver
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns once the thread has ended; all frames that it read have been delivered."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                frames = self._consumer.read(self._in_flight.room(self._least, _ROOM_WAIT_S))
                if frames:
                    self._deliver(frames)
        except ConfigurationError as error:  # this Redis cannot be used
            self._on_failure(str(error))
        except Exception as error:
            log.exception("reading from Redis failed")
            self._on_failure(f"reading from Redis failed: {type(error).__name__}: {error}")


# --- entries that other consumers left pending ---


class Reclaimer:
    """Claims entries that other consumers left pending in this worker's streams: delivers them again, moves them to the
    dead-letter stream after too many deliveries, and counts those that were trimmed. Used by one thread.

    In a stream that was just acquired, all pending entries count as left behind, because the worker before has lost the
    stream. They are delivered before newer ones of their camera, so that the camera's results stay in order.

    A frame that crashes its worker leaves all frames in flight pending, each with one more delivery. The last delivery
    but one that FLEET_MAX_DELIVERIES allows shows which frame it was: such suspects are delivered one at a time, each
    after the one before is acknowledged. The frame that crashes the worker again is alone beyond the limit, and only
    that frame goes to the dead-letter stream.

    Args:
        epoch_of: returns the epoch with which this worker holds a stream.
    """

    def __init__(
        self,
        client: redis.Redis,
        leases: Leases,
        keys: Keys,
        fleet: FleetSettings,
        in_flight: InFlight,
        counts: MetricsBuffer,
        *,
        epoch_of: Callable[[str], int],
    ) -> None:
        self._client = client
        self._leases = leases
        self._keys, self._group = keys, keys.group
        self._fleet = fleet
        self._in_flight = in_flight
        self._counts = counts
        self._epoch_of = epoch_of
        self._places: deque[tuple[str, str, int]] = deque()
        """Streams to go over, with the first entry's id and the milliseconds for which an entry must have been idle."""
        self._suspects: deque[tuple[str, str]] = deque()
        """Stream and entry of frames whose next delivery is the last."""
        self._suspect: tuple[str, str] = ("", "")
        """The suspect that was delivered last."""

    @property
    def busy(self) -> bool:
        """Whether `claim` may deliver something now."""
        return bool(self._places) or (bool(self._suspects) and self._suspect not in self._in_flight)

    def unfinished(self) -> Collection[str]:
        """Streams with entries left behind that are not delivered yet, or with a suspect that is in flight alone."""
        streams = {stream for stream, _, idle_ms in self._places if not idle_ms}
        streams.update(stream for stream, _ in self._suspects)
        if self._suspect in self._in_flight:
            streams.add(self._suspect[0])
        return streams

    def take_over(self, streams: Iterable[str]) -> None:
        """Schedules all pending entries of these streams that are not in flight: the workers before have lost them."""
        self._places.extend((stream, _BEGINNING, 0) for stream in streams)

    def forget(self, streams: Collection[str]) -> None:
        """Drops what is scheduled for streams that another worker has taken."""
        self._places = deque(place for place in self._places if place[0] not in streams)
        self._suspects = deque(suspect for suspect in self._suspects if suspect[0] not in streams)

    def check(self, streams: Iterable[str], workers: frozenset[str]) -> None:
        """Schedules streams that have more pending entries than are in flight here: entries that a consumer outside the
        fleet read and left for FLEET_RECLAIM_IDLE_MS, or entries of an answer of Redis that was lost. Deletes consumers
        that are long gone.

        Raises:
            redis.RedisError: Redis does not answer, or a stream is gone.
        """
        asked = sorted(streams)
        pipe = self._client.pipeline(transaction=False)
        for stream in asked:
            pipe.xpending(stream, self._group)
            pipe.xinfo_consumers(stream, self._group)
        answers = pipe.execute() if asked else []
        in_flight = self._in_flight.count_by_stream()
        scheduled = {stream for stream, _, _ in self._places}
        for stream, pending, consumers in zip(asked, answers[::2], answers[1::2], strict=True):
            if pending["pending"] > in_flight.get(stream, 0) and stream not in scheduled:
                self._places.append((stream, _BEGINNING, self._fleet.fleet_reclaim_idle_ms))
            self._delete_gone(stream, consumers, workers)

    def _delete_gone(self, stream: str, consumers: list[dict[str, Any]], workers: frozenset[str]) -> None:
        """Deletes empty consumers, which would pile up because every start of a worker uses a new name."""
        for consumer in consumers:
            known = consumer["name"].decode(errors="replace") in workers
            gone = not known and consumer["idle"] > 2 * self._fleet.fleet_reclaim_idle_ms
            if gone and consumer["pending"] == 0:
                self._client.xgroup_delconsumer(stream, self._group, consumer["name"])

    def claim(self, room: int) -> list[CameraFrame]:
        """Some of the entries left behind, `room` frames at most; an empty list does not mean that none is left.

        Raises:
            redis.RedisError: Redis does not answer, or the stream is gone.
        """
        if not self._places:
            return self._next_suspect()
        stream, start, idle_ms = self._places.popleft()
        count = min(room, _MOST_CLAIMED)
        in_flight = self._in_flight.entries()  # before Redis is asked, because an entry may be acknowledged meanwhile
        pending: Any = self._client.xpending_range(stream, self._group, start, "+", count, idle=idle_ms or None)
        if len(pending) == count:
            self._places.appendleft((stream, f"({pending[-1]['message_id'].decode()}", idle_ms))
        left = [entry for entry in pending if (stream, entry["message_id"].decode()) not in in_flight]
        return self._sift(stream, left)

    def _sift(self, stream: str, left: list[dict[str, Any]]) -> list[CameraFrame]:
        """Delivers the entries that may be delivered together, notes suspects, and moves entries to the dead-letter
        stream after their last delivery.
        """
        together: list[bytes] = []
        most = self._fleet.fleet_max_deliveries
        suspects = {suspect for of_stream, suspect in self._suspects if of_stream == stream}
        for pending in left:
            entry, deliveries = pending["message_id"], pending["times_delivered"]
            if deliveries >= most:
                for _, fields in self._deliver(stream, [entry]):
                    self._dead_letter(stream, entry, fields, deliveries + 1)
            elif suspects or deliveries == most - 1:
                # Entries of a camera behind a suspect wait for it, however often they were delivered.
                if entry.decode() not in suspects:
                    suspects.add(entry.decode())
                    self._suspects.append((stream, entry.decode()))
            else:
                together.append(entry)
        return self._frames(stream, together)

    def _next_suspect(self) -> list[CameraFrame]:
        """The next suspect that is still pending."""
        while self._suspects:
            stream, entry = self._suspects.popleft()
            if not self._client.xpending_range(stream, self._group, entry, entry, 1):
                continue
            if frames := self._frames(stream, [entry.encode()]):
                self._suspect = (stream, entry)
                return frames
        return []

    def _frames(self, stream: str, entries: list[bytes]) -> list[CameraFrame]:
        found = self._deliver(stream, entries)
        arrived, epoch = time.perf_counter(), self._epoch_of(stream)
        metrics.FLEET_RECLAIMED.inc(len(found))
        prefix = self._keys.prefix
        return [
            parse_entry(prefix, stream, entry, fields, arrived=arrived, epoch=epoch, claimed=True)
            for entry, fields in found
        ]

    def _deliver(self, stream: str, entries: list[bytes]) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Claims the entries, which counts one more delivery of each; returns none if another worker has the camera."""
        if not entries:
            return []
        found = self._leases.claim(stream, self._epoch_of(stream), entries)
        if found is None:
            self.forget({stream})
            return []
        self._counts.dropped_unread("trimmed", len(entries) - len(found))
        return found

    def _dead_letter(self, stream: str, entry: bytes, fields: dict[bytes, bytes], deliveries: int) -> None:
        """Writes the frame to the dead-letter stream and acknowledges it, in one step."""
        most = self._fleet.fleet_max_deliveries
        why = f"delivered {deliveries} times, never acknowledged: its workers ended on it (FLEET_MAX_DELIVERIES={most})"
        letter = {**fields, b"stream": stream, b"entry_id": entry, b"deliveries": deliveries, b"error": why}
        if self._leases.dead_letter(stream, self._epoch_of(stream), entry, letter, DEAD_MAXLEN):
            metrics.FLEET_DEAD_LETTERS.inc()
            self._counts.dropped_unread("dead_letter", 1)
