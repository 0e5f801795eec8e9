"""Which worker holds which camera: leases, epochs, and the scripts that check them where frames change state.

Redis keeps a record of every camera: the epoch and the worker that holds it. A record stands until its worker releases
it, or another worker takes it; it may be taken once its worker's lease has ended by Redis' own clock. Each time the
epoch grows. Reading a frame and acknowledging it are one step in Redis with the question whether the record still is
the one that the frame was read under, and it is asked before an answer goes to Kafka: a worker that stood still finds
that it is not, whatever its own clock says.

An epoch is the time of its beginning, in milliseconds, or one more than the epoch before: it grows even where Redis
has lost the record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from app.fleet.connection import WHEN_FULL
from app.fleet.frames import Origin
from app.fleet.keys import Keys

Hold = tuple[str, int]
"""A stream and the epoch that it is held with."""

LOST, GONE, MOVED = -1, -2, -3
"""What Redis may say instead of taking entries: another worker holds the camera; the stream or its group is gone;
somebody outside the fleet read from it.
"""

# A record that is missing counts as ours: Redis has lost it, and nobody has taken the camera since.
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
    -- Something else has the stream's name by now: there is nothing to acknowledge any more.
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

_BURY = (
    _HELD
    + """
local stream = ARGV[3]
if not held(stream, ARGV[4], ARGV[1]) then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', unpack(ARGV, 7))
redis.call('XACK', stream, ARGV[2], ARGV[5])
return 1
"""
)

# The entries were looked at without being taken. XCLAIM with FORCE puts them among this worker's pending ones.
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

# Only within MULTI with the look at the newest entries: both speak of the same moment.
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

# Redis counts what MAXLEN has dropped unread as lag for ever; here it is told that nobody will read it any more.
_POSITION = (
    _GROUP
    + """
local stream, name = KEYS[1], ARGV[1]
local group, about = group_of(stream, name), redis.pcall('XINFO', 'STREAM', stream)
if not group or about.err then return nil end
local facts = {}
for at = 1, #about, 2 do facts[about[at]] = about[at + 1] end
local last, lag, unread = group['last-delivered-id'], group['lag'], 0
local function before(one, other)
  local a, b = string.match(one, '^(%d+)%-(%d+)$')
  local c, d = string.match(other, '^(%d+)%-(%d+)$')
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
class Choice:
    """What is to be taken of one stream: entries that were seen, from its group's place on."""

    stream: str
    epoch: int
    last: str
    """Where the group stood when they were looked at."""
    following: str
    """Where it stands once they are taken: all up to here has been seen or is skipped."""
    entries: Sequence[str]
    waiting: int | None = None
    """Entries beyond `last` up to `following`; None: `entries` are all of them."""


class Leases:
    """One worker's. Used by one thread, which is not that of another instance: each has a client of its own.

    All methods raise redis.RedisError where Redis is away or refuses.
    """

    def __init__(self, client: redis.Redis, name: str, keys: Keys, lasting_ms: float) -> None:
        """
        Args:
            lasting_ms: how long after it was last heard of a worker's cameras stay its own.
        """
        self._client = client
        self._name = name
        self._group = keys.group
        self._holders, self._leases, self._dead = keys.holders, keys.leases, keys.dead
        self._lasting = f"{lasting_ms:.0f}"

    def _eval(self, script: str, keys: Sequence[str], arguments: Iterable[Any]) -> Any:
        # By its text, not by its hash: Redis may be restarted at any time, and would not know it.
        given = [*keys, *arguments]
        try:
            return cast("Any", self._client.eval(script, len(keys), *given))
        except redis.exceptions.OutOfMemoryError:  # said of what a script writes first: nothing was done
            return cast("Any", self._client.eval(WHEN_FULL + script, len(keys), *given))

    def acquire(self, streams: Collection[str]) -> dict[str, int]:
        """Takes what nobody holds; the epoch of each that is ours now, or was before. Renews our lease."""
        wanted = list(streams)
        epochs = self._eval(_ACQUIRE, [self._holders, self._leases], [self._name, self._lasting, *wanted])
        return {stream: epoch for stream, epoch in zip(wanted, epochs, strict=True) if epoch}

    def keep(self, holds: Collection[Hold] = ()) -> set[Hold]:
        """Renews our lease; those that are not ours any more."""
        asked = list(holds)
        flat = [part for hold in asked for part in hold]
        answers = self._eval(_KEEP, [self._holders, self._leases], [self._name, self._lasting, *flat])
        return {hold for hold, ours in zip(asked, answers, strict=True) if not ours}

    def release(self, holds: Iterable[Hold]) -> None:
        """Anybody may take them now."""
        flat = [part for hold in holds for part in hold]
        if flat:
            self._eval(_RELEASE, [self._holders], [self._name, *flat])

    def end(self) -> None:
        """Gives up our lease: whatever we still hold anybody may take."""
        self._client.zrem(self._leases, self._name)

    def waiting(self, pipe: Any, places: Sequence[tuple[str, str]]) -> None:
        """Asks in a transaction how many entries there are beyond each `(stream, last)`: those that MAXLEN has dropped
        since are among them.
        """
        streams = [stream for stream, _ in places]
        pipe.eval(_WAITING, len(streams), *streams, self._group, *(last for _, last in places))

    def take(self, choices: Sequence[Choice]) -> list[int]:
        """Takes entries of streams that are still ours, all those of a stream or none: for each stream how many were
        skipped, or LOST, GONE or MOVED.
        """
        arguments: list[Any] = [self._name, self._group]
        for one in choices:
            waiting = -1 if one.waiting is None else one.waiting
            arguments += [one.stream, one.epoch, one.last, one.following, waiting, len(one.entries), *one.entries]
        found = self._eval(_TAKE, [self._holders], arguments)
        return cast("list[int]", found)

    def acknowledge(self, origins: Iterable[Origin]) -> set[Hold]:
        """Acknowledges entries of streams that are still ours; those that are not."""
        entries: dict[Hold, list[str]] = {}
        for origin in origins:
            entries.setdefault((origin.stream, origin.epoch), []).append(origin.entry)
        arguments: list[Any] = [self._name, self._group]
        for (stream, epoch), ids in entries.items():
            arguments += [stream, epoch, len(ids), *ids]
        answers = self._eval(_ACKNOWLEDGE, [self._holders], arguments)
        return {hold for hold, ours in zip(entries, answers, strict=True) if not ours}

    def claim(self, stream: str, epoch: int, entries: Sequence[bytes]) -> list[tuple[bytes, dict[bytes, bytes]]] | None:
        """Pending entries of a stream that is still ours, with what is in them, counted as one more delivery of each;
        None: it is not. Redis takes those that were trimmed off the pending list, whoever has them.
        """
        found = self._eval(_CLAIM, [self._holders], [self._name, self._group, stream, epoch, *entries])
        if found is None:
            return None
        return [(entry, dict(zip(fields[::2], fields[1::2], strict=True))) for entry, fields in found]

    def bury(self, stream: str, epoch: int, entry: bytes, letter: Mapping[bytes, object], most: int) -> bool:
        """Writes `letter` to the dead letters, of which `most` are kept, and acknowledges the entry, or does neither:
        whether the stream is still ours.
        """
        flat = [part for field in letter.items() for part in field]
        arguments = [self._name, self._group, stream, epoch, entry, most, *flat]
        return bool(self._eval(_BURY, [self._holders, self._dead], arguments))

    def positions(self, streams: Iterable[str]) -> dict[str, tuple[str, int]]:
        """Where the group stands in each stream, and how many entries were dropped unread since it was last asked.

        A stream without the group is left out.
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
        """Removes records of streams that are no more, of an epoch that long ago: those released, and those of workers
        that were killed. And leases of the latter, once they have ended that long ago: each start of a worker has a
        name of its own.
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
