"""Binary messages: a JPEG, with or without a 16-byte header.

    offset  size  field
    0       4     magic, ASCII `SLF1`
    4       4     seq, uint32, big-endian: the client's own number of the frame
    8       8     captured_at_ms, float64, big-endian: epoch milliseconds on the client's clock
    16      …     JPEG

Without the header the message is the JPEG itself (it starts with FF D8).
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from app.errors import UndecodableFrame

MAGIC = b"SLF1"
_LAYOUT = struct.Struct(">4sId")
SIZE = _LAYOUT.size


class BinaryFrame(NamedTuple):
    """A binary message. `seq` and `captured_at_ms` are None without a header."""

    seq: int | None
    captured_at_ms: float | None
    jpeg: bytes


def pack(jpeg: bytes, *, seq: int, captured_at_ms: float) -> bytes:
    """One binary message: header and JPEG. `seq` wraps at 2**32."""
    return _LAYOUT.pack(MAGIC, seq & 0xFFFFFFFF, captured_at_ms) + jpeg


def seq_of(message: bytes) -> int | None:
    """The client's number of a frame; None without a header. Also works for a frame that `unpack` refuses."""
    if message[:4] != MAGIC or len(message) < 8:
        return None
    return int.from_bytes(message[4:8])


def unpack(message: bytes) -> BinaryFrame:
    """Splits a binary message into header and JPEG. Does not check whether the JPEG can be decoded.

    Raises:
        UndecodableFrame: it begins with neither a header nor a JPEG, or a time that is no finite, non-negative number.
    """
    if message[:2] == b"\xff\xd8":
        return BinaryFrame(None, None, message)
    if message[:4] != MAGIC:
        raise UndecodableFrame(
            "a frame is a JPEG (FF D8 …) or the header SLF1 and a JPEG; "
            f"this one starts with {message[:4].hex(' ') or 'nothing'}"
        )
    if len(message) < SIZE:
        raise UndecodableFrame(f"the header has {SIZE} bytes, this message {len(message)}")
    _, seq, captured_at_ms = _LAYOUT.unpack_from(message)
    if not math.isfinite(captured_at_ms) or captured_at_ms < 0:
        raise UndecodableFrame(f"captured_at_ms is {captured_at_ms}: want epoch milliseconds")
    return BinaryFrame(seq, captured_at_ms, message[SIZE:])
