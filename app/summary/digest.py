"""The digest: a summary by rule, in plain sentences that depend on the observations alone. Does no I/O.

Sessions get digests where no language model is configured, and while the model does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from app.summary.answer import ITEM_CHARS, ITEMS, SCENE_CHARS, TITLE_CHARS, SummaryContent, clean
from app.summary.entities import FACE, PERSON, Entity
from app.summary.observations import ObjectCount, Observation, merge

_TITLE_CLASSES = 3
_SCENE_CLASSES = 6
_MOST_OF_THE_TIME, _NOW_AND_THEN = 0.8, 0.2
"""Shares of frames: less than the first is part of the time, less than the second is now and then."""
_UNSURE = 0.5
"""Confidence where nothing was detected."""


def digest(observations: Sequence[Observation]) -> SummaryContent:
    """Summarizes observations, oldest first.

    `confidence` is the mean confidence of the detections, 0.5 without any; half of that if a stage failed.
    """
    if not observations:
        return SummaryContent("Nothing was seen", "Nothing was seen.", (), (), (), 0.0)
    seen = _without_faces(reduce(merge, observations))
    sentences = (_first(seen), _presence(seen), _motion(seen), _reading(seen))
    return SummaryContent(
        title=clean(_title(seen), TITLE_CHARS),
        scene=clean(" ".join(sentence(text) for text in sentences if text), SCENE_CHARS),
        activities=_items(_activities(seen)),
        visible_text=_items(seen.new_texts),
        concerns=_items(_concerns(seen)),
        confidence=_confidence(seen),
    )


def _without_faces(seen: Observation) -> Observation:
    """Leaves out faces where at least as many people were seen, because each face belongs to a person."""
    most = {count.class_name: count.most for count in seen.objects}
    if not 0 < most.get(FACE, 0) <= most.get(PERSON, 0):
        return seen
    arrived = tuple(entity for entity in seen.arrived if entity.class_name != FACE)
    left = tuple(entity for entity in seen.left if entity.class_name != FACE)
    return replace(
        seen,
        objects=tuple(count for count in seen.objects if count.class_name != FACE),
        arrived=arrived,
        arrivals=seen.arrivals - len(seen.arrived) + len(arrived),
        left=left,
        departures=seen.departures - len(seen.left) + len(left),
    )


def _items(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(clean(part, ITEM_CHARS) for part in parts[:ITEMS])


def _title(seen: Observation) -> str:
    objects = _ordered(seen)
    if objects:
        named = _names(objects[:_TITLE_CLASSES])
        more = len(objects) - len(named)
        title = listed([*named, f"{number(more)} more kinds"] if more > 1 else named + _names(objects[_TITLE_CLASSES:]))
    elif seen.poses:
        title = "somebody in view"
    elif seen.new_texts:
        title = f"text: {seen.new_texts[0]}"
    elif seen.motion.camera:
        title = f"the camera was {seen.motion.camera}"
    elif seen.motion.level in ("some", "much"):
        title = "movement, nothing recognised"
    else:
        title = "nothing recognised"
    return title[:1].upper() + title[1:]


def _names(objects: Sequence[ObjectCount]) -> list[str]:
    return [counted(count.most, count.class_name) for count in objects]


def _ordered(seen: Observation) -> list[ObjectCount]:
    """People first, then by the number of frames, most first."""
    return sorted(seen.objects, key=lambda count: (count.class_name != PERSON, -count.frames, count.class_name))


def _first(seen: Observation) -> str:
    span = during((seen.ended_at_ms - seen.started_at_ms) / 1000)
    frames = "1 frame" if seen.frames == 1 else f"{seen.frames:,} frames"
    objects = _ordered(seen)
    if not objects:
        return f"{span} ({frames}) no object was recognised"
    shown = _names(objects[:_SCENE_CLASSES])
    if rest := len(objects) - len(shown):
        shown.append(f"{number(rest)} more {'kind' if rest == 1 else 'kinds'} of things")
    most = "" if seen.frames == 1 or all(count.most == 1 for count in objects) else "at most "
    return f"{span} ({frames}) there {_were(objects)} {most}{listed(shown)}"


def _were(objects: Sequence[ObjectCount]) -> str:
    return "was" if objects[0].most == 1 else "were"


def _presence(seen: Observation) -> str:
    """Which classes were in view only part of the time; empty if all always were, or there are too few frames."""
    if seen.frames < 10:
        return ""
    often: dict[str, list[str]] = {"part of the time": [], "only now and then": []}
    for count in _ordered(seen)[:_SCENE_CLASSES]:
        share = count.frames / seen.frames
        if share < _MOST_OF_THE_TIME:
            often["only now and then" if share < _NOW_AND_THEN else "part of the time"].append(_the(count))
    return "; ".join(f"{listed(names)} {_was(names)} in view {when}" for when, names in often.items() if names)


def _the(count: ObjectCount) -> str:
    return f"the {count.class_name}" if count.most == 1 else plural(count.class_name)


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 and names[0].startswith("the ") else "were"


def _motion(seen: Observation) -> str:
    motion, parts = seen.motion, []
    if motion.level is not None:
        words = {"still": "hardly anything moved", "some": "there was some movement", "much": "there was much movement"}
        parts.append(words[motion.level] + (f", mostly {_towards(motion.direction)}" if motion.direction else ""))
    if motion.camera:
        parts.append(f"the camera was {motion.camera}")
    return "; ".join(parts)


def _towards(direction: str) -> str:
    return f"to the {direction}" if direction in ("left", "right") else direction


def _reading(seen: Observation) -> str:
    if not seen.new_texts:
        return ""
    return f"{counted(seen.texts, 'text')} {'was' if seen.texts == 1 else 'were'} read"


def _activities(seen: Observation) -> list[str]:
    out = [*_moves(seen, "came into view"), *_moves(seen, "left")]
    if seen.poses:
        out.append(f"postures seen: {'; '.join(seen.poses)}")
    if seen.motion.camera:
        out.append(f"the camera was {seen.motion.camera}")
    return out


def _moves(seen: Observation, verb: str) -> list[str]:
    """Arrivals, or departures, stating no more than is known.

    Entities that came and did not leave are in view at the end, so that they are different ones, provided that as many
    were in view at once; likewise those that left and had not come. They are counted. Of any others only the number of
    arrivals is known, because an entity may come again.
    """
    moves, others, total = seen.arrived, seen.left, seen.arrivals
    if verb == "left":
        moves, others, total = seen.left, seen.arrived, seen.departures
    every_one = seen.arrivals == len(seen.arrived) and seen.departures == len(seen.left)
    both = {entity.number for entity in others}
    by_class: dict[str, list[Entity]] = {}
    for entity in moves:
        by_class.setdefault(entity.class_name, []).append(entity)
    ordered = sorted(by_class.items(), key=lambda item: (item[0] != PERSON, -len(item[1])))[:_SCENE_CLASSES]
    if not moves:
        return []
    if total > len(moves):
        # The classes of entities beyond the cap are unknown, and faces among them may belong to people.
        return [f"{listed([plural(name) for name, _ in ordered])} {verb}, at least {times(len(moves))} in all"]
    most = {count.class_name: count.most for count in seen.objects}
    different = {
        name
        for name, many in ordered
        if len(many) == 1
        or (every_one and len(many) <= most.get(name, 0) and both.isdisjoint(entity.number for entity in many))
    }
    known = listed([counted(len(many), name) for name, many in ordered if name in different])
    repeated = [f"{plural(name)} {verb} {times(len(many))}" for name, many in ordered if name not in different]
    return [*([f"{known} {verb}"] if known else []), *repeated]


def _concerns(seen: Observation) -> list[str]:
    out = ["somebody was lying down"] if "lying" in seen.poses else []
    return [*out, *(f"{stage} failed on some frames: what it would have shown is not known" for stage in seen.failed)]


def _confidence(seen: Observation) -> float:
    boxes = sum(count.boxes for count in seen.objects)
    mean = sum(count.score for count in seen.objects) / (1000 * boxes) if boxes else _UNSURE
    return round(min(1.0, mean) * (0.5 if seen.failed else 1.0), 2)


# --- numbers, plurals and lists in English ---

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
"""Nouns without a plural of their own, among COCO's classes and similar ones."""


def number(count: int) -> str:
    """The number, in words up to twelve."""
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
    """The text with a capital first letter and a full stop."""
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
