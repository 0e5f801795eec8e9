"""Frames out of Redis Streams: one consumer of the workers' group, over the streams of its own cameras.

Entries are looked at first, and then taken: in one step Redis checks that the camera is still this worker's, moves the
group on, and makes the entries pending. So a camera that lags can be read from its newest entries, and what is
skipped is counted.

Blocking; used by one thread, which is what feeds the event loop in `async` and the pool in `sync`.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from app import metrics
from app.fleet.connection import Outage, connect, refuse_cluster, require_fit, write
from app.fleet.frames import CameraFrame, read_entry
from app.fleet.inhand import InHand
from app.fleet.keys import Keys
from app.fleet.lag import Looks
from app.fleet.leases import GONE, LOST, Choice, Leases
from app.fleet.reclaim import Reclaimer
from app.fleet.roster import Roster, lasting_ms
from app.fleet.shards import Turns, spread
from app.fleet.tally import Tally
from app.settings import FleetSettings, RedisSettings

log = logging.getLogger(__name__)

_WAIT_MS = 100
"""Longest wait for a first frame, once a whole round of streams has brought nothing."""
_TRANSFER_S = 0.1
"""Seconds between two looks whether cameras have been let go of, here or by others."""
PATIENCE = 0.25
"""Share of FRAME_STALENESS_MS that a frame may wait in Redis before its camera lags, and that it should be in hand."""
_STILL_GOOD = 0.5
"""Share up to which a frame of a camera that lags is read along with newer ones, where there is room."""
_NO_TIME_MS = 1e12
"""Ids up to here (September 2001) are numbers of whoever wrote them, and no times."""
_FORGET_MS = 3_600_000
"""After so long the record of a camera that is no more is removed."""


def consumer_name() -> str:
    """A name that no other worker has, nor an earlier life of this one."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class Camera:
    """A stream that this worker holds."""

    epoch: int
    last: str = ""
    """The id up to which the group has read; empty: it is to be asked for."""
    ready: bool = False
    """What its worker before has left was given out: new entries may follow."""
    lagging: bool = False
    """It is read from its newest entries."""


class Source:
    """The streams of this worker's cameras. Whatever `read` hands out is in `in_hand` until it is acknowledged.

    Args:
        on_streams: called with the streams that are held whenever they are others.
        away: what the worker cannot reach besides Redis, by name, each with why; told in Redis for `fleet top`.
    """

    def __init__(
        self,
        name: str,
        settings: RedisSettings,
        fleet: FleetSettings,
        in_hand: InHand,
        tally: Tally,
        *,
        on_streams: Callable[[frozenset[str]], None] | None = None,
        away: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.name = name
        keys = Keys.of(settings)
        self._prefix, self._group = keys.prefix, keys.group
        self._fleet = fleet
        self._in_hand = in_hand
        self._tally = tally
        self._on_streams = on_streams
        self._client = connect(settings)
        self._roster = Roster(self._client, name, keys, fleet, away)
        self._leases = Leases(self._client, name, keys, lasting_ms(fleet))
        self._reclaimer = Reclaimer(
            self._client, self._leases, keys, fleet, in_hand, tally, epoch_of=lambda stream: self._held[stream].epoch
        )
        self._looks = Looks(keys)
        self._outage = Outage("frames")
        self._fit = False
        """Redis was asked who it is, since it was away last."""
        self._held: dict[str, Camera] = {}
        self._leaving: set[str] = set()
        """Held, and to be another worker's once nothing of them is in hand."""
        self._shown: frozenset[str] | None = None
        """Streams that were last said to be ours."""
        self._told: frozenset[str] = frozenset()
        """Streams that `on_streams` was last called with."""
        self._turns = Turns(())
        self._unanswered = 0
        """Streams asked in a row that had nothing."""
        self._next_look = self._next_reclaim = self._next_transfer = 0.0
        self.lag = 0
        """Frames that waited in Redis at the last look."""

    @property
    def says(self) -> str:
        """What Redis said last instead of an answer (`connection.WORDS`), be it of one stream; empty: it answers."""
        return self._outage.says or ("NOPERM" if self._roster.barred else "")

    def check(self) -> None:
        """Asks the server who it is. One that is away is no error: it is waited for.

        Raises:
            ConfigurationError: this Redis will not do.
        """
        try:
            require_fit(self._client, first=True)
            self._fit = True
        except redis.RedisError as error:
            refuse_cluster(error)
            self._outage.again(error)

    def read(self, room: int) -> list[CameraFrame]:
        """New frames, `room` at most, in the order of their streams; waits a moment for the first. Never raises for
        an outage of Redis, or for what it says of itself: it waits a moment, too.

        `room` may be 0: the worker's name is kept alive and its cameras are kept up with all the same.

        Raises:
            ConfigurationError: this Redis will not do, as far as it can be told only now.
        """
        if self._outage.resting:
            time.sleep(0.02)
            return []
        try:
            if not self._fit:
                require_fit(self._client)
                self._fit = True
            frames = self._next(room)
        except redis.ResponseError as error:
            self._refused(error)
            return []
        except redis.RedisError as error:
            self._away(error)
            return []
        self._outage.ended()
        if frames:
            self._in_hand.take(frame.origin for frame in frames)
            self._tally.received(len(frames))
        return frames

    def _next(self, room: int) -> list[CameraFrame]:
        now = time.monotonic()
        if now >= self._next_look:
            self._look_around(now)
        if now >= self._next_transfer:
            self._transfer()
            self._next_transfer = now + _TRANSFER_S
        if now >= self._next_reclaim:
            self._reclaimer.look_over(self._readable(), self._roster.workers)
            self._next_reclaim = now + self._fleet.fleet_reclaim_s
        if not room:
            return []
        if self._reclaimer.busy:
            frames = self._reclaimer.claim(room)
            self._make_ready()
            return frames
        if not len(self._turns):
            time.sleep(0.02)
            return []
        return self._read_streams(room)

    # --- which cameras ---

    def _look_around(self, now: float) -> None:
        changed = self._roster.look()
        readable = sorted(self._readable())
        looks = self._looks.read(self._client, [stream.removeprefix(self._prefix) for stream in readable])
        self.lag = sum(look.lag or 0 for look in looks.values())
        metrics.FLEET_LAG.set(self.lag)
        self._next_look = now + self._fleet.fleet_discover_s
        unread = [self._prefix + camera for camera, look in looks.items() if look.unread and look.lag == 0]
        for _, count in self._leases.positions(unread).values():
            self._give_up("trimmed", count)
        if self._roster.leads:
            self._leases.forget(self._roster.known, self._roster.now_ms - _FORGET_MS)
        held = [(stream, camera.epoch) for stream, camera in self._held.items()]
        self._lost({stream for stream, _ in self._leases.keep(held)})
        if changed:
            self._next_transfer = 0.0

    def _transfer(self) -> None:
        """Lets go of cameras that are to be others', once nothing of them is in hand, and takes those that others have
        let go of.
        """
        wanted = self._roster.streams
        self._leaving = self._held.keys() - wanted
        in_hand = self._in_hand.count_by_stream()
        gone = {stream for stream in self._leaving if stream not in in_hand}
        self._leases.release((stream, self._held[stream].epoch) for stream in gone)
        self._drop(gone)
        # What is in hand of one that was lost is answered by nobody here, but its entries may be pending still.
        unsettled = {stream for stream, camera in self._held.items() if not camera.last}
        missing = sorted((wanted - self._held.keys()) | (unsettled - self._leaving))
        if missing:
            self._acquire([stream for stream in missing if stream not in in_hand])
        self._make_ready()
        self._show()

    def _acquire(self, streams: Collection[str]) -> None:
        """Takes those that nobody holds, and those that are ours already."""
        epochs = self._leases.acquire(streams)
        for stream, epoch in epochs.items():
            self._held[stream] = Camera(epoch)
        self._drop(self._held.keys() & (set(streams) - epochs.keys()))
        self._settle(list(epochs))

    def _settle(self, streams: Sequence[str]) -> None:
        """Asks where the group stands, and has what is pending given out first."""
        for stream, (last, unread) in self._leases.positions(streams).items():
            self._held[stream].last = last
            self._give_up("trimmed", unread)
        placed = [stream for stream in streams if self._held[stream].last]
        if len(placed) < len(streams):
            self._roster.forget_groups()
            self._next_look = 0.0
        if not placed:
            return
        write(self._client, [("XGROUP", "CREATECONSUMER", stream, self._group, self.name) for stream in placed])
        pipe = self._client.pipeline(transaction=False)
        for stream in placed:
            pipe.xpending(stream, self._group)
        self._reclaimer.take_over(
            stream for stream, pending in zip(placed, pipe.execute(), strict=True) if pending["pending"]
        )

    def _make_ready(self) -> None:
        """Cameras of which all that was left is answered, or given out, may be read."""
        unready = [stream for stream, camera in self._held.items() if camera.last and not camera.ready]
        if unready:
            unfinished = self._reclaimer.unfinished()
            for stream in unready:
                self._held[stream].ready = stream not in unfinished
            self._take_turns()

    def _drop(self, streams: set[str]) -> None:
        """They are not ours any more."""
        if streams:
            for stream in streams:
                del self._held[stream]
            self._leaving -= streams
            self._reclaimer.let_go(streams)
            self._take_turns()

    def _readable(self) -> set[str]:
        return {stream for stream, camera in self._held.items() if camera.ready and stream not in self._leaving}

    def _take_turns(self) -> None:
        self._turns = Turns(spread(self._readable(), self._fleet.fleet_shards))
        self._unanswered = 0

    def _show(self) -> None:
        """Says which cameras are ours, where they are others than they were."""
        streams, held = frozenset(self._held.keys() - self._leaving), frozenset(self._held)
        if streams != self._shown:
            self._shown = streams
            self._take_turns()
            metrics.FLEET_CAMERAS.set(len(streams))
            log.info("%s reads %d cameras; workers signed on: %d", self.name, len(streams), len(self._roster.workers))
        if held != self._told:
            self._told = held
            if self._on_streams is not None:
                self._on_streams(held)

    def _lost(self, streams: set[str]) -> None:
        """Another worker has taken them: this one stood still for longer than its lease."""
        if streams:
            log.warning("%d cameras are another worker's by now: this one was silent for too long", len(streams))
            self._drop(streams)
            self._show()

    # --- their frames ---

    def _read_streams(self, room: int) -> list[CameraFrame]:
        if self._unanswered >= len(self._turns):
            # A whole round has brought nothing: the first frame of any camera is waited for.
            streams, count = tuple(self._readable()), 1
            found = self._look_at(streams, count, wait_ms=_WAIT_MS)
            newest = set()
        else:
            streams, count = self._turns.next(room)
            newest = {stream for stream in streams if self._held[stream].lagging}
            found = self._look_at([stream for stream in streams if stream not in newest], count)
        newest |= {stream for stream, frames in found.items() if self._is_late(frames[0], PATIENCE)}
        choices = [self._choice(frames) for stream, frames in found.items() if stream not in newest]
        chosen = {stream: frames for stream, frames in found.items() if stream not in newest}
        for stream, frames, choice in self._newest(sorted(newest), count):
            choices.append(choice)
            chosen[stream] = frames
        choices = choices[:room]  # where all were asked at once, more may have come
        self._unanswered = 0 if choices else self._unanswered + len(streams)
        return self._take(choices, chosen)

    def _look_at(self, streams: Sequence[str], count: int, *, wait_ms: int = 0) -> dict[str, list[CameraFrame]]:
        """The next frames of each stream, `count` at most."""
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
        return read_entry(self._prefix, stream, entry, fields, arrived=arrived, epoch=self._held[stream].epoch)

    def _newest(self, streams: Sequence[str], count: int) -> list[tuple[str, list[CameraFrame], Choice]]:
        """The newest frames of streams that lag, and what is to be skipped for them."""
        if not streams:
            return []
        try:
            *answers, waiting = self._ask_for_newest(streams, count, at_once=True)
        except redis.exceptions.OutOfMemoryError:  # it begins no transaction, but then it takes no frames in between
            *answers, waiting = self._ask_for_newest(streams, count, at_once=False)
        arrived = time.perf_counter()
        found = []
        for stream, entries, beyond in zip(streams, answers, waiting, strict=True):
            camera = self._held[stream]
            frames = [self._frame(stream, entry, fields, arrived) for entry, fields in reversed(entries)]
            camera.lagging = beyond > len(frames)
            if frames:
                following = frames[-1].origin.entry
                good = [frame for frame in frames if not self._is_late(frame, _STILL_GOOD)] or frames[-1:]
                frames = [frame for frame in good if not self._is_stale(frame)]
                entries = [frame.origin.entry for frame in frames]
                found.append((stream, frames, Choice(stream, camera.epoch, camera.last, following, entries, beyond)))
        return found

    def _ask_for_newest(self, streams: Sequence[str], count: int, *, at_once: bool) -> list[Any]:
        """Each one's newest entries, the last first, and how many each has beyond its group's place."""
        pipe = self._client.pipeline(transaction=at_once)
        for stream in streams:
            pipe.xrevrange(stream, "+", f"({self._held[stream].last}", count=count)
        self._leases.waiting(pipe, [(stream, self._held[stream].last) for stream in streams])
        return pipe.execute()

    def _choice(self, frames: Sequence[CameraFrame]) -> Choice:
        """All that was seen of a stream, as it follows."""
        origin = frames[0].origin
        entries = [frame.origin.entry for frame in frames]
        return Choice(origin.stream, origin.epoch, self._held[origin.stream].last, entries[-1], entries)

    def _take(self, choices: Sequence[Choice], seen: dict[str, list[CameraFrame]]) -> list[CameraFrame]:
        """The frames chosen, of those cameras that are still ours."""
        if not choices:
            return []
        frames: list[CameraFrame] = []
        lost: set[str] = set()
        for choice, answer in zip(choices, self._leases.take(choices), strict=True):
            if answer == LOST:
                lost.add(choice.stream)
            elif answer < 0:  # the group is gone, or somebody else moved it
                if answer == GONE:
                    log.warning("Redis has lost the group of %s; it is made anew", choice.stream)
                self._unsettle([choice.stream])
            else:
                self._held[choice.stream].last = choice.following
                frames += seen[choice.stream]
                self._skip(answer)
        self._lost(lost)
        return frames

    def _is_late(self, frame: CameraFrame, patience: float) -> bool:
        """Whether newer frames of its camera should be read instead: it has waited in Redis for this share of
        FRAME_STALENESS_MS, or would be stale by the time that it is looked at.
        """
        staleness_ms, added_ms = self._fleet.frame_staleness_ms, float(frame.origin.entry.partition("-")[0])
        age_ms = time.time() * 1000 - frame.origin.captured_at_ms
        # By Redis' clock alone: the camera's may be ahead. An id that somebody made up is no time.
        waited_ms = self._roster.now_ms - added_ms if added_ms > _NO_TIME_MS else age_ms
        soon_ms = 2000 * self._in_hand.in_hand_s
        return waited_ms > patience * staleness_ms or age_ms + soon_ms > staleness_ms

    def _is_stale(self, frame: CameraFrame) -> bool:
        return time.time() * 1000 - frame.origin.captured_at_ms > self._fleet.frame_staleness_ms

    def _skip(self, count: int) -> None:
        if count:
            metrics.FLEET_SKIPPED.inc(count)
            self._give_up("stale", count)

    def _give_up(self, reason: str, count: int) -> None:
        if count:
            self._tally.received(count)
            self._tally.dropped(reason, count)

    # --- when Redis is away, and at the end ---

    def _away(self, error: Exception) -> None:
        """What it was asked last may have been done or not: where each group stands is asked anew, and so is what is
        pending and in nobody's hands. The address may stand for another server by then.
        """
        self._fit = False
        self._outage.again(error)
        self._client.connection_pool.disconnect()
        self._unsettle(self._held)

    def _unsettle(self, streams: Iterable[str]) -> None:
        """They are not read before it was asked again where they stand, and whether they are ours."""
        asked = set(streams)
        self._reclaimer.let_go(asked)
        for stream in asked:
            self._held[stream].last, self._held[stream].ready = "", False
        self._roster.forget_groups()
        self._take_turns()
        self._next_look = self._next_transfer = 0.0

    def _refused(self, error: redis.ResponseError) -> None:
        """The group is gone after a restart without persistence, or a stream was deleted, or replaced, under us."""
        text = str(error)
        if any(word in text for word in ("NOGROUP", "UNBLOCKED", "no such key", "WRONGTYPE")):
            log.warning("Redis has lost streams or groups; they are looked for anew: %s", text)
            self._unsettle(self._held)
            return
        refuse_cluster(error)
        self._away(error)  # READONLY, OOM and the like: waited out, and told once

    def sign_off(self) -> None:
        """Nothing more is read: the cameras go to others as soon as this worker is done with what is in hand."""
        try:
            self._roster.leave()
        except redis.RedisError as error:
            log.warning("Redis is away while signing off; the name %s expires by itself: %s", self.name, error)

    def leave(self) -> None:
        """Ends, after `sign_off`; the consumer is deleted where it left nothing pending."""
        try:
            for stream in self._held:
                pending = self._client.xpending_range(stream, self._group, "-", "+", 1, consumername=self.name)
                if not pending:
                    self._client.xgroup_delconsumer(stream, self._group, self.name)
            self._leases.release((stream, camera.epoch) for stream, camera in self._held.items())
            self._leases.end()
        except redis.RedisError as error:
            log.warning("Redis is away at the end; it keeps the empty consumer %s for a while: %s", self.name, error)
        finally:
            self._client.close()
