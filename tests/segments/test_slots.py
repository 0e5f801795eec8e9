"""The limit on segments at the backend."""

from __future__ import annotations

import random
import threading

from app.metrics import SEGMENTS_IN_FLIGHT
from app.segments.handler import Lease, Limiter


def gauge(backend: str) -> float:
    return float(SEGMENTS_IN_FLIGHT.labels(backend)._value.get())


def test_no_more_than_there_are() -> None:
    limiter = Limiter(2, "t1")
    assert limiter.acquire(0)
    assert limiter.acquire(0)
    assert not limiter.acquire(0.01)
    limiter.release()
    assert limiter.acquire(0)


def test_a_place_that_comes_free_is_taken_by_who_waits() -> None:
    limiter = Limiter(1, "t2")
    limiter.acquire(0)
    got: list[bool] = []
    waiting = threading.Thread(target=lambda: got.append(limiter.acquire(10)))
    waiting.start()
    limiter.release()
    waiting.join(10)
    assert got == [True]


def test_an_invocation_frees_its_place_once() -> None:
    limiter = Limiter(1, "t3")
    limiter.acquire(0)
    limiter.transfer("one")
    assert (limiter.in_flight, gauge("t3")) == (1, 1)
    assert not limiter.acquire(0)
    assert [
        limiter.release_invocation("one"),
        limiter.release_invocation("one"),
        limiter.release_invocation("another"),
    ] == [True, False, False]
    assert (limiter.in_flight, gauge("t3")) == (0, 0)
    assert limiter.acquire(0)
    assert not limiter.acquire(0), "freed twice it would have two"


def test_an_invocation_that_has_a_place_needs_no_second() -> None:
    limiter = Limiter(2, "t4")
    limiter.adopt(["one"])
    limiter.acquire(0)
    limiter.transfer("one")
    assert limiter.acquire(0)
    assert not limiter.acquire(0)


def test_more_may_be_open_than_there_are_places() -> None:
    limiter = Limiter(1, "t5")
    limiter.adopt(["one", "two"])
    assert limiter.in_flight == 2
    limiter.release_invocation("one")
    assert not limiter.acquire(0)
    limiter.release_invocation("two")
    assert limiter.acquire(0)


def test_who_waits_for_a_call_is_in_flight() -> None:
    limiter = Limiter(1, "t6")
    lease = Lease(limiter, threading.Event())
    assert lease.wait()
    assert limiter.in_flight == 0, "a place taken before a message is there is at no backend yet"
    with lease.calling():
        assert (limiter.in_flight, gauge("t6")) == (1, 1)
    lease.release()
    lease.release()
    assert limiter.acquire(0)
    assert not limiter.acquire(0), "given back twice it would have two"


def test_who_waits_for_a_place_hears_of_the_end() -> None:
    limiter, stopping = Limiter(1, "t7"), threading.Event()
    limiter.acquire(0)
    stopping.set()
    assert not Lease(limiter, stopping).wait()


def test_never_more_than_the_most_under_many_threads() -> None:
    limiter, busy, most, lock = Limiter(3, "t8"), 0, 0, threading.Lock()

    def work(seed: int) -> None:
        nonlocal busy, most
        chance = random.Random(seed)
        for turn in range(50):
            assert limiter.acquire(10)
            with lock:
                busy += 1
                most = max(most, busy)
            with lock:
                busy -= 1
            if chance.random() < 0.5:
                limiter.release()
            else:
                limiter.transfer(f"{seed}.{turn}")
                limiter.release_invocation(f"{seed}.{turn}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most <= 3
    assert [limiter.acquire(0) for _ in range(4)] == [True, True, True, False]
