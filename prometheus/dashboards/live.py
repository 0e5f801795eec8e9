"""Live: sessions, their frames, and the age of results. The first dashboard to look at."""

from __future__ import annotations

from panels import FPS, Dashboard, Variable, figure, graph, row

NOW = row(
    "Now",
    figure("Sessions", "none", "Active sessions.", ("sum(sightline_sessions_active)", "active")),
    figure(
        "Waiting",
        "none",
        "Sessions that wait for a slot. The service rejects those beyond MAX_WAITING.",
        ("sum(sightline_sessions_waiting)", "waiting"),
        warn=1,
    ),
    figure(
        "Results",
        FPS,
        "Results over the last five seconds, all entry points.",
        ("sum(sightline_pipeline_fps)", "results"),
    ),
    figure(
        "Age, p95",
        "s",
        "From receiving a frame to its result, worst entry point. Above 1 s for five minutes: SightlineFramesOld.",
        ('max(entry:sightline_frame_age_seconds:p95_5m{entry=~"$entry"})', "p95"),
        warn=0.5,
        bad=1,
    ),
    figure(
        "Dropped",
        "percentunit",
        "Share of dropped frames, worst entry point. Above 20% for ten minutes: SightlineFramesDropped.",
        ('max(entry:sightline_frames_dropped:share5m{entry=~"$entry"})', "dropped"),
        warn=0.05,
        bad=0.2,
    ),
    figure(
        "Last frame",
        "s",
        "Time since the last frame came in.",
        ("time() - max(sightline_last_activity_timestamp_seconds > 0)", "ago"),
    ),
    figure(
        "Alerts",
        "none",
        "Number of alerts that fire now.",
        ('count(ALERTS{alertname=~"Sightline.+", alertstate="firing"}) or vector(0)', "firing"),
        warn=1,
    ),
    figure(
        "Targets that answer",
        "percentunit",
        "Share of Prometheus' targets whose metrics it could read, by job.",
        ("avg by (job) (up)", "{{job}}"),
    ),
)

FRAMES = row(
    "Frames: received = processed + dropped + failed + in flight",
    graph(
        "Received and processed",
        FPS,
        "Frames that come in, and frames that get a result.",
        ('entry:sightline_frames_received:rate5m{entry=~"$entry"}', "received, {{entry}}"),
        ('entry:sightline_frames_processed:rate5m{entry=~"$entry"}', "processed, {{entry}}"),
    ),
    graph(
        "Dropped by reason",
        FPS,
        "superseded: a newer frame replaced it. stale: it waited longer than max_age_ms. slow_reader: the client reads "
        "too slowly. too_large, undecodable, rate_limited: the client sent invalid or too many frames.",
        ('entry_reason:sightline_frames_dropped:rate5m{entry=~"$entry"}', "{{reason}}, {{entry}}"),
        stacked=True,
    ),
    graph(
        "Failed by stage",
        FPS,
        "Frames that an error in the service ended. Read the log for each.",
        ('entry_stage:sightline_frames_failed:rate5m{entry=~"$entry"}', "{{stage}}, {{entry}}"),
        stacked=True,
    ),
    graph(
        "Dropped and failed, share",
        "percentunit",
        "Of the frames received.",
        ('entry:sightline_frames_dropped:share5m{entry=~"$entry"}', "dropped, {{entry}}"),
        ('entry:sightline_frames_failed:share5m{entry=~"$entry"}', "failed, {{entry}}"),
        most=1,
    ),
)

TIMES = row(
    "Time",
    graph(
        "Age of results",
        "s",
        "From receiving a frame to sending its result, for live sessions, the fleet and single images.",
        ('entry:sightline_frame_age_seconds:p50_5m{entry=~"$entry"}', "p50, {{entry}}"),
        ('entry:sightline_frame_age_seconds:p95_5m{entry=~"$entry"}', "p95, {{entry}}"),
        ('entry:sightline_frame_age_seconds:p99_5m{entry=~"$entry"}', "p99, {{entry}}"),
    ),
    graph(
        "Mean time by stage",
        "s",
        "queue: until the frame's turn. gate: waiting for the inference concurrency limit. infer: request to Triton.",
        ('entry_stage:sightline_stage_seconds:mean5m{entry=~"$entry", stage!="total"}', "{{stage}}, {{entry}}"),
        stacked=True,
    ),
    graph(
        "p95 by stage",
        "s",
        "One frame in twenty takes longer. total: from receiving a frame to its finished result.",
        ('entry_stage:sightline_stage_seconds:p95_5m{entry=~"$entry"}', "{{stage}}, {{entry}}"),
    ),
    graph(
        "Results a second",
        FPS,
        "Over the last five seconds, as each entry point counts them.",
        ('sum by (entry) (sightline_pipeline_fps{entry=~"$entry"})', "{{entry}}"),
    ),
)

TEXT = row(
    "Stages and text",
    graph(
        "Stage errors",
        "percentunit",
        "Share of results in which the stage failed. Above 10% for five minutes: SightlineStageFailing; ocr: "
        "SightlineOcrFailing.",
        ("stage:sightline_stage_errors:share5m", "{{stage}}"),
    ),
    graph(
        "OCR runs by outcome",
        "ops",
        "ok and empty are successes. timeout: ended after OCR_TIMEOUT_S. If more than half fail: SightlineOcrFailing.",
        ("sum by (outcome) (rate(sightline_ocr_runs_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Failed OCR runs",
        "percentunit",
        "Share in the last 15 minutes.",
        ("sightline:ocr_runs:failed_share15m", "failed"),
        most=1,
    ),
    graph(
        "Memory of the OCR process",
        "bytes",
        "It grows over time; the service replaces the process at OCR_MAX_RSS_MB or after 500 runs.",
        ("sum by (instance) (sightline_ocr_process_rss_bytes)", "{{instance}}"),
    ),
)

SESSIONS = row(
    "Sessions",
    graph(
        "Active and waiting",
        "none",
        "Sessions of all services.",
        ("sum(sightline_sessions_active)", "active"),
        ("sum(sightline_sessions_waiting)", "waiting"),
    ),
    graph(
        "Ended, by outcome",
        "ops",
        "stopped, disconnected and idle are normal. crashed is a bug in the service: SightlineSessionsCrashed.",
        ("sum by (outcome) (rate(sightline_sessions_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Rejected connections",
        "ops",
        "Missing or wrong tokens, origins that may not connect, too many sessions of one token or address.",
        ("sum by (reason) (rate(sightline_auth_failures_total[$__rate_interval]))", "{{reason}}"),
        stacked=True,
    ),
    graph(
        "Activity publish errors",
        "none",
        "Figures that CloudWatch did not take in the last 15 minutes; without figures the idle stop switches the "
        "machine off. Any: SightlineActivityUnpublished.",
        ("sum by (instance) (increase(sightline_activity_publish_errors_total[15m]))", "{{instance}}"),
    ),
)

BOARD = Dashboard(
    "Live",
    "Sessions, frames, the age of results, and the time of each stage.",
    (NOW, FRAMES, TIMES, TEXT, SESSIONS),
    (Variable("entry", "sightline_frames_received_total"),),
)
