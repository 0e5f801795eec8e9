"""Inference: requests as the service sees them, as Triton sees them, and the GPU beneath."""

from __future__ import annotations

from panels import FPS, Dashboard, figure, graph, row

NOW = row(
    "Now",
    figure(
        "Inference servers up",
        "percentunit",
        "Share of services and workers that reach theirs. Below 100% for a minute: SightlineInferenceDown.",
        ('avg(sightline_inference_up{job=~"backend|fleet-worker"})', "up"),
    ),
    figure(
        "In flight",
        "none",
        "Requests at Triton now; each process keeps to TRITON_MAX_IN_FLIGHT.",
        ("sum(sightline_inference_in_flight)", "in flight"),
    ),
    figure(
        "Frames answered",
        FPS,
        "By the model that answers most.",
        ("max(sum by (model) (rate(sightline_model_frames_total[$__rate_interval])))", "frames"),
    ),
    figure(
        "GPU memory",
        "percentunit",
        "The fullest GPU. Above 88% for five minutes: SightlineVram.",
        ("max(gpu_uuid:nv_gpu_memory:used_share)", "used"),
        warn=0.8,
        bad=0.88,
    ),
    figure("GPU in use", "percentunit", "The mean over all GPUs.", ("avg(nv_gpu_utilization)", "in use")),
    figure(
        "Triton's mean batch",
        "none",
        "Frames in one execution, the model with the largest. 1: nothing is batched.",
        ("max(model:nv_inference_batch_size:mean5m)", "frames"),
    ),
)

SERVICE = row(
    "As the service sees it",
    graph(
        "Frames by model",
        FPS,
        "Frames that each model answered.",
        ("sum by (model) (rate(sightline_model_frames_total[$__rate_interval]))", "{{model}}"),
    ),
    graph(
        "Gate and request, p95",
        "s",
        "gate: waiting for one of TRITON_MAX_IN_FLIGHT places. infer: the request itself. A gate that grows while "
        "infer stands still: Triton takes more, raise TRITON_MAX_IN_FLIGHT.",
        ('entry_stage:sightline_stage_seconds:p95_5m{stage=~"gate|infer"}', "{{stage}}, {{entry}}"),
    ),
    graph(
        "Requests that failed",
        "ops",
        "timeout: none within TRITON_DEADLINE_S. unavailable: no connection. refused: Triton or the model said no.",
        ("sum by (reason) (rate(sightline_inference_errors_total[$__rate_interval]))", "{{reason}}"),
        stacked=True,
    ),
    graph(
        "Frames a request",
        "none",
        "Mean. 1 for live sessions; the fleet sends batches.",
        (
            "sum by (model) (rate(sightline_model_batch_size_sum[$__rate_interval]))"
            " / (sum by (model) (rate(sightline_model_batch_size_count[$__rate_interval])) > 0)",
            "{{model}}",
        ),
    ),
    graph(
        "Faces",
        "ops",
        "Of persons seen, where an `arcface` is served. embedded, or why not: too small, turned away, not sure enough.",
        ("sum by (outcome) (rate(sightline_faces_total[$__rate_interval]))", "{{outcome}}"),
        stacked=True,
    ),
    graph(
        "In flight",
        "none",
        "Requests at Triton.",
        ("sum by (instance) (sightline_inference_in_flight)", "{{instance}}"),
    ),
    graph(
        "Inference server there",
        "none",
        "1 while it answers. In between the service tries again with growing pauses.",
        ('sightline_inference_up{job=~"backend|fleet-worker"}', "{{instance}}"),
        most=1,
    ),
)

TRITON = row(
    "As Triton sees it",
    graph(
        "Inferences and executions",
        "ops",
        "An execution answers a whole batch: the wider apart, the better it batches.",
        ("sum by (model) (rate(nv_inference_count[$__rate_interval]))", "inferences, {{model}}"),
        ("sum by (model) (rate(nv_inference_exec_count[$__rate_interval]))", "executions, {{model}}"),
    ),
    graph(
        "Mean batch",
        "none",
        "Inferences over executions.",
        ("model:nv_inference_batch_size:mean5m", "{{model}}"),
    ),
    graph(
        "Time of a request",
        "s",
        "Means. queue: in Triton's own line, the dynamic batcher's delay among it. compute: in the model.",
        ("model:nv_inference_queue_seconds:mean5m", "queue, {{model}}"),
        ("model:nv_inference_compute_seconds:mean5m", "compute, {{model}}"),
    ),
    graph(
        "Waiting in Triton",
        "none",
        "Requests in its line.",
        ("sum by (model) (nv_inference_pending_request_count)", "{{model}}"),
    ),
    graph(
        "Requests",
        "reqps",
        "Answered, and failed by reason.",
        ("sum by (model) (rate(nv_inference_request_success[$__rate_interval]))", "{{model}}"),
        (
            "sum by (model, reason) (rate(nv_inference_request_failure[$__rate_interval])) > 0",
            "failed, {{model}}, {{reason}}",
        ),
    ),
    graph(
        "Copying in and out, share of a request",
        "percentunit",
        "Time for inputs and outputs over the whole request. Much of it: shared memory is off (TRITON_SHM).",
        (
            "sum by (model) (rate(nv_inference_compute_input_duration_us[5m])"
            " + rate(nv_inference_compute_output_duration_us[5m]))"
            " / (sum by (model) (rate(nv_inference_request_duration_us[5m])) > 0)",
            "{{model}}",
        ),
        most=1,
    ),
)

MACHINE = row(
    "GPU and machine",
    graph("GPU in use", "percentunit", "Share of time.", ("nv_gpu_utilization", "{{gpu_uuid}}"), most=1),
    graph(
        "GPU memory",
        "bytes",
        "It follows batch size and instances, not the number of streams.",
        ("nv_gpu_memory_used_bytes", "used, {{gpu_uuid}}"),
        ("nv_gpu_memory_total_bytes", "there is, {{gpu_uuid}}"),
    ),
    graph(
        "GPU power",
        "watt",
        "At the limit the GPU slows itself down.",
        ("nv_gpu_power_usage", "{{gpu_uuid}}"),
        ("nv_gpu_power_limit", "limit, {{gpu_uuid}}"),
    ),
    graph(
        "CPU and memory of Triton's machine",
        "percentunit",
        "Decoding and flow share this CPU when the service runs on the same machine.",
        ("nv_cpu_utilization", "CPU"),
        ("nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes", "memory"),
        most=1,
    ),
)

BOARD = Dashboard("Inference", "Models: requests, batches, failures, the GPU.", (NOW, SERVICE, TRITON, MACHINE))
