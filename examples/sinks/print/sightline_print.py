"""A sink that prints one line for each result: its stream, and how many objects of each class are in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from app.sinks import BatchSink, SinkMessage


class PrintSink(BatchSink):
    name = "print"

    def write(self, messages: Sequence[SinkMessage]) -> None:
        for message in messages:
            objects = json.loads(message.value).get("objects", [])
            counts = Counter(found["class_name"] for found in objects)
            shown = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
            print(f"{message.stream}: {shown}", flush=True)
