"""Triton, the pipeline and text reading."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from app.settings.section import ROOT, Section, fixed


class TritonSettings(Section):
    triton_url: str | None = Field(
        None, description="`host:port` of a Triton's gRPC; unset: a Triton of its own on the CPU (the embedded one)"
    )
    triton_max_in_flight: int = Field(8, ge=1, le=1024, description="requests in flight over all sessions")
    triton_deadline_s: float = Field(5.0, gt=0, le=600, description="seconds a request may take; a film's has 60")
    triton_shm: Literal["auto", "off", "on"] = Field(
        "auto", description="tensors through shared memory: `auto` tries it, `on` refuses to start without, `off` never"
    )
    triton_detect_model: str = Field("yolo", min_length=1, description="name of the detection model")
    triton_pose_model: str = Field("yolo_pose", min_length=1, description="name of the pose model")
    triton_ensemble: str = Field("vision", description="name of the ensemble over both; unused where it is not served")
    triton_repository: Path = Field(ROOT / "triton" / "cpu_repository", description="models of the embedded Triton")
    triton_python: Path = Field(
        ROOT / ".venv-triton" / "bin" / "python", description="interpreter of the embedded Triton's environment"
    )
    triton_start_timeout_s: float = Field(120.0, gt=0, description="seconds the embedded Triton has to become ready")
    triton_labels: Path | None = Field(
        None, description="class names, one a line, for a detection model that brings none"
    )

    @field_validator("triton_url")
    @classmethod
    def _host_port(cls, value: str | None) -> str | None:
        if value is None or value == "":
            return None
        host, colon, port = value.removeprefix("grpc://").rpartition(":")
        known = colon and host and port.isascii() and port.isdigit()
        if not known or not 1 <= int(port) <= 65535:
            raise ValueError("host:port of Triton's gRPC endpoint, for example 127.0.0.1:8001; ports are 1 to 65535")
        return f"{host}:{port}"


class PipelineSettings(Section):
    confidence: float = Field(0.35, ge=0, le=1, description="least score of a detection, unless a client says")
    iou: float = Field(0.45, ge=0, le=1, description="NMS: boxes that overlap more are one, unless a client says")
    max_detections: int = fixed(300, ge=1, le=3000, description="most detections a frame")
    motion_method: Literal["dis", "farneback"] = Field("dis", description="dense flow: `dis` (fast) or `farneback`")
    decode: Literal["exact", "fast"] = Field(
        "exact",
        description="`exact`: OpenCV's pixels to the level; `fast`: the codec's short cuts, up to 37 levels off",
    )
    decode_budget_ms: float = Field(
        2000.0,
        ge=1,
        le=600_000,
        description="CPU milliseconds that a frame's preparation may take; beyond it `error: too_expensive`",
    )
    exif_orientation: Literal["auto", "on", "off"] = Field(
        "auto",
        description="turn JPEGs as their EXIF says: `auto` only those of POST /v1/frames, `on` live and in fleets too",
    )
    decode_threads: int = fixed(0, ge=0, le=256, description="threads that decode; 0: one a core, two at least")


class OcrSettings(Section):
    ocr: Literal["auto", "on", "off"] = Field(
        "auto", description="text reading: `auto` when its environment is installed, `on` refuses to start without"
    )
    ocr_python: Path = Field(ROOT / ".venv-ocr" / "bin" / "python", description="interpreter of OCR's environment")
    ocr_models: Path | None = Field(
        None, description="folder with `det.onnx` and `rec.onnx` (PaddleOCR); unset: PP-OCRv6 small"
    )
    ocr_min_interval_s: float = Field(1.0, ge=0, description="least seconds between two runs for one stream")
    ocr_change_threshold: float = fixed(
        0.02, ge=0, le=1, description="share of the picture that must have changed since the last run"
    )
    # Of 804 lines of rendered text (sizes, fonts, ways round, noise, blur) 647 are read exactly at 0.6, 646 at 0.8; of
    # lines that are not there 0.6 lets 134 through, 0.7 lets 95, 0.8 lets 58.
    ocr_min_confidence: float = Field(0.8, ge=0, le=1, description="least score of a text")
    ocr_timeout_s: float = Field(20.0, gt=0, description="seconds after which a run is killed")
    ocr_max_runs: int = fixed(500, ge=1, description="runs after which the process is replaced")
    ocr_max_rss_mb: int = Field(1500, ge=100, description="resident memory past which the process is replaced")
