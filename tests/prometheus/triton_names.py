"""Triton's metrics that our expressions use, with their labels.

Names and meaning: Triton's user guide, "Metrics" (docs/user_guide/metrics.md of triton-inference-server/server). Those
that a Triton without a GPU has are also checked against a real one (`test_scraping.py`).
"""

from __future__ import annotations

_MODEL = ("model", "version")
_GPU = ("gpu_uuid",)

ON_ANY_MACHINE: dict[str, tuple[str, ...]] = {
    "nv_inference_request_success": _MODEL,
    "nv_inference_request_failure": (*_MODEL, "reason"),
    "nv_inference_count": _MODEL,
    "nv_inference_exec_count": _MODEL,
    "nv_inference_request_duration_us": _MODEL,
    "nv_inference_queue_duration_us": _MODEL,
    "nv_inference_compute_input_duration_us": _MODEL,
    "nv_inference_compute_infer_duration_us": _MODEL,
    "nv_inference_compute_output_duration_us": _MODEL,
    "nv_inference_pending_request_count": _MODEL,
    "nv_cpu_utilization": (),
    "nv_cpu_memory_total_bytes": (),
    "nv_cpu_memory_used_bytes": (),
}
WITH_A_GPU: dict[str, tuple[str, ...]] = {
    "nv_gpu_utilization": _GPU,
    "nv_gpu_memory_total_bytes": _GPU,
    "nv_gpu_memory_used_bytes": _GPU,
    "nv_gpu_power_usage": _GPU,
    "nv_gpu_power_limit": _GPU,
}
"""DCGM's, which needs a GPU."""
DOCUMENTED = ON_ANY_MACHINE | WITH_A_GPU
