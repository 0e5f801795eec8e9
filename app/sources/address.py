"""Parses the address of a source (a file, a folder, a camera of this machine or a URL), hides its secrets, names it.

Camera URLs carry secrets in every place that a URL has: before an `@`, in the query, in the path (a stream key,
`/user=admin&password=X`). `shown` and `name` contain none of them. Pure, apart from checking whether a file exists.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from app.errors import ConfigurationError

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "tcp", "udp", "rtp", "srt")
MAX_NAME = 128
HIDDEN = "…"
"""Replaces each hidden part of an address."""

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(?P<host>\[[0-9a-f:.%\w]+\]|[\w.-]*)(?P<colon>:(?P<port>\d{1,5}))?(?=[/?#;]|$)", re.IGNORECASE)
_NAMED_URL = re.compile(r"=(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_SECRET_WORD = re.compile(
    r"(?i)pass|pwd|psw|secret|token|credential|signature|\b(?:pw|key|auth|sig|usr|user|login|account|sid|session)\b|"
    r"api_?key|access_?key|stream_?key|stream_?id|_(?:pw|key|auth|sig|usr|user)\b"
)
_SECRET_NAME = re.compile(
    r"(?i)(?:user|login|account)_?(?:name|id)|pass(?:wor[dt]|wd|phrase|code|key)s?|(?:\w*[_-])?(?:token|secret|key)s?|"
    r"(?:access|api|auth|stream)(?:key|token)|credentials?"
)
"""If a segment of a path is such a name, or matches `_SECRET_WORD`, the next segment is its value and is hidden."""
_URL_IN_TEXT = re.compile(r"""[a-z][a-z0-9+.-]*://(?:[^\s'"<>`]*:[^'"<>`\n@]{0,64}@)?[^\s'"<>`]*""", re.IGNORECASE)
"""A URL within a text. A space in its password does not end it."""
_SECRET_IN_TEXT = re.compile(
    r"""(?i)\b([\w.-]*(?:pass\w*|pwd|psw|secret|token|credential|signature|api_?key|stream_?key)[\w.-]*"""
    r"""|pw|key|auth|authorization|sig|usr|user)(['"]?\s*[=:]\s*['"]?)(?:Basic\s+|Bearer\s+|Digest\s+)?[^\s'",;)&]+"""
)
_UNSAFE_IN_USER = re.compile(r"[/?#@\s\[\]]")
"""Characters that FFmpeg does not read as part of a user's name and password."""
_IPTV = ("live", "movie", "series", "timeshift")
"""First parts of paths such as `/live/USER/PASSWORD/NUMBER.ts`, which television over IP uses."""
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text after them, so that a name could disguise the line around it."""


class AddressRefused(ConfigurationError):
    """The text is not the address of a supported source."""


@dataclass(frozen=True, slots=True)
class Address:
    """A source's address. Show only `shown`, because `text` may contain a password."""

    text: str = field(repr=False)
    """A path, `/dev/videoN`, or a URL as FFmpeg expects it."""
    kind: str
    """`device`, `folder`, `file`, or the URL's scheme."""
    shown: str
    """The address without anything that may be secret."""
    name: str
    """The camera's id, unless one is given: the file's or folder's name, or host, port and path of a URL."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """The parts of the URL that `shown` hides, longest first."""

    @property
    def is_url(self) -> bool:
        return self.kind in SCHEMES

    def redact(self, text: str) -> str:
        """Removes this source's secrets from a text, and those of any other URL in it."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return redact(text)


def parse(text: str) -> Address:
    """Parses an address: a URL, `/dev/videoN`, an ASCII number (a camera of this machine), a folder or a file.

    Raises:
        AddressRefused: the URL's scheme is not supported, its host cannot be recognized, or the text is no file name.
    """
    if url := _URL.fullmatch(text.strip()):
        return _url(url["scheme"].lower(), url["rest"])
    if text.isascii() and text.isdigit():
        text = f"/dev/video{int(text)}"
    if text.startswith("/dev/") and not os.path.isfile(text) and not os.path.isdir(text):
        return Address(text, "device", text, slug(Path(text).name))
    if "\0" in text or not text:
        raise AddressRefused(f"{text!r}: no name of a file")
    kind = "folder" if os.path.isdir(text) else "file"
    return Address(text, kind, printable(text), slug(Path(text).stem or Path(text).resolve().name))


def split_name(text: str, exists: Callable[[str], bool] = os.path.lexists) -> tuple[str | None, str]:
    """Splits `NAME=ADDRESS` into name and address; returns None and the whole text if it is an address only.

    A text that is the name of an existing file is that file, whatever characters it has. Otherwise the name ends at the
    `=` before a URL or before an existing file, or at the first `=`.
    """
    if _URL.match(text) or exists(text):
        return None, text
    if url := _NAMED_URL.search(text):
        return text[: url.start()], text[url.end() :]
    cuts = [place for place, char in enumerate(text) if char == "=" and place]
    for cut in cuts:
        rest = text[cut + 1 :]
        if rest and (exists(rest) or (rest.isascii() and rest.isdigit()) or rest.startswith("/dev/")):
            return text[:cut], rest
    if cuts and text[cuts[0] + 1 :] and "/" not in text[: cuts[0]]:
        return text[: cuts[0]], text[cuts[0] + 1 :]
    return None, text


def checked_name(name: str) -> str:
    """Checks a name that a user gave a source; returns it in Unicode's composed form (NFC).

    Raises:
        AddressRefused: the name is empty, longer than 128 characters, a URL, or has characters that cannot be shown.
    """
    composed = unicodedata.normalize("NFC", name).strip()
    if "://" in composed:
        raise AddressRefused(f"{redact(composed)!r}: a URL is no name; want a name, then = and the URL")
    wrong = [char for char in composed if char in _OVERRIDES or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
    if not composed or len(composed) > MAX_NAME or wrong:
        raise AddressRefused(
            f"{printable(composed[:MAX_NAME])!r}: a name has 1 to {MAX_NAME} characters that can be shown, "
            f"and no control characters"
        )
    return composed


def slug(name: str) -> str:
    """Makes an id from a file's name: letters of any script, digits, symbols and `. _ -` stay, all else becomes `-`.

    If the name is no UTF-8 or longer than 128 characters, the id ends in a hash of the whole name.
    """
    composed = unicodedata.normalize("NFC", name)
    kept = "".join(char if _stays(char) else "-" for char in composed)
    kept = re.sub(r"-{2,}", "-", kept).strip("-") or "camera"
    broken = any(unicodedata.category(char) == "Cs" for char in name)
    if broken or len(kept) > MAX_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        return f"{kept[: MAX_NAME - 9]}-{digest}"
    return kept


def ffmpeg_name(path: str | Path) -> str:
    """A path in the form that FFmpeg reads as a file, whatever characters it has."""
    return f"file:{path}"


def _stays(char: str) -> bool:
    if char.isascii():
        return char.isalnum() or char in "._-"
    kind = unicodedata.category(char)
    # Joiners are part of Indic words and of composed emoji; marks are vowels in many scripts.
    return kind[0] in "LMN" or kind in ("So", "Sk") or char in "\u200c\u200d"


def printable(text: str) -> str:
    """Escapes a text for a log line: bytes that are no UTF-8 as `\\xNN`, and control characters."""
    raw = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        char.encode("unicode_escape").decode() if char in _OVERRIDES or unicodedata.category(char) == "Cc" else char
        for char in raw
    )


def redact(text: str) -> str:
    """Removes from a text the secrets of the URLs in it, and the values of passwords and the like.

    Meant for texts of other programs, such as FFmpeg; in doubt it removes too much.
    """

    def without(found: re.Match[str]) -> str:
        url = _URL.fullmatch(found[0])
        assert url is not None
        try:
            return _url(url["scheme"].lower(), url["rest"], known=False).shown
        except AddressRefused:
            return f"{url['scheme']}://{HIDDEN}"

    return _SECRET_IN_TEXT.sub(rf"\1\2{HIDDEN}", _URL_IN_TEXT.sub(without, text))


def _url(scheme: str, rest: str, *, known: bool = True) -> Address:
    if known and scheme not in SCHEMES:
        shown = redact(f"{scheme}://{rest}")
        raise AddressRefused(f"{shown}: {scheme}:// is not read; want {', '.join(SCHEMES)}")
    split = _split(rest)
    if split is None:
        raise AddressRefused(
            f"{scheme}://{HIDDEN}: its host cannot be made out; in a user's name or password write / ? # @ and blanks "
            "as %2F %3F %23 %40 %20"
        )
    path, hidden = _shown_path(scheme, split.tail)
    place = f"{HIDDEN}@{split.host}" if split.unsure else split.host
    secrets = {part for part in (split.user, *hidden) if part}
    if split.user:
        secrets |= set(split.user.split(":", 1)[1:])
    secrets |= {unquote(part) for part in secrets}
    user = "" if split.user is None else _UNSAFE_IN_USER.sub(lambda found: _escaped(found[0]), split.user) + "@"
    text = f"{scheme}://{rest}" if split.unsure else f"{scheme}://{user}{split.opened_host}{split.opened_tail}"
    return Address(
        text=text,
        kind=scheme,
        shown=f"{scheme}://{place}{path}",
        name=slug((split.host + path).replace(HIDDEN, "").strip("[]")),
        # Without very short ones, which are part of many other words.
        secrets=tuple(sorted((part for part in secrets if len(part) > 3), key=len, reverse=True)),
    )


def _escaped(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode())


@dataclass(frozen=True, slots=True)
class _Split:
    """The parts of a URL after its `://`."""

    user: str | None
    host: str
    """With the port."""
    tail: str
    """Path, query and fragment, without parts that may be a secret in either reading."""
    opened_host: str
    opened_tail: str
    unsure: bool = False
    """Whether the URL can be read in two ways. Then FFmpeg gets the URL unchanged, and `host` and `tail` contain only
    parts that are not secret in either."""


def _split(rest: str) -> _Split | None:
    """Finds user, host and path of a URL, also with raw `/ ? # @` in the password; None if there is no host.

    The host begins after the last `@` of the authority. Only if no host with a port follows there (`admin:p` in
    `admin:p/w@host`), a later `@` is the separator.
    """
    end = next((place for place, char in enumerate(rest) if char in "/?#"), len(rest))
    at = rest.rfind("@", 0, end)
    user = None if at < 0 else rest[:at]
    first = _HOST.fullmatch(rest[at + 1 : end].partition(";")[0])
    if first is not None and first["port"] is not None and not 0 < int(first["port"]) < 65536:
        first = None
    later = [place for place in range(end, len(rest)) if rest[place] == "@" and _HOST.match(rest, place + 1)]
    if first is not None:
        # `?user=me@example.org` is a query, whatever precedes it.
        later = [place for place in later if not re.search(r"\?[^?]*=", rest[end:place])]
    host_end = end if first is None else at + 1 + first.end()
    plain = _Split(user, rest[at + 1 : host_end], rest[host_end:], rest[at + 1 : host_end], rest[host_end:])
    if not later:
        return None if first is None else plain
    place = later[-1]
    second = _HOST.match(rest, place + 1)
    assert second is not None
    host, tail = second[0], rest[second.end() :]
    if first is not None:
        if (user is None and first["colon"] is None) or _is_ip(first["host"]):
            return plain
        if "." in first["host"] or not (_is_ip(second["host"]) or "." in second["host"]):
            return _Split(rest[:place], host, tail, plain.host, plain.tail, unsure=True)
    return _Split(rest[:place], host, tail, host, tail)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def _shown_path(scheme: str, tail: str) -> tuple[str, list[str]]:
    """Splits path, query and fragment into the text that may be shown and the pieces that may not."""
    path, query = re.match(r"([^?#]*)(.*)", tail, re.DOTALL).groups()  # type: ignore[union-attr]
    hidden = [query, *_values(query)] if query else []
    shown: list[str] = []
    segments = path.split("/")
    secret_next = 0
    for number, segment in enumerate(segments):
        plain = _decoded(segment)
        first = number == 1
        if re.search(r"[=&;@?#\s:]", plain) or (_SECRET_WORD.search(plain) and re.search(r"[_,]", plain)):
            # Parameters. A password among them may contain a slash, so that nothing after them is shown.
            rest_of_path = "/".join(segments[number:])
            hidden += [rest_of_path, *_values(rest_of_path)]
            shown.append(HIDDEN)
            break
        if secret_next or _is_token(plain) or (scheme.startswith("rtmp") and number > 1 and segment):
            secret_next = max(0, secret_next - 1)
            hidden.append(segment)
            shown.append(HIDDEN)
        else:
            shown.append(segment)
            if _SECRET_WORD.fullmatch(plain) or _SECRET_NAME.fullmatch(plain):
                secret_next = 1
            elif first and plain in _IPTV and len(segments) > 4:
                secret_next = 2
    return "/".join(shown) + ("?" + HIDDEN if query.startswith("?") else ""), hidden


def _values(parameters: str) -> list[str]:
    """The values of `name=value` parameters."""
    return [value for _, equals, value in (part.partition("=") for part in re.split(r"[?&#;/]", parameters)) if equals]


def _decoded(text: str) -> str:
    for _ in range(3):
        text = unquote(text)
    return text


def _is_token(segment: str) -> bool:
    """Whether a part of a path looks random, and so may be a token that grants access."""
    if _UUID.search(segment):
        return True
    for word in re.split(r"[-_.~,]", segment):
        digits = sum(char.isdigit() for char in word)
        turns = sum(_class(a) != _class(b) for a, b in pairwise(word))
        if len(word) >= 16 and re.fullmatch(r"[0-9a-fA-F]+", word) and digits:
            return True
        if (len(word) >= 10 and turns >= 4) or (len(word) >= 24 and digits) or len(word) >= 40:
            return True
    turns = sum(_class(a) != _class(b) for a, b in pairwise(segment))
    return len(segment) >= 24 and turns >= 9


def _class(char: str) -> int:
    return 0 if char.isdigit() else 1 if char.isupper() else 2 if char.islower() else 3
