"""What a backend is asked for, and what it may answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from app.errors import SightlineError
from app.segments.keys import SegmentKey
from app.segments.ports import Invocation


@dataclass(frozen=True, slots=True)
class Done:
    """The segment is analysed; its output lies where it should."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The segment is at the backend, which will say by an event how it went."""

    invocation: Invocation


class SegmentFailed(SightlineError):
    """The backend tried this segment and could not. It counts as one of SEGMENT_ATTEMPTS."""


class BackendUnavailable(SightlineError):
    """The backend tried nothing: it cannot be reached, or has no room. The segment is not to blame, and waits."""


class BackendLost(BackendUnavailable):
    """The backend went away in the middle of this segment: perhaps over it. When it often does, the segment failed."""


class Backend(Protocol):
    """Any thread may call it; up to INFERENCE_MAX_IN_FLIGHT do at once."""

    name: str
    """The metrics' label."""

    def ready(self) -> bool:
        """Whether it would take a segment now. Asked after it was unavailable; may take some seconds."""
        ...

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done | Accepted:
        """Has a segment analysed. It may be called again for the same one, which must do no harm.

        Raises:
            SegmentFailed: see there.
            BackendUnavailable, BackendLost: see there.
        """
        ...

    def close(self) -> None: ...
