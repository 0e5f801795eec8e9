"""Places at the backend."""

from __future__ import annotations

import random
import threading

from app.metrics import SEGMENTS_IN_FLIGHT
from app.segments.place import Place
from app.segments.slots import Slots


def gauge(backend: str) -> float:
    return float(SEGMENTS_IN_FLIGHT.labels(backend)._value.get())


def test_no_more_than_there_are() -> None:
    slots = Slots(2, "t1")
    assert slots.take(0)
    assert slots.take(0)
    assert not slots.take(0.01)
    slots.give_back()
    assert slots.take(0)


def test_a_place_that_comes_free_is_taken_by_who_waits() -> None:
    slots = Slots(1, "t2")
    slots.take(0)
    got: list[bool] = []
    waiting = threading.Thread(target=lambda: got.append(slots.take(10)))
    waiting.start()
    slots.give_back()
    waiting.join(10)
    assert got == [True]


def test_an_invocation_frees_its_place_once() -> None:
    slots = Slots(1, "t3")
    slots.take(0)
    slots.hand_over("one")
    assert (slots.in_flight, gauge("t3")) == (1, 1)
    assert not slots.take(0)
    assert [slots.free("one"), slots.free("one"), slots.free("another")] == [True, False, False]
    assert (slots.in_flight, gauge("t3")) == (0, 0)
    assert slots.take(0)
    assert not slots.take(0), "freed twice it would have two"


def test_an_invocation_that_has_a_place_needs_no_second() -> None:
    slots = Slots(2, "t4")
    slots.adopt(["one"])
    slots.take(0)
    slots.hand_over("one")
    assert slots.take(0)
    assert not slots.take(0)


def test_more_may_be_open_than_there_are_places() -> None:
    slots = Slots(1, "t5")
    slots.adopt(["one", "two"])
    assert slots.in_flight == 2
    slots.free("one")
    assert not slots.take(0)
    slots.free("two")
    assert slots.take(0)


def test_who_waits_for_a_call_is_in_flight() -> None:
    slots = Slots(1, "t6")
    place = Place(slots, threading.Event())
    assert place.taken()
    assert slots.in_flight == 0, "a place taken before a message is there is at no backend yet"
    with place.at_work():
        assert (slots.in_flight, gauge("t6")) == (1, 1)
    place.give_back()
    place.give_back()
    assert slots.take(0)
    assert not slots.take(0), "given back twice it would have two"


def test_who_waits_for_a_place_hears_of_the_end() -> None:
    slots, stopping = Slots(1, "t7"), threading.Event()
    slots.take(0)
    stopping.set()
    assert not Place(slots, stopping).taken()


def test_never_more_than_the_most_under_many_threads() -> None:
    slots, busy, most, lock = Slots(3, "t8"), 0, 0, threading.Lock()

    def work(seed: int) -> None:
        nonlocal busy, most
        chance = random.Random(seed)
        for turn in range(50):
            assert slots.take(10)
            with lock:
                busy += 1
                most = max(most, busy)
            with lock:
                busy -= 1
            if chance.random() < 0.5:
                slots.give_back()
            else:
                slots.hand_over(f"{seed}.{turn}")
                slots.free(f"{seed}.{turn}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most <= 3
    assert [slots.take(0) for _ in range(4)] == [True, True, True, False]
