"""The tree of errors, and the functions by which their messages repeat a client's values.

SightlineError
├── ConfigurationError     a setting is wrong; the start stops
├── FrameError             this one frame cannot be used; the session goes on
│   ├── FrameTooLarge      too many bytes or pixels
│   ├── TooExpensive       its preparation took, or would take, too much CPU time
│   └── UndecodableFrame   not a JPEG, truncated, damaged
├── ProtocolError          a control message is wrong; names the field
└── InferenceError         this one request failed
    ├── InferenceUnavailable   the server cannot be reached
    ├── InferenceTimeout       its deadline passed
    └── ModelRejected          a model's tensors have no known layout
"""

from __future__ import annotations


class SightlineError(Exception):
    """Base of all errors that this program raises on purpose."""


class ConfigurationError(SightlineError):
    """A setting is wrong. The message names the variable, the value seen and what would be right."""


class FrameError(SightlineError):
    """One frame cannot be used. `code` is the wire's `error.code` and the counter's reason."""

    code = "frame"


class FrameTooLarge(FrameError):
    """A frame has more bytes or pixels than allowed."""

    code = "too_large"


class TooExpensive(FrameError):
    """The preparation of a frame took, or would take, more CPU time than allowed."""

    code = "too_expensive"


class UndecodableFrame(FrameError):
    """A frame is no JPEG, truncated or damaged."""

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


# --- messages that repeat a client's values ---

MAX_MESSAGE = 300
"""Characters of an error's message."""
MAX_LONG_MESSAGE = 2000
"""Characters of a message that also lists what is known, such as a model's classes."""
MAX_VALUE = 60
"""Characters of a client's value that a message repeats."""


def shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """The text cut to `most` characters, the last of them `…`. Control characters and lone surrogates are replaced."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    # A lone surrogate, from a name that is not UTF-8, cannot be written as JSON; a control character moves a terminal.
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in cut)


def quoted(value: object, most: int = MAX_VALUE) -> str:
    """A client's value as Python writes it, cut to `most` characters before a value of megabytes is formatted."""
    if isinstance(value, str | bytes) and len(value) > most:
        return repr(value[:most]) + "…"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a number of more than 77 digits"  # Python refuses to format numbers of more than 4300 digits
    if isinstance(value, list | tuple | dict | set | frozenset):
        kind = "an object" if isinstance(value, dict) else "an array"
        return f"{kind} of {len(value)}"
    return shortened(repr(value), most)
