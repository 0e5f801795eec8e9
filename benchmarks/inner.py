"""The process of one variant of a benchmark that is a plain loop: repeats one step, and measures.

    python -m benchmarks.inner frame_path ours --frames FOLDER --warm-up 0.4 --seconds 0.8

The module named has `work(variant, clips)`, which gives the step and what is known before it is timed. Prints one
JSON object: the figures of one turn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time

from benchmarks import harness, photographs
from benchmarks.turns import Figures

Work = tuple[Callable[[int], object], Figures]
"""The step that is repeated, called with the number of its earlier runs, and figures that are not times."""


def timed(step: Callable[[int], object], warm_up_s: float, seconds: float) -> Figures:
    """CPU and wall microseconds, page faults a step; the median and the 99th percentile of a step."""
    count = _repeat(step, 0, warm_up_s, [])
    walls: list[float] = []
    before, cpu, began = resource.getrusage(resource.RUSAGE_SELF), process_time(), perf_counter()
    done = _repeat(step, count, seconds, walls) - count
    cpu, wall, after = process_time() - cpu, perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    walls.sort()
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    return {
        "cpu_us": cpu / done * 1e6,
        "wall_us": wall / done * 1e6,
        "p50_us": walls[len(walls) // 2] * 1e6,
        "p99_us": walls[int(0.99 * (len(walls) - 1))] * 1e6,
        "faults": faults / done,
        "steps": done,
    }


def _repeat(step: Callable[[int], object], count: int, seconds: float, walls: list[float]) -> int:
    now = perf_counter()
    over = now + seconds
    while now < over:
        step(count)
        count += 1
        then, now = now, perf_counter()
        walls.append(now - then)
    return count


def ask(benchmark: str, variant: str, plan: object, frames: Path | None = None) -> Figures:
    """The figures of one turn, measured in a fresh process on the core for what is tested.

    Raises:
        BenchmarkError: it failed.
    """
    warm_up_s, seconds = (float(getattr(plan, name)) for name in ("warm_up_s", "seconds"))
    arguments = ["benchmarks.inner", benchmark, variant, f"--warm-up={warm_up_s}", f"--seconds={seconds}"]
    arguments += [f"--frames={frames}"] if frames else []
    return harness.answer(arguments, harness.cores().tested, 90 + 5 * (warm_up_s + seconds))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark")
    parser.add_argument("variant")
    parser.add_argument("--frames", type=Path, help="folder of clips")
    parser.add_argument("--warm-up", type=float, default=0.4)
    parser.add_argument("--seconds", type=float, default=0.8)
    options = parser.parse_args(arguments)
    module = importlib.import_module(f"benchmarks.{options.benchmark}")
    clips = photographs.read(options.frames) if options.frames else []
    step, known = module.work(options.variant, clips)
    json.dump({**timed(step, options.warm_up, options.seconds), **known}, sys.stdout)


if __name__ == "__main__":
    main()
