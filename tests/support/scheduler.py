"""Which of the processes that run tests side by side gets which file.

Starting Kafka, Triton or a browser takes longer than many a test, and each process has its own. So each process stays
in one folder of tests, another one than the others if it can: then most servers are started once, and folders whose
tests wait run beside folders whose tests compute. Before that, files that need no server are run in their order.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling


class FolderScheduling(LoadFileScheduling):
    """`--dist loadfile`, with a choice of the next file."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False  # else files with many tests come first, however short those are
        super().__init__(config, log)
        self._folders: dict[Any, str] = {}
        """The folder of each process's latest file."""

        self._quick: set[str] | None = None
        """Files that need no server."""

    def _assign_work_unit(self, node: Any) -> None:
        if self._quick is None:
            self._quick = before_servers([*self.workqueue])
        file = self._next(node)
        self._folders[node] = _folder(file)
        self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)

    def _next(self, node: Any) -> str:
        """The first file without a server; then the first in the process's folder; then the first in the fullest
        folder, one that no other process is in if there is one.
        """
        first = next(iter(self.workqueue))
        if first in (self._quick or ()):
            return first
        left = Counter(map(_folder, self.workqueue))
        mine, taken = self._folders.get(node), {*self._folders.values()}
        folder = max(left, key=lambda name: (name == mine, name not in taken, left[name]))
        return next(file for file in self.workqueue if _folder(file) == folder)


def before_servers(files: list[str]) -> set[str]:
    """Files in front of the first one that needs a server.

    `conftest.py` puts files that need none in front; both parts are in alphabetical order, so that the second begins
    where the order does. (The process that hands out tests knows no more of them than their names.)
    """
    paths = [PurePosixPath(file).parts for file in files]
    ends = [place for place, (before, after) in enumerate(pairwise(paths), 1) if after < before]
    return {*files[: ends[0]]} if ends else set()


def _folder(file: str) -> str:
    return str(PurePosixPath(file).parent)
