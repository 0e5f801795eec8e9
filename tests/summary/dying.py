"""A process that a test kills while observations wait in its backlog.

`python -m tests.summary.dying FOLDER` offers observations of two sessions, says `ready` once they are on disk; waits.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from app.settings import SummarySettings
from app.summary import Backlog, Spill
from tests.summary.seeing import observation, seen

OBSERVATIONS = 30


async def main(folder: Path) -> None:
    settings = SummarySettings(summary_ram_items=1)
    spill = Spill(folder / "summaries", settings)
    await spill.open()
    backlogs = []
    for session_id, name in (("first", "cat"), ("second", "dog")):
        backlog = Backlog(session_id, settings, spill)
        backlogs.append(backlog)
        for number in range(OBSERVATIONS):
            shown = (seen(name, 1, frames=10),)
            backlog.offer(observation(number * 10 + 1, 10, at_s=number, objects=shown))
            while backlog.counts.on_disk < number:  # noqa: ASYNC110  else a slow disk has them folded
                await asyncio.sleep(0.002)
    while any(backlog.counts.on_disk < OBSERVATIONS - 1 for backlog in backlogs):  # noqa: ASYNC110  a thread writes them
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
