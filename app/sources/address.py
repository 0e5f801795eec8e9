"""Where pictures come from: a file, a folder, a camera of this machine or a URL. What may be shown of it, and its name.

Camera URLs carry secrets in every place that a URL has: before an `@`, in the query, in the path (a stream key,
`/user=admin&password=X`). Nothing of these is in `shown` and `name`. Pure but for the question whether a file is there.
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
LONGEST_NAME = 128
HIDDEN = "…"
"""Stands for what is not shown."""

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
"""A part of a path whose value is the next part. The words above are looked for within a part, too."""
_SPOKEN = re.compile(r"""[a-z][a-z0-9+.-]*://(?:[^\s'"<>`]*:[^'"<>`\n@]{0,64}@)?[^\s'"<>`]*""", re.IGNORECASE)
"""A URL within a text; a blank in its password does not end it."""
_SPOKEN_SECRET = re.compile(
    r"""(?i)\b([\w.-]*(?:pass\w*|pwd|psw|secret|token|credential|signature|api_?key|stream_?key)[\w.-]*"""
    r"""|pw|key|auth|authorization|sig|usr|user)(['"]?\s*[=:]\s*['"]?)(?:Basic\s+|Bearer\s+|Digest\s+)?[^\s'",;)&]+"""
)
_AMISS = re.compile(r"[/?#@\s\[\]]")
"""What FFmpeg takes for the end of a user's name and password, or for something else than part of them."""
_SUBSCRIBER = ("live", "movie", "series", "timeshift")
"""First parts of the path of `/live/USER/PASSWORD/NUMBER.ts`, as television over IP has it."""
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Signs that turn the direction of all text behind them: a name with one rewrites the line that it is shown in."""


class AddressRefused(ConfigurationError):
    """A text names no source that can be read."""


@dataclass(frozen=True, slots=True)
class Address:
    """One source's address. Show `shown`; `text` may hold a password."""

    text: str = field(repr=False)
    """A path, `/dev/videoN`, or a URL as FFmpeg wants it."""
    kind: str
    """`device`, `folder`, `file`, or the URL's scheme."""
    shown: str
    """Without anything that may be secret."""
    name: str
    """A camera's id, where none is given: the file's or folder's name, or host, port and path of a URL."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What the URL holds beyond `shown`, longest first."""

    @property
    def is_url(self) -> bool:
        return self.kind in SCHEMES

    def redact(self, text: str) -> str:
        """The text without this source's secrets, and without those of any other URL in it."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return redact(text)


def parse(text: str) -> Address:
    """Takes an address apart: a URL, `/dev/videoN`, an ASCII number (a camera of this machine), a folder or a file.

    Raises:
        AddressRefused: a URL whose scheme is not read, or whose host cannot be made out.
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
    """Name and address of `NAME=ADDRESS`; None and the whole text where it is an address alone.

    What is there as a file is a file, whatever signs its name has; else the name ends at the `=` before a URL, before
    what exists, or at the first `=`.
    """
    if _URL.match(text) or exists(text):
        return None, text
    if url := _NAMED_URL.search(text):
        return text[: url.start()], text[url.end() :]
    cuts = [place for place, sign in enumerate(text) if sign == "=" and place]
    for cut in cuts:
        rest = text[cut + 1 :]
        if rest and (exists(rest) or (rest.isascii() and rest.isdigit()) or rest.startswith("/dev/")):
            return text[:cut], rest
    if cuts and text[cuts[0] + 1 :] and "/" not in text[: cuts[0]]:
        return text[: cuts[0]], text[cuts[0] + 1 :]
    return None, text


def checked_name(name: str) -> str:
    """A name that somebody gave a source, in Unicode's composed form (NFC).

    Raises:
        AddressRefused: it is empty, longer than 128 characters, a URL, or holds signs that cannot be shown.
    """
    composed = unicodedata.normalize("NFC", name).strip()
    if "://" in composed:
        raise AddressRefused(f"{redact(composed)!r}: a URL is no name; want a name, then = and the URL")
    wrong = [sign for sign in composed if sign in _OVERRIDES or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")]
    if not composed or len(composed) > LONGEST_NAME or wrong:
        raise AddressRefused(
            f"{printable(composed[:LONGEST_NAME])!r}: a name has 1 to {LONGEST_NAME} characters that can be shown, "
            f"and no control characters"
        )
    return composed


def slug(name: str) -> str:
    """A file's name as an id: letters of any script, digits, symbols and `. _ -`; everything else becomes `-`.

    Names that are no UTF-8 and names that are cut to 128 characters end in a hash of the whole.
    """
    composed = unicodedata.normalize("NFC", name)
    kept = "".join(sign if _stays(sign) else "-" for sign in composed)
    kept = re.sub(r"-{2,}", "-", kept).strip("-") or "camera"
    broken = any(unicodedata.category(sign) == "Cs" for sign in name)
    if broken or len(kept) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        return f"{kept[: LONGEST_NAME - 9]}-{digest}"
    return kept


def ffmpeg_name(path: str | Path) -> str:
    """A file's name as FFmpeg takes it for a file, whatever signs it has."""
    return f"file:{path}"


def _stays(sign: str) -> bool:
    if sign.isascii():
        return sign.isalnum() or sign in "._-"
    kind = unicodedata.category(sign)
    # Joiners are part of Indic words and of composed emoji; marks are vowels.
    return kind[0] in "LMN" or kind in ("So", "Sk") or sign in "\u200c\u200d"


def printable(text: str) -> str:
    """The text for a log line: bytes that are no UTF-8 as `\\xNN`, control characters escaped."""
    raw = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        sign.encode("unicode_escape").decode() if sign in _OVERRIDES or unicodedata.category(sign) == "Cc" else sign
        for sign in raw
    )


def redact(text: str) -> str:
    """A text without the secrets of the URLs in it, and without the values of what is called a password or the like.

    For text of others, such as FFmpeg's: it errs on the side of hiding too much.
    """

    def without(found: re.Match[str]) -> str:
        url = _URL.fullmatch(found[0])
        assert url is not None
        try:
            return _url(url["scheme"].lower(), url["rest"], known=False).shown
        except AddressRefused:
            return f"{url['scheme']}://{HIDDEN}"

    return _SPOKEN_SECRET.sub(rf"\1\2{HIDDEN}", _SPOKEN.sub(without, text))


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
    user = "" if split.user is None else _AMISS.sub(lambda sign: _escaped(sign[0]), split.user) + "@"
    text = f"{scheme}://{rest}" if split.unsure else f"{scheme}://{user}{split.opened_host}{split.opened_tail}"
    return Address(
        text=text,
        kind=scheme,
        shown=f"{scheme}://{place}{path}",
        name=slug((split.host + path).replace(HIDDEN, "").strip("[]")),
        # Very short pieces stand in every other word.
        secrets=tuple(sorted((part for part in secrets if len(part) > 3), key=len, reverse=True)),
    )


def _escaped(sign: str) -> str:
    return "".join(f"%{byte:02X}" for byte in sign.encode())


@dataclass(frozen=True, slots=True)
class _Split:
    """A URL behind its `://`."""

    user: str | None
    host: str
    """With its port."""
    tail: str
    """Path, query and fragment, as far as they may be looked at for what can be shown."""
    opened_host: str
    opened_tail: str
    unsure: bool = False
    """Two readings make sense: FFmpeg's is opened; `host` and `tail` hold only what is no secret in either."""


def _split(rest: str) -> _Split | None:
    """Where user, host and path of a URL are, also with raw `/ ? # @` in the password; None: there is no host.

    The host begins behind the last `@` of the authority. Only where what stands there is no host with a port (`admin:p`
    of `admin:p/w@host`), an `@` further on is meant.
    """
    end = next((place for place, sign in enumerate(rest) if sign in "/?#"), len(rest))
    at = rest.rfind("@", 0, end)
    user = None if at < 0 else rest[:at]
    first = _HOST.fullmatch(rest[at + 1 : end].partition(";")[0])
    if first is not None and first["port"] is not None and not 0 < int(first["port"]) < 65536:
        first = None
    later = [place for place in range(end, len(rest)) if rest[place] == "@" and _HOST.match(rest, place + 1)]
    if first is not None:
        # `?user=me@example.org` is a query, whatever comes before it.
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
    """Of path, query and fragment what may be shown, and the pieces that may not."""
    path, query = re.match(r"([^?#]*)(.*)", tail, re.DOTALL).groups()  # type: ignore[union-attr]
    hidden = [query, *_values(query)] if query else []
    shown: list[str] = []
    segments = path.split("/")
    secret_next = 0
    for number, segment in enumerate(segments):
        plain = _decoded(segment)
        first = number == 1
        if re.search(r"[=&;@?#\s:]", plain) or (_SECRET_WORD.search(plain) and re.search(r"[_,]", plain)):
            # Parameters; a password among them may hold a slash, so nothing behind them is shown.
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
            elif first and plain in _SUBSCRIBER and len(segments) > 4:
                secret_next = 2
    return "/".join(shown) + ("?" + HIDDEN if query.startswith("?") else ""), hidden


def _values(parameters: str) -> list[str]:
    """What stands behind the `=` of parameters."""
    return [value for _, sign, value in (part.partition("=") for part in re.split(r"[?&#;/]", parameters)) if sign]


def _decoded(text: str) -> str:
    for _ in range(3):
        text = unquote(text)
    return text


def _is_token(segment: str) -> bool:
    """Whether a part of a path looks drawn by chance, so that who knows it gets in."""
    if _UUID.search(segment):
        return True
    for word in re.split(r"[-_.~,]", segment):
        digits = sum(sign.isdigit() for sign in word)
        turns = sum(_class(a) != _class(b) for a, b in pairwise(word))
        if len(word) >= 16 and re.fullmatch(r"[0-9a-fA-F]+", word) and digits:
            return True
        if (len(word) >= 10 and turns >= 4) or (len(word) >= 24 and digits) or len(word) >= 40:
            return True
    turns = sum(_class(a) != _class(b) for a, b in pairwise(segment))
    return len(segment) >= 24 and turns >= 9


def _class(sign: str) -> int:
    return 0 if sign.isdigit() else 1 if sign.isupper() else 2 if sign.islower() else 3
