"""Bodies of requests: as many bytes and seconds as a route allows, alone or as the one file of a form."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app import metrics
from app.errors import ProtocolError, SightlineError, quoted, shortened

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


class BodyTooLarge(SightlineError):
    """More bytes than the route takes."""


class BodyTooSlow(SightlineError):
    """It was not here whole in time."""


async def read(request: Request, *, most: int, within_s: float) -> bytes:
    """The whole body.

    Args:
        most: bytes.
        within_s: seconds from now on, however steadily it comes.

    Raises:
        BodyTooLarge: also by its own word, before it is here.
        BodyTooSlow: what came so far is thrown away.
        ClientDisconnect: nobody is there any more.
    """
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and (len(said) > 18 or int(said) > most):
        raise BodyTooLarge(f"{said[:18]} bytes")
    chunks, size = [], 0
    try:
        async with asyncio.timeout(within_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise BodyTooLarge(f"more than {most} bytes")
                chunks.append(chunk)
    except TimeoutError:
        metrics.CONNECTIONS_REFUSED.labels("slow_body").inc()
        raise BodyTooSlow(f"the body was not here whole within INIT_TIMEOUT_S={within_s:g} seconds") from None
    return b"".join(chunks)


FORM = "multipart/form-data"
FIELD = "file"
_FORM_BYTES = 8 * 1024
"""What a form may add to its file: boundaries and headers."""
_HEADERS, _HEADER_BYTES = 8, 2048
"""Of a part."""
_MOST_BOUNDARIES = 100
"""Of a form that has one part, and so two of them. Each that turns out to be none costs the parser a microsecond or two
of the event loop."""


def most_of_form(most: int) -> int:
    """Bytes of a form around a file of at most `most`."""
    return most + _FORM_BYTES


def is_form(content_type: str | None) -> bool:
    """Whether the body is a form, as `curl -F` and browsers send one."""
    return (content_type or "").partition(";")[0].strip().lower() == FORM


def file_in(form: bytes, content_type: str) -> bytes:
    """The file of a form (RFC 7578) that has one part, `file`.

    Raises:
        ProtocolError: it is no such form.
        BodyTooLarge: what is around the file has more than a few kilobytes.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _no_form("its Content-Type names no boundary")
    if form.count(b"\r\n--" + boundary) > _MOST_BOUNDARIES:
        raise _no_form("its boundary stands all over its file")
    found = _Parts()
    try:
        parser = MultipartParser(boundary, found.callbacks(), max_header_count=_HEADERS, max_header_size=_HEADER_BYTES)
        parser.write(form)
        parser.finalize()
    except FormParserError as error:
        raise _no_form(shortened(str(error), 120)) from None
    if not found.ended:
        raise _no_form("it ends before its last boundary")
    if found.file is None:
        raise _no_form("it has no part")
    if len(form) - len(found.file) > _FORM_BYTES:
        raise BodyTooLarge(f"{len(form) - len(found.file)} bytes of a form around its file")
    return found.file


def _no_form(why: str) -> ProtocolError:
    return ProtocolError(
        f"{why}; want one picture in the field `{FIELD}`, as `curl -F {FIELD}=@picture.jpg`, or as the body itself",
        code="invalid_form",
        field=FIELD,
    )


class _Parts:
    """What the parser finds."""

    def __init__(self) -> None:
        self._header = ""
        self._value = b""
        self._disposition = b""
        self._pieces: list[bytes] = []
        self.file: bytes | None = None
        self.ended = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._header_begins,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def _begin(self) -> None:
        if self.file is not None:
            raise _no_form("it has more than one part")
        self._disposition, self._pieces = b"", []

    def _header_begins(self) -> None:
        self._header, self._value = "", b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].decode("latin-1").lower()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header == "content-disposition":
            self._disposition = self._value
        elif self._header == "content-transfer-encoding" and self._value.strip().lower() not in (b"binary", b"8bit"):
            raise _no_form(
                f"its part is encoded as {quoted(self._value.decode('latin-1'))}, which nobody does any more"
            )

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise _no_form("its part has no name")
        if name != FIELD.encode():
            raise _no_form(f"it has a part {quoted(name.decode('utf-8', 'replace'))}")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        self.file = b"".join(self._pieces)

    def _all(self) -> None:
        self.ended = True
