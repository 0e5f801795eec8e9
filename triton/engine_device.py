"""The GPU of this host and the TensorRT version of this container. A plan runs only with the same ones.

Uses only the standard library, because it runs in the Triton container, whose Python may lack onnx and numpy.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TRTEXEC = Path("/usr/src/tensorrt/bin/trtexec")
"""Its path in NVIDIA's containers, which is not in their PATH."""


class Stop(Exception):
    """The command ends without changing anything. The message says why, and what to do."""


@dataclass(frozen=True)
class Device:
    """The properties that must be the same where a plan is built and where it runs."""

    gpu: str
    """The GPU's name, as reported by nvidia-smi."""
    capability: str
    """Compute capability (SM), for example 8.6."""
    tensorrt: str
    """TensorRT's version, for example 10.3.0."""

    @property
    def slug(self) -> str:
        """The name of the folder for this device's plans, for example nvidia-a10g-sm86-trt10.3.0."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{gpu}-sm{self.capability.replace('.', '')}-trt{self.tensorrt}"


def here() -> Device:
    """The first GPU of this container, and its TensorRT.

    Raises:
        Stop: there is no GPU, or no TensorRT.
    """
    return Device(*gpu(), tensorrt())


def gpu() -> tuple[str, str]:
    """The first GPU's name and compute capability, as reported by nvidia-smi.

    Raises:
        Stop: nvidia-smi does not exist, or reports no GPU.
    """
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        raise Stop(
            "nvidia-smi is missing: this container has no GPU. Start it with one (compose: the `triton` service's GPU "
            "reservation; needs NVIDIA's container toolkit), or use the `cpu` profile, which needs none"
        ) from None
    first = next(iter(asked.stdout.strip().splitlines()), "")
    name, comma, capability = first.rpartition(",")
    if asked.returncode != 0 or not comma or not re.fullmatch(r"\d+\.\d+", capability.strip()):
        raise Stop(f"nvidia-smi reports no GPU: {(asked.stderr or asked.stdout).strip()[-300:] or 'no output'}")
    return name.strip(), capability.strip()


def find_trtexec() -> str | None:
    """The path of trtexec, from the PATH or at `TRTEXEC`; None if it is missing."""
    return shutil.which("trtexec") or (str(TRTEXEC) if TRTEXEC.exists() else None)


def trtexec() -> str:
    """The path of trtexec.

    Raises:
        Stop: it is missing.
    """
    found = find_trtexec()
    if found is None:
        raise Stop(
            f"trtexec is neither in the PATH nor at {TRTEXEC}: build in the full Triton image (…-py3), or in NVIDIA's "
            "TensorRT image of the same release, whose TensorRT is the same"
        )
    return found


def tensorrt() -> str:
    """TensorRT's version, from trtexec's output; if trtexec is missing, from the name of TensorRT's library.

    Raises:
        Stop: neither shows the version.
    """
    command = find_trtexec()
    if command is None:
        return library_version(path.name for path in Path("/usr/lib").glob("*/libnvinfer.so.*"))
    try:
        asked = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:
        raise Stop(f"trtexec does not run: {error}") from None
    return version_of(asked.stdout + asked.stderr)


def library_version(names: Iterable[str]) -> str:
    """The version in the library's full name: libnvinfer.so.10.3.0 is 10.3.0. Shorter names are links to it.

    Raises:
        Stop: no name is a full one.
    """
    for name in names:
        if found := re.fullmatch(r"libnvinfer\.so\.(\d+\.\d+\.\d+)", name):
            return found[1]
    raise Stop("no TensorRT here, neither trtexec nor libnvinfer: run this in the Triton container (…-py3)")


def version_of(banner: str) -> str:
    """The version in trtexec's output: `[TensorRT v100300]` is 10.3.0. Before TensorRT 10, `v8601` is 8.6.1.

    Raises:
        Stop: the output contains no version.
    """
    found = re.search(r"\[TensorRT v(\d+)\]", banner)
    if found is None:
        raise Stop(f"trtexec does not say which TensorRT it is; it began: {banner.strip()[:200]!r}")
    number = int(found[1])
    major = 10_000 if number >= 10_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"
