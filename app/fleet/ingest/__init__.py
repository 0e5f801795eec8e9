"""`fleet ingest`: one thread reads each camera or recording; one thread writes all their frames to Redis Streams."""

from app.fleet.ingest.camera import IngestCamera, Sampler, adapt_rate
from app.fleet.ingest.outbox import Outbox, OutgoingFrame
from app.fleet.ingest.service import Ingest, run
from app.fleet.ingest.sources import (
    CameraSource,
    SourceList,
    SourceRefused,
    from_argument,
    from_entry,
    from_hash,
    from_yaml,
)

__all__ = [
    "CameraSource",
    "Ingest",
    "IngestCamera",
    "Outbox",
    "OutgoingFrame",
    "Sampler",
    "SourceList",
    "SourceRefused",
    "adapt_rate",
    "from_argument",
    "from_entry",
    "from_hash",
    "from_yaml",
    "run",
]
