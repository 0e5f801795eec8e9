"""How a source is read: transport, FFmpeg options, rotation, frames per second.

Only options that name no file, protocol or format are allowed, so that a user who may list sources cannot read this
machine's files through them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

from app.errors import ConfigurationError
from app.sources.address import SCHEMES, Address, printable, redact
from app.sources.orientation import ROTATIONS

Transport = Literal["auto", "tcp", "udp", "udp_multicast", "http"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
KEYS = ("transport", "options", "rotation", "fps")
MAX_FPS = 240.0
_MAX_VALUE_CHARS = 4096

_EVERYWHERE = """analyzeduration probesize fpsprobesize max_probe_packets max_delay fflags flags flags2
    skip_frame skip_loop_filter err_detect ec use_wallclock_as_timestamps"""
_SOCKET = "buffer_size rw_timeout timeout recv_buffer_size send_buffer_size tcp_nodelay"
_TLS = "tls_verify verifyhost"
_OPTIONS = {
    "rtsp": f"""{_SOCKET} {_TLS} rtsp_flags allowed_media_types min_port max_port reorder_queue_size user_agent
        pkt_size ttl localaddr""",
    "http": f"""{_SOCKET} {_TLS} headers user_agent referer cookies auth_type multiple_requests reconnect
        reconnect_at_eof reconnect_streamed reconnect_on_network_error reconnect_on_http_error reconnect_delay_max
        reconnect_max_retries seekable live_start_index max_reload m3u8_hold_counters http_persistent http_multiple
        seg_max_retry""",
    "rtmp": f"""{_SOCKET} {_TLS} rtmp_live rtmp_buffer rtmp_app rtmp_playpath rtmp_subscribe rtmp_tcurl rtmp_pageurl
        rtmp_flashver""",
    "tcp": _SOCKET,
    "udp": f"{_SOCKET} fifo_size overrun_nonfatal localaddr localport pkt_size reuse ttl sources block",
    "rtp": f"""{_SOCKET} localaddr rtcpport localrtpport localrtcpport pkt_size sources block ttl
        reorder_queue_size""",
    "srt": f"""{_SOCKET} passphrase pbkeylen streamid mode latency rcvlatency peerlatency connect_timeout transtype
        tlpktdrop""",
    "device": "input_format framerate video_size pixel_format channel standard",
    "file": "framerate ignore_editlist seek2any",
}
"""FFmpeg's options by the kind of source. None of them names a file, a protocol or a format."""
_SAME_OPTIONS = {"rtsps": "rtsp", "https": "http", "rtmps": "rtmp", "folder": "file"}
_MAX_VALUES = {
    "probesize": 100_000_000,
    "analyzeduration": 60_000_000,
    "fifo_size": 1_000_000,
    "reorder_queue_size": 100_000,
    "buffer_size": 100_000_000,
    "recv_buffer_size": 100_000_000,
    "send_buffer_size": 100_000_000,
}
"""The largest values of options by which FFmpeg allocates memory."""


class OptionRefused(ConfigurationError):
    """An option of a source is wrong. The message names it, its value unless that may be secret, and valid values."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a source is read."""

    transport: Transport = "auto"
    """The transport of RTSP. `auto` asks for TCP, and uses UDP if the camera does not support TCP."""
    ffmpeg: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Names and values for FFmpeg; a value may be a password."""
    rotation: int | None = None
    """Clockwise degrees by which frames are turned instead of the source's own rotation; None: the source's own."""
    fps: float | None = None
    """Most frames per second that are taken; None: the settings decide."""

    @classmethod
    def parse(cls, fields: Mapping[Any, Any], address: Address) -> Options:
        """Reads the fields of a YAML or JSON entry: `transport`, `options`, `rotation`, `fps`.

        Raises:
            OptionRefused: a value is wrong, or the option does not apply to this kind of source.
        """
        return cls(
            transport=_transport(fields.get("transport"), address),
            ffmpeg=_ffmpeg(fields.get("options"), address),
            rotation=_rotation(fields.get("rotation")),
            fps=_fps(fields.get("fps")),
        )


AS_IT_IS = Options()


def from_pairs(pairs: list[str]) -> dict[str, str]:
    """Converts the `KEY=VALUE` pairs of a command line to the mapping that `Options.parse` expects as `options`.

    Raises:
        OptionRefused: a pair has no `=`.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionRefused(f"option {printable(key)!r}: want KEY=VALUE, such as user_agent=VLC")
        found[key.strip()] = value
    return found


def _transport(value: Any, address: Address) -> Transport:
    if value is None:
        return "auto"
    if value not in TRANSPORTS:
        raise OptionRefused(f"transport is {_brief(value)}; want one of {', '.join(TRANSPORTS)}")
    if not address.kind.startswith("rtsp") and value != "auto":
        raise OptionRefused(
            f"transport is {value!r}, which is for rtsp:// and rtsps://; this source is of kind {address.kind}"
        )
    chosen: Transport = value
    return chosen


def _rotation(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or value not in ROTATIONS:
        raise OptionRefused(f"rotation is {_brief(value)}; want 0, 90, 180 or 270, degrees clockwise")
    return int(value)


def _fps(value: Any) -> float | None:
    if value is None:
        return None
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 < number <= MAX_FPS:
        raise OptionRefused(f"fps is {_brief(value)}; want a number above 0, at most {MAX_FPS:g}")
    return float(number)


def _ffmpeg(value: Any, address: Address) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise OptionRefused(f"options is {_brief(value)}; want a mapping of FFmpeg's options, {{user_agent: VLC}}")
    allowed = f"{_OPTIONS[_SAME_OPTIONS.get(address.kind, address.kind)]} {_EVERYWHERE}".split()
    found: list[tuple[str, str]] = []
    for key, given in value.items():
        name = str(key)
        if name == "rtsp_transport":
            raise OptionRefused("option 'rtsp_transport': want it as `transport`, beside `options`")
        if name not in allowed:
            near = get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise OptionRefused(
                f"option {redact(printable(name))[:80]!r} is not taken for {_kind_words(address.kind)}; {hint}"
                f"want one of {', '.join(sorted(allowed))}"
            )
        text = _value(name, given)
        found.append((name, text))
    return tuple(sorted(found))


def _value(name: str, given: Any) -> str:
    """The value as FFmpeg reads it. Errors do not contain the value, because it may be a password."""
    if isinstance(given, bool):
        return "1" if given else "0"
    if not isinstance(given, str | int | float):
        raise OptionRefused(
            f"option {name!r}: its value is a {type(given).__name__}; want a text, a number, true or false"
        )
    text = str(given)
    lines = "\r\n" if name == "headers" else ""
    if len(text) > _MAX_VALUE_CHARS or any(not char.isprintable() and char not in lines for char in text):
        raise OptionRefused(
            f"option {name!r}: its value has {len(text)} characters, or some that cannot be shown; "
            f"want at most {_MAX_VALUE_CHARS:,} that can"
        )
    if name in _MAX_VALUES and not (text.isascii() and text.isdigit() and int(text) <= _MAX_VALUES[name]):
        raise OptionRefused(f"option {name!r}: want a whole number of at most {_MAX_VALUES[name]:,}")
    return text


def _kind_words(kind: str) -> str:
    return f"{kind}://" if kind in SCHEMES else f"a {kind}"


def _brief(value: Any) -> str:
    return redact(printable(repr(value)))[:80]
