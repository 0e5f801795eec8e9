"""`fleet work`, end to end: frames from Redis, results in Kafka, none pending, every frame counted."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import redis as redis_library

from app.settings import ROOT
from tests.conftest import SLOW
from tests.fleet.conftest import Work
from tests.fleet.work import GROUP, add_frames, eventually, group_of, left_by_the_dead, pending
from tests.support import clip
from tests.support.ingest import entries, ingesting
from tests.support.redis import RedisServer
from tests.support.service import process


def test_every_frame_comes_out_once_and_in_its_cameras_order(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    sent = {f"cam-{number}": add_frames(redis, f"cam-{number}", [jpeg] * 10) for number in range(6)}
    fleet = work()
    values = fleet.values_once(60)
    assert len(values) == 60
    for camera, sent_ids in sent.items():
        assert [value["frame_id"] for value in values if value["key"] == camera] == sent_ids
    first = values[0]
    assert first["schema"] == "sightline.frame.v1"
    assert first["key"] == first["camera_id"]
    assert first["camera_type"] == "gate"
    assert first["error"] is None
    assert [found["class_name"] for found in first["objects"]] == ["person", "dog"]
    assert len(first["poses"]) == 1
    assert first["image"] == {"width": 640, "height": 480}
    assert first["stages"]["detect"]["status"] == first["stages"]["pose"]["status"] == "ok"
    assert first["stages"]["ocr"] == {"status": "disabled", "reason": "off", "age_ms": None}
    eventually(lambda: pending(redis), lambda count: count == 0, fleet)
    counts = fleet.counted(60)
    assert counts["received"] == counts["processed"] == 60


def test_the_part_of_a_stage_from_outside_reaches_kafka(
    work: Work, redis: redis_library.Redis, jpeg: bytes, tmp_path: Path
) -> None:
    broken = tmp_path / "plugins"
    shutil.copytree(ROOT / "examples" / "stages" / "average_colour", broken)
    (broken / "broken.py").write_text(
        "from app.pipeline.stage import Part, PipelineStage\n"
        "class Broken(PipelineStage):\n"
        "    name, title, description, part = 'broken', 'Broken', 'Fails.', Part('broken', list)\n"
        "    def write(self, state, batch):\n"
        "        raise ValueError('no idea')\n"
    )
    add_frames(redis, "cam-1", [jpeg] * 4)
    fleet = work(PLUGINS=str(broken), FLEET_STAGES="detect,track,average_colour,broken")
    values = fleet.values_once(4)
    for value in values:
        assert [colour["box"] for colour in value["colours"]] == [found["box"] for found in value["objects"]] != []
        assert value["stages"]["average_colour"]["status"] == "ok"
        assert value["stages"]["broken"] == {"status": "error", "reason": "ValueError: no idea", "age_ms": None}
        assert value["error"] is None
    assert fleet.counted(4) == {"received": 4, "processed": 4, "dropped": 0, "failed": 0}


def test_a_film_that_ingest_reads_comes_out_of_kafka_picture_by_picture(
    work: Work, redis: redis_library.Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    path = clip.write_mp4(tmp_path / "pan.mp4", clip.Pan(step=(2, 1), count=20).pictures(), fps=30)
    fleet = work()
    with ingesting(redis_server, f"gate={path}") as ingest:
        values = fleet.values_once(20)
        assert ingest.outbox.sent == {"gate": 20}
    assert [value["frame_id"].encode() for value in values] == [entry for entry, _ in redis.xrange("frames:gate")]
    assert {(value["key"], value["camera_type"], value["error"]) for value in values} == {("gate", "file", None)}
    sent = [float(fields[b"captured_at_ms"]) for fields in entries(redis, "gate")]
    assert [value["captured_at_ms"] for value in values] == sent == sorted(sent)
    counts = fleet.counted(20)
    assert counts["received"] == counts["processed"] == 20


def test_bad_and_stale_frames_are_counted_and_acknowledged(work: Work, redis: redis_library.Redis, jpeg: bytes) -> None:
    old_ms = (time.time() - 7200) * 1000
    good = add_frames(redis, "cam-1", [jpeg] * 97)
    add_frames(redis, "cam-1", [jpeg[:5000], b"no picture at all", b""])
    add_frames(redis, "cam-2", [jpeg] * 5, captured_at_ms=old_ms)
    fleet = work()
    values = fleet.values_once(97)
    eventually(lambda: pending(redis), lambda count: count == 0, fleet)
    assert [value["frame_id"] for value in values] == good
    counts = fleet.counted(105)
    assert counts == {"received": 105, "processed": 97, "dropped": 8, "failed": 0}
    samples = fleet.metrics()
    assert samples['sightline_frames_dropped_total{entry="fleet",reason="undecodable"}'] == 3
    assert samples['sightline_frames_dropped_total{entry="fleet",reason="stale"}'] == 5


def test_a_camera_that_comes_later_is_found_and_what_runs_is_up_to_the_operator(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    redis.set("frames:odd", "no stream")
    redis.sadd("fleet:cameras", "odd", "silent")
    fleet = work(FLEET_STAGES="detect,track,motion")
    assert "the stream frames:odd cannot be read: WRONGTYPE" in fleet.log
    add_frames(redis, "late", [jpeg] * 4)
    values = fleet.values_once(4)
    assert [value["stages"]["track"]["status"] for value in values] == ["ok"] * 4
    assert [value["stages"]["motion"]["status"] for value in values] == ["skipped", "ok", "ok", "ok"]
    assert {value["stages"]["pose"]["status"] for value in values} == {"disabled"}
    # The same person in every frame: one number from the second sighting on.
    assert len({value["objects"][0]["track_id"] for value in values[1:]}) == 1
    assert values[-1]["objects"][0]["track_id"] is not None
    redis.delete("frames:odd")
    add_frames(redis, "odd", [jpeg])  # mended: it is a camera from now on
    assert fleet.values_once(5)[-1]["key"] == "odd"
    redis.delete("frames:late")
    redis.set("frames:late", "no stream any more")
    add_frames(redis, "odd", [jpeg])
    assert len(fleet.values_once(6)) == 6


def test_frames_that_were_dropped_unread_are_no_lag(work: Work, redis: redis_library.Redis, jpeg: bytes) -> None:
    add_frames(redis, "cam", [jpeg])
    group_of(redis, "cam")
    (first,) = left_by_the_dead(redis, "cam", 1)
    redis.xack("frames:cam", GROUP, first)
    add_frames(redis, "cam", [jpeg] * 30)
    redis.xtrim("frames:cam", maxlen=5, approximate=False)
    fleet = work()
    assert len(fleet.values_once(5)) == 5
    # Redis 7.0 itself goes on counting the 25 that nobody will ever read.
    eventually(lambda: fleet.metrics()["sightline_fleet_lag_frames"], lambda lag: lag == 0, fleet)
    add_frames(redis, "cam", [jpeg] * 3)
    assert len(fleet.values_once(8)) == 8
    eventually(lambda: fleet.metrics()["sightline_fleet_lag_frames"], lambda lag: lag == 0, fleet)


def test_a_stop_leaves_nothing_pending(work: Work, redis: redis_library.Redis, jpeg: bytes) -> None:
    for number in range(40):
        add_frames(redis, f"cam-{number}", [jpeg] * 3)
    # 0.3 s a batch of 2; how many are in hand then is looked at in test_worker.
    fleet = work(**SLOW, BATCH_SIZE="2")
    eventually(lambda: pending(redis), lambda held: held >= 2, fleet)
    fleet.process.send_signal(signal.SIGTERM)
    assert fleet.process.wait(30) == 0
    assert pending(redis) == 0
    read = sum(redis.xinfo_groups(f"frames:cam-{number}")[0]["entries-read"] or 0 for number in range(40))
    values = fleet.values()
    assert len(values) == read < 120
    assert len({(value["key"], value["frame_id"]) for value in values}) == read
    assert all(not redis.xinfo_consumers(f"frames:cam-{number}", GROUP) for number in range(40))


def test_a_worker_that_finishes_what_is_in_hand_has_given_its_cameras_away(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    add_frames(redis, "cam", [jpeg] * 3)
    fleet = work(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", DRAIN_TIMEOUT_S="30", FLEET_DISCOVER_S="20")
    eventually(lambda: pending(redis), lambda count: count == 3, fleet)
    workers = f"fleet:workers:{GROUP}"
    assert redis.zcard(workers) == 1
    fleet.process.send_signal(signal.SIGTERM)
    eventually(lambda: redis.zcard(workers), lambda count: count == 0, fleet)
    assert fleet.process.poll() is None
    assert pending(redis) == 3


def test_a_burst_is_taken_in_larger_batches_and_kafkas_full_queue_is_waited_for(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    fleet = work(KAFKA_OPTIONS='{"queue.buffering.max.messages": 10, "linger.ms": 20}')
    for camera in range(8):
        add_frames(redis, f"cam-{camera}", [jpeg] * 50)
    values = fleet.values_once(400)
    assert len(values) == 400
    for camera in range(8):
        ids = [value["frame_id"] for value in values if value["key"] == f"cam-{camera}"]
        assert ids == sorted(ids, key=lambda entry: tuple(map(int, entry.split("-"))))
    assert fleet.counted(400)["processed"] == 400
    # Stages' times are added up before they are written, and none is lost.
    samples = fleet.metrics()
    assert samples['sightline_stage_seconds_count{entry="fleet",stage="decode"}'] == 400
    assert samples['sightline_frame_age_seconds_count{entry="fleet"}'] == 400
    assert samples['sightline_model_frames_total{model="yolo"}'] == 400
    large = fleet.metrics()['sightline_model_batch_size_bucket{le="4.0",model="vision"}']
    every = fleet.metrics()['sightline_model_batch_size_count{model="vision"}']
    assert large < every


def test_in_mode_sync_with_batches_of_one_frame_the_results_are_the_same(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    sent = {f"cam-{number}": add_frames(redis, f"cam-{number}", [jpeg] * 8) for number in range(4)}
    add_frames(redis, "cam-0", [b"broken"])
    fleet = work(FLEET_MODE="sync", FLEET_STAGES="detect,pose,motion")
    values = fleet.values_once(32)
    for camera, sent_ids in sent.items():
        assert [value["frame_id"] for value in values if value["key"] == camera] == sent_ids
    assert all([found["class_name"] for found in value["objects"]] == ["person", "dog"] for value in values)
    assert sum(value["stages"]["motion"]["status"] == "ok" for value in values) == 28
    eventually(lambda: pending(redis), lambda count: count == 0, fleet)
    counts = fleet.counted(33)
    assert counts == {"received": 33, "processed": 32, "dropped": 1, "failed": 0}
    fleet.process.send_signal(signal.SIGTERM)
    assert fleet.process.wait(30) == 0


def test_settings_that_cannot_be_are_told_in_one_line(redis_server: RedisServer, tmp_path: Path) -> None:
    given = {"REDIS_URL": redis_server.url, "TRITON_URL": "127.0.0.1:1", "FLEET_STAGES": "detect,smell"}
    with process(["fleet", "work"], given, tmp_path / "refused.log") as child:
        assert child.wait(30) == 2
    (line,) = (tmp_path / "refused.log").read_text().splitlines()
    assert line == (
        "sightline: FLEET_STAGES='detect,smell': should be out of detect, pose, ocr, motion, track, face, segment, "
        "obb, classify, comma-separated; not smell"
    )
