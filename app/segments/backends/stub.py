"""Passes a segment through as it is: for trying queues, buckets and rights without a GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.segments.backends.backend import Done, SegmentFailed
from app.segments.keys import SegmentKey, beside
from app.segments.ports import ObjectMissing, Objects


class Stub:
    """See `Backend`. It sees nothing, so its results are an empty file."""

    name = "stub"

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def ready(self) -> bool:
        return True

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done:
        try:
            with tempfile.TemporaryDirectory(prefix="segment-") as folder:
                film = Path(folder) / "segment.mp4"
                self._objects.download(input_uri, film)
                self._objects.write(beside(output_uri), b"")
                if segment.mode != "results_only":
                    self._objects.upload(film, output_uri)
        except ObjectMissing as error:
            raise SegmentFailed(str(error)) from None
        return Done()

    def close(self) -> None:
        """Nothing is open."""
