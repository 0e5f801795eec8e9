"""A fleet's data in Redis: the names of its keys, the entries of a camera's stream, and the status of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from app.settings import RedisSettings

_PREFIX = "frames:"
_DEAD = "dead"
_MOST_TYPE = 128
"""Bytes kept of a camera's type, because each of the camera's results repeats it."""


# --- the names of keys ---


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of one fleet's keys.

    FLEET_STREAM_PREFIX separates fleets that share one Redis: with a prefix other than `frames:`, every key of the
    fleet contains the prefix.
    """

    prefix: str
    group: str

    @classmethod
    def of(cls, settings: RedisSettings) -> Keys:
        return cls(settings.fleet_stream_prefix, settings.fleet_group)

    def _own(self, name: str) -> str:
        return name if self.prefix == _PREFIX else f"{name}:{self.prefix}"

    @property
    def cameras(self) -> str:
        """The set of cameras that ingest reads."""
        return self._own("fleet:cameras")

    @property
    def found(self) -> str:
        """The set of cameras whose streams a worker has found, whichever program writes them."""
        return self._own("fleet:found")

    @property
    def sources(self) -> str:
        """The hash of the sources that ingest reads."""
        return self._own("fleet:sources")

    @property
    def workers(self) -> str:
        """The sorted set of workers; the score is the time at which a worker counts as gone."""
        return self._own(f"fleet:workers:{self.group}")

    @property
    def away(self) -> str:
        """The hash of workers that cannot reach Kafka or Triton; the value says which and why, as JSON."""
        return self._own(f"fleet:away:{self.group}")

    @property
    def holders(self) -> str:
        """The hash of streams; the value is the epoch and the worker that holds the stream."""
        return self._own(f"fleet:holders:{self.group}")

    @property
    def leases(self) -> str:
        """The sorted set of workers that hold streams; the score is the time from which others may take these."""
        return self._own(f"fleet:leases:{self.group}")

    @property
    def dead(self) -> str:
        """The dead-letter stream."""
        return self.prefix + _DEAD

    @property
    def pattern(self) -> str:
        """A MATCH pattern for every camera's stream. Special characters of the prefix are escaped."""
        return "".join(f"\\{sign}" if sign in "*?[]\\^" else sign for sign in self.prefix) + "*"

    def stream(self, camera_id: str) -> str:
        return self.prefix + camera_id

    def cameras_of(self, streams: Iterable[bytes]) -> set[bytes]:
        """The ids of the cameras that these streams belong to."""
        return {key.removeprefix(self.prefix.encode()) for key in streams}


def is_reserved(camera_id: str) -> bool:
    """Whether this camera's stream would be the dead-letter stream."""
    return camera_id == _DEAD


def split_camera_ids(names: Iterable[bytes]) -> tuple[set[str], list[bytes]]:
    """The names that are valid camera ids, and the names that are not: Kafka and JSON need ids in UTF-8."""
    readable: set[str] = set()
    wrong: list[bytes] = []
    for name in names:
        try:
            readable.add(name.decode())
        except UnicodeDecodeError:
            wrong.append(name)
    return readable - {_DEAD}, sorted(wrong)


# --- the entries of a stream ---


@dataclass(frozen=True, slots=True)
class FrameOrigin:
    """Where a frame came from: enough to publish its result and to acknowledge it, without its pixels."""

    stream: str
    """Key of the Redis stream."""
    entry: str
    """Id of the entry in it: `milliseconds-number`, growing."""
    camera_id: str
    camera_type: str | None
    captured_at_ms: float
    """Epoch milliseconds; the time at which the entry was added, if the entry has no capture time."""
    epoch: int = 0
    """Epoch of the lease under which the frame was read; it grows whenever another worker takes the camera."""


@dataclass(frozen=True, slots=True)
class CameraFrame:
    origin: FrameOrigin
    jpeg: bytes
    arrived: float
    """`time.perf_counter()` when the frame was read from Redis."""
    claimed: bool = False
    """Whether another consumer had read the frame before and did not acknowledge it."""


def parse_entry(
    prefix: str,
    stream: str,
    entry: bytes,
    fields: Mapping[bytes, bytes],
    *,
    arrived: float,
    epoch: int = 0,
    claimed: bool = False,
) -> CameraFrame:
    """The frame in an entry of a camera's stream. The stream's name says which camera it is; other fields may be
    missing.

    Without the field `frame` the JPEG is empty, and the pipeline rejects it with an error code.
    """
    identity = entry.decode()
    camera_type = fields.get(b"camera_type")
    return CameraFrame(
        FrameOrigin(
            stream=stream,
            entry=identity,
            camera_id=stream.removeprefix(prefix),
            camera_type=None if camera_type is None else camera_type[:_MOST_TYPE].decode(errors="replace"),
            captured_at_ms=_number(fields.get(b"captured_at_ms"), float(identity.partition("-")[0])),
            epoch=epoch,
        ),
        jpeg=fields.get(b"frame", b""),
        arrived=arrived,
        claimed=claimed,
    )


def _number(value: bytes | None, otherwise: float) -> float:
    try:
        number = otherwise if value is None else float(value)
    except ValueError:
        return otherwise
    return number if math.isfinite(number) else otherwise


def parse_entry_id(text: bytes) -> tuple[int, int]:
    """An entry's id as its two numbers, milliseconds and counter, which sort in the order of the entries."""
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


# --- the status of a stream ---

# Only XINFO STREAM gives the last id, but it sends two whole frames with it: the script leaves these on the server.
_STATUS = """
local stream = redis.pcall('XINFO', 'STREAM', KEYS[1])
if stream.err then return nil end
local found = {}
for at = 1, #stream, 2 do
  local name = stream[at]
  if name == 'length' or name == 'entries-added' or name == 'last-generated-id' then
    found[#found + 1] = name
    found[#found + 1] = stream[at + 1]
  end
end
return {found, redis.call('XINFO', 'GROUPS', KEYS[1])}
"""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """A camera's stream at one moment."""

    length: int
    """Frames that the stream holds."""
    added: int
    """Frames added since the stream was created."""
    last_ms: float
    """Epoch milliseconds, by Redis' clock, of its last frame."""
    lag: int | None
    """Frames that the stream holds and that the group has not read yet; None: the group does not exist."""
    pending: int
    """Frames that the group has read and not acknowledged yet."""
    read: int
    """Frames that the group has read since it was created."""
    unread: int
    """Frames that Redis dropped before the group read them, as far as Redis reports it."""


class StreamInspector:
    """Reads the status of many streams in one round trip, and corrects the lag that Redis reports.

    Redis up to 7.2 reports `entries-added` minus `entries-read` as the lag. Frames that MAXLEN drops unread stay in
    that number for ever, so that a group that fell behind once would seem late from then on. A group that has read the
    last entry has no lag; whatever Redis reports at that moment is the number of frames dropped unread, and is
    subtracted from then on.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._group = keys.group.encode()
        self._unread: dict[str, int] = {}

    def read(self, client: redis.Redis, cameras: Iterable[str]) -> dict[str, StreamStatus]:
        """The status of each stream that exists, by camera id.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        wanted = list(cameras)
        with client.pipeline(transaction=False) as pipe:
            for camera in wanted:
                pipe.eval(_STATUS, 1, self._keys.stream(camera))
            answers = pipe.execute()
        self._unread = {camera: count for camera, count in self._unread.items() if camera in set(wanted)}
        return {camera: self._status(camera, *answer) for camera, answer in zip(wanted, answers, strict=True) if answer}

    def _status(self, camera: str, stream: list[Any], groups: list[list[Any]]) -> StreamStatus:
        about = _pairs(stream)
        length, added, last = about[b"length"], about[b"entries-added"], parse_entry_id(about[b"last-generated-id"])
        group = next((found for found in map(_pairs, groups) if found[b"name"] == self._group), None)
        if group is None:
            return StreamStatus(length, added, last[0], None, 0, 0, 0)
        reported = length if group[b"lag"] is None else int(group[b"lag"])
        unread = self._unread.get(camera, 0)
        if parse_entry_id(group[b"last-delivered-id"]) >= last:
            unread = self._unread[camera] = reported
        if reported < unread:  # the stream was created anew
            unread = self._unread[camera] = 0
        lag = min(reported - unread, length)
        read = group[b"entries-read"] or 0
        return StreamStatus(length, added, last[0], lag, group[b"pending"], read, reported - lag)


def _pairs(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
