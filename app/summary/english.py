"""Numbers, plurals and lists in English. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "knife": "knives",
    "foot": "feet",
}
_UNCHANGED = frozenset({"sheep", "skis", "scissors", "broccoli", "aircraft", "traffic", "fish", "deer"})
"""Of COCO's classes and their like."""


def number(count: int) -> str:
    """In words up to twelve."""
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"


def plural(noun: str) -> str:
    """`fire truck` → `fire trucks`, `person` → `people`; the last word is the one that changes."""
    head, blank, last = noun.rpartition(" ")
    return f"{head}{blank}{_plural(last)}"


def _plural(word: str) -> str:
    low = word.lower()
    if low in _UNCHANGED:
        return word
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if low.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if low.endswith("y") and low[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def counted(count: int, noun: str) -> str:
    """`one dog`, `two buses`."""
    return f"{number(count)} {noun if count == 1 else plural(noun)}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; empty for none."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentence(text: str) -> str:
    """With a capital in front and a full stop behind."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def times(count: int) -> str:
    """`once`, `twice`, `three times`."""
    return {1: "once", 2: "twice"}.get(count) or f"{number(count)} times"


def during(seconds: float) -> str:
    """`for a moment`, `in 100 seconds`, `in two minutes and 30 seconds`, `in two hours`."""
    whole = round(seconds)
    if whole < 2:
        return "for a moment"
    if whole < 120:
        return f"in {counted(whole, 'second')}"
    if whole >= 3600:
        parts = (round(whole / 60) // 60, "hour"), (round(whole / 60) % 60, "minute")
    else:
        parts = (whole // 60, "minute"), (whole % 60, "second")
    return f"in {listed([counted(count, unit) for count, unit in parts if count])}"
