"""The GPU of this host and the TensorRT of this container: what a plan is bound to. Standard library alone.

Runs inside the Triton container, whose Python has neither onnx nor numpy to rely on.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TRTEXEC = Path("/usr/src/tensorrt/bin/trtexec")
"""Where NVIDIA's containers keep it, beside the PATH."""


class Stop(Exception):
    """Nothing was changed; says why, and what to do."""


@dataclass(frozen=True)
class Device:
    """A plan runs where all three are the same, and nowhere else."""

    gpu: str
    """As nvidia-smi names it."""
    capability: str
    """Compute capability, the SM: 8.6."""
    tensorrt: str
    """10.3.0."""

    @property
    def slug(self) -> str:
        """The folder's name: nvidia-a10g-sm86-trt10.3.0."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{gpu}-sm{self.capability.replace('.', '')}-trt{self.tensorrt}"


def here() -> Device:
    """The first GPU that this container sees.

    Raises:
        Stop: no GPU, or no TensorRT.
    """
    return Device(*gpu(), tensorrt())


def gpu() -> tuple[str, str]:
    """Name and compute capability, as nvidia-smi tells them."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        raise Stop(
            "nvidia-smi is not there: this container sees no GPU. Start it with one (compose: the `triton` service's "
            "GPU reservation; needs NVIDIA's container toolkit), or take the `cpu` profile, which needs none"
        ) from None
    first = next(iter(asked.stdout.strip().splitlines()), "")
    name, comma, capability = first.rpartition(",")
    if asked.returncode != 0 or not comma or not re.fullmatch(r"\d+\.\d+", capability.strip()):
        raise Stop(f"nvidia-smi names no GPU: {(asked.stderr or asked.stdout).strip()[-300:] or 'it says nothing'}")
    return name.strip(), capability.strip()


def find_trtexec() -> str | None:
    """The command, from the PATH or where NVIDIA's containers keep it."""
    return shutil.which("trtexec") or (str(TRTEXEC) if TRTEXEC.exists() else None)


def trtexec() -> str:
    """Raises Stop: it is not there."""
    found = find_trtexec()
    if found is None:
        raise Stop(
            f"trtexec is neither in the PATH nor at {TRTEXEC}: build in the full Triton image (…-py3), or in NVIDIA's "
            "TensorRT image of the same release, whose TensorRT is the same"
        )
    return found


def tensorrt() -> str:
    """TensorRT's version: of the first line that trtexec writes, else of its library's name."""
    command = find_trtexec()
    if command is None:
        return library_version(path.name for path in Path("/usr/lib").glob("*/libnvinfer.so.*"))
    try:
        asked = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:
        raise Stop(f"trtexec does not run: {error}") from None
    return version_of(asked.stdout + asked.stderr)


def library_version(names: Iterable[str]) -> str:
    """libnvinfer.so.10.3.0 is 10.3.0; its shorter names are links to it."""
    for name in names:
        if found := re.fullmatch(r"libnvinfer\.so\.(\d+\.\d+\.\d+)", name):
            return found[1]
    raise Stop("no TensorRT here, neither trtexec nor libnvinfer: this runs in the Triton container (…-py3)")


def version_of(banner: str) -> str:
    """`[TensorRT v100300]` is 10.3.0; before TensorRT 10 a place had one digit less: v8601 is 8.6.1."""
    found = re.search(r"\[TensorRT v(\d+)\]", banner)
    if found is None:
        raise Stop(f"trtexec does not say which TensorRT it is; it began: {banner.strip()[:200]!r}")
    number = int(found[1])
    major = 10_000 if number >= 10_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"
