"""Live: how sessions and their frames fare. The first dashboard to look at."""

from __future__ import annotations

from panels import FPS, Dashboard, Variable, figure, graph, row

NOW = row(
    "Now",
    figure("Sessions", "none", "Sessions being served.", ("sum(sightline_sessions_active)", "active")),
    figure(
        "Waiting room",
        "none",
        "Sessions that wait for a slot. More than MAX_WAITING are rejected.",
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
        "From received to answered, the worst entry point. Above 1 s for five minutes: SightlineFramesOld.",
        ('max(entry:sightline_frame_age_seconds:p95_5m{entry=~"$entry"})', "p95"),
        warn=0.5,
        bad=1,
    ),
    figure(
        "Dropped",
        "percentunit",
        "Share of frames given up on purpose, at the worst entry. Above 20% for ten minutes: SightlineFramesDropped.",
        ('max(entry:sightline_frames_dropped:share5m{entry=~"$entry"})', "dropped"),
        warn=0.05,
        bad=0.2,
    ),
    figure(
        "Last frame",
        "s",
        "How long ago the last frame came in; what the idle stop looks at.",
        ("time() - max(sightline_last_activity_timestamp_seconds > 0)", "ago"),
    ),
    figure(
        "Alerts",
        "none",
        "Alerts that fire now, all of them.",
        ('count(ALERTS{alertname=~"Sightline.+", alertstate="firing"}) or vector(0)', "firing"),
        warn=1,
    ),
    figure(
        "Targets that answer",
        "percentunit",
        "Share of what Prometheus reads that could be read.",
        ("avg by (job) (up)", "{{job}}"),
    ),
)

FRAMES = row(
    "Frames: received = processed + dropped + failed + in flight",
    graph(
        "Received and processed",
        FPS,
        "What comes in, and what is answered with a result.",
        ('entry:sightline_frames_received:rate5m{entry=~"$entry"}', "received, {{entry}}"),
        ('entry:sightline_frames_processed:rate5m{entry=~"$entry"}', "processed, {{entry}}"),
    ),
    graph(
        "Dropped by reason",
        FPS,
        "superseded: a newer frame came. stale: waited beyond max_age_ms. slow_reader: the client does not read. "
        "too_large, undecodable, rate_limited: the client's doing.",
        ('entry_reason:sightline_frames_dropped:rate5m{entry=~"$entry"}', "{{reason}}, {{entry}}"),
        stacked=True,
    ),
    graph(
        "Failed by stage",
        FPS,
        "Frames that ended in an error of ours. Any is worth a look into the log.",
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
        "From received to answered. The fleet's and single pictures' are beside those of live sessions.",
        ('entry:sightline_frame_age_seconds:p50_5m{entry=~"$entry"}', "p50, {{entry}}"),
        ('entry:sightline_frame_age_seconds:p95_5m{entry=~"$entry"}', "p95, {{entry}}"),
        ('entry:sightline_frame_age_seconds:p99_5m{entry=~"$entry"}', "p99, {{entry}}"),
    ),
    graph(
        "Mean time by stage",
        "s",
        "Where a frame's time goes. queue: before its turn; gate: before a request to Triton; infer: at Triton.",
        ('entry_stage:sightline_stage_seconds:mean5m{entry=~"$entry", stage!="total"}', "{{stage}}, {{entry}}"),
        stacked=True,
    ),
    graph(
        "p95 by stage",
        "s",
        "One frame in twenty takes longer. total: from received to the finished result.",
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
        "Stages that said error",
        "percentunit",
        "Share of answered frames. Above 10% for five minutes: SightlineStageFailing; ocr has an alert of its own.",
        ("stage:sightline_stage_errors:share5m", "{{stage}}"),
    ),
    graph(
        "Text readings by outcome",
        "ops",
        "ok and empty are well. timeout: killed after OCR_TIMEOUT_S. More than half failing: SightlineOcrFailing.",
        ("sum by (outcome) (rate(sightline_ocr_runs_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Text readings that fail",
        "percentunit",
        "Share over the last quarter of an hour.",
        ("sightline:ocr_runs:failed_share15m", "failed"),
        most=1,
    ),
    graph(
        "Memory of the OCR process",
        "bytes",
        "It grows, and the process is replaced at OCR_MAX_RSS_MB or after 500 runs.",
        ("sum by (instance) (sightline_ocr_process_rss_bytes)", "{{instance}}"),
    ),
)

SESSIONS = row(
    "Sessions",
    graph(
        "Active and waiting",
        "none",
        "Over all services.",
        ("sum(sightline_sessions_active)", "active"),
        ("sum(sightline_sessions_waiting)", "waiting"),
    ),
    graph(
        "Ended, by how",
        "ops",
        "stopped, disconnected and idle are everyday. crashed is a bug of ours: SightlineSessionsCrashed.",
        ("sum by (outcome) (rate(sightline_sessions_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Turned away",
        "ops",
        "Missing or wrong tokens, origins that may not connect, too many sessions of one token or address.",
        ("sum by (reason) (rate(sightline_auth_failures_total[$__rate_interval]))", "{{reason}}"),
        stacked=True,
    ),
    graph(
        "Activity figures not taken",
        "none",
        "By CloudWatch, in the last quarter of an hour; the idle stop would switch the machine off. "
        "Any: SightlineActivityUnpublished.",
        ("sum by (instance) (increase(sightline_activity_publish_errors_total[15m]))", "{{instance}}"),
    ),
)

BOARD = Dashboard(
    "Live",
    "Sessions, frames, their age and where their time goes.",
    (NOW, FRAMES, TIMES, TEXT, SESSIONS),
    (Variable("entry", "sightline_frames_received_total"),),
)
