"""Backlogs in a process of their own, which can be killed at any moment and started again on the same folder."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.settings import SummarySettings
from app.summary import Backlog, Observation, Spill
from tests.support.observations import observed

_context = multiprocessing.get_context("forkserver")
# The imports once: a life then starts in milliseconds. (Its children import the main module again, which is pytest.)
_context.set_forkserver_preload([__name__, "pytest"])


class Life:
    """One process with an open `Spill`. A context: what is left of it is killed at the end."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._ended = False
        self._connection, theirs = _context.Pipe()
        self.process = _context.Process(target=_live, args=(theirs, folder, settings))
        self.process.start()
        theirs.close()

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._ended:
            self.kill()

    def ask(self, command: str, *arguments: Any) -> Any:
        """What the process answers to one of `_Life`'s commands."""
        self.send(command, *arguments)
        return self.hear()

    def send(self, command: str, *arguments: Any) -> None:
        self._connection.send((command, arguments))

    def hear(self, timeout_s: float = 60) -> Any:
        if not self._connection.poll(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        answer = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def kill(self) -> None:
        """Kills the process with SIGKILL, so that nothing is closed."""
        self.process.kill()
        self._over()

    def end(self) -> None:
        """Ends the process in order, so that everything is kept on disk."""
        self.ask("end")
        self._over()

    def _over(self) -> None:
        self._ended = True
        self.process.join(30)
        assert self.process.exitcode is not None
        self._connection.close()
        self.process.close()


class _Life:
    """The other end of `Life.ask`: every public coroutine is a command."""

    def __init__(self, spill: Spill, settings: SummarySettings, connection: Connection) -> None:
        self._spill = spill
        self._settings = settings
        self._connection = connection
        self._backlogs: dict[str, Backlog] = {}

    async def begin(self, session_id: str) -> None:
        self._backlogs[session_id] = Backlog(session_id, self._settings, self._spill)

    async def offer(self, session_id: str, first: int, count: int) -> None:
        for number in range(first, first + count):
            self._backlogs[session_id].offer(observed(number))

    async def flood(self, session_id: str, count: int) -> None:
        """Offers this many observations; after each it sends the number on disk to the test."""
        backlog = self._backlogs[session_id]
        for number in range(1, count + 1):
            backlog.offer(observed(number))
            if number % 64 == 0:
                await asyncio.sleep(0.001)
                while backlog.counts.in_ram > self._settings.summary_ram_items:  # noqa: ASYNC110  the disk's thread
                    await asyncio.sleep(0.001)  # else a slow disk has them folded, and less comes there
                self._connection.send(backlog.counts.on_disk)

    async def settle(self) -> None:
        """Waits until all writes have reached the disk."""
        await self._spill.orphans()

    async def take(self, session_id: str, items: int) -> list[Observation]:
        return await self._backlogs[session_id].take(items)

    async def counts(self, session_id: str) -> dict[str, int]:
        return asdict(self._backlogs[session_id].counts)

    async def health(self) -> dict[str, Any]:
        return self._spill.health()

    async def orphans(self) -> list[str]:
        return await self._spill.orphans()

    async def adopt(self, session_id: str) -> bool:
        found = await Backlog.adopt(session_id, self._spill)
        if found is not None:
            self._backlogs[session_id] = found
        return found is not None

    async def close(self, session_id: str, keep: bool) -> None:
        await self._backlogs.pop(session_id).close(keep=keep)

    async def save(self, session_id: str, data: bytes) -> None:
        await self._spill.save_summary(session_id, 0.0, data)

    async def summaries(self, session_id: str) -> list[bytes]:
        return await self._spill.summaries(session_id, 100)

    async def limit(self, size: int) -> None:
        """No file may grow beyond so many bytes; -1: as large as it likes."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    async def end(self) -> None:
        for session_id in list(self._backlogs):
            await self.close(session_id, keep=True)
        await self._spill.close()


def _live(connection: Connection, folder: Path, settings: dict[str, Any]) -> None:
    asyncio.run(_obey(connection, folder, settings))
    os._exit(0)


async def _obey(connection: Connection, folder: Path, given: dict[str, Any]) -> None:
    settings = SummarySettings(**given)
    spill = Spill(folder, settings, retry_s=0.2)
    await spill.open()
    life = _Life(spill, settings, connection)
    while True:
        try:
            command, arguments = await asyncio.to_thread(connection.recv)
        except EOFError:
            return
        try:
            connection.send(await getattr(life, command)(*arguments))
        except Exception as error:
            connection.send(error)
        if command == "end":
            return
