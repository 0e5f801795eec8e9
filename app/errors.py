"""The tree of errors.

SightlineError
├── ConfigurationError     a setting is wrong; the start stops
├── FrameError             this one frame cannot be used; the session goes on
│   ├── FrameTooLarge      too many bytes or pixels
│   ├── TooExpensive       its preparation would cost, or cost, too much CPU time
│   └── UndecodableFrame   not a JPEG, truncated, damaged
├── ProtocolError          a control message is wrong; names the field
└── InferenceError         this one request failed
    ├── InferenceUnavailable   the server cannot be reached
    ├── InferenceTimeout       its deadline passed
    └── ModelRejected          a model's tensors are of no layout that we read
"""

from __future__ import annotations


class SightlineError(Exception):
    """Base of everything raised on purpose."""


class ConfigurationError(SightlineError):
    """A setting is wrong. The message names the variable, the value seen and what would be right."""


class FrameError(SightlineError):
    """One frame cannot be used. `code` is the wire's `error.code` and the counter's reason."""

    code = "frame"


class FrameTooLarge(FrameError):
    code = "too_large"


class TooExpensive(FrameError):
    code = "too_expensive"


class UndecodableFrame(FrameError):
    code = "undecodable"


class ProtocolError(SightlineError):
    """A control message is wrong. `field` is its dotted path, or None when the whole message is."""

    def __init__(self, message: str, *, code: str = "invalid_message", field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class InferenceError(SightlineError):
    """One request to a model failed."""


class InferenceUnavailable(InferenceError):
    """The inference server cannot be reached, or is not ready."""


class InferenceTimeout(InferenceError):
    """The request's own deadline passed."""


class ModelRejected(InferenceError):
    """A model's tensors have no known layout. The message gives its name, the shapes found and those known."""
