"""Builds plans with trtexec, and stores those whose output agrees with their ONNX. Uses only the standard library."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine_check import compare, read_outputs
from engine_device import Device, Stop, trtexec
from engine_files import Source, file_sidecar, plan_path

MIN, OPT, MAX = 1, 8, 16
"""Batch sizes of the optimisation profile; MAX is the configuration's max_batch_size."""
BUILD_S = 3600
RUN_S = 600


def build(engines: Path, device: Device, source: Source) -> Path:
    """Builds a plan, compares its output for the source's image with the ONNX's, and stores it under the device's name.

    Raises:
        Stop: trtexec failed, or the outputs differ. Nothing is stored then, and an earlier plan stays.
    """
    plan = plan_path(engines, device, source)
    plan.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=plan.parent, prefix=".building-") as scratch:
        fresh = Path(scratch) / plan.name
        _run(build_command(source, fresh, plan.parent / "timing.cache"), BUILD_S, f"{source.name}: the build")
        if not fresh.exists():
            raise Stop(f"{source.name}: trtexec reported success but wrote no plan")
        answer = Path(scratch) / "answer.json"
        _run(ask_command(source, fresh, answer), RUN_S, f"{source.name}: the plan's first run")
        try:
            given = read_outputs(answer)
        except (OSError, ValueError, KeyError) as error:
            raise Stop(f"{source.name}: the plan's output cannot be read: {error}") from None
        wrong = compare(source.head, read_outputs(source.folder / "answer.json"), given)
        if wrong:
            raise Stop(f"{source.name}: the plan's output differs from its ONNX's: {wrong}. The plan is not used")
        file_sidecar(fresh, device, source)
        # The sidecar comes first, because a plan is served only with a sidecar that fits it.
        fresh.with_suffix(".json").replace(plan.with_suffix(".json"))
        fresh.replace(plan)
    return plan


def build_command(source: Source, plan: Path, timing_cache: Path) -> list[str]:
    """The command that builds an FP16 plan with one profile for all batch sizes.

    The timing cache spares trtexec timing again the kernels that it has timed on this device before.
    """
    return [
        trtexec(),
        f"--onnx={source.onnx}",
        f"--saveEngine={plan}",
        "--fp16",
        f"--minShapes={_shape(source, MIN)}",
        f"--optShapes={_shape(source, OPT)}",
        f"--maxShapes={_shape(source, MAX)}",
        f"--timingCacheFile={timing_cache}",
        "--skipInference",
    ]


def ask_command(source: Source, plan: Path, answer: Path) -> list[str]:
    """The command that runs a plan once on the source's image and writes the output as JSON."""
    return [
        trtexec(),
        f"--loadEngine={plan}",
        f"--shapes={_shape(source, 1)}",
        f"--loadInputs={_quoted(source.input)}:{source.folder / 'picture.bin'}",
        f"--exportOutput={answer}",
        "--warmUp=0",
        "--duration=0",
        "--iterations=1",
    ]


def _shape(source: Source, batch: int) -> str:
    return f"{_quoted(source.input)}:{'x'.join(map(str, (batch, *source.shape)))}"


def _quoted(name: str) -> str:
    """The tensor's name for trtexec, in single quotes if it contains a colon, because trtexec splits at colons."""
    return f"'{name}'" if ":" in name else name


def _run(command: Sequence[str], limit_s: float, what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise Stop(f"{what} took longer than {limit_s:g} s") from None
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise Stop(f"{what} failed (trtexec ended with {done.returncode}):\n{tail}")
