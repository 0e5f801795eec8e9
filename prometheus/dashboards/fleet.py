"""Fleet: cameras in, batches, results out."""

from __future__ import annotations

from panels import FPS, Dashboard, figure, graph, row

NOW = row(
    "Now",
    figure("Cameras", "none", "That the workers read.", ("sum(sightline_fleet_cameras)", "cameras")),
    figure(
        "Lag",
        "none",
        "Frames in Redis that no worker was given yet. Waiting and none answered: SightlineFleetStalled.",
        ("sum(sightline_fleet_lag_frames)", "frames"),
    ),
    figure("Workers", "none", "Worker processes that answer Prometheus.", ('sum(up{job="fleet-worker"})', "workers")),
    figure(
        "Results",
        FPS,
        "Answered to Kafka and acknowledged.",
        ("sightline:fleet_frames_processed:rate5m", "frames"),
    ),
    figure(
        "Lost",
        FPS,
        "Before inference. Above 2 a second while fewer are answered than come: SightlineFleetTooSlow.",
        ("sightline:fleet_frames_lost:rate5m", "frames"),
        warn=0.1,
        bad=2,
    ),
    figure(
        "Dead letters",
        "none",
        "Frames given up after FLEET_MAX_DELIVERIES tries, last hour. They are in the stream frames:dead.",
        ("sum(increase(sightline_fleet_dead_letters_total[1h]))", "frames"),
        bad=1,
    ),
)

INGEST = row(
    "Cameras to Redis",
    graph(
        "Sources by state",
        "none",
        "retrying: lost, and tried again with growing pauses. Ten minutes of it: SightlineCameraLost.",
        ("sum by (state) (sightline_ingest_sources)", "{{state}}"),
        stacked=True,
    ),
    graph(
        "Frames read, by what became of them",
        FPS,
        "sampled_out: left out on purpose (INGEST_FPS, less with a lag). redis_away, refused: not taken.",
        ("sum by (outcome) (rate(sightline_ingest_frames_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Sources opened again",
        "none",
        "In the last quarter of an hour.",
        ("sum by (instance) (increase(sightline_ingest_reconnects_total[15m]))", "{{instance}}"),
    ),
    graph(
        "Lag",
        "none",
        "Frames that the group was not given yet, all cameras. Redis keeps INGEST_MAXLEN of each.",
        ("sum(sightline_fleet_lag_frames)", "frames"),
    ),
)

WORK = row(
    "Workers",
    graph(
        "In and out",
        FPS,
        "input: put into Redis. processed: answered. lost: never read in time, or too old when read.",
        ("sightline:fleet_frames_input:rate5m", "input"),
        ("sightline:fleet_frames_processed:rate5m", "processed"),
        ("sightline:fleet_frames_lost:rate5m", "lost"),
    ),
    graph(
        "Dropped and failed",
        FPS,
        "stale: older than FRAME_STALENESS_MS when read. trimmed: Redis let go of it while it was pending.",
        ('entry_reason:sightline_frames_dropped:rate5m{entry="fleet"}', "{{reason}}"),
        ('entry_stage:sightline_frames_failed:rate5m{entry="fleet"}', "failed in {{stage}}"),
        stacked=True,
    ),
    graph(
        "Batches, how full",
        "percentunit",
        "Frames in a batch over BATCH_SIZE. Always full with a lag: more workers.",
        ("avg by (instance) (sightline_fleet_batch_fill_ratio)", "{{instance}}"),
        most=1,
    ),
    graph(
        "Age of results",
        "s",
        "From captured to delivered to Kafka.",
        ('entry:sightline_frame_age_seconds:p50_5m{entry="fleet"}', "p50"),
        ('entry:sightline_frame_age_seconds:p95_5m{entry="fleet"}', "p95"),
        ('entry:sightline_frame_age_seconds:p99_5m{entry="fleet"}', "p99"),
    ),
    graph(
        "Mean time by stage",
        "s",
        "Where a frame's time goes in a worker.",
        ('entry_stage:sightline_stage_seconds:mean5m{entry="fleet", stage!="total"}', "{{stage}}"),
        stacked=True,
    ),
    graph(
        "Cameras of each worker",
        "none",
        "How the cameras are spread over the workers.",
        ("sum by (instance) (sightline_fleet_cameras)", "{{instance}}"),
    ),
)

FAULTS = row(
    "Faults",
    graph(
        "Kafka did not take",
        "ops",
        "Five minutes of it: SightlineKafkaErrors.",
        ("sum by (reason) (rate(sightline_kafka_publish_errors_total[$__rate_interval]))", "{{reason}}"),
        stacked=True,
    ),
    graph(
        "Taken over and given up",
        "none",
        "In the last quarter of an hour: frames of workers that died, and dead letters.",
        ("sum(increase(sightline_fleet_pending_reclaimed_total[15m]))", "taken over"),
        ("sum(increase(sightline_fleet_dead_letters_total[15m]))", "dead letters"),
    ),
)

RECORDED = row(
    "Recorded video",
    graph(
        "Segments",
        "ops",
        "By who analyses them and how it went.",
        ("sum by (backend, outcome) (rate(sightline_segments_total[$__rate_interval]))", "{{backend}}, {{outcome}}"),
        stacked=True,
    ),
    graph(
        "Segments in flight",
        "none",
        "At the backend; INFERENCE_MAX_IN_FLIGHT at most.",
        ("sum by (backend) (sightline_segments_in_flight)", "{{backend}}"),
    ),
    graph(
        "Time of a segment",
        "s",
        "From its invocation to its completion.",
        (
            "histogram_quantile(0.50, sum by (backend, le) (rate(sightline_segment_seconds_bucket[15m])))",
            "p50, {{backend}}",
        ),
        (
            "histogram_quantile(0.95, sum by (backend, le) (rate(sightline_segment_seconds_bucket[15m])))",
            "p95, {{backend}}",
        ),
    ),
    graph(
        "Queue messages",
        "ops",
        "By queue and what became of them.",
        (
            "sum by (queue, outcome) (rate(sightline_segment_messages_total[$__rate_interval]))",
            "{{queue}}, {{outcome}}",
        ),
        stacked=True,
    ),
)

BOARD = Dashboard(
    "Fleet", "Cameras, lag, batches, workers, Kafka; recorded video.", (NOW, INGEST, WORK, FAULTS, RECORDED)
)
