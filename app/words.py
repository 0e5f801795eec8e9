"""What a client said, in words of ours: as short as its mistake can be seen in. Pure."""

from __future__ import annotations

MOST = 300
"""Characters of an error's message."""
MOST_IN_ALL = 2000
"""Of one that also lists what is known, such as a model's classes."""
MOST_OF_A_VALUE = 60
"""Characters of what a client said, where a message repeats it."""


def shortened(text: str, most: int = MOST) -> str:
    """The text, or its beginning and `…`; what no terminal should be sent is replaced."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    # Half a character of a name that is no UTF-8 cannot be written as JSON; a control character moves a terminal.
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in cut)


def quoted(value: object, most: int = MOST_OF_A_VALUE) -> str:
    """What a client sent, as Python writes it down, cut. A value of megabytes is not written down whole first."""
    if isinstance(value, str | bytes) and len(value) > most:
        return repr(value[:most]) + "…"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a number of more than 77 digits"  # Python refuses to write down those of more than 4300
    if isinstance(value, list | tuple | dict | set | frozenset):
        kind = "an object" if isinstance(value, dict) else "an array"
        return f"{kind} of {len(value)}"
    return shortened(repr(value), most)
