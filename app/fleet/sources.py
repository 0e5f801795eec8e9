"""Which cameras there are: named on the command line, in a YAML file, or in a hash of Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from app.errors import ConfigurationError
from app.fleet.keys import is_taken
from app.sources.address import Address, checked_name, parse, printable, redact, split_name
from app.sources.options import AS_IT_IS, KEYS, Options

_EXAMPLE = (
    'want "rtsp://…", or {"source": "rtsp://…", "type": "gate", "loop": false, "transport": "udp", "rotation": 90, '
    '"fps": 5, "options": {"user_agent": "VLC"}}'
)


class SourceRefused(ConfigurationError):
    """One entry does not name a source. The others are not touched."""


@dataclass(frozen=True, slots=True)
class Source:
    """One camera and where its frames come from."""

    camera_id: str
    address: str
    """A file, a folder, a URL, or `/dev/videoN`. A URL may hold a password: show `shown` instead."""
    camera_type: str
    """Free text for who reads the results, at most 64 characters; the kind of source unless given."""
    loop: bool = False
    """Files and folders start over at their end."""
    options: Options = AS_IT_IS
    name: str = ""
    """What people call it, where that is not its id."""

    def __repr__(self) -> str:
        return f"Source({self.camera_id!r}, {self.shown!r})"

    @property
    def place(self) -> Address:
        """The address, taken apart."""
        return parse(self.address)

    @property
    def kind(self) -> str:
        """`device`, `folder`, `file`, or the URL's scheme."""
        return self.place.kind

    @property
    def shown(self) -> str:
        """The address without anything that may be secret, and the source's name."""
        return f"{self.place.shown} ({self.name})" if self.name else self.place.shown


def from_argument(text: str, *, loop: bool = False) -> Source:
    """`ADDRESS` or `NAME=ADDRESS`; a number is a camera of this machine. The id is the address' own name unless given.

    Raises:
        SourceRefused: it is neither.
    """
    name, address = split_name(text)
    try:
        return _source(name, address, loop=loop)
    except ConfigurationError as error:
        raise SourceRefused(str(error)) from None


def from_entry(camera_id: str | None, entry: object, *, base: Path | None = None, loop: bool = False) -> Source:
    """A source from a YAML or JSON value: an address, or a mapping with `source` and what else there is to say.

    Relative paths are looked for in `base`, where one is given. Without an id the entry's `name` is the id, else the
    address' own name.

    Raises:
        SourceRefused: the entry is of another shape, or a field is wrong. The message says which.
    """
    fields: Mapping[Any, Any] = entry if isinstance(entry, Mapping) else {"source": entry}
    name = fields.get("name")
    label = f"source {redact(printable(str(camera_id or name or _brief(fields.get('source')))))}"
    known = ("id", "name", "source", "type", "loop", *KEYS)
    if unknown := set(fields) - set(known):
        wrong = redact(printable(sorted(map(str, unknown))[0]))
        raise SourceRefused(f"{label}: nothing is known of {wrong!r}, only of {', '.join(known)}; {_EXAMPLE}")
    address, said, loops = fields.get("source"), fields.get("type"), fields.get("loop", loop)
    if isinstance(address, int) and not isinstance(address, bool) and address >= 0:
        address = f"/dev/video{address}"
    if not isinstance(address, str) or not address.strip():
        raise SourceRefused(f"{label}: its address is {_brief(address)}; {_EXAMPLE}")
    if not isinstance(said, str | None):
        raise SourceRefused(f"{label}: type is {_brief(said)}; `type` is a text; {_EXAMPLE}")
    if not isinstance(loops, bool):
        raise SourceRefused(f"{label}: loop is {_brief(loops)}; `loop` is true or false; {_EXAMPLE}")
    if not isinstance(name, str | None):
        raise SourceRefused(f"{label}: name is {_brief(name)}; `name` is a text; {_EXAMPLE}")
    try:
        if base is not None and "://" not in address and not address.startswith("/") and not address.isdigit():
            address = str(base / address)
        options = Options.parse(fields, parse(address))
        return _source(camera_id, address, camera_type=said, loop=loops, options=options, name=name)
    except ConfigurationError as error:
        raise SourceRefused(f"{label}: {error}") from None


def from_yaml(path: Path, *, loop: bool = False) -> list[Source]:
    """Sources of a YAML file: a mapping of ids, or a list of addresses or of mappings with `id`.

    Raises:
        ConfigurationError: it cannot be read, or an entry names no source.
    """
    shown = printable(str(path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        # Without the line itself, which YAML's own words show: it may hold a password.
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
    found: list[Source] = []
    for number, (camera_id, entry) in enumerate(entries, 1):
        try:
            given = None if camera_id is None else str(camera_id)
            found.append(from_entry(given, entry, base=path.parent, loop=loop))
        except SourceRefused as error:
            raise SourceRefused(f"{shown}: entry {number}: {error}") from None
    return found


def from_hash(key: str, entries: Mapping[bytes, bytes], *, loop: bool = False) -> tuple[list[Source], list[str]]:
    """Sources of the hash `key` as Redis gives it, and a line for each entry that is none.

    Camera id -> JSON: `"rtsp://…"`, or `{"source": "rtsp://…", "type": "gate", "loop": false}`, and what else an entry
    may say.
    """
    found, problems = [], []
    for camera_id, value in entries.items():
        name = camera_id.decode(errors="surrogateescape")
        try:
            found.append(from_entry(name, orjson.loads(value), loop=loop))
        except orjson.JSONDecodeError:
            shown = redact(printable(name))
            problems.append(f"source {shown}: {key} holds no JSON for it; {_EXAMPLE}")
        except SourceRefused as error:
            problems.append(f"{error} (in {key})")
    return found, problems


def _source(
    camera_id: str | None,
    address: str,
    *,
    camera_type: str | None = None,
    loop: bool = False,
    options: Options | None = None,
    name: str | None = None,
) -> Source:
    place = parse(address)
    called = None if name is None else checked_name(name)
    chosen = checked_name(camera_id) if camera_id is not None else called or place.name
    if is_taken(chosen):
        raise SourceRefused(f"{chosen!r}: this name is taken, for the frames that workers give up")
    if place.kind == "device":
        address = place.text
    label = called if called and called != chosen else ""
    return Source(chosen, address, (camera_type or place.kind)[:64], loop, options or AS_IT_IS, label)


def _brief(value: object) -> str:
    return redact(printable(repr(value)))[:80]
