"""`make engine`: TensorRT plans for the GPU of this host, out of what `make models` installed.

    engine.py source    on the host: the ONNX made ready for TensorRT, and its answer about one picture
    engine.py build     in the Triton container: plans, checked against that answer, filed by GPU; then `select`
    engine.py select    in the Triton container: this GPU's plans into the repository, else the ONNX
    engine.py serve     the container's command: `select`, then tritonserver; what follows `--` goes to it

`build`, `select` and `serve` need nothing but Python's standard library, nvidia-smi and trtexec.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from engine_build import build
from engine_device import Device, Stop, here
from engine_files import choose, has_sources, plan_path, sources
from engine_swap import install, install_ensemble, served

TRITON = Path(__file__).resolve().parent


def main() -> int:
    options = _options()
    try:
        if options.command == "source":
            from engine_source import collect  # needs onnx, which only the host has

            for line in collect(options.models, options.engines, options.picture, options.onnx_python):
                print(line)
            return 0
        own = options.command == "serve" and not has_sources(options.engines) and served(options.repository)
        if own:
            print(f"nothing in {options.engines}: {options.repository} is served as it is: {', '.join(own)}")
        else:
            device = here()
            if options.command == "build":
                build_all(options.engines, device, force=options.force)
            select_all(options.engines, device, options.repository)
        if options.command == "serve":
            serve(options.repository, options.arguments)
    except (Stop, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def build_all(engines: Path, device: Device, *, force: bool) -> None:
    """A plan for each model that has none yet for this device."""
    for source in sources(engines):
        plan = plan_path(engines, device, source)
        if not force and choose(engines, device, source).kind == "plan":
            print(f"{source.name}: {plan.name} is there already (FORCE=1 builds it anew)")
            continue
        print(f"{source.name}: building for {device.slug}; this takes some minutes", flush=True)
        build(engines, device, source)
        print(f"{source.name}: {plan}, checked against its ONNX")


def select_all(engines: Path, device: Device, repository: Path) -> None:
    """What fits this device into the repository; Triton takes it at its next start."""
    for source in sources(engines):
        choice = choose(engines, device, source)
        print(f"{source.name}: serves {choice.kind} {install(choice, repository)} ({choice.reason})", flush=True)
    ensemble = engines / "source" / "vision.pbtxt"
    install_ensemble(ensemble.read_text() if ensemble.exists() else None, repository / "vision")


def serve(repository: Path, arguments: list[str]) -> None:
    """Becomes tritonserver: signals and the exit status are its own."""
    server = shutil.which("tritonserver")
    if server is None:
        raise Stop("tritonserver is not in the PATH: `serve` is for the Triton container")
    command = [
        server,
        f"--model-repository={repository}",
        "--model-config-name=installed",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in served(repository)),
        *arguments,
    ]
    sys.stdout.flush()
    os.execv(server, command)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("source", "build", "select", "serve"))
    parser.add_argument("--models", type=Path, default=TRITON / "cpu_repository", help="where make models put them")
    parser.add_argument("--engines", type=Path, default=TRITON / "engines", help="where plans are filed")
    parser.add_argument("--repository", type=Path, default=TRITON / "model_repository", help="what Triton serves")
    parser.add_argument("--picture", type=Path, help="source: a JPEG on which the models find something")
    parser.add_argument(
        "--onnx-python",
        type=Path,
        default=TRITON.parent / ".venv-triton" / "bin" / "python",
        help="source: an interpreter with ONNX Runtime",
    )
    parser.add_argument("--force", action="store_true", help="build: also what is there already")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end])
    options.arguments = given[end + 1 :]
    return options


if __name__ == "__main__":
    sys.exit(main())
