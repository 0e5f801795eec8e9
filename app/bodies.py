"""Reads request bodies within a route's limits of bytes and seconds, and extracts the one file of a form."""

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
    """The body did not arrive completely in time."""


async def read(request: Request, *, most: int, within_s: float) -> bytes:
    """Reads the whole body.

    Args:
        most: bytes.
        within_s: seconds from now on, however steadily the client sends.

    Raises:
        BodyTooLarge: it has more than `most` bytes; raised before it arrives if its Content-Length says so.
        BodyTooSlow: it is incomplete after `within_s`; its bytes are discarded.
        ClientDisconnect: the client has left.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > most):
        raise BodyTooLarge(f"{length[:18]} bytes")
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
        raise BodyTooSlow(f"the body did not arrive completely within INIT_TIMEOUT_S={within_s:g} seconds") from None
    return b"".join(chunks)


FORM = "multipart/form-data"
FIELD = "file"
_FORM_BYTES = 8 * 1024
"""Bytes that a form may add to its file: boundaries and headers."""
_HEADERS, _HEADER_BYTES = 8, 2048
"""Most headers of a part, and most bytes of each."""
_MAX_BOUNDARIES = 100
"""A form with one part has two. Each text that only looks like one costs the parser, and the event loop, 1 to 2 µs."""


def max_form_bytes(most: int) -> int:
    """Bytes of a form whose file has at most `most` bytes."""
    return most + _FORM_BYTES


def is_form(content_type: str | None) -> bool:
    """Whether the body is a form, as `curl -F` and browsers send one."""
    return (content_type or "").partition(";")[0].strip().lower() == FORM


def file_in(form: bytes, content_type: str) -> bytes:
    """The file of a form (RFC 7578) that has exactly one part, `file`.

    Raises:
        ProtocolError: the form is malformed, or has other parts.
        BodyTooLarge: the form has more than _FORM_BYTES around its file.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _invalid_form("its Content-Type names no boundary")
    if form.count(b"\r\n--" + boundary) > _MAX_BOUNDARIES:
        raise _invalid_form("its boundary occurs all over its file")
    form_parser = _FormParser()
    try:
        parser = MultipartParser(
            boundary, form_parser.callbacks(), max_header_count=_HEADERS, max_header_size=_HEADER_BYTES
        )
        parser.write(form)
        parser.finalize()
    except FormParserError as error:
        raise _invalid_form(shortened(str(error), 120)) from None
    if not form_parser.ended:
        raise _invalid_form("it ends before its last boundary")
    if form_parser.file is None:
        raise _invalid_form("it has no part")
    if len(form) - len(form_parser.file) > _FORM_BYTES:
        raise BodyTooLarge(f"{len(form) - len(form_parser.file)} bytes of a form around its file")
    return form_parser.file


def _invalid_form(why: str) -> ProtocolError:
    return ProtocolError(
        f"{why}; want one image in the field `{FIELD}`, as `curl -F {FIELD}=@image.jpg`, or as the body itself",
        code="invalid_form",
        field=FIELD,
    )


class _FormParser:
    """Callbacks of `MultipartParser`. Afterwards `file` is the part's content; `ended` is True for a whole form."""

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
            raise _invalid_form("it has more than one part")
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
            raise _invalid_form(f"its part is encoded as {quoted(self._value.decode('latin-1'))}, which is obsolete")

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise _invalid_form("its part has no name")
        if name != FIELD.encode():
            raise _invalid_form(f"it has a part {quoted(name.decode('utf-8', 'replace'))}")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        self.file = b"".join(self._pieces)

    def _all(self) -> None:
        self.ended = True
