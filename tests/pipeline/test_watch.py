"""Which models count as failing."""

from app.pipeline.models import ModelWatch


def test_c5_a_trial_that_fails_and_errors_for_two_deadlines():
    changes = []
    watch = ModelWatch(5, lambda: changes.append(dict(watch.failing)))
    watch.failed("yolo", "late", 0)
    watch.failed("yolo", "late", 9.9)
    assert watch.reason is None
    watch.answered("yolo")
    watch.failed("yolo", "late", 15)
    watch.failed("yolo", "late", 25)
    assert watch.failing == {"yolo": "late"}
    watch.failed("pose", "no such shape", 25, trial=True)
    assert watch.reason == "late; no such shape"
    watch.answered("yolo")
    watch.answered("pose")
    assert (watch.reason, len(changes)) == (None, 4)
