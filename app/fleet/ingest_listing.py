"""All sources that were asked for, read anew at every look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import redis

from app.errors import ConfigurationError
from app.fleet.connection import says
from app.fleet.sources import Source, from_argument, from_hash, from_yaml

FROM_REDIS = "redis"
"""The word that stands for the hash `fleet:sources` among the sources."""


class Listing:
    """Sources of the command line, of YAML files and of Redis. What cannot be read for a while stays as it was."""

    def __init__(self, asked: Sequence[str], key: str, *, loop: bool = False) -> None:
        """`asked`: addresses, `NAME=ADDRESS`, names of YAML files, `redis` (the hash `key`); none at all means `redis`.

        Raises:
            ConfigurationError: a source or a YAML file is wrong, or two sources have one id.
        """
        given = list(asked) or [FROM_REDIS]
        names = [one for one in given if one.endswith((".yaml", ".yml"))]
        self._key, self._loop = key, loop
        self.from_redis = FROM_REDIS in given
        self._fixed = [from_argument(one, loop=loop) for one in given if one != FROM_REDIS and one not in names]
        self._files = {Path(one): from_yaml(Path(one), loop=loop) for one in names}
        self._hash: list[Source] = []
        self.says = ""
        """What Redis said instead of the hash at the last look; empty: it gave it, or was not asked."""
        _, doubled = self._merged()
        if doubled:
            raise ConfigurationError("\n".join(doubled))

    @property
    def may_change(self) -> bool:
        """Whether other sources may be found later."""
        return self.from_redis or bool(self._files)

    def look(self, client: redis.Redis) -> tuple[dict[str, Source], list[str]]:
        """Sources by id, and a line for everything that is wrong."""
        problems: list[str] = []
        for path in self._files:
            try:
                self._files[path] = from_yaml(path, loop=self._loop)
            except ConfigurationError as error:
                problems.append(f"{error}; its sources stay as they were")
        if self.from_redis:
            try:
                self.says = ""
                entries = cast("dict[bytes, bytes]", client.hgetall(self._key))
                self._hash, wrong = from_hash(self._key, entries, loop=self._loop)
                problems += wrong
            except redis.RedisError as error:
                self.says = says(error)
                client.connection_pool.disconnect()
                problems.append(f"{self._key} cannot be read from Redis ({error}); its sources stay as they were")
        sources, doubled = self._merged()
        return sources, problems + doubled

    def _merged(self) -> tuple[dict[str, Source], list[str]]:
        sources: dict[str, Source] = {}
        problems: list[str] = []
        for source in [*self._fixed, *(one for listed in self._files.values() for one in listed), *self._hash]:
            first = sources.setdefault(source.camera_id, source)
            if first is not source:
                problems.append(
                    f"two sources have the id {source.camera_id!r}: {first.shown} and {source.shown}; "
                    "the first is taken. Name them apart: NAME=SOURCE"
                )
        return sources, problems
