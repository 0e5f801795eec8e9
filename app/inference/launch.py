"""How the embedded Triton is started: what its environment offers, the command line, the variables.

The wheel `nvidia-pytriton` carries the server, the Python backend and one backend process ("stub") for each
Python version. Nothing of its Python package is imported.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from app.errors import ConfigurationError

INSTALL = "`make triton-env` installs it; `make demo` does so by itself"

# Asked of the environment's own interpreter. -I: neither the caller's variables nor its folder leak in.
_PROBE = """
import importlib.util, json, sys, sysconfig
spec = importlib.util.find_spec("pytriton")
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2], "bin": sysconfig.get_path("scripts"),
    "libraries": [sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib"],
    "library": sysconfig.get_config_var("INSTSONAME"),
    "triton": spec and list(spec.submodule_search_locations)[0],
}))
"""


@dataclass(frozen=True, slots=True)
class Ports:
    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """Where `nvidia-pytriton` lies and which Python runs the models."""

    python_version: str
    bin: Path
    python_libraries: tuple[Path, ...]
    """Where its libpython may lie."""
    wheel: Path
    """The wheel's `pytriton/tritonserver`."""

    @property
    def server(self) -> Path:
        return self.wheel / "bin" / "tritonserver"

    @property
    def wheel_libraries(self) -> Path:
        return self.wheel.parent.parent / "nvidia_pytriton.libs"

    @property
    def stub(self) -> Path:
        return self.wheel / "python_backend_stubs" / self.python_version / "triton_python_backend_stub"


def probe(python: Path) -> TritonEnvironment:
    """Asks the environment's interpreter where everything is.

    Raises:
        ConfigurationError: there is no such interpreter, no Triton in it, or none for its version of Python.
    """
    named = f"TRITON_PYTHON={str(python)!r}"
    if not os.access(python, os.X_OK):
        raise ConfigurationError(
            f"{named}: there is no interpreter; the embedded Triton needs an environment of its own "
            f"({INSTALL}). Or set TRITON_URL to the gRPC address of a Triton that runs already"
        )
    asked = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False)
    if asked.returncode != 0:
        raise ConfigurationError(f"{named}: does not run as a Python interpreter: {asked.stderr.strip()[-500:]}")
    found = json.loads(asked.stdout)
    if found["triton"] is None:
        raise ConfigurationError(f"{named}: nvidia-pytriton is not installed there ({INSTALL})")
    environment = TritonEnvironment(
        python_version=found["version"],
        bin=Path(found["bin"]),
        python_libraries=tuple(map(Path, found["libraries"])),
        wheel=Path(found["triton"]) / "tritonserver",
    )
    if not environment.stub.exists():
        known = sorted(path.name for path in environment.stub.parent.parent.glob("3.*"))
        raise ConfigurationError(
            f"{named}: is Python {environment.python_version}; this Triton runs models on {', '.join(known)}"
        )
    library = found["library"] or ""
    if not library.startswith("libpython") or ".so" not in library:
        raise ConfigurationError(
            f"{named}: this interpreter was built without a shared libpython, which Triton's Python backend loads; "
            f"use one built with --enable-shared (Debian: apt install libpython{environment.python_version})"
        )
    return environment


def backend_overlay(environment: TritonEnvironment, folder: Path) -> Path:
    """A backend directory made of links into the wheel, with the stub of the right Python beside the backend.

    The wheel keeps the stubs apart, Triton wants one next to the library; the installed packages stay untouched.
    Safe for several processes at once: built aside, then moved into place.

    Args:
        folder: where it is made; one for each Python version is enough for all instances.
    """
    backend = environment.wheel / "backends" / "python"
    overlay = folder / f"backends-{environment.python_version}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fresh = Path(scratch) / "backends"
        (fresh / "python").mkdir(parents=True)
        for source in (*backend.iterdir(), environment.stub):
            (fresh / "python" / source.name).symlink_to(source.resolve())
        if not _same_links(fresh / "python", overlay / "python"):
            if overlay.exists():
                overlay.rename(Path(scratch) / "old")
            try:
                fresh.rename(overlay)
            except OSError:  # another instance was faster with the same
                if not _same_links(fresh / "python", overlay / "python"):
                    raise
    return overlay


def _same_links(one: Path, other: Path) -> bool:
    def links(folder: Path) -> dict[str, str]:
        paths = folder.iterdir() if folder.is_dir() else ()
        return {path.name: os.readlink(path) for path in paths if path.is_symlink()}

    return links(one) == links(other)


def free_ports() -> Ports:
    """Three free loopback ports. They are free now: whoever uses them must be ready to ask again."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return Ports(*(int(one.getsockname()[1]) for one in sockets))


def models_of(repository: Path) -> tuple[str, ...]:
    """Names of the models to serve: every folder with a configuration, but parts and those set aside.

    A name that begins with `_` is a part of an ensemble and is loaded with it, where one needs it. A file
    `not_served.txt` sets a model aside and says why.

    Raises:
        ConfigurationError: no such folder, or no model in it.
    """
    named = f"TRITON_REPOSITORY={str(repository)!r}"
    if not repository.is_dir():
        raise ConfigurationError(f"{named}: there is no such folder; want a Triton model repository")
    names = sorted(
        folder.name
        for folder in repository.iterdir()
        if not folder.name.startswith(("_", "."))
        and not (folder / "not_served.txt").exists()
        and ((folder / "config.pbtxt").exists() or (folder / "configs").is_dir())
    )
    if not names:
        raise ConfigurationError(f"{named}: no model in it; want folders with a config.pbtxt and a version, as NAME/1/")
    return tuple(names)


def command(environment: TritonEnvironment, repository: Path, backends: Path, ports: Ports, shm: str) -> list[str]:
    """tritonserver's command line: loopback only, every model of the repository loaded by name."""
    return [
        str(environment.server),
        f"--model-repository={repository.resolve()}",
        # What `make models` installed has configs/installed.pbtxt; it wins over the config.pbtxt beside it.
        "--model-config-name=installed",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models_of(repository)),
        "--exit-on-error=true",
        "--exit-timeout-secs=5",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={shm}",
        # Pages are touched as they are used; this is what an idle stub maps, not what it costs.
        f"--backend-config=python,shm-default-byte-size={16 * 1024 * 1024}",
        f"--backend-config=python,shm-growth-byte-size={16 * 1024 * 1024}",
        "--http-address=127.0.0.1",
        f"--http-port={ports.http}",
        "--http-thread-count=1",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={ports.grpc}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={ports.metrics}",
        "--allow-gpu-metrics=false",
    ]


def variables(environment: TritonEnvironment, folder: Path) -> dict[str, str]:
    """The server's whole environment; nothing else is inherited."""
    libraries = (environment.wheel_libraries, *environment.python_libraries)
    return {
        # The backend's interpreter ignores every PYTHON* variable: the python3 found first is its environment.
        "PATH": f"{environment.bin}:{os.defpath}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        # The models bring one process a core; threads beneath them would only fight.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # ONNX Runtime reports home from 1.29 on unless told otherwise.
        "ORT_DISABLE_TELEMETRY": "1",
        # A frame is over glibc's mmap threshold: without this each one is mapped and unmapped anew.
        "MALLOC_MMAP_THRESHOLD_": str(64 * 1024 * 1024),
        "MALLOC_TRIM_THRESHOLD_": str(128 * 1024 * 1024),
    }
