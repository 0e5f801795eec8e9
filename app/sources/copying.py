"""Streams copied from one container into another as they are, so that they can be read again there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import av
import av.error

_RAW_TAGS = {"bgr24": "BGR\x18", "bgra": "BGRA", "bgr0": "BGR\x00", "rgb555le": "RGB\x0f"}
"""Of pixels that an AVI calls by their number of bits alone; no other container knows them by that."""
_NO_TAG = "\0\0\0\0"
_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""FFmpeg's own by number of channels."""


def accepts(form: str, streams: Sequence[Any]) -> bool:
    """Whether a container takes these streams as they are: their head is written, to nowhere."""
    codecs = [stream.codec_context for stream in streams]
    if None in codecs or (form == "mov" and any(codec.name == "rawvideo" for codec in codecs)):
        return False  # QuickTime says too little about planes that were not coded: nobody could read them
    try:
        with av.open(io.BytesIO(), "w", format=form) as out:
            for stream in streams:
                add_copy(out, stream)
            out.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def add_copy(out: Any, stream: Any) -> Any:
    """A new stream of an output, for packets of this one as they are.

    Raises:
        ValueError: the container does not take it, or nobody could read it again.
    """
    # Opaque: else a coder of the decoder's name is looked for, and AV1's has none.
    copy = out.add_stream_from_template(stream, opaque=True)
    codec = stream.codec_context
    if codec is not None and codec.name == "rawvideo":
        # Only its tag says how its pixels lie, and a template leaves that behind.
        tag = codec.codec_tag if codec.codec_tag != _NO_TAG else _RAW_TAGS.get(codec.pix_fmt)
        if tag is None:
            raise ValueError(f"raw pixels {codec.pix_fmt}")
        copy.codec_context.codec_tag = tag
    elif codec is not None and codec.name.startswith("pcm_") and codec.layout.channels[0].name == "NONE":
        # An AVI's: how many channels, and not which. MP4 wants to know, and says so only once all is written.
        if codec.layout.nb_channels not in _LAYOUTS:
            raise ValueError(f"{codec.layout.nb_channels} channels, and nothing says which")
        copy.codec_context.layout = _LAYOUTS[codec.layout.nb_channels]
    return copy
