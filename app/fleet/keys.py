"""What one fleet keeps in Redis, by name. Pure.

FLEET_STREAM_PREFIX tells fleets on one Redis apart: with another one than `frames:`, every key of the fleet carries it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from app.settings import RedisSettings

_PREFIX = "frames:"
_DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Keys:
    prefix: str
    group: str

    @classmethod
    def of(cls, settings: RedisSettings) -> Keys:
        return cls(settings.fleet_stream_prefix, settings.fleet_group)

    def _own(self, name: str) -> str:
        return name if self.prefix == _PREFIX else f"{name}:{self.prefix}"

    @property
    def cameras(self) -> str:
        """The set of cameras that ingest has."""
        return self._own("fleet:cameras")

    @property
    def found(self) -> str:
        """The set of cameras whose streams one of the workers has found, whoever fills them."""
        return self._own("fleet:found")

    @property
    def sources(self) -> str:
        """The hash of what ingest is to read."""
        return self._own("fleet:sources")

    @property
    def workers(self) -> str:
        """The sorted set of workers, scored by when each counts as gone."""
        return self._own(f"fleet:workers:{self.group}")

    @property
    def away(self) -> str:
        """The hash of workers that cannot reach something, each with what and why, as JSON."""
        return self._own(f"fleet:away:{self.group}")

    @property
    def holders(self) -> str:
        """The hash of streams, each with its epoch and the worker that holds it."""
        return self._own(f"fleet:holders:{self.group}")

    @property
    def leases(self) -> str:
        """The sorted set of workers that hold streams, scored by when others may take these."""
        return self._own(f"fleet:leases:{self.group}")

    @property
    def dead(self) -> str:
        """The stream of what was given up."""
        return self.prefix + _DEAD

    @property
    def pattern(self) -> str:
        """For MATCH: every camera's stream. The prefix's own signs stand for themselves."""
        return "".join(f"\\{sign}" if sign in "*?[]\\^" else sign for sign in self.prefix) + "*"

    def stream(self, camera_id: str) -> str:
        return self.prefix + camera_id

    def cameras_among(self, streams: Iterable[bytes]) -> set[bytes]:
        """The ids of cameras with these streams."""
        return {key.removeprefix(self.prefix.encode()) for key in streams}


def is_taken(camera_id: str) -> bool:
    """Whether its stream would be that of the dead letters."""
    return camera_id == _DEAD


def camera_ids(names: Iterable[bytes]) -> tuple[set[str], list[bytes]]:
    """The names that can be a camera's, and those that cannot: ids are UTF-8, in Kafka and in JSON."""
    readable: set[str] = set()
    wrong: list[bytes] = []
    for name in names:
        try:
            readable.add(name.decode())
        except UnicodeDecodeError:
            wrong.append(name)
    return readable - {_DEAD}, sorted(wrong)
