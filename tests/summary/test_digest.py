"""The summary by rules, compared word for word."""

import pytest

from app.summary.answer import SummaryContent
from app.summary.digest import counted, digest, during, listed, plural
from tests.summary.seeing import entities, moved, observation, seen


def test_nothing_at_all():
    assert digest([]) == SummaryContent("Nothing was seen", "Nothing was seen.", (), (), (), 0.0)


def test_one_thing_in_one_frame():
    seen_once = observation(frames=1, lasts_s=0, objects=(seen("dog", 1, frames=1, score=0.8),))
    assert digest([seen_once]) == SummaryContent(
        "One dog", "For a moment (1 frame) there was one dog.", (), (), (), 0.8
    )


def test_a_busy_scene_from_several_observations():
    first = observation(
        1,
        200,
        lasts_s=20,
        objects=(seen("person", 2, frames=200), seen("dog", 1, frames=30)),
        arrived=(*entities("person", 1, 2), *entities("dog", 3)),
        arrivals=3,
        poses=("standing", "sitting, one arm raised"),
        new_texts=("GATE 7",),
        texts=1,
        motion=moved(200, some=100, left=True),
    )
    then = observation(
        201,
        200,
        at_s=20,
        lasts_s=20,
        objects=(seen("person", 3, frames=200), seen("bus", 2, frames=100)),
        left=entities("dog", 3),
        departures=1,
        new_texts=("EXIT",),
        texts=1,
        motion=moved(200, much=150, left=True),
    )
    assert digest([first, then]) == SummaryContent(
        title="Three people, two buses and one dog",
        scene="In 40 seconds (400 frames) there were at most three people, two buses and one dog. "
        "Buses were in view part of the time; the dog was in view only now and then. "
        "There was much movement, mostly to the left. Two texts were read.",
        activities=(
            "two people and one dog came into view",
            "one dog left",
            "postures seen: standing; sitting, one arm raised",
        ),
        visible_text=("GATE 7", "EXIT"),
        concerns=(),
        confidence=0.9,
    )


def test_movement_and_a_camera_that_pans():
    only = observation(frames=50, lasts_s=5, motion=moved(50, some=20, pan=True))
    assert digest([only]) == SummaryContent(
        title="The camera was panning left",
        scene="In five seconds (50 frames) no object was recognised. "
        "There was some movement; the camera was panning left.",
        activities=("the camera was panning left",),
        visible_text=(),
        concerns=(),
        confidence=0.5,
    )


def test_text_alone():
    only = observation(frames=50, lasts_s=150, new_texts=("NO ENTRY",), texts=1, motion=moved(50))
    words = digest([only])
    assert words.title == "Text: NO ENTRY"
    assert words.scene == (
        "In two minutes and 30 seconds (50 frames) no object was recognised. Hardly anything moved. One text was read."
    )
    assert words.visible_text == ("NO ENTRY",)


def test_what_the_operator_should_know():
    only = observation(
        objects=(seen("person", 1, frames=20, score=0.6),), poses=("standing", "lying"), failed=("ocr", "detect")
    )
    words = digest([only])
    assert words.concerns == (
        "somebody was lying down",
        "ocr failed on some frames: what it would have shown is not known",
        "detect failed on some frames: what it would have shown is not known",
    )
    assert words.confidence == 0.3


def test_many_kinds_of_things_are_not_all_named():
    names = ["person", "car", "bus", "dog", "cat", "bird", "horse", "cow"]
    only = observation(frames=5, objects=tuple(seen(name, 1, frames=5) for name in names))
    words = digest([only])
    assert words.title == "One person, one bird, one bus and five more kinds"
    assert words.scene == (
        "For a moment (5 frames) there was one person, one bird, one bus, one car, one cat, one cow "
        "and two more kinds of things."
    )


def test_a_face_is_nothing_more_than_the_person_it_belongs_to():
    people = seen("person", 2, frames=20)
    both = observation(
        objects=(seen("face", 2, frames=10), people),
        arrived=(*entities("face", 2, 4), *entities("person", 1, 3)),
        arrivals=4,
        left=entities("face", 2),
        departures=1,
    )
    words = digest([both])
    assert words.title == "Two people"
    assert words.activities == ("two people came into view",)
    alone = digest([observation(objects=(seen("face", 3, frames=10), people))])
    assert alone.title == "Two people and three faces"


def test_people_are_named_first():
    cars = (seen("car", 3, frames=20), seen("person", 1, frames=20))
    only = observation(objects=cars, arrived=(*entities("car", 1, 2, 3), *entities("person", 4)), arrivals=4)
    assert digest([only]).activities == ("one person and three cars came into view",)


def test_c10_who_comes_again_is_not_counted_as_another():
    again = observation(
        objects=(seen("person", 1, frames=20),),
        arrived=entities("person", 2, 3, 4),
        arrivals=3,
        left=entities("person", 1, 2, 3),
        departures=3,
    )
    assert digest([again]).activities == ("people came into view three times", "people left three times")
    both = (seen("person", 2, frames=20),)
    together = observation(
        objects=both, arrived=entities("person", 2, 3), arrivals=2, left=entities("person", 1), departures=1
    )
    assert digest([together]).activities == ("two people came into view", "one person left")
    once = observation(arrived=entities("person", 2), arrivals=1, left=entities("person", 2), departures=1)
    assert digest([once]).activities == ("one person came into view", "one person left")


def test_many_comings_and_goings():
    only = observation(arrived=entities("car", *range(32)), arrivals=90, objects=(seen("car", 14, frames=20),))
    assert digest([only]).activities == ("cars came into view, at least 32 times in all",)


def test_the_same_observations_give_the_same_words_however_they_were_merged():
    from app.summary.observations import merge_evenly

    many = [
        observation(
            n * 10 + 1, 10, at_s=n, objects=(seen("person", n % 3 + 1, frames=10),), new_texts=(f"T{n}",), texts=1
        )
        for n in range(9)
    ]
    assert digest(many) == digest(merge_evenly(many, 4)) == digest(merge_evenly(many, 1))


@pytest.mark.parametrize(
    ("singular", "many"),
    [
        ("person", "people"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("wine glass", "wine glasses"),
        ("knife", "knives"),
        ("sheep", "sheep"),
        ("teddy bear", "teddy bears"),
        ("toothbrush", "toothbrushes"),
        ("toy", "toys"),
        ("lorry", "lorries"),
    ],
)
def test_plurals(singular, many):
    assert plural(singular) == many
    assert counted(1, singular) == f"one {singular}"


def test_lists_and_times():
    assert [listed([]), listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert [during(s) for s in (0.4, 2, 61, 119, 150, 180, 5400, 7300)] == [
        "for a moment",
        "in two seconds",
        "in 61 seconds",
        "in 119 seconds",
        "in two minutes and 30 seconds",
        "in three minutes",
        "in one hour and 30 minutes",
        "in two hours and two minutes",
    ]
