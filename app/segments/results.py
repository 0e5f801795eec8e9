"""What was found, one line of JSON a frame."""

from __future__ import annotations

from typing import BinaryIO

import orjson

from app.protocol.result import FrameResult
from app.segments.reel import Shot


class Results:
    """Writes JSONL. `frame_id` and `pts_s` count from the whole film's beginning: the files of its parts, one after the
    other, are the film's. `track_id` and `motion` begin anew with each part: parts are analysed apart from each other.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, shot: Shot, found: FrameResult | Exception) -> None:
        place = {"frame_id": shot.number, "pts_s": round(float(shot.at), 6)}
        if isinstance(found, FrameResult):
            said: dict[str, object] = {
                "image": found.image,
                "objects": found.objects,
                "poses": found.poses,
                "texts": found.texts,
                "motion": found.motion,
                "stages": found.stages,
                "timings_ms": found.timings_ms,
            }
        else:
            said = {"error": {"code": getattr(found, "code", "internal"), "message": str(found)}}
        self._out.write(orjson.dumps({**place, **said}, option=orjson.OPT_APPEND_NEWLINE))
