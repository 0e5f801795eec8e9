"""The camera fleet: Redis Streams in, micro-batches, Kafka out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from app.settings.section import Commas, Section, fixed, split

FLEET_STAGES = ("detect", "pose", "face", "track", "motion", "ocr")


class RedisSettings(Section):
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379"),
        description="Redis that carries the frames, may hold a password; by Sentinel "
        "`redis+sentinel://user:password@host:26379,host:26379/service/0`; no Redis Cluster",
    )
    fleet_stream_prefix: str = Field(
        "frames:",
        min_length=1,
        description="a camera's stream is this and its id; another prefix is another fleet, whose keys end in it",
    )
    fleet_group: str = Field("inference-workers", min_length=1, description="consumer group of the workers")


class KafkaSettings(Section):
    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", min_length=1, description="Kafka brokers, `host:port`, comma-separated"
    )
    kafka_topic: str = Field("vision.detections", min_length=1, description="topic of the results, key: camera id")
    kafka_failure_policy: Literal["hold", "ack"] = Field(
        "hold", description="Kafka away: `hold` waits and reads no more, `ack` drops the frames and counts them"
    )
    kafka_options: SecretStr = Field(
        SecretStr("{}"),
        description='further librdkafka options as JSON, `{"security.protocol": "SASL_SSL"}`; may hold a password',
    )


class FleetSettings(Section):
    fleet_mode: Literal["async", "sync"] = Field(
        "async", description="`async`: batches to Triton; `sync`: one frame a request, for models on the CPU"
    )
    fleet_processes: int = Field(1, ge=1, le=64, description="worker processes that `fleet work` starts")
    fleet_profile: Literal["latency", "throughput"] = Field(
        "latency",
        description="`latency`: batches of 4 within 20 ms, towards 16 within 5 ms as lag grows; `throughput`: 16 and 5",
    )
    batch_size: int | None = Field(
        None, ge=1, le=64, description="most frames in a batch, whatever the lag; unset: as FLEET_PROFILE says"
    )
    batch_timeout_ms: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="longest wait of a batch's first frame for others; unset: as FLEET_PROFILE says",
    )
    fleet_stages: Commas = Field(
        ("detect", "pose", "face"),
        description="stages that run on cameras' frames, comma-separated: `detect`, `pose`, `face`, `track`, `motion`, "
        "`ocr`",
    )
    fleet_batches_in_flight: int = fixed(4, ge=1, le=64, description="batches of a worker process at work at once")
    frame_staleness_ms: float = Field(
        2000.0,
        gt=0,
        description="older frames are skipped and counted; from a quarter of it on newer ones of a camera go first; "
        "claimed ones count from their claim",
    )
    fleet_shards: int = fixed(32, ge=1, le=32, description="most shards that a worker's cameras are spread over")
    fleet_threads: int = fixed(8, ge=1, le=64, description="frames that a `sync` worker analyses at once")
    fleet_discover_s: float = Field(
        2.0,
        gt=0,
        description="seconds between two refreshes of cameras and workers; a worker silent for three loses its cameras",
    )
    fleet_reclaim_idle_ms: int = Field(
        60_000,
        ge=100,
        description="milliseconds until frames that another consumer read and never acknowledged are claimed",
    )
    fleet_reclaim_s: float = fixed(
        default_factory=lambda found: found.get("fleet_reclaim_idle_ms", 60_000) / 2000,
        gt=0,
        description="seconds between two checks for frames left pending: half of FLEET_RECLAIM_IDLE_MS",
    )
    fleet_max_deliveries: int = Field(3, ge=2, description="deliveries after which a frame goes to `frames:dead`")
    metrics_port: int = Field(
        8002, ge=0, le=65535, description="port of /metrics and /health of a fleet or segments process; 0: a free one"
    )
    fleet_face_model: str = fixed("arcface", min_length=1, description="Triton model of face embeddings")
    max_sub_batch: int = Field(16, ge=1, le=256, description="most face crops in one request")

    @field_validator("fleet_stages", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return split(value)

    @field_validator("fleet_stages")
    @classmethod
    def _known_stages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(value) - set(FLEET_STAGES):
            raise ValueError(f"out of {', '.join(FLEET_STAGES)}, comma-separated; not {', '.join(sorted(unknown))}")
        return value


class IngestSettings(Section):
    ingest_fps: float = Field(30.0, gt=0, le=240, description="frames a second taken from a camera at most")
    ingest_busy_fps: float = fixed(15.0, gt=0, le=240, description="frames a second once the camera's stream lags")
    ingest_min_fps: float = fixed(1.0, gt=0, le=240, description="least frames a second while the lag grows")
    ingest_maxlen: int = Field(100, ge=1, description="frames of a camera that Redis keeps (MAXLEN ~)")
    ingest_jpeg_quality: int = fixed(80, ge=1, le=100, description="JPEG quality of ingested frames")
    ingest_refresh_s: float = fixed(5.0, gt=0, description="seconds between two reads of the list of sources")
    ingest_reconnect_max_s: float = fixed(30.0, gt=0, description="longest pause before a lost camera is opened again")
