"""Which cameras there are: named on the command line, in a YAML file, or in a hash of Redis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from app.errors import ConfigurationError
from app.fleet.keys import is_taken

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "tcp", "udp", "rtp", "srt")
_URL = re.compile(r"(?P<scheme>[a-z0-9+.-]+)://(?P<user>[^/@\s]*@)?(?P<rest>\S+)", re.IGNORECASE)
_ID = re.compile(r"[\w.:-]{1,128}")
_NAMED = re.compile(r"(?P<id>[\w.:-]{1,128})=(?P<address>.+)", re.DOTALL)
_EXAMPLE = 'want "rtsp://…", or {"source": "rtsp://…", "type": "gate", "loop": false}'


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

    @property
    def kind(self) -> str:
        """`device`, `folder`, `file`, or the URL's scheme."""
        return kind(self.address)

    @property
    def shown(self) -> str:
        """The address without user and password."""
        return without_password(self.address)


def kind(address: str) -> str:
    """`device`, `folder`, `file`, or the URL's scheme.

    Raises:
        SourceRefused: the scheme is not one of `SCHEMES`.
    """
    if url := _URL.fullmatch(address):
        scheme = url["scheme"].lower()
        if scheme not in SCHEMES:
            raise SourceRefused(f"{without_password(address)}: {scheme}:// is not read; want {', '.join(SCHEMES)}")
        return scheme
    if address.startswith("/dev/"):
        return "device"
    return "folder" if Path(address).is_dir() else "file"


def without_password(text: str) -> str:
    """URLs in a text without their `user:password@`."""
    return re.sub(r"(://)[^/@\s]*@", r"\1", text)


def from_argument(text: str, *, loop: bool = False) -> Source:
    """`ADDRESS` or `ID=ADDRESS`; a digit is a camera of this machine. The id is the address' name unless given.

    Raises:
        SourceRefused: it is neither.
    """
    named = None if _URL.match(text) else _NAMED.fullmatch(text)
    address = named["address"] if named else text
    address = f"/dev/video{address}" if address.isdigit() else address
    return _source(named["id"] if named else _id_of(address), address, loop=loop)


def from_entry(camera_id: str, entry: object, *, base: Path | None = None, loop: bool = False) -> Source:
    """A source from a YAML or JSON value: an address, or a mapping with `source` and what else there is to say.

    Relative paths are looked for in `base`, where one is given.

    Raises:
        SourceRefused: the entry is of another shape, or a field of another type.
    """
    fields: Mapping[Any, Any] = entry if isinstance(entry, Mapping) else {"source": entry}
    if unknown := set(fields) - {"id", "source", "type", "loop"}:
        raise SourceRefused(f"source {camera_id}: nothing is known of {sorted(map(str, unknown))[0]!r}; {_EXAMPLE}")
    address, said, loops = fields.get("source"), fields.get("type"), fields.get("loop", loop)
    if isinstance(address, int) and not isinstance(address, bool):
        address = f"/dev/video{address}"
    if not isinstance(address, str) or not address.strip():
        raise SourceRefused(f"source {camera_id}: its address is {_brief(address)}; {_EXAMPLE}")
    if not isinstance(said, str | None) or not isinstance(loops, bool):
        raise SourceRefused(f"source {camera_id}: `type` is a text and `loop` is true or false; {_EXAMPLE}")
    if base is not None and not _URL.match(address) and not address.startswith("/"):
        address = str(base / address)
    return _source(camera_id, address, camera_type=said, loop=loops)


def from_yaml(path: Path, *, loop: bool = False) -> list[Source]:
    """Sources of a YAML file: a mapping of ids, or a list of addresses or of mappings with `id`.

    Raises:
        ConfigurationError: it cannot be read, or an entry names no source.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    entries: Iterable[tuple[object, object]]
    if isinstance(content, dict):
        entries = content.items()
    elif isinstance(content, list):
        entries = [(_listed_id(entry), entry) for entry in content]
    else:
        raise ConfigurationError(f"{path}: holds {_brief(content)}; want a list of sources, or a mapping of their ids")
    try:
        return [from_entry(str(one), entry, base=path.parent, loop=loop) for one, entry in entries]
    except SourceRefused as error:
        raise SourceRefused(f"{path}: {error}") from None


def from_hash(key: str, entries: Mapping[bytes, bytes], *, loop: bool = False) -> tuple[list[Source], list[str]]:
    """Sources of the hash `key` as Redis gives it, and a line for each entry that is none.

    Camera id -> JSON: `"rtsp://…"`, or `{"source": "rtsp://…", "type": "gate", "loop": false}`.
    """
    found, problems = [], []
    for camera_id, value in entries.items():
        name = camera_id.decode(errors="replace")
        try:
            found.append(from_entry(name, orjson.loads(value), loop=loop))
        except orjson.JSONDecodeError:
            problems.append(f"source {name}: {key} holds no JSON for it; {_EXAMPLE}")
        except SourceRefused as error:
            problems.append(f"{error} (in {key})")
    return found, problems


def _source(camera_id: str, address: str, *, camera_type: str | None = None, loop: bool = False) -> Source:
    if not _ID.fullmatch(camera_id):
        raise SourceRefused(f"source {camera_id!r}: an id has 1 to 128 letters, digits and . : _ -")
    if is_taken(camera_id):
        raise SourceRefused(f"source {camera_id!r}: this name is taken, for the frames that workers give up")
    return Source(camera_id, address, (camera_type or kind(address))[:64], loop)


def _id_of(address: str) -> str:
    """A readable id: the file's or folder's name, or host, port and path of a URL without its password."""
    url = _URL.fullmatch(address)
    name = url["rest"].partition("?")[0] if url else (Path(address).stem or Path(address).resolve().name)
    return re.sub(r"[^\w.-]+", "-", name).strip("-")[:128] or "camera"


def _listed_id(entry: object) -> str:
    if isinstance(entry, dict):
        return str(entry.get("id") or _id_of(str(entry.get("source", ""))))
    return _id_of(f"/dev/video{entry}" if isinstance(entry, int) else str(entry))


def _brief(value: object) -> str:
    return without_password(repr(value))[:80]
