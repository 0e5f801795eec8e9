"""Fleet: cameras in, batches, results out."""

from __future__ import annotations

from panels import FPS, Dashboard, figure, graph, row

NOW = row(
    "Now",
    figure("Cameras", "none", "Cameras that the workers read.", ("sum(sightline_fleet_cameras)", "cameras")),
    figure(
        "Lag",
        "none",
        "Frames in Redis that no worker has read yet. If they wait and none is processed: SightlineFleetStalled.",
        ("sum(sightline_fleet_lag_frames)", "frames"),
    ),
    figure("Workers", "none", "Worker processes that answer Prometheus.", ('sum(up{job="fleet-worker"})', "workers")),
    figure(
        "Results",
        FPS,
        "Results that Kafka has and whose frames are acknowledged in Redis.",
        ("sightline:fleet_frames_processed:rate5m", "frames"),
    ),
    figure(
        "Lost",
        FPS,
        "Frames lost before inference. Above 2 a second while fewer are processed than come in: SightlineFleetTooSlow.",
        ("sightline:fleet_frames_lost:rate5m", "frames"),
        warn=0.1,
        bad=2,
    ),
    figure(
        "Dead letters",
        "none",
        "Frames moved to the stream frames:dead after FLEET_MAX_DELIVERIES deliveries, in the last hour.",
        ("sum(increase(sightline_fleet_dead_letters_total[1h]))", "frames"),
        bad=1,
    ),
)

INGEST = row(
    "Cameras to Redis",
    graph(
        "Sources by state",
        "none",
        "retrying: the source is lost; ingest reopens it with growing pauses. For ten minutes: SightlineCameraLost.",
        ("sum by (state) (sightline_ingest_sources)", "{{state}}"),
        stacked=True,
    ),
    graph(
        "Frames read, by outcome",
        FPS,
        "sampled_out: above the sampling rate (INGEST_FPS, lower with a lag). superseded: a newer frame replaced it. "
        "redis_away, refused: Redis did not take it.",
        ("sum by (outcome) (rate(sightline_ingest_frames_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Sources reopened",
        "none",
        "In the last 15 minutes.",
        ("sum by (instance) (increase(sightline_ingest_reconnects_total[15m]))", "{{instance}}"),
    ),
    graph(
        "Lag",
        "none",
        "Frames of all cameras that no worker has read yet. Redis keeps INGEST_MAXLEN of each camera.",
        ("sum(sightline_fleet_lag_frames)", "frames"),
    ),
)

WORK = row(
    "Workers",
    graph(
        "In and out",
        FPS,
        "input: put into Redis. processed: their results are in Kafka. lost: not read in time, or too old when read.",
        ("sightline:fleet_frames_input:rate5m", "input"),
        ("sightline:fleet_frames_processed:rate5m", "processed"),
        ("sightline:fleet_frames_lost:rate5m", "lost"),
    ),
    graph(
        "Dropped and failed",
        FPS,
        "stale: older than FRAME_STALENESS_MS, or skipped for newer frames. trimmed: Redis removed the frame (MAXLEN).",
        ('entry_reason:sightline_frames_dropped:rate5m{entry="fleet"}', "{{reason}}"),
        ('entry_stage:sightline_frames_failed:rate5m{entry="fleet"}', "failed in {{stage}}"),
        stacked=True,
    ),
    graph(
        "Batch fill",
        "percentunit",
        "Frames of a batch divided by the largest batch size. If batches are full and the lag stays: add workers.",
        ("avg by (instance) (sightline_fleet_batch_fill_ratio)", "{{instance}}"),
        most=1,
    ),
    graph(
        "Age of results",
        "s",
        "From capture to delivery to Kafka.",
        ('entry:sightline_frame_age_seconds:p50_5m{entry="fleet"}', "p50"),
        ('entry:sightline_frame_age_seconds:p95_5m{entry="fleet"}', "p95"),
        ('entry:sightline_frame_age_seconds:p99_5m{entry="fleet"}', "p99"),
    ),
    graph(
        "Mean time by stage",
        "s",
        "How long a frame spends in each stage of a worker.",
        ('entry_stage:sightline_stage_seconds:mean5m{entry="fleet", stage!="total"}', "{{stage}}"),
        stacked=True,
    ),
    graph(
        "Cameras of each worker",
        "none",
        "Cameras that each worker reads.",
        ("sum by (instance) (sightline_fleet_cameras)", "{{instance}}"),
    ),
)

FAULTS = row(
    "Faults",
    graph(
        "Kafka errors",
        "ops",
        "Errors of Kafka's client, by reason. For five minutes: SightlineKafkaErrors.",
        ("sum by (reason) (rate(sightline_kafka_publish_errors_total[$__rate_interval]))", "{{reason}}"),
        stacked=True,
    ),
    graph(
        "Reclaimed frames and dead letters",
        "none",
        "In the last 15 minutes: frames that another worker left pending and workers claimed, and dead letters.",
        ("sum(increase(sightline_fleet_pending_reclaimed_total[15m]))", "reclaimed"),
        ("sum(increase(sightline_fleet_dead_letters_total[15m]))", "dead letters"),
    ),
)

RECORDED = row(
    "Recorded video",
    graph(
        "Segments",
        "ops",
        "By backend and outcome.",
        ("sum by (backend, outcome) (rate(sightline_segments_total[$__rate_interval]))", "{{backend}}, {{outcome}}"),
        stacked=True,
    ),
    graph(
        "Segments in flight",
        "none",
        "Segments that the backend analyses now; INFERENCE_MAX_IN_FLIGHT at most.",
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
        "By queue and outcome.",
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
