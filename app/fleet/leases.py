"""The leases of cameras: epochs, and the scripts that check the holder whenever a frame changes its state.

Redis keeps a record for every camera: the epoch, and the worker that holds the camera. A record stands until its worker
releases it or another worker takes it. Another worker may take it once the holder's lease has ended by Redis' own
clock; then the epoch grows. One script checks the record and reads or acknowledges a frame in a single step, and the
record is checked before a result goes to Kafka. So a worker that stood still finds out that it has lost the camera,
whatever its own clock says.

An epoch is the time of its beginning in milliseconds, or the epoch before plus one: it grows even if Redis has lost the
record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from app.fleet.connection import WHEN_FULL
from app.fleet.streams import FrameOrigin, Keys

Hold = tuple[str, int]
"""A stream and the epoch that it is held with."""

LOST, GONE, MOVED = -1, -2, -3
"""Results of `Leases.take` if it took nothing: another worker holds the camera; the stream or its group is gone; a
consumer outside the fleet has moved the group.
"""

# A missing record counts as held: Redis has lost it, and no worker has taken the camera since.
_HELD = """
local function held(stream, epoch, worker)
  local record = redis.call('HGET', KEYS[1], stream)
  return not record or record == epoch .. ' ' .. worker
end
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
"""
_RENEW = """
local function renew(worker, lasting)
  redis.call('ZADD', KEYS[2], now_ms() + tonumber(lasting), worker)
end
"""
_GROUP = """
local function group_of(stream, name)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return nil end
  for _, flat in ipairs(groups) do
    local group = {}
    for at = 1, #flat, 2 do group[flat[at]] = flat[at + 1] end
    if group['name'] == name then return group end
  end
end
"""

_ACQUIRE = (
    _HELD
    + _RENEW
    + """
local worker, now, found = ARGV[1], now_ms(), {}
renew(worker, ARGV[2])
for at = 3, #ARGV do
  local stream = ARGV[at]
  local record = redis.call('HGET', KEYS[1], stream)
  local epoch, holder = 0, ''
  if record then
    local space = string.find(record, ' ', 1, true)
    epoch, holder = tonumber(string.sub(record, 1, space - 1)), string.sub(record, space + 1)
  end
  if holder ~= worker then
    local until_ms = holder ~= '' and redis.call('ZSCORE', KEYS[2], holder)
    if until_ms and tonumber(until_ms) > now then
      epoch = 0
    else
      epoch = math.max(epoch + 1, now)
      redis.call('HSET', KEYS[1], stream, string.format('%.0f', epoch) .. ' ' .. worker)
    end
  end
  found[#found + 1] = epoch
end
return found
"""
)

_KEEP = (
    _HELD
    + _RENEW
    + """
renew(ARGV[1], ARGV[2])
local found = {}
for at = 3, #ARGV, 2 do found[#found + 1] = held(ARGV[at], ARGV[at + 1], ARGV[1]) and 1 or 0 end
return found
"""
)

_RELEASE = (
    _HELD
    + """
for at = 2, #ARGV, 2 do
  if held(ARGV[at], ARGV[at + 1], ARGV[1]) then redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1] .. ' ') end
end
"""
)

_ACKNOWLEDGE = (
    _HELD
    + """
local at, found = 3, {}
while at <= #ARGV do
  local stream, epoch, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local held_still = held(stream, epoch, ARGV[1])
  if held_still then
    local answer = redis.pcall('XACK', stream, ARGV[2], unpack(ARGV, at + 3, at + 2 + count))
    -- The key has another type by now: there is nothing left to acknowledge.
    if type(answer) == 'table' and answer.err and not string.find(answer.err, 'WRONGTYPE', 1, true) then
      return answer
    end
  end
  found[#found + 1] = held_still and 1 or 0
  at = at + 3 + count
end
return found
"""
)

_CLAIM = (
    _HELD
    + """
local worker, name, stream = ARGV[1], ARGV[2], ARGV[3]
if not held(stream, ARGV[4], worker) then return nil end
return redis.call('XCLAIM', stream, name, worker, '0', unpack(ARGV, 5))
"""
)

_DEAD_LETTER = (
    _HELD
    + """
local stream = ARGV[3]
if not held(stream, ARGV[4], ARGV[1]) then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', unpack(ARGV, 7))
redis.call('XACK', stream, ARGV[2], ARGV[5])
return 1
"""
)

# XREAD returned the entries without making them pending. XCLAIM with FORCE puts them on this worker's pending list.
_TAKE = (
    _HELD
    + _GROUP
    + """
local worker, name, at, found = ARGV[1], ARGV[2], 3, {}
local function take(stream, epoch, last, following, waiting, count)
  if not held(stream, epoch, worker) then return -1 end
  local group = group_of(stream, name)
  if not group then return -2 end
  if group['last-delivered-id'] ~= last then return -3 end
  local passed, read = count, group['entries-read']
  if waiting >= 0 then passed = waiting end
  if read then
    redis.call('XGROUP', 'SETID', stream, name, following, 'ENTRIESREAD', string.format('%.0f', read + passed))
  else
    redis.call('XGROUP', 'SETID', stream, name, following)
  end
  if count > 0 then
    local claim = {'XCLAIM', stream, name, worker, '0'}
    for index = at + 6, at + 5 + count do claim[#claim + 1] = ARGV[index] end
    for _, option in ipairs({'RETRYCOUNT', '1', 'FORCE', 'JUSTID'}) do claim[#claim + 1] = option end
    redis.call(unpack(claim))
  end
  return passed - count
end
while at <= #ARGV do
  local count = tonumber(ARGV[at + 5])
  found[#found + 1] = take(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4]), count)
  at = at + 6 + count
end
return found
"""
)

# Runs in the same MULTI as the read of the newest entries, so that both describe the same moment.
_WAITING = (
    _GROUP
    + """
local found = {}
for index, stream in ipairs(KEYS) do
  local group = group_of(stream, ARGV[1])
  if not group then
    found[index] = 0
  elseif group['lag'] and group['entries-read'] then
    found[index] = group['lag']
  else
    found[index] = #redis.call('XRANGE', stream, '(' .. ARGV[index + 1], '+')
  end
end
return found
"""
)

# Redis counts entries that MAXLEN dropped unread as lag for ever; SETID with ENTRIESREAD corrects its count.
_POSITION = (
    _GROUP
    + """
local stream, name = KEYS[1], ARGV[1]
local group, about = group_of(stream, name), redis.pcall('XINFO', 'STREAM', stream)
if not group or about.err then return nil end
local facts = {}
for at = 1, #about, 2 do facts[about[at]] = about[at + 1] end
local last, lag, unread = group['last-delivered-id'], group['lag'], 0
local function before(left, right)
  local a, b = string.match(left, '^(%d+)%-(%d+)$')
  local c, d = string.match(right, '^(%d+)%-(%d+)$')
  if #a ~= #c then return #a < #c end
  if a ~= c then return a < c end
  if #b ~= #d then return #b < #d end
  return b < d
end
local first, waiting = facts['first-entry'], nil
if not before(last, facts['last-generated-id']) then
  waiting = 0
elseif first and before(last, first[1]) then
  waiting = facts['length']
elseif not first then
  waiting = 0
elseif not lag then
  waiting = #redis.call('XRANGE', stream, '(' .. last, '+')
else
  waiting = lag
end
if lag and group['entries-read'] then unread = math.max(0, lag - waiting) end
if unread > 0 or not group['entries-read'] then
  local read = string.format('%.0f', math.max(0, facts['entries-added'] - waiting))
  redis.call('XGROUP', 'SETID', stream, name, last, 'ENTRIESREAD', read)
end
return {last, unread}
"""
)


@dataclass(frozen=True, slots=True)
class Selection:
    """The entries to take from one stream, chosen from those that a read has shown."""

    stream: str
    epoch: int
    last: str
    """The group's last-delivered id when the entries were read."""
    following: str
    """The group's last-delivered id once they are taken: entries up to here are taken or skipped."""
    entries: Sequence[str]
    waiting: int | None = None
    """Number of entries after `last` up to `following`; None: `entries` are all of them."""


class Leases:
    """The leases of one worker. One thread uses an instance and its client; other threads need instances of their own.

    All methods raise redis.RedisError if Redis does not answer or refuses.
    """

    def __init__(self, client: redis.Redis, name: str, keys: Keys, lease_ms: float) -> None:
        """`lease_ms`: how long a silent worker keeps its cameras."""
        self._client = client
        self._name = name
        self._group = keys.group
        self._holders, self._leases, self._dead = keys.holders, keys.leases, keys.dead
        self._lease_ms = f"{lease_ms:.0f}"

    def _eval(self, script: str, keys: Sequence[str], arguments: Iterable[Any]) -> Any:
        # EVAL, not EVALSHA: a restarted Redis would not know the hash.
        given = [*keys, *arguments]
        try:
            return cast("Any", self._client.eval(script, len(keys), *given))
        except redis.exceptions.OutOfMemoryError:  # raised at the script's first write: nothing was done
            return cast("Any", self._client.eval(WHEN_FULL + script, len(keys), *given))

    def acquire(self, streams: Collection[str]) -> dict[str, int]:
        """Takes the streams that no other worker holds, and renews this worker's lease; returns the epoch of each
        stream that it holds now, whether it is new or was held before.
        """
        wanted = list(streams)
        epochs = self._eval(_ACQUIRE, [self._holders, self._leases], [self._name, self._lease_ms, *wanted])
        return {stream: epoch for stream, epoch in zip(wanted, epochs, strict=True) if epoch}

    def keep(self, holds: Collection[Hold] = ()) -> set[Hold]:
        """Renews this worker's lease; returns the holds that it has lost."""
        asked = list(holds)
        flat = [part for hold in asked for part in hold]
        answers = self._eval(_KEEP, [self._holders, self._leases], [self._name, self._lease_ms, *flat])
        return {hold for hold, held in zip(asked, answers, strict=True) if not held}

    def release(self, holds: Iterable[Hold]) -> None:
        """Gives streams up, so that any worker may take them."""
        flat = [part for hold in holds for part in hold]
        if flat:
            self._eval(_RELEASE, [self._holders], [self._name, *flat])

    def end(self) -> None:
        """Ends this worker's lease, so that any worker may take the streams that it still holds."""
        self._client.zrem(self._leases, self._name)

    def waiting(self, pipe: Any, places: Sequence[tuple[str, str]]) -> None:
        """Adds to a transaction a command that counts the entries after each `(stream, last)`. If Redis reports the
        group's lag, the count includes entries that MAXLEN has dropped since.
        """
        streams = [stream for stream, _ in places]
        pipe.eval(_WAITING, len(streams), *streams, self._group, *(last for _, last in places))

    def take(self, selections: Sequence[Selection]) -> list[int]:
        """Takes the entries of streams that this worker still holds: all of a stream, or none.

        Returns:
            For each stream the number of entries that were skipped, or LOST, GONE or MOVED.
        """
        arguments: list[Any] = [self._name, self._group]
        for chosen in selections:
            waiting = -1 if chosen.waiting is None else chosen.waiting
            arguments += [chosen.stream, chosen.epoch, chosen.last, chosen.following, waiting]
            arguments += [len(chosen.entries), *chosen.entries]
        found = self._eval(_TAKE, [self._holders], arguments)
        return cast("list[int]", found)

    def acknowledge(self, origins: Iterable[FrameOrigin]) -> set[Hold]:
        """Acknowledges entries of streams that this worker still holds; returns the holds that it has lost."""
        entries: dict[Hold, list[str]] = {}
        for origin in origins:
            entries.setdefault((origin.stream, origin.epoch), []).append(origin.entry)
        arguments: list[Any] = [self._name, self._group]
        for (stream, epoch), ids in entries.items():
            arguments += [stream, epoch, len(ids), *ids]
        answers = self._eval(_ACKNOWLEDGE, [self._holders], arguments)
        return {hold for hold, held in zip(entries, answers, strict=True) if not held}

    def claim(self, stream: str, epoch: int, entries: Sequence[bytes]) -> list[tuple[bytes, dict[bytes, bytes]]] | None:
        """Claims pending entries, which counts one more delivery of each.

        Returns:
            The entries with their fields, without those that were trimmed, which Redis removes from the pending list;
            None if this worker has lost the stream.
        """
        found = self._eval(_CLAIM, [self._holders], [self._name, self._group, stream, epoch, *entries])
        if found is None:
            return None
        return [(entry, dict(zip(fields[::2], fields[1::2], strict=True))) for entry, fields in found]

    def dead_letter(self, stream: str, epoch: int, entry: bytes, letter: Mapping[bytes, object], most: int) -> bool:
        """Writes `letter` to the dead-letter stream, which keeps `most`, and acknowledges the entry; does neither, and
        returns False, if this worker has lost the stream.
        """
        flat = [part for field in letter.items() for part in field]
        arguments = [self._name, self._group, stream, epoch, entry, most, *flat]
        return bool(self._eval(_DEAD_LETTER, [self._holders, self._dead], arguments))

    def positions(self, streams: Iterable[str]) -> dict[str, tuple[str, int]]:
        """For each stream the group's last-delivered id, and the number of entries dropped unread since the last call.

        A stream without the group is missing in the result.
        """
        asked = list(streams)
        pipe = self._client.pipeline(transaction=False)
        for stream in asked:
            pipe.eval(_POSITION, 1, stream, self._group)
        answers = pipe.execute() if asked else []
        return {
            stream: (answer[0].decode(), answer[1]) for stream, answer in zip(asked, answers, strict=True) if answer
        }

    def forget(self, known: Collection[str], older_than_ms: float) -> None:
        """Removes leases that ended before `older_than_ms`, because every start of a worker uses a new name. If there
        are many records, also removes old records of unknown streams that no living worker holds.
        """
        self._client.zremrangebyscore(self._leases, "-inf", older_than_ms)
        most = 2 * len(known) + 1000
        if self._client.hlen(self._holders) <= most:
            return
        records = cast("dict[bytes, bytes]", self._client.hgetall(self._holders))
        living = set(cast("list[bytes]", self._client.zrange(self._leases, 0, -1)))
        gone = [
            stream
            for stream, (epoch, _, holder) in ((stream, record.partition(b" ")) for stream, record in records.items())
            if stream.decode(errors="replace") not in known and holder not in living and float(epoch) < older_than_ms
        ]
        if gone:
            self._client.hdel(self._holders, *gone)
