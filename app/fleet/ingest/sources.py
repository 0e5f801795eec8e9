"""The cameras that ingest reads: sources from the command line, from YAML files, or from a hash in Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import redis
import yaml

from app.errors import ConfigurationError
from app.fleet.connection import error_word
from app.fleet.streams import is_reserved
from app.sources.address import Address, checked_name, parse, printable, redact, split_name
from app.sources.options import AS_IT_IS, KEYS, Options

FROM_REDIS = "redis"
"""Among the sources, this word stands for the hash `fleet:sources`."""
_EXAMPLE = (
    'want "rtsp://…", or {"source": "rtsp://…", "type": "gate", "loop": false, "transport": "udp", "rotation": 90, '
    '"fps": 5, "options": {"user_agent": "VLC"}}'
)


class SourceRefused(ConfigurationError):
    """One entry does not describe a source. Other entries stay valid."""


@dataclass(frozen=True, slots=True)
class CameraSource:
    """One camera and where its frames come from."""

    camera_id: str
    address: str
    """A file, a folder, a URL, or `/dev/videoN`. A URL may contain a password: show `shown` instead."""
    camera_type: str
    """Free text for consumers of the results, at most 64 characters; by default the kind of source."""
    loop: bool = False
    """Files and folders start over at their end."""
    options: Options = AS_IT_IS
    name: str = ""
    """A name for people, if it differs from the id."""

    def __repr__(self) -> str:
        return f"CameraSource({self.camera_id!r}, {self.shown!r})"

    @property
    def place(self) -> Address:
        """The parsed address."""
        return parse(self.address)

    @property
    def kind(self) -> str:
        """`device`, `folder`, `file`, or the URL's scheme."""
        return self.place.kind

    @property
    def shown(self) -> str:
        """The address without any secret, and the source's name."""
        return f"{self.place.shown} ({self.name})" if self.name else self.place.shown


class SourceList:
    """The sources of the command line, of YAML files and of Redis. While one cannot be read, its last sources stay."""

    def __init__(self, arguments: Sequence[str], key: str, *, loop: bool = False) -> None:
        """
        Args:
            arguments: addresses, `NAME=ADDRESS`, names of YAML files, or `redis` for the hash `key`; an empty list
                means `redis`.
            loop: recordings start over at their end.

        Raises:
            ConfigurationError: a source or a YAML file is wrong, or two sources have the same id.
        """
        given = list(arguments) or [FROM_REDIS]
        files = [argument for argument in given if argument.endswith((".yaml", ".yml"))]
        addresses = [argument for argument in given if argument != FROM_REDIS and argument not in files]
        self._key, self._loop = key, loop
        self.from_redis = FROM_REDIS in given
        self._fixed = [from_argument(address, loop=loop) for address in addresses]
        self._files = {Path(name): from_yaml(Path(name), loop=loop) for name in files}
        self._hash: list[CameraSource] = []
        self.redis_error = ""
        """The error word (`connection.ERROR_WORDS`) of the last read of the hash; empty: it succeeded, or there was
        none.
        """
        _, duplicates = self._merged()
        if duplicates:
            raise ConfigurationError("\n".join(duplicates))

    @property
    def may_change(self) -> bool:
        """Whether other sources may be found later."""
        return self.from_redis or bool(self._files)

    def read(self, client: redis.Redis) -> tuple[dict[str, CameraSource], list[str]]:
        """The sources by id, and one line for each problem."""
        problems: list[str] = []
        for path in self._files:
            try:
                self._files[path] = from_yaml(path, loop=self._loop)
            except ConfigurationError as error:
                problems.append(f"{error}; its sources stay as they were")
        if self.from_redis:
            try:
                self.redis_error = ""
                entries = cast("dict[bytes, bytes]", client.hgetall(self._key))
                self._hash, wrong = from_hash(self._key, entries, loop=self._loop)
                problems += wrong
            except redis.RedisError as error:
                self.redis_error = error_word(error)
                client.connection_pool.disconnect()
                problems.append(f"{self._key} cannot be read from Redis ({error}); its sources stay as they were")
        sources, duplicates = self._merged()
        return sources, problems + duplicates

    def _merged(self) -> tuple[dict[str, CameraSource], list[str]]:
        sources: dict[str, CameraSource] = {}
        problems: list[str] = []
        listed = [source for sources_of_file in self._files.values() for source in sources_of_file]
        for source in [*self._fixed, *listed, *self._hash]:
            first = sources.setdefault(source.camera_id, source)
            if first is not source:
                problems.append(
                    f"two sources have the id {source.camera_id!r}: {first.shown} and {source.shown}; "
                    "the first is used. Give them different names: NAME=SOURCE"
                )
        return sources, problems


def from_argument(text: str, *, loop: bool = False) -> CameraSource:
    """The source of `ADDRESS` or `NAME=ADDRESS`; a number is a camera of this machine. Without a name, the id is
    derived from the address.

    Raises:
        SourceRefused: the text is neither.
    """
    name, address = split_name(text)
    try:
        return _source(name, address, loop=loop)
    except ConfigurationError as error:
        raise SourceRefused(str(error)) from None


def from_entry(camera_id: str | None, entry: object, *, base: Path | None = None, loop: bool = False) -> CameraSource:
    """The source of a YAML or JSON value: an address, or a mapping with `source` and optional fields.

    Relative paths are resolved against `base`, if given. Without an id, the entry's `name` is the id, or else a name
    derived from the address.

    Raises:
        SourceRefused: the entry has another shape, or a field is wrong. The message says which.
    """
    fields: Mapping[Any, Any] = entry if isinstance(entry, Mapping) else {"source": entry}
    name = fields.get("name")
    label = f"source {redact(printable(str(camera_id or name or _brief(fields.get('source')))))}"
    known = ("id", "name", "source", "type", "loop", *KEYS)
    if unknown := set(fields) - set(known):
        wrong = redact(printable(sorted(map(str, unknown))[0]))
        raise SourceRefused(f"{label}: the field {wrong!r} is unknown; the fields are {', '.join(known)}; {_EXAMPLE}")
    address, camera_type, loops = fields.get("source"), fields.get("type"), fields.get("loop", loop)
    if isinstance(address, int) and not isinstance(address, bool) and address >= 0:
        address = f"/dev/video{address}"
    if not isinstance(address, str) or not address.strip():
        raise SourceRefused(f"{label}: its address is {_brief(address)}; {_EXAMPLE}")
    if not isinstance(camera_type, str | None):
        raise SourceRefused(f"{label}: type is {_brief(camera_type)}; `type` is a text; {_EXAMPLE}")
    if not isinstance(loops, bool):
        raise SourceRefused(f"{label}: loop is {_brief(loops)}; `loop` is true or false; {_EXAMPLE}")
    if not isinstance(name, str | None):
        raise SourceRefused(f"{label}: name is {_brief(name)}; `name` is a text; {_EXAMPLE}")
    try:
        if base is not None and "://" not in address and not address.startswith("/") and not address.isdigit():
            address = str(base / address)
        options = Options.parse(fields, parse(address))
        return _source(camera_id, address, camera_type=camera_type, loop=loops, options=options, name=name)
    except ConfigurationError as error:
        raise SourceRefused(f"{label}: {error}") from None


def from_yaml(path: Path, *, loop: bool = False) -> list[CameraSource]:
    """The sources of a YAML file: a mapping of ids, or a list of addresses or of mappings with `id`.

    Raises:
        ConfigurationError: the file cannot be read, or an entry does not describe a source.
    """
    shown = printable(str(path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        # PyYAML's own message quotes the line, which may contain a password.
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(f"{shown}: cannot be read as YAML ({error.problem}{place})") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
        raise ConfigurationError(f"{shown}: cannot be read as YAML ({problem})") from None
    entries: Iterable[tuple[object, object]]
    if isinstance(content, dict):
        entries = content.items()
    elif isinstance(content, list):
        entries = [(entry.get("id") if isinstance(entry, dict) else None, entry) for entry in content]
    else:
        raise ConfigurationError(f"{shown}: holds {_brief(content)}; want a list of sources, or a mapping of their ids")
    sources: list[CameraSource] = []
    for number, (camera_id, entry) in enumerate(entries, 1):
        try:
            given = None if camera_id is None else str(camera_id)
            sources.append(from_entry(given, entry, base=path.parent, loop=loop))
        except SourceRefused as error:
            raise SourceRefused(f"{shown}: entry {number}: {error}") from None
    return sources


def from_hash(key: str, entries: Mapping[bytes, bytes], *, loop: bool = False) -> tuple[list[CameraSource], list[str]]:
    """The sources of the hash `key` as Redis returns it, and one line for each entry that does not describe a source.

    The hash maps camera ids to JSON: `"rtsp://…"`, or `{"source": "rtsp://…", "type": "gate", "loop": false}` with any
    other field that `from_entry` knows.
    """
    sources, problems = [], []
    for camera_id, value in entries.items():
        name = camera_id.decode(errors="surrogateescape")
        try:
            sources.append(from_entry(name, orjson.loads(value), loop=loop))
        except orjson.JSONDecodeError:
            shown = redact(printable(name))
            problems.append(f"source {shown}: {key} holds no JSON for it; {_EXAMPLE}")
        except SourceRefused as error:
            problems.append(f"{error} (in {key})")
    return sources, problems


def _source(
    camera_id: str | None,
    address: str,
    *,
    camera_type: str | None = None,
    loop: bool = False,
    options: Options | None = None,
    name: str | None = None,
) -> CameraSource:
    place = parse(address)
    label = None if name is None else checked_name(name)
    chosen = checked_name(camera_id) if camera_id is not None else label or place.name
    if is_reserved(chosen):
        raise SourceRefused(f"{chosen!r}: this name is reserved for the dead-letter stream")
    if place.kind == "device":
        address = place.text
    shown_name = label if label and label != chosen else ""
    return CameraSource(chosen, address, (camera_type or place.kind)[:64], loop, options or AS_IT_IS, shown_name)


def _brief(value: object) -> str:
    return redact(printable(repr(value)))[:80]
