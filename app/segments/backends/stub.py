"""Copies a segment to its output unchanged: for trying queues, buckets and permissions without a GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.segments.keys import SegmentKey, beside
from app.segments.ports import Backend, Done, ObjectMissing, Objects, SegmentFailed


class StubBackend(Backend):
    """Analyses nothing. The results are an empty file."""

    name = "stub"

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def ready(self) -> bool:
        return True

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done:
        try:
            with tempfile.TemporaryDirectory(prefix="segment-") as folder:
                video = Path(folder) / "segment.mp4"
                self._objects.download(input_uri, video)
                self._objects.write(beside(output_uri), b"")
                if segment.mode != "results_only":
                    self._objects.upload(video, output_uri)
        except ObjectMissing as error:
            raise SegmentFailed(str(error)) from None
        return Done()
