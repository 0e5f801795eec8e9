"""A fleet worker for a long time: whether its memory stays as it is, and whether its counts add up in the end.

python -m benchmarks.fleet_soak [--minutes 10] [--rate 100] [--cameras 32] [--output FILE]

`fleet work` as it comes, in a process of its own, on Redis, librdkafka's mock cluster and canned models on Triton. The
slope is that of a straight line through the private resident memory after the first fifth of the time. Memory shared
with Triton is bounded by its budget and left out: how much of it counts as resident is up to the kernel.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
import redis
import typer

from benchmarks import canned, fleet_servers, harness, ledger, memory, photographs
from benchmarks.harness import BenchmarkError

LOOK_S = 2.0
MIB = 2**20


@contextmanager
def filming(url: str, clips: Sequence[Sequence[bytes]], cameras: int, rate: float) -> Iterator[None]:
    """Cameras that write as ingest does, `rate` frames a second in all, while the block lasts."""
    ended = threading.Event()

    def run() -> None:
        with redis.Redis.from_url(url) as client:
            names = [f"cam{number:03}" for number in range(cameras)]
            client.sadd("fleet:cameras", *names)
            began, number = time.monotonic(), 0
            while not ended.wait(0.02):
                pipe = client.pipeline(transaction=False)
                while number < (time.monotonic() - began) * rate:
                    name, clip = names[number % cameras], clips[number % cameras % len(clips)]
                    now = f"{time.time() * 1000:.3f}"
                    fields = {"camera_id": name, "camera_type": "bench", "ingest_ts": now, "captured_at_ms": now}
                    picture = clip[number // cameras % len(clip)]
                    pipe.xadd(f"frames:{name}", {**fields, "frame": picture}, maxlen=100, approximate=True)  # type: ignore[dict-item]
                    number += 1
                pipe.execute()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def port_of(log: Path) -> int | None:
    """Where the worker says that its metrics are, once it does."""
    found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/", log.read_text(errors="replace"))
    return int(found[1]) if found else None


def soak(minutes: float, rate: float, cameras: int) -> dict[str, object]:
    """Runs it; everything that was measured.

    Raises:
        BenchmarkError: something did not start, or a frame is unaccounted for.
    """
    places = harness.cores()
    with tempfile.TemporaryDirectory(prefix="sightline-soak-") as name, ExitStack() as stack:
        folder = Path(name)
        clips = photographs.read(photographs.write(folder / "frames", 8))
        url = stack.enter_context(fleet_servers.redis_server(folder, places.load))
        kafka = stack.enter_context(fleet_servers.kafka(folder, places.load))
        triton, _ = stack.enter_context(
            harness.triton(canned.write(folder / "repository"), folder / "triton", places.triton)
        )
        settings = {"REDIS_URL": url, "KAFKA_BOOTSTRAP_SERVERS": kafka, "TRITON_URL": triton, "METRICS_PORT": "0"}
        settings["STATE_DIR"] = str(folder / "state")
        log = folder / "work.log"
        child = stack.enter_context(harness.process(["app", "fleet", "work"], places.tested, log, **settings))
        deadline = time.monotonic() + harness.START_S
        while (port := port_of(log)) is None:
            harness.check(child, log, deadline)
            time.sleep(0.1)
        looks: list[tuple[float, float]] = []
        began, last = time.monotonic(), minutes * 60
        with filming(url, clips, cameras, rate):
            while (at := time.monotonic() - began) < last:
                time.sleep(LOOK_S)
                harness.check(child, log, began + 2 * last + 60)
                if at > memory.WARM_UP * last:
                    looks.append((at, memory.resident([child.pid])[1] / MIB))
        time.sleep(3)  # what is in flight comes in, and is written to the metrics
        final = ledger.read(f"http://127.0.0.1:{port}", "fleet")
        if not final.adds_up:
            raise BenchmarkError(f"the counts do not add up: {final}")
        said = log.read_text(errors="replace").splitlines()
    mib = [one for _, one in looks]
    return {
        "benchmark": "fleet_soak",
        "machine": harness.machine(),
        "plan": {"minutes": minutes, "rate": rate, "cameras": cameras},
        "private_mib": {"first": mib[0], "last": mib[-1], "least": min(mib), "most": max(mib)},
        "slope_mib_per_hour": memory.slope(looks) * 3600,
        "frames": asdict(final),
        "looks": looks,
        "log": said[-100:],
    }


def main(
    minutes: Annotated[float, typer.Option(min=0.2, help="How long.")] = 10.0,
    rate: Annotated[float, typer.Option(min=1, help="Frames a second, all cameras together.")] = 100.0,
    cameras: Annotated[int, typer.Option(min=1, help="How many.")] = 32,
    output: Annotated[Path | None, typer.Option(help="A file for everything measured, as JSON.")] = None,
) -> None:
    """Prints the slope of the worker's memory."""
    found = soak(minutes, rate, cameras)
    private, frames = found["private_mib"], found["frames"]
    assert isinstance(private, dict)
    assert isinstance(frames, dict)
    typer.echo(
        f"{minutes:g} minutes, {frames['processed']:,.0f} of {frames['received']:,.0f} frames answered: "
        f"{private['first']:.1f} MiB, in the end {private['last']:.1f} "
        f"({private['least']:.1f} to {private['most']:.1f}), "
        f"slope {found['slope_mib_per_hour']:+.1f} MiB an hour"
    )
    if output is not None:
        output.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    typer.run(main)
