"""Summaries: what waits, what is written by whom, and what the language model costs."""

from __future__ import annotations

from panels import Dashboard, figure, graph, row

NOW = row(
    "Now",
    figure(
        "Waiting",
        "none",
        "Observations in memory and on disk. Above 256 and growing: SightlineSummaryBacklogGrowing.",
        ("sightline:summary_backlog_items:sum", "observations"),
        warn=256,
    ),
    figure(
        "By rule instead of model",
        "percentunit",
        "Share of the last quarter of an hour's summaries that are digests. 100% with no LLM_MODEL set.",
        (
            'sum(increase(sightline_summaries_total{source="digest"}[15m]))'
            " / (sum(increase(sightline_summaries_total[15m])) > 0)",
            "digests",
        ),
    ),
    figure(
        "Model left alone",
        "none",
        "1 while the breaker is open. Mostly open for ten minutes: SightlineLlmBreakerOpen.",
        ("max(sightline_llm_breaker_open)", "breaker"),
        bad=1,
    ),
    figure("Answer time, p95", "s", "Of the language model.", ("sightline:llm_seconds:p95_5m", "p95"), warn=10),
    figure(
        "Interval",
        "s",
        "Between two summaries of a session, the mean; it adapts to the backlog.",
        ("max(sightline_summary_interval_seconds)", "interval"),
    ),
    figure(
        "Tokens an hour",
        "short",
        "In and out; bounded by LLM_HOUR_TOKENS in each process.",
        ("sum(increase(sightline_llm_tokens_total[1h]))", "tokens"),
    ),
)

BACKLOG = row(
    "Backlog",
    graph(
        "Observations that wait",
        "none",
        "Memory first, then disk (SUMMARY_RAM_ITEMS, then 10,000 on disk).",
        ("sum by (where) (sightline_summary_backlog_items)", "{{where}}"),
        stacked=True,
    ),
    graph(
        "Bytes that wait",
        "bytes",
        "4 KiB for each of SUMMARY_RAM_ITEMS a session, SUMMARY_DISK_BYTES in all.",
        ("sum by (where) (sightline_summary_backlog_bytes)", "{{where}}"),
        stacked=True,
    ),
    graph(
        "What became of observations",
        "ops",
        "offered = taken + merged + dropped + still there. merged: neighbours were folded into one. dropped: lost.",
        ("sum by (outcome) (rate(sightline_summary_observations_total[$__rate_interval]))", "{{outcome}}"),
    ),
    graph(
        "Trouble with the file",
        "none",
        "In the last quarter of an hour. Any: SightlineSummaryDiskErrors.",
        ("sum by (reason) (increase(sightline_summary_disk_errors_total[15m]))", "{{reason}}"),
    ),
)

MODEL = row(
    "Summaries and the language model",
    graph(
        "Summaries",
        "ops",
        "llm: written by the model; digest: made by rule. By how they went.",
        ("sum by (source, outcome) (rate(sightline_summaries_total[$__rate_interval]))", "{{source}}, {{outcome}}"),
        stacked=True,
    ),
    graph(
        "Requests to the language model",
        "ops",
        "By how they ended. What is refused or does not parse is asked once more, then the digest serves.",
        ("sum by (outcome) (rate(sightline_llm_requests_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "Answer time of the language model",
        "s",
        "A request ends after LLM_TIMEOUT_S. No frame ever waits for it.",
        (
            "histogram_quantile(0.50, sum by (le) (rate(sightline_llm_seconds_bucket[$__rate_interval])))",
            "p50",
        ),
        ("sightline:llm_seconds:p95_5m", "p95"),
    ),
    graph(
        "Tokens",
        "ops",
        "Tokens a second; what the bill is made of.",
        ("sum by (direction) (rate(sightline_llm_tokens_total[$__rate_interval]))", "{{direction}}"),
        stacked=True,
    ),
    graph(
        "Interval",
        "s",
        "Between two summaries of a session, the mean; between SUMMARY_MIN_INTERVAL_S and SUMMARY_MAX_INTERVAL_S.",
        ("max by (instance) (sightline_summary_interval_seconds)", "{{instance}}"),
    ),
    graph(
        "Model left alone",
        "none",
        "1 while the breaker is open.",
        ("max by (instance) (sightline_llm_breaker_open)", "{{instance}}"),
        most=1,
    ),
)

BOARD = Dashboard("Summaries", "The backlog, the summaries and the language model.", (NOW, BACKLOG, MODEL))
