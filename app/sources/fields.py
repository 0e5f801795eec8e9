"""Interlaced film made progressive: whole pictures from fields, one for each frame, at its own time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av.filter


class Deinterlacer:
    """Takes a film's frames in order. Those before the first interlaced one pass as they are, at once; from then on
    each comes one frame later, and those that are not interlaced pass as they are.

    Which field is the earlier one is taken from each frame. Pictures are neither added nor left out.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._form: tuple[object, ...] = ()
        self._inside: deque[Any] = deque()

    def push(self, frame: Any) -> Iterator[Any]:
        """What is ready once this frame is there."""
        if self._graph is not None and _form(frame) != self._form:
            yield from self.rest()
        if self._graph is None:
            if not frame.interlaced_frame:
                yield frame
                return
            self._open(frame)
        self._inside.append((frame.pts, frame.time_base, frame.duration))
        self._graph.push(frame)
        yield from self._ready()

    def rest(self) -> Iterator[Any]:
        """What is left, at the film's end."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._ready()
            self._graph = None

    def _open(self, frame: Any) -> None:
        self._form = _form(frame)
        graph = av.filter.Graph()
        # A time base of its own: some frames have no time, and what comes out is told by its order.
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base or Fraction(1)
        )
        fields = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        sink = graph.add("buffersink")
        source.link_to(fields)
        fields.link_to(sink)
        graph.configure()
        self._graph = graph

    def _ready(self) -> Iterator[Any]:
        while self._inside:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            frame.pts, frame.time_base, frame.duration = self._inside.popleft()
            yield frame


def _form(frame: Any) -> tuple[object, ...]:
    return frame.width, frame.height, frame.format.name
