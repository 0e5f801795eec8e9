"""Summaries: the backlog of observations, summaries by source, and the language model's use of tokens."""

from __future__ import annotations

from panels import Dashboard, figure, graph, row

NOW = row(
    "Now",
    figure(
        "Waiting",
        "none",
        "Observations that wait in memory and on disk. Above 256 and growing: SightlineSummaryBacklogGrowing.",
        ("sightline:summary_backlog_items:sum", "observations"),
        warn=256,
    ),
    figure(
        "Summaries by rule",
        "percentunit",
        "Share of the summaries in the last 15 minutes that were made without the model. 100% without LLM_MODEL.",
        (
            'sum(increase(sightline_summaries_total{source="digest"}[15m]))'
            " / (sum(increase(sightline_summaries_total[15m])) > 0)",
            "digests",
        ),
    ),
    figure(
        "Circuit breaker",
        "none",
        "1 while the breaker is open and the service sends the model no requests. Mostly open for ten minutes: "
        "SightlineLlmBreakerOpen.",
        ("max(sightline_llm_breaker_open)", "breaker"),
        bad=1,
    ),
    figure("Answer time, p95", "s", "Of the language model.", ("sightline:llm_seconds:p95_5m", "p95"), warn=10),
    figure(
        "Interval",
        "s",
        "Mean time between two summaries of a session, worst process; it adapts to the backlog.",
        ("max(sightline_summary_interval_seconds)", "interval"),
    ),
    figure(
        "Tokens an hour",
        "short",
        "Input and output tokens; LLM_HOUR_TOKENS limits each process.",
        ("sum(increase(sightline_llm_tokens_total[1h]))", "tokens"),
    ),
)

BACKLOG = row(
    "Backlog",
    graph(
        "Observations that wait",
        "none",
        "In memory (SUMMARY_RAM_ITEMS a session at most), then on disk (10,000 a session at most).",
        ("sum by (where) (sightline_summary_backlog_items)", "{{where}}"),
        stacked=True,
    ),
    graph(
        "Bytes that wait",
        "bytes",
        "Limits: in memory 4 KiB for each of SUMMARY_RAM_ITEMS of a session, on disk SUMMARY_DISK_BYTES in all.",
        ("sum by (where) (sightline_summary_backlog_bytes)", "{{where}}"),
        stacked=True,
    ),
    graph(
        "Observations by outcome",
        "ops",
        "offered + adopted = taken + merged + dropped + kept + waiting. merged: combined with a neighbour. "
        "dropped: lost. kept: on disk for the next start.",
        ("sum by (outcome) (rate(sightline_summary_observations_total[$__rate_interval]))", "{{outcome}}"),
    ),
    graph(
        "Errors of the backlog's file",
        "none",
        "In the last 15 minutes. Any: SightlineSummaryDiskErrors.",
        ("sum by (reason) (increase(sightline_summary_disk_errors_total[15m]))", "{{reason}}"),
    ),
)

MODEL = row(
    "Summaries and the language model",
    graph(
        "Summaries",
        "ops",
        "By source (llm: written by the model; digest: made by rule) and outcome.",
        ("sum by (source, outcome) (rate(sightline_summaries_total[$__rate_interval]))", "{{source}}, {{outcome}}"),
        stacked=True,
    ),
    graph(
        "Requests to the language model",
        "ops",
        "By outcome. If an answer is rejected or does not parse, the service asks once more, then uses the digest.",
        ("sum by (outcome) (rate(sightline_llm_requests_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Answer time of the language model",
        "s",
        "A request ends after LLM_TIMEOUT_S. No frame waits for it.",
        (
            "histogram_quantile(0.50, sum by (le) (rate(sightline_llm_seconds_bucket[$__rate_interval])))",
            "p50",
        ),
        ("sightline:llm_seconds:p95_5m", "p95"),
    ),
    graph(
        "Tokens",
        "ops",
        "Tokens a second, which the provider bills.",
        ("sum by (direction) (rate(sightline_llm_tokens_total[$__rate_interval]))", "{{direction}}"),
        stacked=True,
    ),
    graph(
        "Interval",
        "s",
        "Mean time between two summaries of a session, from SUMMARY_MIN_INTERVAL_S to SUMMARY_MAX_INTERVAL_S.",
        ("max by (instance) (sightline_summary_interval_seconds)", "{{instance}}"),
    ),
    graph(
        "Circuit breaker",
        "none",
        "1 while the breaker is open.",
        ("max by (instance) (sightline_llm_breaker_open)", "{{instance}}"),
        most=1,
    ),
)

BOARD = Dashboard("Summaries", "The backlog, the summaries and the language model.", (NOW, BACKLOG, MODEL))
