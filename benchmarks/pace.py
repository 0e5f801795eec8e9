"""An open-loop load: frames are sent when they are due, whether or not the service keeps up.

    python -m benchmarks.pace --url ws://HOST:PORT/ws/inference --frames FOLDER --sessions 8 --rate 120 --watch PID …

The rate is shared equally by all sessions. A result's age counts from when its frame was due, so that a service that
stalls cannot make the load wait for it (coordinated omission). Prints one JSON object: a `measure.Measured`, and
`due` and `results` (of each session), `ages` (when the frame was due, seconds since the window opened; its result's
age, milliseconds), `late_ms`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from dataclasses import asdict
from time import perf_counter
from urllib.parse import urlsplit

import uvloop

from app.protocol import header
from benchmarks import photographs
from benchmarks.load import Load, masked
from benchmarks.load import parser as load_parser
from benchmarks.measure import Window

_SEQ = re.compile(rb'"seq":(\d+)')
_PASSED_OVER = re.compile(rb'"type":"(ping|summary|notice|error)"')
"""An `error` here is of a frame that was too old, or refused: it has no result."""


class Paced(Load):
    """One session that sends by the clock."""

    def __init__(self, path: str, host: str, init: str, clip: list[bytes], every_s: float, window: Window) -> None:
        super().__init__(path, host, init, clip, 0, window)
        self._clip = clip
        self._every_s = every_s
        self._window = window
        self._due: dict[int, float] = {}
        self.ready = asyncio.Event()
        self.due: list[float] = []
        """When frames were due, `perf_counter` seconds."""
        self.ages: list[tuple[float, float]] = []
        """When it was due, and the age of its result; both seconds."""
        self.late_s = 0.0

    async def send(self, begin: float, end: float) -> None:
        """From one time to the other, `perf_counter` seconds."""
        count = 0
        while (due := begin + count * self._every_s) < end:
            wait = due - perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            elif count % 8 == 0:
                await asyncio.sleep(0)  # behind: answers are read all the same
            count += 1
            self._due[count] = due
            self.due.append(due)
            self.late_s = max(self.late_s, perf_counter() - due)
            jpeg = self._clip[count % len(self._clip)]
            self._transport.write(masked(header.pack(jpeg, seq=count, captured_at_ms=0.0), 2))

    def _answer(self, frame: bytes) -> None:
        if b'"objects":' in frame:
            self.last = frame
            found = _SEQ.search(frame)
            assert found is not None
            due = self._due.pop(int(found[1]))
            age = perf_counter() - due
            self.ages.append((due, age))
            self._window.answered(age)
        elif b'"ready"' in frame:
            self.ready.set()
        elif not _PASSED_OVER.search(frame):
            self.last = frame
            self._transport.close()


async def run(options: argparse.Namespace) -> dict[str, object]:
    window = Window(options.watch, options.triton)
    url, loop = urlsplit(options.url), asyncio.get_running_loop()
    clips = photographs.read(options.frames)
    every_s = options.sessions / options.rate
    sessions = []
    for number in range(options.sessions):
        made = Paced(url.path, url.netloc, options.init, clips[number % len(clips)], every_s, window)
        await loop.create_connection(lambda made=made: made, url.hostname, url.port)  # type: ignore[misc]
        sessions.append(made)
    await asyncio.wait_for(asyncio.gather(*(session.ready.wait() for session in sessions)), 60)
    start = perf_counter() + 0.05
    opened, closed = start + options.warm_up, start + options.warm_up + options.seconds
    # Begins are spread over one interval: frames do not come in volleys.
    sending = [
        asyncio.create_task(session.send(start + every_s * number / len(sessions), closed))
        for number, session in enumerate(sessions)
    ]
    await asyncio.sleep(opened - perf_counter())
    window.open()
    await asyncio.sleep(closed - perf_counter())
    window.close()
    await asyncio.gather(*sending)
    await asyncio.sleep(options.rest)
    for session in sessions:
        if session.ended.done():
            raise session.ended.exception() or ConnectionError("the service hung up")
    inside = [[(due - opened, age) for due, age in session.ages if opened <= due < closed] for session in sessions]
    return {
        **asdict(window.measured()),
        "due": [sum(opened <= due < closed for due in session.due) for session in sessions],
        "results": [len(ages) for ages in inside],
        "ages": [[round(due, 3), round(age * 1000, 2)] for ages in inside for due, age in ages],
        "late_ms": round(max(session.late_s for session in sessions) * 1000, 2),
    }


def main() -> None:
    parser = load_parser(__doc__)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="frames a second, of all sessions together")
    parser.add_argument("--rest", type=float, default=0.3, help="seconds that answers are waited for at the end")
    json.dump(uvloop.run(run(parser.parse_args())), sys.stdout)


if __name__ == "__main__":
    main()
