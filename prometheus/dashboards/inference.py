"""Inference: requests as the service measures them, as Triton measures them, and the GPU."""

from __future__ import annotations

from panels import FPS, Dashboard, figure, graph, row

NOW = row(
    "Now",
    figure(
        "Inference servers up",
        "percentunit",
        "Share of services and workers that reach Triton. Below 100% for a minute: SightlineInferenceDown.",
        ('avg(sightline_inference_up{job=~"backend|fleet-worker"})', "up"),
    ),
    figure(
        "In flight",
        "none",
        "Requests at Triton now; TRITON_MAX_IN_FLIGHT limits each process.",
        ("sum(sightline_inference_in_flight)", "in flight"),
    ),
    figure(
        "Frames",
        FPS,
        "Frames of the model that processes most.",
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
        "Frames in one execution, of the model with the largest batches. 1: Triton batches nothing.",
        ("max(model:nv_inference_batch_size:mean5m)", "frames"),
    ),
)

SERVICE = row(
    "As the service measures it",
    graph(
        "Frames by model",
        FPS,
        "Frames that each model processed.",
        ("sum by (model) (rate(sightline_model_frames_total[$__rate_interval]))", "{{model}}"),
    ),
    graph(
        "Gate and request, p95",
        "s",
        "gate: waiting for the inference concurrency limit (TRITON_MAX_IN_FLIGHT). infer: the request itself. If gate "
        "grows and infer does not, Triton has capacity left: raise TRITON_MAX_IN_FLIGHT.",
        ('entry_stage:sightline_stage_seconds:p95_5m{stage=~"gate|infer"}', "{{stage}}, {{entry}}"),
    ),
    graph(
        "Requests that failed",
        "ops",
        "timeout: no answer within TRITON_DEADLINE_S. unavailable: no connection. refused: rejected by Triton.",
        ("sum by (reason) (rate(sightline_inference_errors_total[$__rate_interval]))", "{{reason}}"),
        stacked=True,
    ),
    graph(
        "Frames a request",
        "none",
        "The mean over all requests of a model.",
        (
            "sum by (model) (rate(sightline_model_batch_size_sum[$__rate_interval]))"
            " / (sum by (model) (rate(sightline_model_batch_size_count[$__rate_interval])) > 0)",
            "{{model}}",
        ),
    ),
    graph(
        "Faces",
        "ops",
        "People whose face may get an embedding, if Triton serves `arcface`: embedded, or the reason why not.",
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
        "Inference server up",
        "none",
        "1 while it answers. Otherwise the service reconnects with growing pauses.",
        ('sightline_inference_up{job=~"backend|fleet-worker"}', "{{instance}}"),
        most=1,
    ),
)

TRITON = row(
    "As Triton measures it",
    graph(
        "Inferences and executions",
        "ops",
        "An execution runs a whole batch: the wider apart the two lines, the larger the batches.",
        ("sum by (model) (rate(nv_inference_count[$__rate_interval]))", "inferences, {{model}}"),
        ("sum by (model) (rate(nv_inference_exec_count[$__rate_interval]))", "executions, {{model}}"),
    ),
    graph(
        "Mean batch",
        "none",
        "Inferences divided by executions.",
        ("model:nv_inference_batch_size:mean5m", "{{model}}"),
    ),
    graph(
        "Time of a request",
        "s",
        "Means. queue: in Triton's queue, including the dynamic batcher's delay. compute: in the model.",
        ("model:nv_inference_queue_seconds:mean5m", "queue, {{model}}"),
        ("model:nv_inference_compute_seconds:mean5m", "compute, {{model}}"),
    ),
    graph(
        "Waiting in Triton",
        "none",
        "Requests in Triton's queue.",
        ("sum by (model) (nv_inference_pending_request_count)", "{{model}}"),
    ),
    graph(
        "Requests",
        "reqps",
        "Successful requests, and failed ones by reason.",
        ("sum by (model) (rate(nv_inference_request_success[$__rate_interval]))", "{{model}}"),
        (
            "sum by (model, reason) (rate(nv_inference_request_failure[$__rate_interval])) > 0",
            "failed, {{model}}, {{reason}}",
        ),
    ),
    graph(
        "Copying in and out, share of a request",
        "percentunit",
        "Time for copying inputs and outputs over the whole request's. Large: shared memory is off (TRITON_SHM).",
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
        "It depends on batch size and model instances, not on the number of streams.",
        ("nv_gpu_memory_used_bytes", "used, {{gpu_uuid}}"),
        ("nv_gpu_memory_total_bytes", "total, {{gpu_uuid}}"),
    ),
    graph(
        "GPU power",
        "watt",
        "At its limit the GPU lowers its clock rate.",
        ("nv_gpu_power_usage", "{{gpu_uuid}}"),
        ("nv_gpu_power_limit", "limit, {{gpu_uuid}}"),
    ),
    graph(
        "CPU and memory of Triton's machine",
        "percentunit",
        "If the service runs on the same machine, decoding and optical flow use this CPU as well.",
        ("nv_cpu_utilization", "CPU"),
        ("nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes", "memory"),
        most=1,
    ),
)

BOARD = Dashboard("Inference", "Models: requests, batches, failures, the GPU.", (NOW, SERVICE, TRITON, MACHINE))
