"""Where results go beside the client that asked for them: Kafka, JSON Lines, a webhook, and sinks of other packages.

`BatchSink` is what a sink of one's own inherits from; `open_sinks` makes those that RESULT_SINKS names.
"""

from app.sinks.feed import Feed, Outcomes, Sinks, open_sinks, sink_classes
from app.sinks.sink import (
    BatchSink,
    Done,
    MessageRejected,
    Outcome,
    ResultSink,
    SinkHost,
    SinkMessage,
    SinkUnavailable,
)

__all__ = [
    "BatchSink",
    "Done",
    "Feed",
    "MessageRejected",
    "Outcome",
    "Outcomes",
    "ResultSink",
    "SinkHost",
    "SinkMessage",
    "SinkUnavailable",
    "Sinks",
    "open_sinks",
    "sink_classes",
]
