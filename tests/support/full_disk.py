"""A backlog on a disk that fills up: `python -m tests.support.full_disk FOLDER`, on a small file system of its own.

Prints one JSON object. Afterwards the disk has room again, and all is taken back.
"""

from __future__ import annotations

import asyncio
import errno
import sys
from dataclasses import asdict
from pathlib import Path

import orjson
from prometheus_client import REGISTRY

from app.settings import SummarySettings
from app.summary import Backlog, Spill
from tests.support.observations import covered, observed


async def main(folder: Path) -> None:
    ballast = folder / "ballast"
    settings = SummarySettings(summary_ram_items=16)
    spill = Spill(folder / "summaries", settings, retry_s=0.05)
    await spill.open()
    backlog = Backlog("a", settings, spill)
    await offer(backlog, spill, 1, 200)
    fill(ballast)
    await offer(backlog, spill, 201, 1200)
    full = {"health": spill.health(), "counts": asdict(backlog.counts)}
    await spill.save_summary("a", 1.0, b"said while it was full")
    ballast.unlink()
    last = 1200
    while spill.health()["state"] != "ok" and last < 5000:
        await offer(backlog, spill, last + 1, last + 4)
        last += 4
        await asyncio.sleep(0.01)
    ids: list[int] = []
    while found := await backlog.take():
        ids += covered(found)
    errors = REGISTRY.get_sample_value("sightline_summary_disk_errors_total", {"reason": "full"})
    summaries = [summary.decode() for summary in await spill.summaries("a", 5)]
    told = {"last": last, "in_order": ids == list(range(1, last + 1)), "errors": errors, "summaries": summaries}
    print(orjson.dumps({"full": full, "after": asdict(backlog.counts), **told}).decode())
    await backlog.close(keep=False)
    await spill.close()


async def offer(backlog: Backlog, spill: Spill, first: int, last: int) -> None:
    for number in range(first, last + 1):
        backlog.offer(observed(number))
        if number % 4 == 0:
            await spill.orphans()  # the disk is done with what came before


def fill(path: Path) -> None:
    """Takes all the room that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
