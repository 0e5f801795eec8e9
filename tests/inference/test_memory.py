"""Slots that batches of different sizes share."""

from __future__ import annotations

import numpy as np
import pytest

from app.inference.client import ModelSpec, TensorSpec
from app.inference.shared_memory import DTYPES, Pool, Region, item_bytes, pooled_shape
from app.inference.triton import shared_request

SPEC = ModelSpec(
    "vision",
    "1",
    (TensorSpec("images", "UINT8", (-1, 64, 64, 3)),),
    (TensorSpec("detections", "FP32", (-1, 300, 6)), TensorSpec("poses", "FP32", (-1, 300, 57))),
    16,
)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_smaller_batch_is_answered_behind_the_room_of_a_whole_one(count: int) -> None:
    """What it does not use still holds borders that nobody paints again."""
    whole = pooled_shape((4, 64, 64, 3))
    pool = Pool(whole, DTYPES["UINT8"], output_bytes=2 * 4 * item_bytes(SPEC))
    region = Region(pool.slot_bytes, 1)
    region.unlink()
    pool.add(region)
    buffer = pool.take(count)
    assert buffer.array.shape == (count, 64, 64, 3)
    for _ in range(2):  # as two models on one buffer are asked
        _, placed, buffer.cursor = shared_request(SPEC, buffer)
        assert {name: shape for name, (_, shape) in placed.items()} == {
            "detections": (count, 300, 6),
            "poses": (count, 300, 57),
        }
        assert min(offset for offset, _ in placed.values()) >= np.prod(whole)
    assert buffer.cursor <= region.slot_bytes
    buffer.release()


def test_d7_a_slot_that_rests_is_lent_again_once_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool((1, 64, 64, 3), DTYPES["UINT8"], output_bytes=0)
    region = Region(pool.slot_bytes, 1)
    region.unlink()
    pool.add(region)
    now = 1000.0
    monkeypatch.setattr("app.inference.shared_memory.time.monotonic", lambda: now)
    buffer = pool.take(1)
    slot = buffer.slot
    buffer.hold()
    buffer.rest(60.0)
    buffer.release()
    assert pool.take(1).slot is None  # somebody holds it still
    now = 1030.0
    buffer.release()
    now = 1089.0
    assert pool.take(1).slot is None
    now = 1090.0
    buffer = pool.take(1)
    assert slot is not None
    assert buffer.slot is slot
    buffer.release()
    assert pool.take(1).slot is slot  # it rests no more
