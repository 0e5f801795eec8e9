"""Copies streams from one container into another without re-encoding, so that they can be read there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import av
import av.error

_RAW_TAGS = {"bgr24": "BGR\x18", "bgra": "BGRA", "bgr0": "BGR\x00", "rgb555le": "RGB\x0f"}
"""Codec tags for raw pixels that an AVI describes by their number of bits only, which no other container
understands."""
_NO_TAG = "\0\0\0\0"
_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""FFmpeg's channel layouts by the number of channels."""


def accepts(name: str, streams: Sequence[Any]) -> bool:
    """Whether a container format accepts copies of these streams; tries it by writing a header to memory.

    Args:
        name: FFmpeg's name of the format.
    """
    codecs = [stream.codec_context for stream in streams]
    if None in codecs or (name == "mov" and any(codec.name == "rawvideo" for codec in codecs)):
        return False  # QuickTime stores too little about raw pixels, so that no reader could decode them
    try:
        with av.open(io.BytesIO(), "w", format=name) as out:
            for stream in streams:
                add_copy(out, stream)
            out.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def add_copy(out: Any, stream: Any) -> Any:
    """Adds a stream to an output container, for unchanged packets of the given stream.

    Raises:
        ValueError: the container does not accept it, or no reader could decode it there.
    """
    # Without `opaque` PyAV looks for an encoder with the decoder's name, which does not exist for AV1.
    copy = out.add_stream_from_template(stream, opaque=True)
    codec = stream.codec_context
    if codec is not None and codec.name == "rawvideo":
        # Only the codec tag gives the pixel format, and a template does not copy it.
        tag = codec.codec_tag if codec.codec_tag != _NO_TAG else _RAW_TAGS.get(codec.pix_fmt)
        if tag is None:
            raise ValueError(f"raw pixels {codec.pix_fmt}")
        copy.codec_context.codec_tag = tag
    elif codec is not None and codec.name.startswith("pcm_") and codec.layout.channels[0].name == "NONE":
        # An AVI stores the number of channels and not their layout. MP4 needs the layout, and fails without it only
        # once everything is written.
        if codec.layout.nb_channels not in _LAYOUTS:
            raise ValueError(f"{codec.layout.nb_channels} channels of unknown layout")
        copy.codec_context.layout = _LAYOUTS[codec.layout.nb_channels]
    return copy
