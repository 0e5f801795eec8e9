"""A digest states nothing that the results do not show: each sentence is parsed and compared with them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.pipeline.stages.detect import Detection
from app.pipeline.stages.motion import CameraMotion, Motion
from app.pipeline.stages.ocr.policy import Text
from app.protocol.result import OK, Box, FrameResult, Image, Stage
from app.summary import Observation, ObservationBuilder
from app.summary.answer import SummaryContent
from app.summary.digest import digest, plural
from app.summary.observations import merge
from tests.summary.test_observation_words import LYING, STANDING, person

NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
FAILED = Stage("error", "timeout")
DISABLED = Stage("disabled", "off")
DIRECTIONS = "right|down and right|down|down and left|left|up and left|up|up and right"


def observed(results: list[tuple[float, FrameResult]], groups: int = 0) -> list[Observation]:
    """The observations of these results (milliseconds, result), in `groups` merged ones if that is not 0."""
    builder = ObservationBuilder()
    made: list[Observation] = []
    for number, (at_ms, result) in enumerate(results, 1):
        finished = builder.add(number, result, at_ms)
        made += [found for found in (builder.quiet(), finished) if found is not None]
    made += [found for found in (builder.flush(), builder.quiet()) if found is not None]
    if groups and made:
        size = -(-len(made) // groups)
        made = [reduce(merge, made[at : at + size]) for at in range(0, len(made), size)]
    return made


def value(words: str) -> int:
    return NUMBERS.index(words) if words in NUMBERS else int(words.replace(",", ""))


def times(words: str) -> int:
    return {"once": 1, "twice": 2}.get(words) or value(words.removesuffix(" times"))


def counts(words: str, names: set[str]) -> dict[str, int]:
    """`two people, one dog and three more kinds` → the number of each class that is named."""
    found = {}
    for part in re.split(r", | and ", words):
        number, _, noun = part.partition(" ")
        if noun.startswith(("more kind", "more kinds")):
            continue
        (name,) = [name for name in names if noun == (name if value(number) == 1 else plural(name))]
        found[name] = value(number)
    return found


@dataclass(repr=False)
class Truth:
    """What the results hold, counted without any of the code under test."""

    results: list[tuple[float, FrameResult]]
    came: int = 10**6
    """People who came into view, of those that a walk brought; as many as you like where nobody knows."""
    left: int = 10**6

    @property
    def most(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for _, result in self.results:
            names = [detection.class_name for detection in result.objects]
            found |= {name: max(found.get(name, 0), names.count(name)) for name in names}
        if 0 < found.get("face", 0) <= found.get("person", 0):
            del found["face"]
        return found

    def share(self, name: str) -> float:
        return sum(any(o.class_name == name for o in r.objects) for _, r in self.results) / len(self.results)

    def check(self, words: SummaryContent) -> None:
        for line in re.findall(r"[^.]+\.", words.scene):
            self._sentence(line.strip(" ."))
        for activity in words.activities:
            self._activity(activity)
        read = {text.text for _, result in self.results for text in result.texts}
        assert set(words.visible_text) <= read
        failed = {name for _, r in self.results for name, stage in r.stages.items() if stage.status == "error"}
        for concern in words.concerns:
            said = re.fullmatch(r"(\w+) failed on some frames: what it would have shown is not known", concern)
            assert said[1] in failed if said else (concern == "somebody was lying down" and self._anybody_lies())
        boxes = [detection.confidence for _, result in self.results for detection in result.objects]
        if boxes and words.confidence > 0:
            assert words.confidence <= max(boxes) + 0.01
        self._title(words.title, read)

    def _anybody_lies(self) -> bool:
        return any(pose.keypoints == person(LYING).keypoints for _, r in self.results for pose in r.poses)

    def _title(self, title: str, read: set[str]) -> None:
        first = title[:1].lower() + title[1:]
        if self.most:
            said = counts(first, {*self.most})
            assert said == {name: self.most[name] for name in said}
            rest = re.search(r"(\w+) more kinds", first)
            assert len(said) + (value(rest[1]) if rest else 0) == len(self.most)
        elif first.startswith("text: "):
            assert title[len("text: ") :] in read
        else:
            said = (
                r"somebody in view|the camera was .+|movement, nothing recognised|nothing recognised|nothing was seen"
            )
            assert re.fullmatch(said, first)

    def _sentence(self, line: str) -> None:
        low = line[:1].lower() + line[1:]
        if first := re.fullmatch(r"(in .+|for a moment) \(([\d,]+) frames?\) (.+)", low):
            self._first(*first.groups())
        elif re.fullmatch(r".+ (was|were) in view (part of the time|only now and then)(; .+)?", low):
            for clause in low.split("; "):
                who, often = re.fullmatch(
                    r"(.+) (?:was|were) in view (part of the time|only now and then)", clause
                ).groups()
                for name in re.split(r", | and ", who):
                    (known,) = [
                        class_name for class_name in self.most if name in (f"the {class_name}", plural(class_name))
                    ]
                    assert self.share(known) < 0.8
                    assert (self.share(known) < 0.2) == (often == "only now and then")
        elif said := re.fullmatch(r"(\w+|[\d,]+) texts? (?:was|were) read", low):
            assert value(said[1]) <= len({t.text for _, r in self.results for t in r.texts})
        else:
            for clause in low.split("; "):
                self._motion(clause)

    def _first(self, span: str, frames: str, rest: str) -> None:
        assert value(frames) == len(self.results)
        seconds = (self.results[-1][0] - self.results[0][0]) / 1000
        units = {"second": 1, "minute": 60, "hour": 3600}
        told = sum(value(n) * units[u] for n, u in re.findall(r"(\w+|[\d,]+) (second|minute|hour)s?", span))
        assert abs(told - seconds) <= (30 if seconds >= 3600 else 1.5)
        if rest == "no object was recognised":
            assert not self.most
            return
        listed = re.fullmatch(r"there (?:was|were) (?:at most )?(.+?)(?: and (\w+) more kinds? of things)?", rest)
        said = counts(listed[1], {*self.most})
        assert said == {name: self.most[name] for name in said}
        assert len(said) + (value(listed[2]) if listed[2] else 0) == len(self.most)

    def _motion(self, clause: str) -> None:
        moved = [r.motion.moving_fraction for _, r in self.results if r.motion is not None]
        share = sum(fraction >= 0.01 for fraction in moved) / len(moved)
        if clause == "hardly anything moved":
            assert share < 0.1
        elif re.fullmatch(rf"there was (some|much) movement(, mostly (to the )?({DIRECTIONS}))?", clause):
            assert share >= 0.1
        else:
            assert re.fullmatch(r"the camera was (shaking|panning (left|right)|tilting (up|down))", clause)

    def _activity(self, activity: str) -> None:
        if said := re.fullmatch(r"postures seen: (.+)", activity):
            assert said[1]
        elif said := re.fullmatch(r"(.+) (came into view|left), at least (.+) in all", activity):
            self._moved(said[2], times(said[3]))
        elif said := re.fullmatch(r"(.+) (came into view|left) (\w+ times|twice)", activity):
            assert said[1] in {plural(name) for name in (*self.most, "person")}
            self._moved(said[2], times(said[3]) if said[1] == "people" else 0)
        elif not activity.startswith("the camera") and (said := re.fullmatch(r"(.+) (came into view|left)", activity)):
            posed = max(len(result.poses) for _, result in self.results)
            most = self.most | {"person": max(posed, self.most.get("person", 0))}
            number = counts(said[1], {*most})
            self._moved(said[2], number.get("person", 0))
            assert all(count <= most[name] for name, count in number.items()), activity
        else:
            self._motion(activity)

    def _moved(self, verb: str, number: int) -> None:
        assert number <= (self.came if verb == "came into view" else self.left)


def result(
    objects: list[tuple[str, int | None, tuple[float, float, float, float]]],
    size: tuple[int, int] = (640, 480),
    camera: tuple[float, float] = (0, 0),
    moving: float = 0.0,
    **more,
) -> FrameResult:
    found = [Detection(0, name, 0.8, Box(*box), track) for name, track, box in objects]
    stages = dict.fromkeys(("detect", "pose", "ocr", "motion", "track"), OK) | more.pop("stages", {})
    return FrameResult(
        Image(*size),
        stages=stages,
        objects=found,
        motion=Motion(moving / 50, None, moving, CameraMotion(*camera)),
        **more,
    )


def test_c10_one_person_tracked_as_seven_is_one_person():
    """Recorded from a real camera: one person before it for 52 s, numbered anew after each gap and change of size."""
    results = []
    for line in (Path(__file__).parent / "one_person.jsonl").read_text().splitlines():
        at_ms, width, height, objects, camera = json.loads(line)
        boxes = [(name, track, tuple(box)) for name, _, track, box in objects]
        results.append((at_ms, result(boxes, (width, height), tuple(camera))))
    assert (
        len({track for _, r in results for o in r.objects if (track := o.track_id) and o.class_name == "person"}) == 7
    )
    words = digest(observed(results))
    assert words.title == "One person"
    assert words.scene.startswith("In 52 seconds (38 frames) there was one person.")
    assert not [line for line in words.activities if "came into view" in line or "left" in line]
    Truth(results, came=0, left=0).check(words)


@st.composite
def walks(draw) -> Truth:
    """People who walk through the picture, numbered anew at will, in frames of which many are missing.

    Nobody goes faster than a third of the diagonal a second, and a detector misses nobody for a second or longer.
    """
    seconds = draw(st.integers(8, 40))
    rate = draw(st.sampled_from([2, 5, 10]))
    keep = draw(st.sampled_from([0.3, 0.6, 1.0]))
    chance = Random(draw(st.integers(0, 2**32)))
    people = []
    for _ in range(draw(st.integers(0, 4))):
        begin = chance.uniform(-5, seconds)
        people.append(
            {
                "from": begin,
                "to": begin + chance.uniform(4, seconds),
                "x": chance.uniform(0.2, 0.8),
                "speed": chance.uniform(-0.1, 0.1),
                "track": None,
            }
        )
    renumber = draw(st.sampled_from([0.0, 0.05, 0.3]))
    numbers = iter(range(1, 10_000))
    results: list[tuple[float, FrameResult]] = []
    present: list[set[int]] = []
    shrunk = False
    for step in range(seconds * rate):
        at = step / rate
        if results and chance.random() > keep and at - results[-1][0] / 1000 < 3:
            continue
        shrunk ^= chance.random() < 0.02
        scale = 0.5 if shrunk else 1.0
        objects, here = [], set()
        for index, walker in enumerate(people):
            if not walker["from"] <= at <= walker["to"]:
                walker["track"] = None
                continue
            here.add(index)
            if walker["track"] is None or chance.random() < renumber:
                walker["track"] = next(numbers)
            x = min(0.9, max(0.05, walker["x"] + walker["speed"] * (at - walker["from"]))) * 640
            box = tuple(scale * value for value in (x, 150.0, x + 60, 400.0))
            missed = results and rate >= 5 and keep == 1.0 and chance.random() < 0.05
            if not missed:
                objects.append(("person", walker["track"] if chance.random() < 0.8 else None, box))
        failed = bool(results) and chance.random() < 0.05
        if not failed:
            present.append(here)
        stages = {"detect": FAILED, "pose": FAILED} if failed else {}
        size = (round(640 * scale), round(480 * scale))
        results.append(
            (at * 1000, result([] if failed else objects, size, moving=chance.random() * 0.02, stages=stages))
        )
    came = sum(len(now - before) for before, now in pairwise(present))
    left = sum(len(before - now) for before, now in pairwise(present))
    return Truth(results, came, left)


@settings(max_examples=200, deadline=None)
@given(walks(), st.integers(0, 5))
def test_c10_no_more_people_come_and_leave_than_did(truth: Truth, groups: int):
    truth.check(digest(observed(truth.results, groups)))


CLASSES = ("person", "face", "dog", "bus", "car", "sheep", "wine glass", "1")


@st.composite
def scenes(draw) -> Truth:
    """Any results that the types allow, plausible or not."""
    chance = Random(draw(st.integers(0, 2**32)))
    results = []
    at_ms = 0.0
    for _ in range(draw(st.integers(1, 60))):
        at_ms += chance.choice([30, 100, 400, 2500, 60_000])
        stage = chance.choice([OK, OK, OK, FAILED, DISABLED])
        objects = []
        for _ in range(chance.randrange(6) if stage is OK else 0):
            x, y = chance.uniform(0, 600), chance.uniform(0, 400)
            objects.append((chance.choice(CLASSES), chance.choice([None, 1, 2, 3]), (x, y, x + 30, y + 60)))
        shown = result(
            objects,
            camera=chance.choice([(0, 0), (0, 0), (8, 1), (-3, 9)]),
            moving=chance.choice([0.0, 0.02, 0.4]),
            stages={"detect": stage},
            poses=[person(chance.choice([LYING, STANDING])) for _ in range(chance.randrange(3))],
            texts=[
                Text(f"T {number}", 0.9, ((0, 0), (9, 0), (9, 9), (0, 9)))
                for number in chance.sample(range(10), chance.randrange(4))
            ],
        )
        results.append((at_ms, shown))
    return Truth(results)


@settings(max_examples=200, deadline=None)
@given(scenes(), st.integers(0, 5))
def test_c10_every_sentence_is_true_of_the_results(truth: Truth, groups: int):
    truth.check(digest(observed(truth.results, groups)))


@pytest.mark.parametrize("gap_s", [0.1, 0.5])
def test_c10_people_who_come_one_after_the_other_are_all_counted(gap_s: float):
    """Four people, one at a time, five seconds apart: they came four times, and nobody knows whether they are four."""
    results = []
    for step in range(round(40 / gap_s)):
        at = step * gap_s
        inside = at % 10 >= 5
        boxes = [("person", 1 + int(at // 10), (300.0, 150.0, 360.0, 400.0))] if inside else []
        results.append((at * 1000, result(boxes)))
    words = digest(observed(results))
    assert words.activities[:2] == ("people came into view four times", "people left three times")
    Truth(results, came=4, left=3).check(words)


def test_c10_a_crowd_that_is_numbered_anew_has_not_left_and_come():
    at = [(x, y) for x in range(10, 600, 40) for y in range(10, 400, 40)]
    results = []
    for step in range(60):
        boxes = [("person", 1000 * (step // 10) + n, (x, y, x + 20.0, y + 35.0)) for n, (x, y) in enumerate(at)]
        results.append((step * 200, result(boxes)))
    words = digest(observed(results))
    assert words.activities == ()
    assert words.title == f"{len(at)} people"
