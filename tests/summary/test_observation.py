"""Observation: damage of a record is detected, and merging loses no count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.summary import Entity, ObjectCount, Observation
from app.summary.observations import ENTITIES, TEXTS, DamagedRecord, merge
from tests.support.observations import observations, observed


@given(observations)
def test_a_record_gives_back_the_observation(original: Observation) -> None:
    record = original.encode()
    assert Observation.decode(record) == original
    assert original.size == len(record)


@given(observations, st.data())
def test_a_torn_record_is_named(original: Observation, data: st.DataObject) -> None:
    record = original.encode()
    with pytest.raises(DamagedRecord):
        Observation.decode(record[: data.draw(st.integers(0, len(record) - 1))])


@given(observations, st.data())
def test_an_altered_record_is_named(original: Observation, data: st.DataObject) -> None:
    record = bytearray(original.encode())
    record[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DamagedRecord):
        Observation.decode(bytes(record))


@given(st.binary())
def test_foreign_bytes_are_named(data: bytes) -> None:
    with pytest.raises(DamagedRecord):
        Observation.decode(data)


def test_a_record_of_another_version_says_so() -> None:
    record = observed(1).encode()
    with pytest.raises(DamagedRecord, match="begins with b'o1', not with b'o2'"):
        Observation.decode(b"o2" + record[2:])


@given(observations, observations, observations)
def test_folding_may_be_grouped_in_any_way(a: Observation, b: Observation, c: Observation) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(st.lists(observations, min_size=1, max_size=6))
def test_folding_conserves_what_was_counted(many: list[Observation]) -> None:
    whole = many[0]
    for later in many[1:]:
        whole = merge(whole, later)
    assert whole.frames == sum(part.frames for part in many)
    assert whole.arrivals == sum(part.arrivals for part in many)
    assert whole.departures == sum(part.departures for part in many)
    assert whole.texts == sum(part.texts for part in many)
    assert sum(count.boxes for count in whole.objects) == sum(count.boxes for part in many for count in part.objects)
    assert (whole.first_frame_id, whole.last_frame_id) == (many[0].first_frame_id, many[-1].last_frame_id)


def test_classes_are_added_up_and_the_most_at_once_stays() -> None:
    a = Observation(1, 10, 0, 900, 10, objects=(ObjectCount("person", 2, 10, 15, 12_000),))
    b = Observation(
        11, 20, 1000, 1900, 10, objects=(ObjectCount("dog", 1, 3, 3, 1_500), ObjectCount("person", 1, 5, 5, 3_000))
    )
    person, dog = merge(a, b).objects
    assert person == ObjectCount("person", 2, 15, 20, 15_000)
    assert person.confidence == 0.75
    assert dog.class_name == "dog"


def test_lists_are_capped_and_totals_are_not() -> None:
    def second(number: int) -> Observation:
        return Observation(
            number,
            number,
            0,
            0,
            1,
            arrived=(Entity(number, "car"),),
            arrivals=1,
            left=(Entity(number, "car"),),
            departures=1,
            new_texts=(f"plate {number}",),
            texts=1,
        )

    whole = second(1)
    for number in range(2, 101):
        whole = merge(whole, second(number))
    assert [entity.number for entity in whole.arrived] == list(range(1, ENTITIES + 1))
    assert [entity.number for entity in whole.left] == list(range(1, ENTITIES + 1))
    assert whole.new_texts == tuple(f"plate {number}" for number in range(1, TEXTS + 1))
    assert (whole.arrivals, whole.departures, whole.texts) == (100, 100, 100)


def test_a_folded_hour_is_hardly_larger_than_a_second() -> None:
    whole = observed(1)
    for number in range(2, 3601):
        whole = merge(whole, observed(number))
    assert whole.frames == 3600
    assert whole.size < 1500
