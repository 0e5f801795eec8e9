"""What Redis knows of the cameras' streams: how long, how far behind their readers are, when the last frame came.

Redis up to 7.2 counts frames that MAXLEN dropped unread as lag, for ever: `entries-added` minus `entries-read`. Readers
who once fell behind would look late for the rest of their days. Who has read the last entry has no lag; what Redis says
at such a moment is the number of frames that nobody read, and is taken off from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from app.fleet.keys import Keys

# XINFO STREAM alone tells the last id, but sends two whole frames along: here they stay on the server.
_LOOK = """
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
class Look:
    """A camera's stream at one moment."""

    length: int
    """Frames that Redis holds of it."""
    added: int
    """Frames since the stream was made."""
    last_ms: float
    """Epoch milliseconds, by Redis' clock, when its last frame came."""
    lag: int | None
    """Frames that the group was not given yet and that Redis still holds; None: there is no such group."""
    pending: int
    """Frames that readers were given and did not acknowledge yet."""
    read: int
    """Frames that the group was given since it was made."""
    unread: int
    """Frames that Redis dropped before any reader was given them, as far as it tells."""


class Looks:
    """Looks at many streams in one round trip, and remembers what Redis counts too much."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._group = keys.group.encode()
        self._unread: dict[str, int] = {}

    def read(self, client: redis.Redis, cameras: Iterable[str]) -> dict[str, Look]:
        """The streams that there are, by camera id.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        wanted = list(cameras)
        with client.pipeline(transaction=False) as pipe:
            for camera in wanted:
                pipe.eval(_LOOK, 1, self._keys.stream(camera))
            answers = pipe.execute()
        self._unread = {camera: count for camera, count in self._unread.items() if camera in set(wanted)}
        return {camera: self._look(camera, *answer) for camera, answer in zip(wanted, answers, strict=True) if answer}

    def _look(self, camera: str, stream: list[Any], groups: list[list[Any]]) -> Look:
        about = _pairs(stream)
        length, added, last = about[b"length"], about[b"entries-added"], entry_id(about[b"last-generated-id"])
        group = next((one for one in map(_pairs, groups) if one[b"name"] == self._group), None)
        if group is None:
            return Look(length, added, last[0], None, 0, 0, 0)
        said = length if group[b"lag"] is None else int(group[b"lag"])
        unread = self._unread.get(camera, 0)
        if entry_id(group[b"last-delivered-id"]) >= last:
            unread = self._unread[camera] = said
        if said < unread:  # the stream was made anew
            unread = self._unread[camera] = 0
        lag = min(said - unread, length)
        read = group[b"entries-read"] or 0
        return Look(length, added, last[0], lag, group[b"pending"], read, said - lag)


def _pairs(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def entry_id(text: bytes) -> tuple[int, int]:
    """The id of a stream's entry as its two numbers, milliseconds and count, which sort as the entries do."""
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)
