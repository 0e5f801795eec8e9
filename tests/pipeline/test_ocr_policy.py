import numpy as np

from app.pipeline.stages.ocr.policy import OcrMemory, Text, changed_cells, due, has_changed, stage, text_cells
from app.pipeline.stages.ocr.process import restart_wait_s
from app.protocol.result import Stage

GREY = np.full((120, 160), 128, np.uint8)
TEXT = Text("EXIT", 0.9, ((20, 20), (150, 20), (150, 70), (20, 70)))
"""In a frame of 640x480."""


def patched(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    grey = GREY.copy()
    grey[y1:y2, x1:x2] += 60
    return grey


def test_change_is_the_share_of_cells_that_differ_clearly():
    assert changed_cells(GREY, GREY).mean() == 0.0
    assert changed_cells(GREY, patched(0, 0, 40, 120)).mean() == 0.25
    assert changed_cells(patched(0, 0, 40, 120), GREY).mean() == 0.25
    assert changed_cells(np.zeros_like(GREY), np.full_like(GREY, 255)).mean() == 1.0


def test_thin_strokes_count_with_the_cells_they_cross():
    stroke = patched(16, 40, 144, 41)
    assert np.count_nonzero(stroke != GREY) / GREY.size < 0.01
    assert changed_cells(GREY, stroke).mean() == 16 / 300


def test_a_change_counts_from_the_threshold_on():
    memory = read(100.0)
    quarter = patched(120, 0, 160, 120)
    assert has_changed(memory, quarter, threshold=0.25)
    assert not has_changed(memory, quarter, threshold=0.26)
    assert not has_changed(memory, GREY, threshold=0.0)


def test_where_text_stood_one_cell_is_enough():
    memory = read(100.0)
    assert not has_changed(memory, patched(120, 8, 123, 12), threshold=0.02)
    assert has_changed(memory, patched(8, 8, 11, 12), threshold=0.02)


def test_text_is_found_again_in_a_picture_of_odd_size():
    cells = text_cells([TEXT], 639, 481, (61, 81))
    assert cells.shape == (8, 11)
    assert cells.nonzero()[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert cells.nonzero()[1].tolist() == [0, 1, 2, 0, 1, 2]


def test_noise_is_no_change():
    noise = np.random.default_rng(7).normal(0, 5, GREY.shape)
    assert changed_cells(GREY, (GREY + noise).astype(np.uint8)).mean() == 0.0


def test_nothing_to_compare_is_a_change():
    assert changed_cells(None, GREY).mean() == 1.0
    assert changed_cells(GREY, None).mean() == 1.0
    assert changed_cells(GREY, GREY[:60]).mean() == 1.0
    assert changed_cells(GREY[:0], GREY[:0]).mean() == 1.0


def test_the_first_frame_is_due_at_once_and_a_pending_one_holds_back_the_next():
    memory = OcrMemory()
    assert due(memory, changed=True, min_interval_s=1.0, now=100.0)
    memory.ask(b"jpeg", GREY, 100.0)
    assert not due(memory, changed=True, min_interval_s=1.0, now=200.0)
    memory.begin()
    assert not due(memory, changed=True, min_interval_s=1.0, now=200.0)


def read(at: float) -> OcrMemory:
    memory = OcrMemory()
    memory.ask(b"jpeg", GREY, at)
    memory.begin()
    memory.succeed([TEXT], 640, 480)
    return memory


def test_a_change_is_due_but_never_sooner_than_the_interval():
    memory = read(100.0)
    assert not due(memory, changed=True, min_interval_s=1.0, now=100.9)
    assert due(memory, changed=True, min_interval_s=1.0, now=101.0)
    assert not due(memory, changed=False, min_interval_s=1.0, now=1000.0)


def test_a_failed_run_is_repeated_on_the_same_scene():
    memory = read(100.0)
    memory.fail("killed")
    assert not due(memory, changed=False, min_interval_s=1.0, now=100.5)
    assert due(memory, changed=False, min_interval_s=1.0, now=101.0)


def test_stages_tell_fresh_from_old_from_none_from_failed():
    memory = OcrMemory()
    memory.ask(b"jpeg", GREY, 100.0)
    assert stage(memory, changed=False, now=100.0) == Stage("skipped", "running")
    memory.begin()
    assert stage(memory, changed=False, now=100.1) == Stage("skipped", "running")
    memory.succeed([TEXT], 640, 480)
    assert stage(memory, changed=False, now=100.5) == Stage("ok")
    assert stage(memory, changed=True, now=100.5) == Stage("stale", "throttled", 500.0)
    memory.ask(b"jpeg", GREY, 101.0)
    assert stage(memory, changed=False, now=101.2) == Stage("stale", "running", 1200.0)
    memory.begin()
    memory.fail("no answer")
    assert stage(memory, changed=False, now=101.4) == Stage("error", "no answer")
    memory.ask(b"jpeg", GREY, 102.0)
    assert stage(memory, changed=False, now=102.0) == Stage("error", "no answer")


def test_the_age_is_that_of_the_picture_read_not_of_the_answer():
    memory = OcrMemory()
    memory.ask(b"old", GREY, 100.0)
    memory.ask(b"new", GREY, 103.0)
    assert memory.begin() == b"new"
    memory.succeed([], 640, 480)
    assert stage(memory, changed=True, now=104.0) == Stage("stale", "throttled", 1000.0)


def test_the_scene_outlives_the_callers_buffer():
    memory, grey = OcrMemory(), GREY.copy()
    memory.ask(b"jpeg", grey, 100.0)
    grey[:] = 0
    assert changed_cells(memory.scene, GREY).mean() == 0.0


def test_back_off_grows_and_is_bounded():
    assert restart_wait_s(0, 0) == 0.0
    assert [restart_wait_s(0, n) for n in (1, 2, 3, 5000)] == [0.5, 1.0, 2.0, 30.0]
    assert [restart_wait_s(n, 5) for n in (1, 2, 3, 5000)] == [5.0, 10.0, 20.0, 300.0]
